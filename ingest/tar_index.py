"""The index of one tar on disk: for each patch, where in the tar its files lie.

Stands between the archive's headers and the reading of patches: built in one pass, kept
beside the output and used again. A patch is a folder that holds files, by its own name.

    members.npy   a row a file, a patch's rows together: offset and size in bytes, and the
                  number of the file's name in `file_names`
    patches.npy   a row a patch in the archive's order: name, first row, number of rows
    index.json    written last: what it is an index of, and a checksum of all three, so an index
                  without it, or of which a byte has changed, is none

Both arrays are memory-mapped by many processes at once. 18 bytes a file and about 50 a patch:
v1's 7.7 million S2 files take 168 MB.
"""

import io
import json
import os
import re
import shutil
from array import array
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from .layout import SCRATCH
from .storage import LocalStore, write_file
from .tar_headers import Member, TarScanner

MEMBERS, PATCHES, HEAD = "members.npy", "patches.npy", "index.json"
# How `index.json` begins; the checksum is the CRC-32 of `_summed`.
_BEGIN = '{{"format": 2, "crc32": {:10d},'
_BEGIN_PATTERN = re.compile(rb'\{"format": 2, "crc32": ( *\d+),')
_MEMBER = np.dtype([("offset", "<i8"), ("size", "<i8"), ("file_name", "<u2")])
_MAX_FILE_NAMES = 1 << 16
# The longest name of a folder that a file system takes, in bytes.
_MAX_NAME = 255
# Read at once from a plain tar, in order: 5 us CPU a member, and no slower from a cold disk
# than reading its headers alone (docs/LOG.md, 2026-11-24).
_WINDOW = 1 << 18

Progress = Callable[[int, int], None]
Rows = npt.NDArray[Any]


@dataclass(frozen=True)
class Head:
    """What an index says of itself.

    `size` (bytes) and `mtime_ns` are the tar's: another value of either makes it stale. A file
    name that begins with `/` stands whole; any other follows the patch's name. `origin` says
    what the tar was made from, where it was.
    """

    size: int
    mtime_ns: int
    num_members: int
    num_patches: int
    file_names: tuple[str, ...]
    origin: dict[str, Any] | None

    def is_of(self, tar: Path) -> bool:
        """Whether the tar is there and still what was indexed."""
        try:
            found = tar.stat()
        except FileNotFoundError:
            return False
        return (found.st_size, found.st_mtime_ns) == (self.size, self.mtime_ns)


class IndexBuilder:
    """Takes the files of one tar in order and groups them by patch."""

    def __init__(self, archive: Path) -> None:
        self._archive = archive
        self._offsets, self._sizes = array("q"), array("q")
        self._names, self._patch_of = array("H"), array("i")
        self._file_names: dict[str, int] = {}
        self._patches: dict[str, int] = {}
        # The folder that each patch lies in, by number in `_parents`.
        self._parent_of, self._parents = array("i"), dict[str, int]()
        self._folder: str | None = None
        self._patch, self._number = "", -1

    def add(self, members: Iterable[Member]) -> None:
        """Take the next files.

        Raises:
            ValueError: two folders share a name; there are too many kinds of file names.
        """
        for path, offset, size in members:
            folder, _, file = path.rpartition("/")
            if folder != self._folder:
                self._enter(folder)
            patch = self._patch
            key = file[len(patch) :] if file.startswith(patch) else f"/{file}"
            number = self._file_names.get(key)
            self._names.append(self._new_file_name(key) if number is None else number)
            self._patch_of.append(self._number)
            self._offsets.append(offset)
            self._sizes.append(size)

    def _enter(self, folder: str) -> None:
        parent, _, patch = folder.rpartition("/")
        patch = patch or "."
        parent_number = self._parents.setdefault(parent, len(self._parents))
        number = self._patches.setdefault(patch, len(self._patches))
        if number == len(self._parent_of):
            if len(patch.encode()) > _MAX_NAME:
                raise ValueError(f"{self._archive} has a folder of a name too long: {patch!r}")
            self._parent_of.append(parent_number)
        elif self._parent_of[number] != parent_number:
            other = list(self._parents)[self._parent_of[number]]
            raise ValueError(
                f"{self._archive} has two folders named {patch!r}, in {other!r} and in {parent!r}: "
                "give an archive that holds each patch once"
            )
        self._folder, self._patch, self._number = folder, patch, number

    def _new_file_name(self, key: str) -> int:
        if len(self._file_names) == _MAX_FILE_NAMES:
            raise ValueError(
                f"{self._archive} has more than {_MAX_FILE_NAMES} kinds of files in its folders: "
                "it is no archive of patches"
            )
        return self._file_names.setdefault(key, len(self._file_names))

    def file_names(self) -> tuple[str, ...]:
        """The names that rows refer to by number; see `Head`."""
        return tuple(self._file_names)

    def arrays(self) -> tuple[Rows, Rows]:
        """The rows of `members.npy` and of `patches.npy`.

        Raises:
            ValueError: there is no file, or one twice.
        """
        if not self._offsets:
            raise ValueError(f"{self._archive} holds no files")
        patch_of = np.frombuffer(self._patch_of, np.int32)
        members = np.empty(len(patch_of), _MEMBER)
        for field, column in zip(
            _MEMBER.names or (), (self._offsets, self._sizes, self._names), strict=True
        ):
            members[field] = np.frombuffer(column, column.typecode)
        self._refuse_repetition(patch_of, members)
        if np.any(patch_of[1:] < patch_of[:-1]):
            members = members[np.argsort(patch_of, kind="stable")]
        names = np.array([name.encode() for name in self._patches])
        patches = np.empty(
            len(names), [("name", names.dtype), ("first", "<i8"), ("num_files", "<i4")]
        )
        patches["name"] = names
        patches["num_files"] = counts = np.bincount(patch_of)
        patches["first"] = np.cumsum(counts) - counts
        return members, patches

    def _refuse_repetition(self, patch_of: npt.NDArray[np.int32], members: Rows) -> None:
        files = patch_of.astype(np.int64) * _MAX_FILE_NAMES + members["file_name"]
        files.sort()
        repeated = files[1:][files[1:] == files[:-1]]
        if len(repeated):
            patch_number, number = divmod(int(repeated[0]), _MAX_FILE_NAMES)
            patch = list(self._patches)[patch_number]
            name = f"{patch}/{spelled(self.file_names()[number], patch)}"
            raise ValueError(f"{self._archive} holds {name!r} twice: which one is meant?")


