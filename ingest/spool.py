"""From a published archive to a plain tar and its index: what ingest reads patches from.

A `.tar` is read where it lies. A `.tar.gz` (v1) or `.tar.zst` (v2) is decompressed once, into
a tar beside the output, and in the same pass indexed and checked against the publisher's md5:
a compressed stream has no places to read from. Nothing is extracted, so nobody makes 8
million inodes.

The folder is this archive's alone. Its index is written last; whatever lies there without a
whole index is what a run that was killed left, and is swept by the next. Runs may share it: each
holds its lock (`spool_lock`) until it ends.
"""

import errno
import hashlib
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .decompress import compression, decompressed, unpacked_size
from .spool_lock import SpoolLock
from .storage import sync_folder
from .tar_headers import TarScanner
from .tar_index import IndexBuilder, Progress, index_tar, read_head, remove_index, write_index

# v1: Zenodo record 12687186; v2: Zenodo record 10891137.
PUBLISHED_MD5 = {
    "BigEarthNet-S1-v1.0.tar.gz": "94ced73440dea8c7b9645ee738c5a172",
    "BigEarthNet-S2-v1.0.tar.gz": "5a64e9ce38deb036a435a7b59494924c",
    "BigEarthNet-v1.0.tar.gz": "5a64e9ce38deb036a435a7b59494924c",
    "BigEarthNet-S1.tar.zst": "a55eaa2cdf6a917e296bd6601ec1e348",
    "BigEarthNet-S2.tar.zst": "2245ed2d1a93f6ce637d839bc856396e",
    "Reference_Maps.tar.zst": "95d85a222fa983faddcac51a19f28917",
}

TAR_NAME, PARTIAL, _INDEX = "archive.tar", "archive.tar.partial", "index"
# Pieces of about 0.4 MB that hashing and writing may lie behind reading.
_BEHIND = 16
MAKE_ROOM = "make room there, or give a tar that is unpacked elsewhere"


@dataclass(frozen=True)
class Spool:
    """A plain tar and its index, as `TarArchive(tar, index)` takes them.

    `md5` is that of the archive's file, None where the archive was read in place;
    `md5_checked` says whether it was compared with the publisher's.
    """

    tar: Path
    index: Path
    md5: str | None
    md5_checked: bool


def spool(archive: Path, lock: SpoolLock, progress: Progress, check_md5: bool = True) -> Spool:
    """The archive as a plain tar with an index in the lock's folder: found there, or made now.

    Until the lock is released no other run can change it. `progress(done, total)` is called with
    numbers of bytes of the archive's file.

    Raises:
        ValueError: the archive is damaged, cut short, not the published one (`check_md5`),
            or holds what is not read; the disk has no room; another run is at work in the folder.
        OSError: a file cannot be written for another reason.
    """
    folder, compressed = lock.folder, compression(archive) is not None
    if archive.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"{archive} lies where it would be unpacked, {folder}: give another --spool"
        )
    lock.share()
    if not is_spooled(archive, folder):
        lock.exclude()
        # Another run may have made it between the two locks, and likewise removed it below.
        if not is_spooled(archive, folder):
            if compressed:
                _sweep(folder)
                _unpack(archive, folder, progress)
            else:
                index_tar(archive, folder / _INDEX, progress)
        lock.share()
    if not compressed:
        return Spool(archive, folder / _INDEX, md5=None, md5_checked=False)
    md5 = _find(archive, folder)
    if md5 is None:
        raise ValueError(f"another run has just removed what was unpacked in {folder}: run again")
    return Spool(folder / TAR_NAME, folder / _INDEX, md5, _compare_md5(archive, md5, check_md5))


def is_spooled(archive: Path, folder: Path) -> bool:
    """Whether `spool` would find in `folder` all that it makes there of this archive."""
    return kept_spool(archive, folder) is not None


def kept_spool(archive: Path, folder: Path) -> Spool | None:
    """What `spool` made of this archive in `folder`, if it is still there and whole."""
    if compression(archive) is None:
        head = read_head(folder / _INDEX)
        there = head is not None and head.is_of(archive)
        return Spool(archive, folder / _INDEX, md5=None, md5_checked=False) if there else None
    md5 = _find(archive, folder)
    return (
        None if md5 is None else Spool(folder / TAR_NAME, folder / _INDEX, md5, md5_checked=False)
    )


def delete_spool(lock: SpoolLock) -> bool:
    """Remove what `spool` made in the lock's folder, and nothing else; the archive itself stays.

    False where another run uses it: then it stays.
    """
    if not lock.is_alone():
        return False
    _sweep(lock.folder)
    lock.remove()
    return True


