"""GeoTIFFs as the archives hold them, read without GDAL; declines whatever it is not sure of.

Stands behind `geotiff.decode_raster`, which asks rasterio where this reader declines. It knows
one kind of file, which both archives hold: header first, one directory (TIFF 6.0 or BigTIFF, any
byte order), then uncompressed strips in one run. What could make GDAL read the pixels, the grid
or the system differently (an unknown tag or geo key, a value of another type or count, a strip
of another size) is a reason to decline, so that an answer always equals rasterio's.
"""

import math
import struct
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

# (a, b, c, d, e, f): x = a * column + b * row + c, y = d * column + e * row + f.
Transform = tuple[float, float, float, float, float, float]

Buffer = bytes | memoryview

_ASCII, _SHORT, _LONG, _DOUBLE, _LONG8 = 2, 3, 4, 12, 16
_CODE = {_ASCII: "s", _SHORT: "H", _LONG: "I", _DOUBLE: "d", _LONG8: "Q"}
_BYTES = {_ASCII: 1, _SHORT: 2, _LONG: 4, _DOUBLE: 8, _LONG8: 8}

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_OFFSETS, _SAMPLES, _ROWS_PER_STRIP, _COUNTS, _PLANAR = 273, 277, 278, 279, 284
_EXTRA_SAMPLES, _SAMPLE_FORMAT = 338, 339
_SCALE, _TIEPOINT, _GEO_KEYS, _GEO_DOUBLES, _GEO_ASCII = 33550, 33922, 34735, 34736, 34737
_NODATA = 42113

_INTEGER = {_SHORT, _LONG}
_REQUIRED = {
    _WIDTH: _INTEGER,
    _HEIGHT: _INTEGER,
    _BITS: {_SHORT},
    _COMPRESSION: {_SHORT},
    _PHOTOMETRIC: {_SHORT},
    _OFFSETS: {_SHORT, _LONG, _LONG8},
    _SAMPLES: {_SHORT},
    _ROWS_PER_STRIP: _INTEGER,
    _COUNTS: {_SHORT, _LONG, _LONG8},
    _PLANAR: {_SHORT},
    _SAMPLE_FORMAT: {_SHORT},
    _SCALE: {_DOUBLE},
    _TIEPOINT: {_DOUBLE},
    _GEO_KEYS: {_SHORT},
    _GEO_ASCII: {_ASCII},
}
# GDAL's nodata value is a remark to the reader: it changes no pixel.
_OPTIONAL = {_EXTRA_SAMPLES: {_SHORT}, _GEO_DOUBLES: {_DOUBLE}, _NODATA: {_ASCII}}
_ALLOWED = _REQUIRED | _OPTIONAL

# (SampleFormat, BitsPerSample) to numpy's kind and size.
_DTYPES = {
    (1, 8): "u1",
    (1, 16): "u2",
    (1, 32): "u4",
    (2, 16): "i2",
    (2, 32): "i4",
    (3, 32): "f4",
    (3, 64): "f8",
}
# A header beyond this is no archive's: 256 strips of 13 bands need 2.5 kB.
_MAX_HEAD = 1 << 20

# Systems in metres whose code alone tells GDAL everything: UTM on WGS 84, and ETRS89-LAEA.
_METRIC = {*range(32601, 32661), *range(32701, 32761), 3035}
_WGS84 = 4326

# Geo keys, OGC GeoTIFF 1.1, annex B.
_MODEL, _RASTER_TYPE, _CITATION = 1024, 1025, 1026
_GEOGRAPHIC, _GEOGRAPHIC_CITATION, _ANGULAR_UNITS = 2048, 2049, 2054
_MAJOR_AXIS, _FLATTENING = 2057, 2059
_PROJECTED, _LINEAR_UNITS = 3072, 3076
_DEGREE, _METRE = 9102, 9001
_PLAIN_TEXT = frozenset(range(0x20, 0x7F)) - {ord("=")}


@dataclass(frozen=True)
class _Field:
    """A directory entry: `count` values of a TIFF type, from byte `start` of the file."""

    kind: int
    count: int
    start: int

    @property
    def end(self) -> int:
        return self.start + self.count * _BYTES[self.kind]


@dataclass(frozen=True)
class _Directory:
    """The one directory of a file, its entries' values not yet read."""

    order: str
    fields: dict[int, _Field]
    end: int  # where the last of the values ends

    def values(self, head: bytes, tag: int) -> tuple[Any, ...]:
        field = self.fields[tag]
        return struct.unpack_from(
            f"{self.order}{field.count}{_CODE[field.kind]}", head, field.start
        )


