"""The fast reader equals rasterio or declines; what it declines and what is broken, rasterio says.

rasterio is the oracle of every test: pixels bit for bit, dtype, shape, EPSG code and transform.
"""

import contextlib
import random
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.transform import Affine

from fusmae_ingest import geotiff_fast
from fusmae_ingest.geotiff import decode_raster

from .geotiffs import DEGREES, UTM, geotiff, noise, rasters

REAL = Path(__file__).parents[2].parent / "shared/data"


def by_rasterio(data: bytes) -> tuple[bytes, Any, tuple[int, ...], int | None, tuple[float, ...]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.MemoryFile(data) as memory, memory.open(driver="GTiff") as dataset:
            pixels = dataset.read()
            epsg = dataset.crs.to_epsg() if dataset.crs else None
            return pixels.tobytes(), pixels.dtype, pixels.shape, epsg, tuple(dataset.transform[:6])


def by_us(data: bytes) -> tuple[bytes, Any, tuple[int, ...], int | None, tuple[float, ...]] | None:
    decoded = geotiff_fast.decode(data)
    if decoded is None:
        return None
    pixels, epsg, transform = decoded
    assert pixels.flags.c_contiguous
    return pixels.tobytes(), pixels.dtype, pixels.shape, epsg, transform


@settings(max_examples=150, deadline=None)
@given(rasters())
def test_any_file_is_read_as_rasterio_reads_it_or_declined(raster):
    pixels, options = raster
    data = geotiff(pixels, **options)
    assert by_us(data) in (None, by_rasterio(data))


@settings(max_examples=100, deadline=None)
@given(rasters(tiled=False, compress="none"))
def test_uncompressed_strips_are_never_declined(raster):
    pixels, options = raster
    # GDAL writes a strip of zeros after all others, out of its place in the run.
    pixels = np.where(pixels == 0, pixels.dtype.type(1), pixels)
    data = geotiff(pixels, **options)
    ours = by_us(data)
    assert ours == by_rasterio(data)
    assert ours is not None and ours[0] == pixels.tobytes()


@settings(max_examples=60, deadline=None)
@given(rasters(epsg=UTM))
def test_decode_raster_reads_every_file_that_rasterio_reads(raster):
    pixels, options = raster
    read, grid = decode_raster(geotiff(pixels, **options), "x.tif")
    assert read.dtype == pixels.dtype and read.tobytes() == pixels.tobytes()
    assert grid.transform == (10.0, 0.0, 404_400.5, 0.0, -10.0, 5_342_400.25)
    assert (grid.epsg, grid.height, grid.width) == (UTM, *pixels.shape[1:])


@pytest.mark.parametrize(
    "epsg", [*range(32601, 32661), *range(32701, 32761), 3035, 4326, 25833, 3857, 2154, 4258, 2229]
)
def test_every_system_is_the_one_that_rasterio_finds(epsg):
    data = geotiff(noise("uint8", 1, 2, 2), epsg=epsg)
    ours = by_us(data)
    assert ours in (None, by_rasterio(data))
    assert (ours is None) == (epsg in (25833, 3857, 2154, 4258, 2229))


# What GDAL can write and the fast reader does not know: by options of a new file, ...
OPTIONS: dict[str, dict[str, Any]] = {
    "tiles": {"tiled": True, "blockxsize": 16, "blockysize": 16},
    "deflate": {"compress": "deflate"},
    "12 bits": {"nbits": 12},
    "white is zero": {"photometric": "MINISWHITE"},
}
# ... and by what is done to a file afterwards.
EDITS: dict[str, Callable[[Any], object]] = {
    "overviews": lambda dataset: dataset.build_overviews([2]),
    "mask": lambda dataset: dataset.write_mask(np.eye(32, dtype=bool)),
    "colour map": lambda dataset: dataset.write_colormap(1, {0: (1, 2, 3, 255)}),
    "rotation": lambda dataset: setattr(dataset, "transform", Affine(9, 1, 4e5, 1, -9, 5e6)),
    "user's system": lambda dataset: setattr(
        dataset, "crs", rasterio.CRS.from_string("+proj=tmerc +lon_0=15.5 +datum=WGS84 +units=m")
    ),
}


@pytest.mark.parametrize("name", [*OPTIONS, *EDITS, "sparse", "complex"])
def test_what_is_not_known_is_declined(name, tmp_path):
    pixels = noise("uint16", 1, 32, 32) & 0xFFF
    path = tmp_path / "x.tif"
    if name == "sparse":
        path.write_bytes(geotiff(np.zeros((1, 32, 32), "uint16"), sparse_ok=True))
    elif name == "complex":
        path.write_bytes(geotiff(noise("float32", 1, 32, 64).view("complex64")))
    else:
        path.write_bytes(geotiff(pixels, **OPTIONS.get(name, {})))
    if name in EDITS:
        assert geotiff_fast.decode(path.read_bytes()) is not None
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
            EDITS[name](dataset)
    by_rasterio(path.read_bytes())  # a sound file
    assert geotiff_fast.decode(path.read_bytes()) is None


def head_of(data: bytes) -> int:
    """Where the pixels of a little-endian classic file with one strip begin."""
    (entries,) = struct.unpack_from("<H", data, 8)
    for at in range(10, 10 + 12 * entries, 12):
        tag, _, _, value = struct.unpack_from("<HHII", data, at)
        if tag == 273:
            return int(value)
    raise AssertionError("no strip offsets")


def outcome(data: bytes) -> Any:
    with contextlib.suppress(RasterioError):
        return by_rasterio(data)


@given(
    st.lists(st.tuples(st.floats(1e5, 9e5), st.floats(-9e6, 9e6)), min_size=2, max_size=6),
    st.sampled_from(["LITTLE", "BIG"]),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_files_that_differ_in_their_place_alone_are_read_each_at_its_own(origins, order, point):
    pixels = noise("uint16", 1, 3, 3)
    files = [geotiff(pixels, origin=o, endianness=order, point=point) for o in origins]
    for data in (*files, *reversed(files)):
        assert by_us(data) == by_rasterio(data)


def entries_of(data: bytes) -> dict[int, int]:
    """Where the directory entry of each tag begins, of a little-endian classic file."""
    (entries,) = struct.unpack_from("<H", data, 8)
    return {struct.unpack_from("<H", data, e)[0]: e for e in range(10, 10 + 12 * entries, 12)}


@pytest.mark.parametrize(("tag", "by"), [(42113, 24), (42113, 40), (33922, -10)])
def test_a_tie_point_that_shares_bytes_with_another_value_is_declined(tag, by):
    """Else its bytes could not be left out of what is kept of a head."""
    data = bytearray(geotiff(noise("uint16", 1, 3, 3), nodata=12345))
    at = entries_of(data)
    (place,) = struct.unpack_from("<I", data, at[33922] + 8)
    assert geotiff_fast.decode(bytes(data)) is not None
    struct.pack_into("<I", data, at[tag] + 8, place + by)
    assert geotiff_fast.decode(bytes(data)) is None


def test_heads_of_one_length_may_have_their_tie_points_at_different_places():
    """Both heads hold two tie points, and each says that another one is meant."""
    data = geotiff(noise("uint16", 1, 3, 3))
    at, begin = entries_of(data), head_of(data)
    (_, _, count, place) = struct.unpack_from("<HHII", data, at[34737])
    text = data[place : place + count]
    second = struct.pack("<6d", 0, 0, 0, 500_000.0, 1_000_000.0, 0)
    one = bytearray(data[:begin] + second + text + data[begin:])
    struct.pack_into("<I", one, at[34737] + 8, begin + len(second))
    struct.pack_into("<I", one, at[273] + 8, begin + len(second) + len(text))
    other = one.copy()
    struct.pack_into("<I", other, at[33922] + 8, begin)
    for spoilt in (one, other, one):
        ours = by_us(bytes(spoilt))
        assert ours is not None and ours == by_rasterio(bytes(spoilt))
    assert by_rasterio(bytes(one)) != by_rasterio(bytes(other))


@pytest.mark.parametrize("epsg", [UTM, DEGREES])
def test_no_changed_byte_of_the_head_gives_data_that_rasterio_does_not_give(epsg):
    data = geotiff(noise("uint16", 2, 6, 5), epsg=epsg, interleave="pixel", nodata=7)
    chance = random.Random(epsg)
    for at in range(head_of(data)):
        for value in {data[at] ^ (1 << chance.randrange(8)), chance.randrange(256), 0, 255}:
            spoilt = data[:at] + bytes([value]) + data[at + 1 :]
            ours = by_us(spoilt)
            assert ours is None or ours == outcome(spoilt), (at, value)


@settings(max_examples=150, deadline=None)
@given(
    raster=rasters(epsg=UTM), where=st.floats(0, 1), cut=st.booleans(), value=st.integers(0, 255)
)
def test_a_damaged_file_gives_what_rasterio_gives_or_one_line(raster, where, cut, value):
    pixels, options = raster
    data = geotiff(pixels[:2], **options)
    at = int(where * (len(data) - 1))
    spoilt = data[:at] if cut else data[:at] + bytes([value]) + data[at + 1 :]
    expected = outcome(spoilt) if spoilt else None
    try:
        read, grid = decode_raster(spoilt, "archive.tar: x.tif")
    except ValueError as error:
        assert "archive.tar: x.tif" in str(error) and "\n" not in str(error)
        return
    if by_us(spoilt) is None:
        return  # GDAL has read it, and gives what is left in its buffer for damaged deflate.
    ours = (read.tobytes(), read.dtype, read.shape, grid.epsg, grid.transform)
    assert ours == expected


def real_files() -> list[Path]:
    return sorted(REAL.rglob("*.tif"))


needs_real = pytest.mark.skipif(not real_files(), reason=f"no real GeoTIFFs under {REAL}")


@needs_real
def test_every_real_file_is_read_fast_and_as_rasterio_reads_it():
    for path in real_files():
        data = path.read_bytes()
        ours = by_us(data)
        assert ours is not None, f"{path} is declined"
        assert ours == by_rasterio(data), path
        pixels, grid = decode_raster(data, str(path))
        assert (pixels.tobytes(), grid.epsg, grid.transform) == (ours[0], ours[3], ours[4])


@needs_real
def test_no_changed_byte_of_a_real_head_gives_data_that_rasterio_does_not_give():
    path = next(path for path in real_files() if path.name.endswith("B01.tif"))
    data = path.read_bytes()
    chance = random.Random(0)
    for at in range(head_of(data)):
        for value in {data[at] ^ (1 << chance.randrange(8)), chance.randrange(256)}:
            spoilt = data[:at] + bytes([value]) + data[at + 1 :]
            ours = by_us(spoilt)
            assert ours is None or ours == outcome(spoilt), (at, value)
