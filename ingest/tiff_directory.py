"""The directory of a TIFF: which values its head holds, and where.

Stands behind `geotiff_fast`. It knows only files whose directory follows the header at once (TIFF
6.0 or BigTIFF, any byte order), is the only one and has no entries but those below.
"""

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

Buffer = bytes | memoryview

_ASCII, _SHORT, _LONG, _DOUBLE, _LONG8 = 2, 3, 4, 12, 16
_CODE = {_ASCII: "s", _SHORT: "H", _LONG: "I", _DOUBLE: "d", _LONG8: "Q"}
_BYTES = {_ASCII: 1, _SHORT: 2, _LONG: 4, _DOUBLE: 8, _LONG8: 8}

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
OFFSETS, SAMPLES, ROWS_PER_STRIP, COUNTS, PLANAR = 273, 277, 278, 279, 284
EXTRA_SAMPLES, SAMPLE_FORMAT = 338, 339
SCALE, TIEPOINT, GEO_KEYS, GEO_DOUBLES, GEO_ASCII = 33550, 33922, 34735, 34736, 34737
NODATA = 42113

_INTEGER = {_SHORT, _LONG}
_REQUIRED = {
    WIDTH: _INTEGER,
    HEIGHT: _INTEGER,
    BITS: {_SHORT},
    COMPRESSION: {_SHORT},
    PHOTOMETRIC: {_SHORT},
    OFFSETS: {_SHORT, _LONG, _LONG8},
    SAMPLES: {_SHORT},
    ROWS_PER_STRIP: _INTEGER,
    COUNTS: {_SHORT, _LONG, _LONG8},
    PLANAR: {_SHORT},
    SAMPLE_FORMAT: {_SHORT},
    SCALE: {_DOUBLE},
    TIEPOINT: {_DOUBLE},
    GEO_KEYS: {_SHORT},
    GEO_ASCII: {_ASCII},
}
# GDAL's nodata value is a remark to the reader: it changes no pixel.
_OPTIONAL = {EXTRA_SAMPLES: {_SHORT}, GEO_DOUBLES: {_DOUBLE}, NODATA: {_ASCII}}
_ALLOWED = _REQUIRED | _OPTIONAL


@dataclass(frozen=True)
class Field:
    """A directory entry: `count` values of a TIFF type, from byte `start` of the file."""

    kind: int
    count: int
    start: int

    @property
    def end(self) -> int:
        return self.start + self.count * _BYTES[self.kind]


@dataclass(frozen=True)
class Directory:
    """The one directory of a file, its entries' values not yet read.

    No other value shares a byte with the tie point.
    """

    order: str
    fields: dict[int, Field]
    end: int  # where the last of the values ends

    def values(self, head: bytes, tag: int) -> tuple[Any, ...]:
        field = self.fields[tag]
        return struct.unpack_from(
            f"{self.order}{field.count}{_CODE[field.kind]}", head, field.start
        )


def locate(data: Buffer) -> Directory | None:
    """The directory, if it follows the 8 (BigTIFF: 16) bytes of the file's header at once."""
    order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]))
    if order is None or len(data) < 24:
        return None
    if struct.unpack_from(order + "HI", data, 2) == (42, 8):
        (entries,) = struct.unpack_from(order + "H", data, 8)
        size, start, big = 2 + 12 * entries + 4, 8, False
    elif struct.unpack_from(order + "HHHQ", data, 2) == (43, 8, 0, 16):
        (entries,) = struct.unpack_from(order + "Q", data, 16)
        size, start, big = 8 + 20 * entries + 8, 16, True
    else:
        return None
    if entries > len(_ALLOWED):
        return None
    return _directory(bytes(data[start : start + size]), order, big)


# An archive has one directory per band size and sensor.
@lru_cache(maxsize=64)
def _directory(table: bytes, order: str, big: bool) -> Directory | None:
    """The entries of a directory (a BigTIFF's if `big`), if it is the only one and all known."""
    position, lead, entry, word = (16, "Q", 20, "Q") if big else (8, "H", 12, "I")
    lead_bytes, word_bytes = struct.calcsize(lead), struct.calcsize(word)
    (entries,) = struct.unpack_from(order + lead, table)
    if len(table) != lead_bytes + entries * entry + word_bytes or any(table[-word_bytes:]):
        return None
    fields: dict[int, Field] = {}
    last = 0
    for at in range(lead_bytes, len(table) - word_bytes, entry):
        tag, kind, count, place = struct.unpack_from(f"{order}HH{word}{word}", table, at)
        if tag <= last or kind not in _ALLOWED.get(tag, ()) or not count:
            return None
        inline = count * _BYTES[kind] <= word_bytes
        fields[tag] = Field(kind, count, position + at + 4 + word_bytes if inline else place)
        last = tag
    if not _REQUIRED.keys() <= fields.keys():
        return None
    table_end = position + len(table)
    point = fields[TIEPOINT]
    if point.start < table_end or any(
        other.start < point.end and point.start < other.end
        for tag, other in fields.items()
        if tag != TIEPOINT
    ):
        return None
    return Directory(order, fields, max(table_end, *(field.end for field in fields.values())))
