"""A file of a cache and what may stand beside it: its unfinished self, or why it is not there."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# A file being fetched, of its full size from the start, and why a file could not be fetched.
PART, BAD = ".part", ".bad"


@dataclass(frozen=True)
class CachedFile:
    """A file that belongs at `path`, inside the cache's folder."""

    path: Path
    bytes: int


def why_bad(path: Path) -> str | None:
    """Why a settled file could not be fetched; None if it is there."""
    try:
        return beside(path, BAD).read_text()
    except FileNotFoundError:
        return None


def is_settled(path: Path) -> bool:
    return path.exists() or beside(path, BAD).exists()


def has_part(file: CachedFile) -> bool:
    return size_of(beside(file.path, PART)) == file.bytes


def beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def stat_of(path: Path) -> tuple[int, int]:
    """When a file was last written, in ns, and its size; zeros once it is gone."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return 0, 0
    return status.st_mtime_ns, status.st_size


def size_of(path: Path) -> int:
    return stat_of(path)[1]


@contextmanager
def disk_named(path: Path) -> Iterator[None]:
    """An OSError names the file that is written and says what to do."""
    try:
        yield
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        repair = "free room there, lower data.cache_gb or " if is_full else ""
        told = f"{error.strerror}: {repair}choose another --cache"
        raise OSError(error.errno, told, str(path)) from None
