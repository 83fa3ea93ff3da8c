"""The first files of an archive, looked at before tens of GB of it are unpacked."""

import os
from collections.abc import Iterator
from pathlib import Path

from .decompress import compression, decompressed
from .tar_headers import TarScanner

# A patch has 2 to 14 files.
_NUM_FILES = 64
# Where files are few, so much of the archive is read for them at most: 0.1 s of gzip.
_NUM_BYTES = 16 << 20
_WINDOW = 1 << 18


def first_files(archive: Path) -> list[str]:
    """Names within a tar, compressed or not, of about its first 64 files.

    Raises:
        ValueError: it cannot be read, or its start is damaged or no tar's.
    """
    scanner = TarScanner(archive)
    found: list[str] = []
    read = 0
    for piece in _pieces(archive, scanner):
        found += [name for name, _, _ in scanner.feed(piece)]
        read += len(piece)
        if len(found) >= _NUM_FILES or read >= _NUM_BYTES:
            return found
    scanner.finish(scanner.jump())
    return found


def _pieces(archive: Path, scanner: TarScanner) -> Iterator[bytes]:
    if compression(archive) is not None:
        yield from decompressed(archive, lambda piece: None)
        return
    with archive.open("rb", buffering=0) as file:
        while piece := os.pread(file.fileno(), _WINDOW, scanner.jump()):
            yield piece
