"""A patch's folder of files, wherever the archive keeps it: on disk here, in a tar in
`tar_archive`.

Stands between the listing of an archive and the reading of pixels. All files of a patch are
asked for at once, since in a tar they are one read.
"""

import os
import re
import stat
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy.typing as npt

# More than the files of any patch of BigEarthNet together.
_ROOM_BYTES = 512 << 10
# A file beyond this is no archive's, nor are a patch's together: the largest, of SEN12MS, have
# 1.7 MB.
MAX_FILE_BYTES = 64 << 20

# For each file the array without gaps that its last bytes may fill; None for one without pixels.
Targets = Sequence[npt.NDArray[Any] | None]


class FileBytes(NamedTuple):
    """A file as it was read: all of it in `head`, or its last bytes in `row`, the others in `head`.

    The archives' GeoTIFFs end with their pixels, so these are copied once, to where they belong.
    `head` is valid until its thread loads another patch, and `whole()` until the row is written.
    """

    head: memoryview
    row: npt.NDArray[Any] | None

    def whole(self) -> memoryview | bytes:
        """All bytes of the file."""
        return self.head if self.row is None else b"".join((self.head, self.row.data.cast("B")))


class Patch(Protocol):
    """Files of one patch; small, and travels to workers by pickle."""

    @property
    def name(self) -> str:
        """The folder's own name."""

    @property
    def position(self) -> Any:
        """Sorts the patches of one archive in the order in which they lie in it."""

    def load(self, files: Sequence[str], rows: Targets = ()) -> list[FileBytes]:
        """The files' bytes; of those that are longer than their row the last ones fill it.

        Raises:
            MissingFile: a file is missing; the message names it.
            ValueError: a file is larger than any of an archive.
            OSError: a file cannot be read.
        """

    def where(self, file: str) -> str:
        """What messages call a file."""


class MissingFile(ValueError):
    """A file is not there; `where` is what messages call it."""

    def __init__(self, where: str) -> None:
        super().__init__(where)
        self.where = where

    def __str__(self) -> str:
        return f"{self.where} is missing: get the archive again from its publisher"


def too_large(where: str, size: int) -> ValueError:
    """What to raise where a file is larger than any of an archive, before room is made for it."""
    return ValueError(
        f"{where} has {size:,} bytes, expected at most {MAX_FILE_BYTES:,}: get it again from the "
        "publisher's archive"
    )


def open_to_read(path: str) -> tuple[int, int]:
    """A file's descriptor, which the caller closes, and the file's size in bytes.

    Raises:
        FileNotFoundError, NotADirectoryError: it is missing.
        OSError: it cannot be opened.
        ValueError: it is no file, or is larger than any of an archive.
    """
    # Without it the opening of a pipe waits for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    told = os.fstat(descriptor)
    if stat.S_ISREG(told.st_mode) and told.st_size <= MAX_FILE_BYTES:
        return descriptor, told.st_size
    os.close(descriptor)
    if stat.S_ISREG(told.st_mode):
        raise too_large(path, told.st_size)
    kind = "a folder" if stat.S_ISDIR(told.st_mode) else "a pipe or a device"
    raise ValueError(f"{path} is {kind}: expected a file")


def split_at_row(row: npt.NDArray[Any] | None, size: int) -> tuple[npt.NDArray[Any] | None, int]:
    """The row, None if a file of `size` bytes is not longer, and how many bytes lie before it."""
    if row is None or size <= row.nbytes:
        return None, size
    return row, size - row.nbytes


def fill(descriptor: int, offset: int, size: int, targets: Sequence[memoryview]) -> int:
    """Fill the targets, `size` bytes in all, with a file's from `offset` on; how many it had."""
    done = count = os.preadv(descriptor, targets, offset)
    # A file system may give less at once than asked for.
    while count and done < size:
        count = os.preadv(descriptor, _behind(targets, done), offset + done)
        done += count
    return done


def _behind(targets: Sequence[memoryview], done: int) -> list[memoryview]:
    """What is left of the targets when their first `done` bytes are filled."""
    left = []
    for target in targets:
        left.append(target.cast("B")[done:])
        done = max(done - target.nbytes, 0)
    return left


