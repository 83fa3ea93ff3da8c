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
from fusmae_ingest.geotiff import decode_band, decode_raster, nodata_value

REAL = Path(__file__).parents[2].parent / "shared/data"
UTM, DEGREES, LAEA = 32633, 4326, 3035
DTYPES = ["uint8", "uint16", "int16", "uint32", "int32", "float32", "float64"]


def geotiff(
    pixels: np.ndarray[Any, Any], *, epsg: int = UTM, point: bool = False, **options: Any
) -> bytes:
    """A GeoTIFF of `pixels` (bands, height, width) as GDAL writes it."""
    bands, height, width = pixels.shape
    affine = Affine(10.0, 0.0, 404_400.5, 0.0, -10.0, 5_342_400.25)
    if epsg == DEGREES:
        affine = Affine(0.125, 0.0, 14.5, 0.0, -0.125, 48.0)
    with rasterio.MemoryFile() as memory:
        with memory.open(
            driver="GTiff",
            count=bands,
            height=height,
            width=width,
            dtype=pixels.dtype,
            crs=f"EPSG:{epsg}",
            transform=affine,
            **options,
        ) as dataset:
            if point:
                dataset.update_tags(AREA_OR_POINT="Point")
            dataset.write(pixels)
        return bytes(memory.read())


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


def noise(dtype: str, *shape: int) -> np.ndarray[Any, Any]:
    """Random bits of a dtype: NaN, infinities and negative zeros among the floats."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    return data.view(dtype).reshape(shape)


@st.composite
def rasters(draw: st.DrawFn, **fixed: Any) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
    """Pixels and the options of their file, over all that archives could hold."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.tuples(st.integers(1, 13), st.integers(1, 70), st.integers(1, 70)))
    options: dict[str, Any] = {
        "epsg": draw(st.sampled_from([UTM, DEGREES, LAEA, 32737])),
        "point": draw(st.booleans()),
        "endianness": draw(st.sampled_from(["LITTLE", "BIG"])),
        "interleave": draw(st.sampled_from(["pixel", "band"])),
        "bigtiff": draw(st.sampled_from(["YES", "NO"])),
        "compress": draw(st.sampled_from(["none", "deflate", "lzw", "zstd", "packbits"])),
        "tiled": draw(st.booleans()),
        "nodata": draw(st.sampled_from([None, 0])),
    } | fixed
    if options["tiled"]:
        options |= {"blockxsize": 16 * draw(st.integers(1, 3)), "blockysize": 16}
    else:
        options |= {"blockysize": draw(st.integers(1, shape[1]))}
    if options["compress"] in ("deflate", "lzw", "zstd"):
        options["predictor"] = draw(st.sampled_from([1, 2, 3] if dtype[0] == "f" else [1, 2]))
    return noise(dtype, *shape), options


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


def test_a_band_from_memory_is_checked_against_what_its_sensor_gives():
    data = geotiff(noise("uint16", 1, 20, 20))
    row = np.zeros((20, 20), np.uint16)
    assert decode_band(data, "x.tif", 10, row).gsd_m == 10
    assert row.tobytes() == noise("uint16", 1, 20, 20).tobytes()
    for size, gsd, dtype in ((21, 10, "uint16"), (20, 20, "uint16"), (20, 10, "int16")):
        with pytest.raises(ValueError, match=r"x\.tif ho.*expected|x\.tif has.*expected"):
            decode_band(data, "x.tif", gsd, np.zeros((size, size), dtype))


@pytest.mark.parametrize("declared", [None, 0, 7])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_band_is_nodata_where_all_of_it_is_0_or_what_rasterio_finds_declared(
    declared, compressed
):
    options = {} if declared is None else {"nodata": declared}
    if compressed:
        options["compress"] = "deflate"
    for value in (0, 7, 8):
        pixels = np.full((1, 20, 20), value, np.uint16)
        data = geotiff(pixels, **options)
        assert (geotiff_fast.decode(data) is None) == compressed
        assert nodata_value(pixels[0], data) == (value if value in (0, declared) else None)
        pixels[0, 9, 9] += 1
        assert nodata_value(pixels[0], geotiff(pixels, **options)) is None
