"""A Dask cluster of two worker processes on the loopback, which can be stopped in their blocks."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from distributed import Client, LocalCluster


def two_workers() -> LocalCluster:
    return LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address=None,
    )


def workers_of(cluster) -> list[int]:
    return [worker.process.process.pid for worker in cluster.workers.values() if worker.process]


def wait_until(condition: Callable[[], object], process: subprocess.Popen | None = None) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process is None or process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def hold_blocks(client: Client, gate: Path, num_free: int) -> None:
    """Each worker stops in its block after the first `num_free`, its pixels read and nothing
    written, says so with a file `gate/PID`, and goes on when there is `gate/open`."""
    gate.mkdir()

    def install(gate: str, num_free: int) -> None:
        import os
        import time
        from pathlib import Path

        from fusmae_ingest import convert

        read, left = convert._read, [num_free]

        def held(*args):
            result = read(*args)
            left[0] -= 1
            if left[0] < 0:
                Path(gate, str(os.getpid())).touch()
                while not Path(gate, "open").exists():
                    time.sleep(0.01)
            return result

        convert._read = held

    client.run(install, str(gate), num_free)


def start(*args: object, cwd: Path | None = None) -> subprocess.Popen:
    command = [sys.executable, "-m", "fusmae_ingest.cli", *map(str, args)]
    return subprocess.Popen(command, cwd=cwd, stderr=subprocess.PIPE, text=True)
