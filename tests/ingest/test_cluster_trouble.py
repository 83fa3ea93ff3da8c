"""What is wrong with a cluster is one line, at once: the address, the workers, what they see."""

import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from distributed import Client, LocalCluster

from fusmae_ingest import cluster as subject

from .stopping import told
from .trees import tree

OPTIONS = ("--samples-per-shard", "2")
DASK = (sys.executable, "-m", "dask")

StartCluster = Callable[..., tuple[str, list[subprocess.Popen]]]


@pytest.fixture
def start_cluster(tmp_path) -> Iterator[StartCluster]:
    """Starts a scheduler and one worker, two processes: `(address, [scheduler, worker])`.

    `worker` is what to put before the worker's command, `environment` what it gets besides.
    """
    started: list[subprocess.Popen] = []

    def begin(command: list[str], environment: dict[str, str]) -> subprocess.Popen:
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env={**os.environ, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        started.append(process)
        return process

    def run(worker=(), environment=None) -> tuple[str, list[subprocess.Popen]]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        address = f"tcp://127.0.0.1:{port}"
        options = ["--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
        one = begin([*DASK, "scheduler", *options], {})
        options = ["--nthreads", "1", "--no-nanny", "--no-dashboard"]
        two = begin([*worker, *DASK, "worker", address, *options], environment or {})
        with Client(address) as client:
            client.wait_for_workers(1, timeout=60)
        return address, [one, two]

    yield run
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def empty() -> Iterator[LocalCluster]:
    """A scheduler without workers."""
    with LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address=None) as made:
        yield made


def refused(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 1, result.stderr
    return told(result.stderr)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("tcp://127.0.0.1:9", "no Dask scheduler there (Connection refused): start one with"),
        ("tcp://nowhere.invalid:9", "no Dask scheduler there (no host nowhere.invalid): start"),
        ("nonsense", "expected an address such as tcp://host:8786"),
        ("tcp://host:port", "expected an address such as tcp://host:8786"),
    ],
)
def test_an_address_without_a_scheduler_is_one_line(
    archive_v1, fusmae_ingest, paths, tmp_path, address, reason
):
    out = ("--out", tmp_path / "d", "--scheduler", address)
    result = fusmae_ingest("bigearthnet", *paths(archive_v1), *out)
    assert f"--scheduler {address}: {reason}" in refused(result)


@pytest.mark.parametrize(
    "greeting", [b"", b"SSH-2.0-OpenSSH_9.2p1\r\n", bytes(64)], ids=["silent", "ssh", "zeros"]
)
def test_what_listens_and_is_no_scheduler_is_told_within_seconds(greeting, monkeypatch):
    monkeypatch.setattr(subject, "_ANSWER_S", 1)
    open_ends = []

    def greet(listener: socket.socket) -> None:
        while True:
            open_ends.append(listener.accept()[0])
            open_ends[-1].sendall(greeting)

    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=greet, args=(listener,), daemon=True).start()
    place = f"127.0.0.1:{listener.getsockname()[1]}"
    began = time.monotonic()
    with pytest.raises(ValueError, match=f"{place} answers but is no Dask scheduler"):
        subject.check_scheduler(f"tcp://{place}")
    assert time.monotonic() - began < 10


def test_a_scheduler_passes_its_check_and_a_worker_does_not(empty):
    subject.check_scheduler(empty.scheduler_address)
    with LocalCluster(
        n_workers=1, processes=False, protocol="tcp", host="127.0.0.1", dashboard_address=":0"
    ) as other:
        (worker,) = other.scheduler.workers
        with pytest.raises(ValueError, match="no Dask scheduler: it is a Worker"):
            subject.check_scheduler(worker)


def test_without_dask_the_extra_to_install_is_named(archive_v1, paths, tmp_path):
    code = (
        "import sys; sys.modules['distributed'] = None; from fusmae_ingest import cli; cli.main()"
    )
    args = ("--out", tmp_path / "d", "--scheduler", "tcp://127.0.0.1:9")
    command = [sys.executable, "-c", code, "bigearthnet", *paths(archive_v1), *args]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "pip install 'fusmae[cluster]'" in refused(result)


