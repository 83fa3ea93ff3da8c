"""Small uncompressed GeoTIFFs, byte for byte in one piece: what the simulator writes.

The layout is that of the real BigEarthNet and SEN12MS files, to the byte: little-endian TIFF,
strips of about 8 kB, bands interleaved by pixel, UTM zone on WGS 84 (OGC GeoTIFF 1.1, sec. 7).
Only what those need; not a general writer.
"""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .storage import naming

_SHORT, _LONG, _DOUBLE, _ASCII = 3, 4, 12, 2
_FORMAT = {_SHORT: "H", _LONG: "I", _DOUBLE: "d"}
# GDAL's default: as many rows as fit in 8 kB.
_STRIP_BYTES = 8192
_SAMPLE_FORMAT = {"u": 1, "f": 3}
_BITS, _STRIP_COUNTS = 258, 279
# As libtiff lays the values: these first, then all in order of their tags.
_FIRST = {_BITS: 0, _STRIP_COUNTS: 1}


def write_geotiff(
    path: Path, pixels: npt.NDArray[Any], epsg: int, left: float, top: float, gsd_m: float
) -> None:
    """Write a GeoTIFF of `pixels`, (height, width) or (bands, height, width).

    Args:
        path: the file to write.
        pixels: uint8, uint16 or float32.
        epsg: a UTM zone on WGS 84, 32601 to 32660 north, 32701 to 32760 south.
        left: easting of the left edge in metres.
        top: northing of the upper edge in metres.
        gsd_m: side of a pixel in metres.
    """
    pixels = np.moveaxis(pixels, 0, -1) if pixels.ndim == 3 else pixels[:, :, None]
    height, width, bands = pixels.shape
    row_bytes = width * bands * pixels.itemsize
    rows = max(1, min(height, _STRIP_BYTES // row_bytes))
    counts = [min(rows, height - first) * row_bytes for first in range(0, height, rows)]
    hemisphere = "S" if epsg > 32700 else "N"
    name = f"WGS 84 / UTM zone {epsg % 100}{hemisphere}|WGS 84|".encode()
    # GDAL takes four bands of bytes for RGB and alpha; what is beyond one band else is unspecified.
    colour = bands == 4 and pixels.dtype == np.uint8
    extra = (2,) if colour else (0,) * (bands - 1)
    # GeoTIFF 1.1, sec. 7.1: key, tag that holds the value, count, value.
    keys = [
        *(1, 1, 0, 7),
        *(1024, 0, 1, 1),
        *(1025, 0, 1, 1),
        *(1026, 34737, len(name) - 7, 0),
        *(2049, 34737, 7, len(name) - 7),
        *(2054, 0, 1, 9102),
        *(3072, 0, 1, epsg),
        *(3076, 0, 1, 9001),
    ]
    tags: list[tuple[int, int, tuple[Any, ...] | bytes]] = [
        (256, _SHORT, (width,)),
        (257, _SHORT, (height,)),
        (_BITS, _SHORT, (8 * pixels.itemsize,) * bands),
        (259, _SHORT, (1,)),  # not compressed
        (262, _SHORT, (2,) if colour else (1,)),  # RGB, or black is zero
        (273, _LONG, tuple(0 for _ in counts)),
        (277, _SHORT, (bands,)),
        (278, _SHORT, (rows,)),
        (_STRIP_COUNTS, _LONG, tuple(counts)),
        (284, _SHORT, (1,)),
        *([(338, _SHORT, extra)] if extra else []),
        (339, _SHORT, (_SAMPLE_FORMAT[pixels.dtype.kind],) * bands),
        (33550, _DOUBLE, (float(gsd_m), float(gsd_m), 0.0)),
        (33922, _DOUBLE, (0.0, 0.0, 0.0, left, top, 0.0)),
        (34735, _SHORT, tuple(keys)),
        (34737, _ASCII, name + b"\0"),
    ]
    size = len(_directory(tags))
    offsets = tuple(int(size + sum(counts[:strip])) for strip in range(len(counts)))
    tags[5] = (273, _LONG, offsets)
    with naming(path):
        path.write_bytes(_directory(tags) + pixels.astype(pixels.dtype.newbyteorder("<")).tobytes())


def _directory(tags: list[tuple[int, int, tuple[Any, ...] | bytes]]) -> bytes:
    """The TIFF header, its one directory, and the values that do not fit into it."""
    start = 8 + 2 + 12 * len(tags) + 4
    entries: dict[int, bytes] = {}
    values = b""
    for tag, kind, value in sorted(tags, key=lambda item: (_FIRST.get(item[0], 2), item[0])):
        packed = (
            value
            if isinstance(value, bytes)
            else struct.pack(f"<{len(value)}{_FORMAT[kind]}", *value)
        )
        if len(packed) > 4:
            place = struct.pack("<I", start + len(values))
            values += packed + bytes(len(packed) % 2)
        else:
            place = packed.ljust(4, b"\0")
        entries[tag] = struct.pack("<HHI", tag, kind, len(value)) + place
    head = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags))
    return head + b"".join(entries[tag] for tag, _, _ in tags) + bytes(4) + values
