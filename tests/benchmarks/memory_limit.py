"""A command under a memory limit that counts the page cache, by a cgroup of its own."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_PATIENCE_S = 5.0


class CannotLimitError(Exception):
    """This machine lets this user make no memory cgroup."""


@dataclass(frozen=True)
class _Cgroup:
    """This process's memory cgroup: its folder, and the names of its files of each version."""

    folder: Path
    limit: str
    peak: str
    events: str


def _own() -> _Cgroup:
    unified = "/"
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            folder = Path("/sys/fs/cgroup/memory" + path)
            return _Cgroup(
                folder, "memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control"
            )
        if not controllers:
            unified = path
    return _Cgroup(Path("/sys/fs/cgroup" + unified), "memory.max", "memory.peak", "memory.events")


@contextmanager
def memory_limit(num_bytes: int) -> Iterator[Path]:
    """A new cgroup, whose processes and the files that they read hold at most `num_bytes`.

    Raises:
        CannotLimitError: it cannot be made here; the message says why.
    """
    own = _own()
    folder = own.folder / f"loader-benchmark-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        raise CannotLimitError(f"cannot make a cgroup: {error.strerror}") from None
    try:
        try:
            (folder / own.limit).write_text(str(num_bytes))
        except OSError as error:
            raise CannotLimitError(f"cannot set {own.limit}: {error.strerror}") from None
        yield folder
    finally:
        _empty(folder)
        folder.rmdir()


def _empty(folder: Path) -> None:
    """Wait for workers whose parent was killed; end those that wait for it in vain.

    Nothing is in the cgroup but what `run_inside` has started there.
    """
    deadline_s = time.monotonic() + _PATIENCE_S
    while members := (folder / "cgroup.procs").read_text().split():
        if time.monotonic() > deadline_s:
            for pid in members:
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.05)


def peak_bytes(folder: Path) -> int:
    """The most that the cgroup has held, the page cache of what it read included."""
    return int((folder / _own().peak).read_text())


def num_killed(folder: Path) -> int:
    """Processes that the kernel has killed because the cgroup was full."""
    lines = (folder / _own().events).read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


def run_inside(folder: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command in the cgroup; all that it starts stays there."""
    shell = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(folder / "cgroup.procs")]
    return subprocess.run([*shell, *command], capture_output=True, text=True)