def test_workers_that_are_not_there_are_told_at_once_and_again_until_one_comes(
    empty, monkeypatch, capsys
):
    monkeypatch.setattr(subject, "_SAY_AGAIN_S", 0.3)
    address = empty.scheduler_address
    with Client(address) as client:
        waiting = client.submit(abs, -3)
        timer = threading.Timer(1, empty.scale, [1])
        timer.start()
        (ended,) = subject._as_they_end(client, address, [waiting])
        assert ended.result() == 3
        timer.join()
    empty.scale(0)
    told = f"no worker at {address}; waiting for one (`dask worker {address}` starts it)"
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 2 and set(lines) == {told}


def test_a_scheduler_that_dies_is_one_line_and_a_rerun_goes_on(
    start_cluster, archive_v1, fusmae_ingest, paths, tmp_path
):
    args = ("bigearthnet", *paths(archive_v1), *OPTIONS)
    assert fusmae_ingest(*args, "--out", tmp_path / "serial").returncode == 0
    address, (scheduler, worker) = start_cluster()
    out = tmp_path / "d"
    command = [sys.executable, "-m", "fusmae_ingest.cli", *map(str, args), "--out", str(out)]
    process = subprocess.Popen(
        [*command, "--scheduler", address], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not list(out.glob(".ingest/blocks/*")):
        assert time.monotonic() < deadline and process.poll() is None
    # So that no block ends meanwhile.
    worker.send_signal(subprocess.signal.SIGSTOP)
    scheduler.kill()
    _, stderr = process.communicate(timeout=60)
    line = refused(subprocess.CompletedProcess((), process.returncode, "", stderr))
    assert f"--scheduler {address} is gone" in line
    num_done = len(list(out.glob(".ingest/blocks/*")))
    assert num_done < len(list((tmp_path / "serial").glob("shards/*/*.tar")))
    worker.kill()
    address, _ = start_cluster()
    result = fusmae_ingest(*args, "--out", out, "--scheduler", address)
    assert result.returncode == 0, result.stderr
    assert tree(out) == tree(tmp_path / "serial")


@pytest.mark.parametrize("hidden", ["archive", "out"])
def test_a_worker_that_does_not_see_a_folder_is_named_with_it(
    start_cluster, archive_v1, fusmae_ingest, paths, tmp_path, hidden
):
    out = tmp_path / "parent" / "d"
    out.parent.mkdir()
    place = {"archive": archive_v1, "out": out.parent}[hidden]
    # The worker has an empty disk in the folder's place.
    user = () if os.geteuid() == 0 else ("--map-root-user",)
    script = f'mount -t tmpfs tmpfs {shlex.quote(str(place))} && exec "$@"'
    wrapped = ("unshare", "--mount", *user, "sh", "-c", script, "sh")
    try:
        subprocess.run([*wrapped, "true"], check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a disk for one process")
    address, _ = start_cluster(worker=wrapped)
    args = ("--out", out, *OPTIONS, "--scheduler", address)
    line = refused(fusmae_ingest("bigearthnet", *paths(archive_v1), *args))
    seen = {"archive": f"does not see {archive_v1}/", "out": f"does not see --out {out}: {out}/"}
    assert f"on host {socket.gethostname()} {seen[hidden]}" in line


def test_a_worker_without_this_package_is_named(
    start_cluster, archive_v1, fusmae_ingest, paths, tmp_path
):
    block = "import sys\nsys.modules['fusmae_ingest'] = None\n"
    (tmp_path / "sitecustomize.py").write_text(block)
    address, _ = start_cluster(environment={"PYTHONPATH": str(tmp_path)})
    args = ("--out", tmp_path / "d", *OPTIONS, "--scheduler", address)
    line = refused(fusmae_ingest("bigearthnet", *paths(archive_v1), *args))
    assert f"worker on host {socket.gethostname()}: " in line and "same environment" in line


def test_a_system_error_on_a_worker_names_the_worker(
    start_cluster, archive_v1, fusmae_ingest, paths, tmp_path
):
    def fill_the_disk() -> None:
        import errno

        from fusmae_ingest import cluster_worker

        def convert(job):
            raise OSError(errno.ENOSPC, "No space left on device", "a/file")

        cluster_worker.convert = convert

    address, _ = start_cluster()
    with Client(address) as client:
        client.run(fill_the_disk)
    args = ("--out", tmp_path / "d", *OPTIONS, "--scheduler", address)
    line = refused(fusmae_ingest("bigearthnet", *paths(archive_v1), *args))
    assert "a/file: No space left on device (on worker tcp://127.0.0.1:" in line
