"""GeoTIFFs as the archives hold them, read without GDAL; declines whatever it is not sure of.

Stands behind `geotiff.decode_raster`, which asks rasterio where this reader declines. It knows
one kind of file, which both archives hold: header first, one directory (TIFF 6.0 or BigTIFF, any
byte order), then uncompressed strips in one run. What could make GDAL read the pixels, the grid
or the system differently (an unknown tag or geo key, a value of another type or count, a strip
of another size) is a reason to decline, so that an answer always equals rasterio's.
"""

import math
import struct
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .tiff_directory import (
    BITS,
    COMPRESSION,
    COUNTS,
    EXTRA_SAMPLES,
    GEO_ASCII,
    GEO_DOUBLES,
    GEO_KEYS,
    HEIGHT,
    NODATA,
    OFFSETS,
    PHOTOMETRIC,
    PLANAR,
    ROWS_PER_STRIP,
    SAMPLE_FORMAT,
    SAMPLES,
    SCALE,
    TIEPOINT,
    WIDTH,
    Buffer,
    Directory,
    locate,
)

# (a, b, c, d, e, f): x = a * column + b * row + c, y = d * column + e * row + f.
Transform = tuple[float, float, float, float, float, float]

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
# One tie point: a pixel's column, row and height, and its x, y and z as doubles.
_POINT_BYTES = 6 * 8

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


class _Pixels(NamedTuple):
    """How a file's pixels lie in it, from byte `start` on."""

    dtype: np.dtype[Any]
    shape: tuple[int, int, int]  # bands, height, width
    interleaved: bool  # bands within pixels
    start: int
    end: int


class _Header(NamedTuple):
    """All that a file's head says."""

    pixels: _Pixels
    epsg: int
    transform: Transform


def decode(data: Buffer) -> tuple[npt.NDArray[Any], int, Transform] | None:
    """The pixels of a GeoTIFF's bytes, its EPSG code and transform; None: ask rasterio.

    Pixels have shape (bands, height, width), native dtype, C order; where they lie so in the
    file they are a view of `data`.
    """
    header = _header(data)
    if header is None or header.pixels.end > len(data):
        return None
    dtype, shape, interleaved, start, _ = header.pixels
    bands, height, width = shape
    pixels = np.frombuffer(data, dtype, bands * height * width, start)
    if interleaved:
        pixels = pixels.reshape(height, width, bands).transpose(2, 0, 1)
    else:
        pixels = pixels.reshape(shape)
    if interleaved or not dtype.isnative:
        pixels = np.ascontiguousarray(pixels, dtype.newbyteorder("="))
    return pixels, header.epsg, header.transform


def placed(head: Buffer, row: npt.NDArray[Any]) -> tuple[int, Transform] | None:
    """EPSG code and transform of a GeoTIFF whose bytes behind `head` fill `row` (height, width).

    None if these bytes may not be the pixels of its one band in the shape and dtype of `row`: then
    the whole file has to be decoded.
    """
    header = _header(head)
    # Of one band nothing is interleaved.
    lie = (row.dtype, (1, *row.shape), False, len(head), len(head) + row.nbytes)
    return None if header is None or header.pixels != lie else (header.epsg, header.transform)


def may_declare_nodata(data: Buffer) -> bool:
    """Whether a GeoTIFF's bytes declare a nodata value; true where only rasterio can tell."""
    directory = locate(data)
    return directory is None or NODATA in directory.fields


# How many bytes were given, of a whole file or of all before its row -> length of the head of the
# last one so long, and where its tie point was: with few exceptions the next one's too, and then
# its bytes alone lead to what they say.
_heads: dict[int, tuple[int, int]] = {}
_MAX_LENGTHS = 256


def _header(data: Buffer) -> _Header | None:
    # Another thread may clear it in between.
    if guess := _heads.get(len(data)):
        end, point = guess
        header = _parse(bytes(data[:end]), point)
        if header is not None:
            return header
    directory = locate(data)
    if directory is None or directory.end > min(len(data), _MAX_HEAD):
        return None
    end, point = directory.end, directory.fields[TIEPOINT].start
    header = _parse(bytes(data[:end]), point)
    if header is not None:
        if len(_heads) >= _MAX_LENGTHS:
            _heads.clear()
        _heads[len(data)] = end, point
    return header


