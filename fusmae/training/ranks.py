"""Which rank this process is, when it should stop, and who started it."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

# Set by the deepspeed launcher for its ranks, and by nobody else.
_LAUNCHER_MARK = "CROSS_SIZE"

_BLOCKED = {signal.SIGTERM, signal.SIGUSR1}


class RankError(ValueError):
    """An error that only this rank has met, so it must tell it itself."""


@contextmanager
def on_this_rank(rank: int) -> Iterator[None]:
    """Whose errors are this rank's alone: what it reads, others do not.

    Raises:
        RankError: for an OSError or a ValueError inside.
    """
    try:
        yield
    except RankError:
        raise
    except (OSError, ValueError) as error:
        raise RankError(f"rank {rank}: {error}") from error


@dataclass(frozen=True)
class Ranks:
    """This process among all, and among those of its machine."""

    rank: int
    local_rank: int
    world_size: int
    local_size: int


def ranks_from_environment() -> Ranks:
    """What the launcher (deepspeed, torchrun) says; alone, for plain `python`.

    For plain `python` it also sets what torch.distributed reads, with a free port.
    """
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ.update(
            RANK="0",
            LOCAL_RANK="0",
            WORLD_SIZE="1",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
    environ = os.environ
    world_size = int(environ["WORLD_SIZE"])
    local_size = environ.get("LOCAL_SIZE") or environ.get("LOCAL_WORLD_SIZE") or world_size
    return Ranks(
        int(environ["RANK"]), int(environ.get("LOCAL_RANK", 0)), world_size, int(local_size)
    )


class StopRequest:
    """Turns SIGTERM, SIGUSR1 and SIGINT into a flag, and watches the launcher.

    A second SIGINT interrupts at once. SIGTERM to the `deepspeed` command kills only that
    command: neither its launcher nor any rank is told (DeepSpeed 0.19.8), so a rank that
    finds its parent or grandparent gone counts that as SIGTERM.

    SIGTERM and SIGUSR1 are blocked as well, which child processes inherit: `timeout`, SLURM and
    DeepSpeed's launcher signal all processes of a run, and torch's compile workers, which only
    know of SIGINT, would die under the rank that waits for them.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._lineage = _lineage() if _LAUNCHER_MARK in os.environ else None
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._handle)
        signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def requested(self) -> bool:
        """Whether this rank has been asked to stop, or its launcher is gone."""
        # A thread that is older than the block takes the signal to the handler, or none does.
        if self._signal is not None or signal.sigpending() & _BLOCKED:
            return True
        return self._lineage is not None and _lineage() != self._lineage


def _lineage() -> tuple[int, int]:
    """Process ids of the parent and the grandparent, 0 for a grandparent that is unknown."""
    parent = os.getppid()
    try:
        stat = Path(f"/proc/{parent}/stat").read_text()
    except OSError:
        return parent, 0
    # The name in parentheses may hold anything; the state and the parent's id follow it.
    return parent, int(stat.rpartition(")")[2].split()[1])