def _find(archive: Path, folder: Path) -> str | None:
    """The archive's md5 where its whole spool is in `folder`."""
    head = read_head(folder / _INDEX)
    if head is None or head.origin is None or not head.is_of(folder / TAR_NAME):
        return None
    md5: str = head.origin["md5"]
    return md5 if head.origin == _origin(archive, archive.stat(), md5) else None


def _origin(archive: Path, stat: os.stat_result, md5: str) -> dict[str, Any]:
    return {
        "name": archive.name,
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "md5": md5,
    }


def _sweep(folder: Path) -> None:
    # The index first: a tar without one is no spool.
    remove_index(folder / _INDEX)
    for name in (PARTIAL, TAR_NAME):
        (folder / name).unlink(missing_ok=True)


def _unpack(archive: Path, folder: Path, progress: Progress) -> None:
    """Make the tar and its index."""
    partial, tar = folder / PARTIAL, folder / TAR_NAME
    # Before the archive is opened: another file that takes its name from here on is noticed.
    builder, stat = IndexBuilder(archive), archive.stat()
    try:
        with partial.open("wb", buffering=0) as file:
            md5 = _stream(archive, file.fileno(), builder, progress)
            _refuse_change(archive, stat)
            os.fsync(file.fileno())
        partial.replace(tar)
        sync_folder(folder)
        write_index(folder / _INDEX, tar.stat(), builder, _origin(archive, stat, md5))
    except BaseException as error:
        _sweep(folder)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ValueError(
                f"{folder}: {error.strerror}, and {unpacks_to(archive)}: {MAKE_ROOM}"
            ) from None
        raise


def _refuse_change(archive: Path, before: os.stat_result) -> None:
    """Raises ValueError: the archive is no longer the file that it was."""
    now = archive.stat()
    if (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns) != (
        before.st_dev,
        before.st_ino,
        before.st_size,
        before.st_mtime_ns,
    ):
        raise ValueError(f"{archive} was replaced or changed while it was unpacked: run again")


def _stream(archive: Path, target: int, builder: IndexBuilder, progress: Progress) -> str:
    """Decompress into the open file `target` and index what flows by; the archive's md5.

    Hashing and writing go on while the next piece is decompressed: none of the three holds
    the interpreter.
    """
    digest = hashlib.md5(usedforsecurity=False)
    scanner = TarScanner(archive)
    total, done, size = archive.stat().st_size, 0, 0

    with _Behind(digest.update) as hash_piece, _Behind(lambda d: _write(target, d)) as write:

        def on_compressed(piece: bytes) -> None:
            nonlocal done
            hash_piece(piece)
            done += len(piece)
            progress(done, total)

        for data in decompressed(archive, on_compressed):
            write(data)
            size += len(data)
            builder.add(scanner.feed(data))
        scanner.finish(size)
    return digest.hexdigest()


def _write(target: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(target, rest) :]


class _Behind:
    """Calls one function on a thread of its own, item after item; an error shows a little later.

    The caller waits when it is `_BEHIND` items ahead, and at the end of the `with` block.
    """

    def __init__(self, work: Callable[[bytes], None]) -> None:
        self._work = work
        self._thread = ThreadPoolExecutor(1)
        self._pending: deque[Future[None]] = deque()

    def __call__(self, item: bytes) -> None:
        if len(self._pending) == _BEHIND:
            self._pending.popleft().result()
        self._pending.append(self._thread.submit(self._work, item))

    def __enter__(self) -> "_Behind":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._thread.shutdown(cancel_futures=kind is not None)
        if kind is None:
            for future in self._pending:
                future.result()


def _compare_md5(archive: Path, md5: str, check: bool) -> bool:
    """Whether there was a published sum to compare with.

    Raises:
        ValueError: the sums differ.
    """
    published = PUBLISHED_MD5.get(archive.name)
    if not check or published is None:
        return False
    if md5 != published:
        raise ValueError(
            f"{archive} has the md5 {md5}, the published {archive.name} has {published}: "
            "download it again, or give --any-archive to take what was unpacked as it is"
        )
    return True


def unpacks_to(archive: Path) -> str:
    """Such as `BigEarthNet-S2.tar.zst unpacks to about 60,000 MB`."""
    size = unpacked_size(archive)
    about = "" if size.least == size.likely else "about "
    return f"{archive.name} unpacks to {about}{size.likely / 1e6:,.0f} MB"