@dataclass(frozen=True, slots=True)
class FolderPatch:
    """A patch in a folder of its own."""

    path: str

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def position(self) -> str:
        return self.path

    def load(self, files: Sequence[str], rows: Targets = ()) -> list[FileBytes]:
        room, end = scratch(_ROOM_BYTES), 0
        loaded = []
        for file, row in zip_longest(files, rows):
            try:
                descriptor, size = open_to_read(f"{self.path}/{file}")
            except (FileNotFoundError, NotADirectoryError):
                raise MissingFile(self.where(file)) from None
            try:
                row, head_bytes = split_at_row(row, size)
                fits = end + head_bytes <= len(room)
                head = room[end : end + head_bytes] if fits else memoryview(bytearray(head_bytes))
                read = FileBytes(head, row)
                done = fill(descriptor, 0, size, [head] if row is None else [head, row.data])
            finally:
                os.close(descriptor)
            # A file may have been cut since it was opened.
            loaded.append(
                read if done == size else FileBytes(memoryview(read.whole())[:done], None)
            )
            end += head_bytes if fits else 0
        return loaded

    def where(self, file: str) -> str:
        return f"{self.path}/{file}"


@dataclass(frozen=True, slots=True)
class NoPatch:
    """Stands for a patch that an archive lacks: it fails when it is read, and says why.

    `given` is the archive as the user gave it.
    """

    given: str
    reason: str

    @property
    def name(self) -> str:
        return "--s1"

    @property
    def position(self) -> int:
        return 0

    def load(self, files: Sequence[str], rows: Targets = ()) -> list[FileBytes]:
        raise ValueError(self.reason)

    def where(self, file: str) -> str:
        return f"{self.given}/{file}"


_thread = threading.local()


def scratch(num_bytes: int) -> memoryview:
    """This thread's room for the files of one patch: fresh memory would cost more than the read."""
    room: memoryview | None = getattr(_thread, "room", None)
    if room is None or len(room) < num_bytes:
        room = _thread.room = memoryview(bytearray(max(num_bytes, _ROOM_BYTES)))
    return room


class Archive(Protocol):
    """All patches of one sensor, as the user gave them: `str(archive)` is the path."""

    def names(self) -> list[str]:
        """Names that tell what kind of archive it is: its outermost folders, or its patches."""

    def patches(self, group: re.Pattern[str] | None = None) -> list[Patch]:
        """Every patch, in the archive's order; `group` is what folders around patches are called.

        Raises:
            ValueError: the archive cannot be read.
        """

    def patch(self, name: str, group: str | None = None) -> Patch:
        """One patch by its name, and the folder around it; an absent one fails when it is read."""

    def places(self) -> tuple[str, ...]:
        """The absolute paths that a process needs to see to read patches."""

    def top_file(self, name: str) -> bytes | None:
        """A file that lies beside the patches or the folders around them; None if it is absent."""


class FolderArchive:
    """Patches as extracted: a folder each, all in one folder or in folders of tiles or scenes."""

    def __init__(self, root: Path, option: str) -> None:
        self._root, self._option = str(root.absolute()), option

    def __str__(self) -> str:
        return self._root

    def names(self) -> list[str]:
        return self._folders(self._root)

    def patches(self, group: re.Pattern[str] | None = None) -> list[Patch]:
        outer = [""] if group is None else [f"/{n}" for n in self.names() if group.fullmatch(n)]
        places = (f"{self._root}{folder}" for folder in outer)
        return [FolderPatch(f"{place}/{n}") for place in places for n in self._folders(place)]

    def patch(self, name: str, group: str | None = None) -> Patch:
        return FolderPatch(f"{self._root}/{group}/{name}" if group else f"{self._root}/{name}")

    def places(self) -> tuple[str, ...]:
        return (self._root,)

    def top_file(self, name: str) -> bytes | None:
        path = Path(self._root, name)
        return path.read_bytes() if path.is_file() else None

    def _folders(self, place: str) -> list[str]:
        try:
            with os.scandir(place) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir())
        except OSError as error:
            raise ValueError(f"{self._option} {place}: {error.strerror}") from None
