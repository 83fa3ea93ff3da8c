"""The bytes of a published archive, decompressed in one pass: gzip and zstandard.

What the archive is, is told by its first bytes, not by its name. Gzip goes through ISA-L,
1.6 times as fast as zlib (docs/LOG.md, 2026-11-24). Formats: RFC 1952 (gzip), RFC 8878
(zstandard); a file may hold several gzip members or zstandard frames, one after another.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import zstandard
from isal import igzip_lib, isal_zlib

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
# 16 numbers begin a zstandard frame that holds no data (RFC 8878, sec. 3.1.2).
_SKIPPABLE = tuple(bytes([number]) + b"\x2a\x4d\x18" for number in range(0x50, 0x60))
_OTHERS = {
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf": "7z",
    b"PAR1": "parquet",
}
_READ = 1 << 18
# The window of `zstd --ultra --long=31`, the largest there is; its memory is taken only for an
# archive that was made so.
_MAX_WINDOW = 1 << 31
# The longest header of a frame (RFC 8878, sec. 3.1.1.1), with its magic number.
_FRAME_HEADER = 18
# Bytes unpacked to guess how large the rest becomes.
_SAMPLE = 16 << 20


class _Decoder(Protocol):
    """What gzip's and zstandard's decoders have in common; one takes one member or frame."""

    def decompress(self, data: bytes, /) -> bytes: ...
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...


def compression(archive: Path) -> str | None:
    """`gzip`, `zstd`, or None for what is not compressed.

    Raises:
        ValueError: the archive is compressed in another way, or cannot be read.
    """
    try:
        with archive.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise ValueError(f"{archive}: {error.strerror}") from None
    for magic, name in _OTHERS.items():
        if start.startswith(magic):
            raise ValueError(
                f"{archive} is a {name} file: give a folder, a .tar, .tar.gz or .tar.zst"
            )
    if start.startswith(_GZIP):
        return "gzip"
    return "zstd" if start.startswith((_ZSTD, *_SKIPPABLE)) else None


def decompressed(archive: Path, on_compressed: Callable[[bytes], None]) -> Iterator[bytes]:
    """The archive's content in pieces; `on_compressed` is given each piece of the file itself.

    Raises:
        ValueError: the archive is damaged, cut short, or goes on after its end (gzip: with other
            than zeros).
    """
    is_gzip = compression(archive) == "gzip"
    new_decoder = _gzip_decoder if is_gzip else _zstd_decoder
    decoder: _Decoder | None = None
    done = 0
    with archive.open("rb", buffering=0) as file:
        while piece := file.read(_READ):
            on_compressed(piece)
            done += len(piece)
            while piece:
                if is_gzip and decoder is None:
                    # Some media are padded to whole blocks; gzip itself passes over that.
                    piece = piece.lstrip(b"\0")
                    if not piece:
                        break
                decoder = decoder or new_decoder()
                try:
                    data = decoder.decompress(piece)
                except (igzip_lib.IsalError, zstandard.ZstdError) as error:  # type: ignore[misc]
                    raise ValueError(
                        f"{archive} is damaged before byte {done} ({error}): download it again"
                    ) from None
                if data:
                    yield data
                if not decoder.eof:
                    break
                piece, decoder = decoder.unused_data, None
    if decoder is not None:
        raise ValueError(f"{archive} is cut short, after {done} bytes: download it again")


@dataclass(frozen=True)
class UnpackedSize:
    """Bytes of an archive's content: not fewer than `least`, `likely` so many."""

    least: int
    likely: int


def unpacked_size(archive: Path) -> UnpackedSize:
    """How large the archive's content is.

    It is known where the first 16 MiB are all. Zstandard archives that were made from a file say
    the size in their first frame, as v2's do, and only another frame makes it more. Else it is at
    least the archive's own, and the rest is taken to shrink as the first 16 MiB do.

    Raises:
        ValueError: see `decompressed`.
    """
    size = archive.stat().st_size
    given, taken = 0, 0

    def count(piece: bytes) -> None:
        nonlocal taken
        taken += len(piece)

    for data in decompressed(archive, count):
        given += len(data)
        if given >= _SAMPLE:
            break
    if taken == size:
        return UnpackedSize(given, given)
    if compression(archive) == "zstd":
        with archive.open("rb") as file:
            # Not less than the header of a frame that has just been decompressed.
            said = zstandard.frame_content_size(file.read(_FRAME_HEADER))
        # A frame that ended in the sample, or of less than the file, is the first of several.
        if said >= size and said > given:
            return UnpackedSize(said, said)
    return UnpackedSize(size, size * given // taken)


def _gzip_decoder() -> _Decoder:
    # 31: a gzip header and checksum around deflate's largest window.
    return isal_zlib.decompressobj(31)


def _zstd_decoder() -> _Decoder:
    return zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).decompressobj()
