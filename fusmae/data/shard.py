"""An open shard: bytes at offsets into given buffers, or an error that names the file."""

import errno
import os
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusmae.manifest import REPAIR, ShardRecord

# What a process asks of the system for its files, if its shards are many: Linux lets it open
# 1,024 by default, but most have more for the asking. A reader keeps an eighth of it open.
_FILES, _PART_KEPT = 8192, 8
# What tells a file from another in its place, and from itself before somebody wrote to it:
# device, inode, bytes, time of the last write in ns.
Version = tuple[int, int, int, int]


def most_open(num_shards: int) -> int:
    """How many shards a reader of so many keeps open: all, if the system allows as much.

    Shuffled samples of a shard that is closed cost another opening, a fifth of their time from a
    hot cache (docs/LOG.md) and a round trip from a network's disk.
    """
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit // _PART_KEPT < num_shards and limit < _FILES:
        limit = min(_FILES, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
    return max(1, min(num_shards, limit // _PART_KEPT))


def version_at(path: Path) -> Version | None:
    """The version of a file; None where there is none."""
    try:
        return _version(path.stat())
    except OSError:
        return None


def _version(status: os.stat_result) -> Version:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class OpenShard:
    """An open shard. Closed when the last thread that uses it lets go of it."""

    def __init__(self, path: Path, record: ShardRecord) -> None:
        self.path = path
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self.fd = -1
            advice = f": {REPAIR}" if isinstance(error, FileNotFoundError) else ""
            if error.errno == errno.EMFILE:
                advice = ": raise `ulimit -n`, or close loaders and views that are not needed"
            raise ValueError(f"cannot open shard {path}: {error.strerror}{advice}") from None
        status = os.fstat(self.fd)
        self.version = _version(status)
        self._written_ns = status.st_mtime_ns
        if status.st_size != record.bytes:
            raise ValueError(
                f"shard {path} has {status.st_size} bytes, its manifest says {record.bytes}: "
                f"the file is truncated or from another dataset; {REPAIR}"
            )

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)

    def read(self, buffers: Sequence[Any], num_bytes: int, offset: int) -> None:
        """Fill `buffers`, `num_bytes` in all, from byte `offset` on."""
        done, rest = 0, buffers
        try:
            # At once, but for file systems that may give less than there is.
            while (read := os.preadv(self.fd, rest, offset + done)) and done + read < num_bytes:
                done += read
                rest = _after(buffers, done)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from None
        done += read
        if done != num_bytes:
            raise ValueError(
                f"shard {self.path} ends early: {done} of {num_bytes} bytes at byte {offset}; "
                "it was truncated or replaced while it was open"
            )

    def check_unchanged(self) -> None:
        """Raises ValueError if what was read before may be newer than the opening.

        A write sets the time first and the bytes then, so this comes after the reading.
        """
        if os.fstat(self.fd).st_mtime_ns != self._written_ns:
            raise ValueError(replaced(self.path))


def _after(buffers: Sequence[Any], num_bytes: int) -> list[memoryview]:
    """What follows the first bytes of the buffers."""
    rest = []
    for buffer in buffers:
        view = memoryview(buffer).cast("B")
        rest.append(view[num_bytes:])
        num_bytes = max(0, num_bytes - len(view))
    return rest


def replaced(path: Path) -> str:
    """The message about a shard that is not the one that it was."""
    return (
        f"shard {path} was replaced or written to while its dataset was being read: "
        "check the dataset with fusmae-ingest verify, then start again"
    )
