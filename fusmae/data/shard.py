"""An open shard: bytes at offsets into given buffers, or an error that names the file."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusmae.manifest import ShardRecord

# A quarter of the 1,024 files that Linux lets a process open by default.
OPEN_SHARDS = 256
# An open shard is looked at this often: a system call a sample would be 3 % of a read.
_CHECK_EVERY_S = 1.0


class OpenShard:
    """An open shard. Closed when the last thread that uses it lets go of it."""

    def __init__(self, path: Path, record: ShardRecord) -> None:
        self.path = path
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self.fd = -1
            raise ValueError(f"cannot open shard {path}: {error.strerror}") from None
        status = os.fstat(self.fd)
        self.version = status.st_ino, status.st_mtime_ns
        self._next_check_s = 0.0
        if status.st_size != record.bytes:
            raise ValueError(
                f"shard {path} has {status.st_size} bytes, its manifest says {record.bytes}: "
                "the file is truncated or from another dataset; copy it again"
            )

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)

    def check_unchanged(self, now_s: float) -> None:
        """Raises ValueError if the file was written to since it was opened; looks once a second."""
        if now_s >= self._next_check_s:
            self._next_check_s = now_s + _CHECK_EVERY_S
            if os.fstat(self.fd).st_mtime_ns != self.version[1]:
                raise ValueError(replaced(self.path))

    def read(self, buffers: Sequence[Any], num_bytes: int, offset: int) -> None:
        """Fill `buffers`, `num_bytes` in all, from byte `offset` on."""
        try:
            read = os.preadv(self.fd, buffers, offset)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from None
        if read != num_bytes:
            raise ValueError(
                f"shard {self.path} ends early: {read} of {num_bytes} bytes at byte {offset}; "
                "it was truncated or replaced while it was open"
            )


def replaced(path: Path) -> str:
    """The message about a shard that is not the one that it was."""
    return (
        f"shard {path} was replaced or written to while its dataset was being read: "
        "check the dataset with fusmae-ingest verify, then start again"
    )