@dataclass(frozen=True)
class _Header:
    """All that a file's head says: how its pixels lie, from byte `start`, and where on Earth."""

    dtype: np.dtype[Any]
    shape: tuple[int, int, int]  # bands, height, width
    interleaved: bool  # bands within pixels
    start: int
    end: int
    epsg: int
    transform: Transform


def decode(data: Buffer) -> tuple[npt.NDArray[Any], int, Transform] | None:
    """The pixels of a GeoTIFF's bytes, its EPSG code and transform; None: ask rasterio.

    Pixels have shape (bands, height, width), native dtype, C order; where they lie so in the
    file they are a view of `data`.
    """
    header = _header(data)
    if header is None or header.end > len(data):
        return None
    bands, height, width = header.shape
    pixels = np.frombuffer(data, header.dtype, bands * height * width, header.start)
    if header.interleaved:
        pixels = pixels.reshape(height, width, bands).transpose(2, 0, 1)
    else:
        pixels = pixels.reshape(header.shape)
    if header.interleaved or not header.dtype.isnative:
        pixels = np.ascontiguousarray(pixels, header.dtype.newbyteorder("="))
    return pixels, header.epsg, header.transform


def may_declare_nodata(data: Buffer) -> bool:
    """Whether a GeoTIFF's bytes declare a nodata value; true where only rasterio can tell."""
    directory = _locate(data)
    return directory is None or _NODATA in directory.fields


# Length of a file -> length of the head of the last one so long: with few exceptions the next
# one's too, and then its bytes alone lead to what they say.
_head_bytes: dict[int, int] = {}
_MAX_LENGTHS = 256


def _header(data: Buffer) -> _Header | None:
    guess = _head_bytes.get(len(data))
    header = _parse(bytes(data[:guess])) if guess else None
    if header is not None:
        return header
    directory = _locate(data)
    if directory is None or directory.end > min(len(data), _MAX_HEAD):
        return None
    header = _parse(bytes(data[: directory.end]))
    if header is not None:
        if len(_head_bytes) >= _MAX_LENGTHS:
            _head_bytes.clear()
        _head_bytes[len(data)] = directory.end
    return header


def _locate(data: Buffer) -> _Directory | None:
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
def _directory(table: bytes, order: str, big: bool) -> _Directory | None:
    """The entries of a directory (a BigTIFF's if `big`), if it is the only one and all known."""
    position, lead, entry, word = (16, "Q", 20, "Q") if big else (8, "H", 12, "I")
    lead_bytes, word_bytes = struct.calcsize(lead), struct.calcsize(word)
    (entries,) = struct.unpack_from(order + lead, table)
    if len(table) != lead_bytes + entries * entry + word_bytes or any(table[-word_bytes:]):
        return None
    fields: dict[int, _Field] = {}
    last = 0
    for at in range(lead_bytes, len(table) - word_bytes, entry):
        tag, kind, count, place = struct.unpack_from(f"{order}HH{word}{word}", table, at)
        if tag <= last or kind not in _ALLOWED.get(tag, ()) or not count:
            return None
        inline = count * _BYTES[kind] <= word_bytes
        fields[tag] = _Field(kind, count, position + at + 4 + word_bytes if inline else place)
        last = tag
    if not _REQUIRED.keys() <= fields.keys():
        return None
    end = max(position + len(table), *(field.end for field in fields.values()))
    return _Directory(order, fields, end)


# The bands of one size of one sample share their head.
@lru_cache(maxsize=64)
def _parse(head: bytes) -> _Header | None:
    """What the bytes up to the end of the last value say; None for any others."""
    directory = _locate(head)
    if directory is None or directory.end != len(head):
        return None
    layout = _pixels(directory, head)
    epsg_and_point = _system(directory, head)
    if layout is None or epsg_and_point is None:
        return None
    epsg, is_point = epsg_and_point
    transform = _transform(directory, head, is_point)
    if transform is None:
        return None
    return _Header(*layout, epsg, transform)