# The bands of one size of one sample share their head.
@lru_cache(maxsize=64)
def _parse(head: bytes, point: int) -> _Header | None:
    """What the bytes up to the end of the last value say, with the tie point from byte `point` on.

    None for any others, and any other `point`.
    """
    frame = _frame(head[:point] + bytes(_POINT_BYTES) + head[point + _POINT_BYTES :])
    if frame is None or frame.point != point:
        return None
    tie = struct.unpack_from(f"{frame.order}6d", head, point)
    transform = _transform(frame.scale, tie, frame.is_point)
    return None if transform is None else _Header(frame.pixels, frame.epsg, transform)


class _Frame(NamedTuple):
    """What a head says besides its tie point, and where that is."""

    order: str
    point: int
    pixels: _Pixels
    epsg: int
    is_point: bool
    scale: tuple[float, ...]


# All samples of one system share theirs, so that of a sample's head only its tie point is read.
@lru_cache(maxsize=1024)
def _frame(head: bytes) -> _Frame | None:
    """What a head says whose tie point is overwritten with zeros."""
    directory = locate(head)
    if directory is None or directory.end != len(head):
        return None
    point = directory.fields[TIEPOINT]
    if point.end - point.start != _POINT_BYTES:
        return None
    pixels = _pixels(directory, head)
    epsg_and_point = _system(directory, head)
    if pixels is None or epsg_and_point is None:
        return None
    scale = directory.values(head, SCALE)
    return _Frame(directory.order, point.start, pixels, *epsg_and_point, scale)


def _pixels(directory: Directory, head: bytes) -> _Pixels | None:
    """How the pixels lie, if the strips are one run of raw ones."""

    def one(tag: int) -> int:
        values = directory.values(head, tag)
        return int(values[0]) if len(values) == 1 else -1

    width, height, bands = one(WIDTH), one(HEIGHT), one(SAMPLES)
    rows, planar, photometric = one(ROWS_PER_STRIP), one(PLANAR), one(PHOTOMETRIC)
    bits, formats = directory.values(head, BITS), directory.values(head, SAMPLE_FORMAT)
    kind = _DTYPES.get((formats[0], bits[0]))
    colours = {1: 1, 2: 3}.get(photometric, bands + 1)  # grey or RGB
    extra = directory.values(head, EXTRA_SAMPLES) if EXTRA_SAMPLES in directory.fields else ()
    if (
        min(width, height, bands, rows) < 1
        or rows > height
        or one(COMPRESSION) != 1
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
    end = start + planes * height * row_bytes
    return _Pixels(dtype, (bands, height, width), interleaved, start, end)


def _run(
    directory: Directory, head: bytes, height: int, rows: int, planes: int, row_bytes: int
) -> int | None:
    """Where the strips begin, if each is as long as its rows and follows the one before."""
    strips = planes * -(-height // rows)
    if directory.fields[OFFSETS].count != strips or directory.fields[COUNTS].count != strips:
        return None
    full, rest = divmod(height, rows)
    counts = ((rows * row_bytes,) * full + (rest * row_bytes,) * (rest > 0)) * planes
    offsets = directory.values(head, OFFSETS)
    if counts != directory.values(head, COUNTS):
        return None
    if offsets != tuple(accumulate(counts[:-1], initial=offsets[0])):
        return None
    return int(offsets[0])


def _system(directory: Directory, head: bytes) -> tuple[int, bool] | None:
    """EPSG code, and whether tie points mean centres of pixels; OGC GeoTIFF 1.1, sec. 7."""
    doubles = directory.values(head, GEO_DOUBLES) if GEO_DOUBLES in directory.fields else ()
    (text,) = directory.values(head, GEO_ASCII)
    return _epsg(directory.values(head, GEO_KEYS), doubles, text)


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
        elif place == GEO_DOUBLES and count == 1 and value < len(doubles):
            keys[key] = doubles[value]
        elif place == GEO_ASCII and value + count <= len(text):
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


def _transform(
    scale: tuple[float, ...], tiepoint: tuple[float, ...], is_point: bool
) -> Transform | None:
    """The affine transform of the upper left corner of the upper left pixel, as GDAL counts."""
    # At the first pixel; heights play no part.
    if len(scale) != 3 or any(tiepoint[:3]):
        return None
    a, e, left, top = scale[0], -scale[1], tiepoint[3], tiepoint[4]
    if not (a > 0 > e and all(map(math.isfinite, (a, e, left, top)))):
        return None
    if is_point:
        left, top = left - a * 0.5, top - e * 0.5
    return a, 0.0, left, 0.0, e, top
