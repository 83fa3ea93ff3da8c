"""Patches of a tar, read where they lie by its index.

The place of the loose files of an extracted archive: a `TarPatch` goes to a worker process,
which opens the tar and maps the index once.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .patches import (
    MAX_FILE_BYTES,
    FileBytes,
    MissingFile,
    Patch,
    Targets,
    fill,
    scratch,
    split_at_row,
    too_large,
)
from .tar_index import MEMBERS, PATCHES, Head, read_head, spelled

# How many times the files' own bytes one read may take. Headers between the files are 2 % to
# 10 %; files of other patches between them are what makes a read of the whole too long.
_MAX_SPAN = 2


# Of a file: the offset of its first byte, its size in bytes.
_Place = tuple[int, int]
_NOTHING = FileBytes(memoryview(b""), None)

# What the folders of the published archives are called, around patches or tiles.
_TOP = ("BigEarthNet", "Reference_Maps")


@dataclass(frozen=True)
class IndexedTar:
    """A tar, its index, and what the tar was when it was indexed: size in bytes and time.

    `given` is what the user gave: the tar, or the archive that it was unpacked from.
    """

    tar: str
    index: str
    size: int
    mtime_ns: int
    given: str


@dataclass(frozen=True, slots=True)
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

    def files(self) -> list[str]:
        """The names of all its files, in no special order."""
        opened = _open(self.archive)
        return [
            spelled(opened.file_names[number], self.name) for _, _, number in self._rows(opened)
        ]

    def load(self, files: Sequence[str], rows: Targets = ()) -> list[FileBytes]:
        """See `patches.Patch.load`; in one read where the files lie together, as they mostly do."""
        opened = _open(self.archive)
        places = {opened.file_names[row[2]]: row[:2] for row in self._rows(opened)}
        own = len(self.name)
        try:
            wanted = [
                places[file[own:] if file.startswith(self.name) else f"/{file}"] for file in files
            ]
        except KeyError:
            there = set(self.files())
            absent = next(file for file in files if file not in there)
            raise MissingFile(self.where(absent)) from None
        num_bytes = sum(size for _, size in wanted)
        if num_bytes > MAX_FILE_BYTES:
            size, file = max((size, file) for (_, size), file in zip(wanted, files, strict=True))
            if size > MAX_FILE_BYTES:
                raise too_large(self.where(file), size)
            raise too_large(f"{self.archive.given}/{self.name}", num_bytes)
        span = max(sum(place) for place in wanted) - min(offset for offset, _ in wanted)
        read = opened.read_together if span <= _MAX_SPAN * num_bytes else opened.read_apart
        return read(wanted, [*rows, *[None] * (len(wanted) - len(rows))])

    def where(self, file: str) -> str:
        return f"{self.archive.given}/{self.name}/{file}"

    def _rows(self, opened: "_Opened") -> list[tuple[int, int, int]]:
        rows: list[tuple[int, int, int]] = opened.members[
            self.first : self.first + self.num_files
        ].tolist()
        return rows


@dataclass(frozen=True, slots=True)
class AbsentPatch:
    """A patch that a table names and the tar does not hold: it fails when it is read."""

    given: str
    name: str

    @property
    def position(self) -> int:
        return 0

    def load(self, files: Sequence[str], rows: Targets = ()) -> list[FileBytes]:
        raise MissingFile(self.where(files[0]))

    def where(self, file: str) -> str:
        return f"{self.given}/{self.name}/{file}"


class TarArchive:
    """A tar and its index: which patches there are, in the archive's order."""

    def __init__(self, tar: Path, index: Path, given: Path | None = None) -> None:
        """For `given` see `IndexedTar`; by default it is the tar.

        Raises:
            ValueError: the index is not whole, or is not of this tar.
        """
        head = read_head(index)
        if head is None or not head.is_of(tar):
            raise ValueError(f"{index} is not the index of {tar} as it is now: index it again")
        self._file_names = head.file_names
        # Workers of a cluster stand in other folders.
        self._index = index.absolute()
        self._archive = IndexedTar(
            str(tar.absolute()), str(self._index), head.size, head.mtime_ns, str(given or tar)
        )

    def __str__(self) -> str:
        return self._archive.given

    def names(self) -> list[str]:
        return list(self._rows)

    def has_files_like(self, ending: str) -> bool:
        """Whether a patch has a file of its own name with this ending."""
        return ending in self._file_names

    def patches(self, group: re.Pattern[str] | None = None) -> list[Patch]:
        # A patch is found by its own name, whatever folders lie around it.
        return [TarPatch(self._archive, name, *rows) for name, rows in self._rows.items()]

    def patch(self, name: str, group: str | None = None) -> Patch:
        rows = self._rows.get(name)
        if rows is None:
            return AbsentPatch(self._archive.given, name)
        return TarPatch(self._archive, name, *rows)

    def places(self) -> tuple[str, ...]:
        return (self._archive.tar, self._archive.index)

    def top_file(self, name: str) -> bytes | None:
        for folder, rows in self._rows.items():
            # A tar of an archive's folder, or of what is in it.
            if folder == "." or folder.startswith(_TOP):
                patch = TarPatch(self._archive, folder, *rows)
                if name in patch.files():
                    return bytes(patch.load([name])[0].whole())
        return None

    @cached_property
    def _rows(self) -> dict[str, tuple[int, int]]:
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

    def read_together(self, places: Sequence[_Place], rows: Targets) -> list[FileBytes]:
        """Files that lie close together, in one read with all that lies between them."""
        begin, end = min(offset for offset, _ in places), max(sum(place) for place in places)
        # A byte has its place in it, even one that goes into a row instead.
        room = scratch(end - begin)
        loaded = [_NOTHING] * len(places)
        targets: list[memoryview] = []
        at = begin
        for number in sorted(range(len(places)), key=places.__getitem__):
            offset, size = places[number]
            row, head_bytes = split_at_row(rows[number], size)
            pixels = offset + head_bytes
            loaded[number] = FileBytes(room[offset - begin : pixels - begin], row)
            if row is not None:
                targets += (room[at - begin : pixels - begin], row.data)
                at = offset + size
        self._fill(begin, end - begin, [*targets, room[at - begin : end - begin]])
        return loaded

    def read_apart(self, places: Sequence[_Place], rows: Targets) -> list[FileBytes]:
        """Files that lie far from each other, in a read each."""
        room, end = scratch(sum(size for _, size in places)), 0
        loaded = []
        for (offset, size), row in zip(places, rows, strict=True):
            row, head_bytes = split_at_row(row, size)
            head = room[end : end + head_bytes]
            self._fill(offset, size, [head] if row is None else [head, row.data])
            loaded.append(FileBytes(head, row))
            end += head_bytes
        return loaded

    def _fill(self, offset: int, size: int, targets: Sequence[memoryview]) -> None:
        done = fill(self._file.fileno(), offset, size, targets)
        if done < size:
            raise ValueError(
                f"{self._tar} ends at byte {offset + done}, {size - done} bytes short of a file in "
                "its index: it was cut after it was indexed; restore it"
            )


@lru_cache(maxsize=8)
def _open(archive: IndexedTar) -> _Opened:
    head = read_head(Path(archive.index))
    if head is None or (head.size, head.mtime_ns) != (archive.size, archive.mtime_ns):
        raise ValueError(f"{archive.index}, the index of {archive.tar}, has changed: run again")
    if not head.is_of(Path(archive.tar)):
        raise ValueError(f"{archive.tar} has changed since it was indexed: run again")
    return _Opened(archive, head)