def _pixels(
    directory: _Directory, head: bytes
) -> tuple[np.dtype[Any], tuple[int, int, int], bool, int, int] | None:
    """Dtype, shape, interleaving and the bytes' range, if the strips are one run of raw pixels."""

    def one(tag: int) -> int:
        values = directory.values(head, tag)
        return int(values[0]) if len(values) == 1 else -1

    width, height, bands = one(_WIDTH), one(_HEIGHT), one(_SAMPLES)
    rows, planar, photometric = one(_ROWS_PER_STRIP), one(_PLANAR), one(_PHOTOMETRIC)
    bits, formats = directory.values(head, _BITS), directory.values(head, _SAMPLE_FORMAT)
    kind = _DTYPES.get((formats[0], bits[0]))
    colours = {1: 1, 2: 3}.get(photometric, bands + 1)  # grey or RGB
    extra = directory.values(head, _EXTRA_SAMPLES) if _EXTRA_SAMPLES in directory.fields else ()
    if (
        min(width, height, bands, rows) < 1
        or rows > height
        or one(_COMPRESSION) != 1
        or planar not in (1, 2)
        or kind is None
        or bits != bits[:1] * bands
        or formats != formats[:1] * bands
        or len(extra) != bands - colours
        or any(value > 2 for value in extra)
    ):
        return None
    dtype = np.dtype(directory.order + kind)
    interleaved = planar == 1 and bands > 1
    planes = 1 if interleaved else bands
    row_bytes = width * dtype.itemsize * (bands // planes)
    start = _run(directory, head, height, rows, planes, row_bytes)
    if start is None or start < directory.end:
        return None
    return dtype, (bands, height, width), interleaved, start, start + planes * height * row_bytes


def _run(
    directory: _Directory, head: bytes, height: int, rows: int, planes: int, row_bytes: int
) -> int | None:
    """Where the strips begin, if each is as long as its rows and follows the one before."""
    strips = planes * -(-height // rows)
    if directory.fields[_OFFSETS].count != strips or directory.fields[_COUNTS].count != strips:
        return None
    full, rest = divmod(height, rows)
    counts = ((rows * row_bytes,) * full + (rest * row_bytes,) * (rest > 0)) * planes
    offsets = directory.values(head, _OFFSETS)
    if counts != directory.values(head, _COUNTS):
        return None
    if offsets != tuple(accumulate(counts[:-1], initial=offsets[0])):
        return None
    return int(offsets[0])


def _system(directory: _Directory, head: bytes) -> tuple[int, bool] | None:
    """EPSG code, and whether tie points mean centres of pixels; OGC GeoTIFF 1.1, sec. 7."""
    doubles = directory.values(head, _GEO_DOUBLES) if _GEO_DOUBLES in directory.fields else ()
    (text,) = directory.values(head, _GEO_ASCII)
    return _epsg(directory.values(head, _GEO_KEYS), doubles, text)


# An archive holds a few dozen systems.
@lru_cache(maxsize=1024)
def _epsg(
    words: tuple[int, ...], doubles: tuple[float, ...], text: bytes
) -> tuple[int, bool] | None:
    if len(words) < 4 or words[:3] not in ((1, 1, 0), (1, 1, 1)) or len(words) != 4 + 4 * words[3]:
        return None
    # "ESRI PE String = ..." and its like in a citation would replace the codes.
    if not text.endswith(b"\0") or not _PLAIN_TEXT.issuperset(text[:-1]):
        return None
    keys: dict[int, Any] = {}
    last = 0
    for at in range(4, len(words), 4):
        key, place, count, value = words[at : at + 4]
        if key <= last:
            return None
        last = key
        if place == 0 and count == 1:
            keys[key] = value
        elif place == _GEO_DOUBLES and count == 1 and value < len(doubles):
            keys[key] = doubles[value]
        elif place == _GEO_ASCII and value + count <= len(text):
            keys[key] = text[value : value + count]
        else:
            return None
    citations = [keys.pop(key, b"") for key in (_CITATION, _GEOGRAPHIC_CITATION)]
    if not all(isinstance(citation, bytes) for citation in citations):
        return None
    raster, degrees = keys.pop(_RASTER_TYPE, None), keys.pop(_ANGULAR_UNITS, _DEGREE)
    if raster not in (1, 2) or degrees != _DEGREE:
        return None
    code: Any = keys.get(_PROJECTED)
    if code in _METRIC and keys == {_MODEL: 1, _PROJECTED: code, _LINEAR_UNITS: _METRE}:
        return code, raster == 2
    if keys == {_MODEL: 2, _GEOGRAPHIC: _WGS84, _MAJOR_AXIS: 6378137.0, _FLATTENING: 298.257223563}:
        return _WGS84, raster == 2
    return None


def _transform(directory: _Directory, head: bytes, is_point: bool) -> Transform | None:
    """The affine transform of the upper left corner of the upper left pixel, as GDAL counts."""
    scale, tiepoint = directory.values(head, _SCALE), directory.values(head, _TIEPOINT)
    # One tie point, at the first pixel; heights play no part.
    if len(scale) != 3 or len(tiepoint) != 6 or any(tiepoint[:3]):
        return None
    a, e, left, top = scale[0], -scale[1], tiepoint[3], tiepoint[4]
    if not (a > 0 > e and all(map(math.isfinite, (a, e, left, top)))):
        return None
    if is_point:
        left, top = left - a * 0.5, top - e * 0.5
    return a, 0.0, left, 0.0, e, top