def spelled(file_name: str, patch: str) -> str:
    """The name in full of a patch's file, from how `Head.file_names` keeps it."""
    return file_name[1:] if file_name[0:1] == "/" else patch + file_name


def write_index(
    folder: Path, tar: os.stat_result, builder: IndexBuilder, origin: dict[str, Any] | None
) -> Head:
    """Write the index of the tar that `stat` describes into `folder`, in place of an older one.

    Raises:
        ValueError: see `IndexBuilder.arrays`.
        OSError: a file cannot be written.
    """
    members, patches = builder.arrays()
    head = Head(
        size=tar.st_size,
        mtime_ns=tar.st_mtime_ns,
        num_members=len(members),
        num_patches=len(patches),
        file_names=builder.file_names(),
        origin=origin,
    )
    remove_index(folder)
    store = LocalStore(str(folder))
    for name, rows in ((MEMBERS, members), (PATCHES, patches)):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(rows))
        with store.create(name) as file:
            file.write(header.getvalue(), rows.view(np.uint8).data)
    rest = json.dumps(asdict(head), indent=1)[1:].encode()
    begin = _BEGIN.format(_checksum(folder, rest))
    write_file(store, HEAD, begin.encode() + rest)
    store.remove_folder(SCRATCH)
    return head


def read_head(folder: Path) -> Head | None:
    """What the index in `folder` says of itself; None where there is no whole index.

    An index of another format, or with a changed byte in any of its files, counts as none: it is
    made again.
    """
    try:
        text = (folder / HEAD).read_bytes()
        begin = _BEGIN_PATTERN.match(text)
        if begin is None or int(begin[1]) != _checksum(folder, text[begin.end() :]):
            return None
    except FileNotFoundError:
        return None
    # From here on it is what `write_index` wrote.
    table = json.loads(b"{" + text[begin.end() :])
    return Head(**table | {"file_names": tuple(table["file_names"])})


def _checksum(folder: Path, rest: bytes) -> int:
    """CRC-32 of both arrays' files and then of `rest`, what follows it in `index.json`."""
    crc = 0
    for name in (MEMBERS, PATCHES):
        with (folder / name).open("rb", buffering=0) as file:
            while piece := file.read(1 << 20):
                crc = isal_zlib.crc32(piece, crc)
    return isal_zlib.crc32(rest, crc)


def remove_index(folder: Path) -> None:
    """Remove an index, or what a run that was killed left of one."""
    # First what makes it one; and nothing that is not ours.
    for name in (HEAD, MEMBERS, PATCHES):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / SCRATCH, ignore_errors=True)
    with suppress(OSError):
        folder.rmdir()


def index_tar(tar: Path, folder: Path, progress: Progress) -> Head:
    """The index of a plain tar in `folder`: the one that is there, or a new one.

    `progress(done, total)` is called with numbers of bytes.

    Raises:
        ValueError: the tar is damaged or holds what is not read; see `TarScanner`.
        OSError: a file cannot be read or written.
    """
    head = read_head(folder)
    if head is not None and head.is_of(tar):
        return head
    scanner, builder = TarScanner(tar), IndexBuilder(tar)
    with tar.open("rb", buffering=0) as file:
        stat = os.fstat(file.fileno())
        while chunk := os.pread(file.fileno(), _WINDOW, at := scanner.jump()):
            builder.add(scanner.feed(chunk))
            progress(min(at + len(chunk), stat.st_size), stat.st_size)
        scanner.finish(stat.st_size)
        if (now := os.fstat(file.fileno())).st_mtime_ns != stat.st_mtime_ns:
            raise ValueError(f"{tar} grew to {now.st_size} bytes while it was read: run again")
    return write_index(folder, stat, builder, origin=None)
