"""Patches of a tar, read where they lie by its index.

The place of the loose files of an extracted archive: a `TarPatch` goes to a worker process,
which opens the tar and maps the index once.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .tar_index import MEMBERS, PATCHES, Head, read_head, spelled

# How many times the files' own bytes one read may take. Headers between the files are 2 % to
# 10 %; files of other patches between them are what makes a read of the whole too long.
_MAX_SPAN = 2


@dataclass(frozen=True)
class IndexedTar:
    """A tar, its index, and what the tar was when it was indexed: size in bytes and time."""

    tar: str
    index: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class TarPatch:
    """One patch of a tar. Small and picklable; nothing is opened before the first read."""

    archive: IndexedTar
    name: str
    first: int
    num_files: int

    @property
    def position(self) -> int:
        """Sorts patches as their archive does."""
        return self.first

    def read(self, file_name: str) -> bytes:
        """The bytes of one file.

        Raises:
            ValueError: the patch has no such file, or the tar has changed.
        """
        opened = _open(self.archive)
        own = file_name.startswith(self.name)
        key = file_name[len(self.name) :] if own else f"/{file_name}"
        for offset, size, number in self._rows(opened):
            if opened.file_names[number] == key:
                return opened.read(offset, size)
        raise ValueError(f"{self.name}/{file_name} is missing in {self.archive.tar}")

    def read_all(self) -> dict[str, memoryview]:
        """All files, name -> bytes; in one read where they lie together, as they mostly do.

        Raises:
            ValueError: the tar has changed.
        """
        opened = _open(self.archive)
        rows = self._rows(opened)
        begin = min(row[0] for row in rows)
        span = max(row[0] + row[1] for row in rows) - begin
        if span <= _MAX_SPAN * sum(row[1] for row in rows):
            whole = memoryview(opened.read(begin, span))
            parts = [whole[row[0] - begin : row[0] - begin + row[1]] for row in rows]
        else:
            parts = [memoryview(opened.read(row[0], row[1])) for row in rows]
        names = [spelled(opened.file_names[row[2]], self.name) for row in rows]
        return dict(zip(names, parts, strict=True))

    def _rows(self, opened: "_Opened") -> list[tuple[int, int, int]]:
        rows: list[tuple[int, int, int]] = opened.members[
            self.first : self.first + self.num_files
        ].tolist()
        return rows


class TarArchive:
    """A tar and its index: which patches there are, in the archive's order."""

    def __init__(self, tar: Path, index: Path) -> None:
        """Raises ValueError: the index is not whole, or is not of this tar."""
        head = read_head(index)
        if head is None or not head.is_of(tar):
            raise ValueError(f"{index} is not the index of {tar} as it is now: index it again")
        self._index = index
        self._archive = IndexedTar(str(tar), str(index), head.size, head.mtime_ns)

    def patches(self) -> Sequence[str]:
        """The names of all folders that hold files, in the archive's order."""
        return list(self._patches)

    def patch(self, name: str) -> TarPatch:
        """Raises ValueError: there is no such patch."""
        if name not in self._patches:
            raise ValueError(f"{name} is missing in {self._archive.tar}")
        return TarPatch(self._archive, name, *self._patches[name])

    def __contains__(self, name: str) -> bool:
        return name in self._patches

    @cached_property
    def _patches(self) -> dict[str, tuple[int, int]]:
        """Name -> first row, number of rows."""
        rows = np.load(self._index / PATCHES, allow_pickle=False)
        return {name.decode(): (first, num) for name, first, num in rows.tolist()}


class _Opened:
    """The open tar and its mapped index, one of each in a process."""

    def __init__(self, archive: IndexedTar, head: Head) -> None:
        self._tar = archive.tar
        # Open for as long as this object is in the cache.
        self._file = Path(archive.tar).open("rb", buffering=0)  # noqa: SIM115
        self.file_names = head.file_names
        # A plain array over the mapped file: numpy's memmap class makes each slice slower.
        self.members: npt.NDArray[Any] = np.asarray(
            np.load(Path(archive.index) / MEMBERS, mmap_mode="r", allow_pickle=False)
        )

    def read(self, offset: int, size: int) -> bytes:
        data = os.pread(self._file.fileno(), size, offset)
        while len(data) < size:
            # Cut short by the end of the file, or by a file system that gives less at once.
            more = os.pread(self._file.fileno(), size - len(data), offset + len(data))
            if not more:
                raise ValueError(
                    f"{self._tar} ends at byte {offset + len(data)}, {size - len(data)} bytes "
                    "short of a file in its index: it was cut after it was indexed; restore it"
                )
            data += more
        return data


@lru_cache(maxsize=8)
def _open(archive: IndexedTar) -> _Opened:
    head = read_head(Path(archive.index))
    if head is None or (head.size, head.mtime_ns) != (archive.size, archive.mtime_ns):
        raise ValueError(f"{archive.index}, the index of {archive.tar}, has changed: run again")
    if not head.is_of(Path(archive.tar)):
        raise ValueError(f"{archive.tar} has changed since it was indexed: run again")
    return _Opened(archive, head)
