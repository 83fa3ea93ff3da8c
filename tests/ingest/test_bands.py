"""Bands read from a patch's files into their rows, against decoding the whole file."""

import os
import struct
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from fusmae_ingest import geotiff_fast, patches
from fusmae_ingest.geotiff import decode_band, nodata_value
from fusmae_ingest.patches import FileBytes, FolderPatch, Patch
from fusmae_ingest.tar_archive import TarArchive
from fusmae_ingest.tar_index import index_tar

from .geotiffs import UTM, geotiff, noise, rasters


def in_folder(folder: Path, files: dict[str, bytes]) -> Patch:
    place = folder / "P"
    place.mkdir(parents=True)
    for name, data in files.items():
        (place / name).write_bytes(data)
    return FolderPatch(str(place))


def in_tar(folder: Path, files: dict[str, bytes]) -> Patch:
    in_folder(folder, files)
    with tarfile.open(folder / "a.tar", "w") as tar:
        for name in files:
            tar.add(folder / "P" / name, f"P/{name}")
    index_tar(folder / "a.tar", folder / "index", lambda done, total: None)
    return TarArchive(folder / "a.tar", folder / "index").patch("P")


def in_spread_tar(folder: Path, files: dict[str, bytes]) -> Patch:
    """A tar in which so much lies between the files that each is read by itself."""
    names = list(files)
    between = {f"z{i}": bytes(10 * sum(map(len, files.values()))) for i in range(len(names))}
    spread = {}
    for name, other in zip(names, between, strict=True):
        spread |= {name: files[name], other: between[other]}
    return in_tar(folder, spread)


PLACES: list[Callable[[Path, dict[str, bytes]], Patch]] = [in_folder, in_tar, in_spread_tar]


def whole(data: bytes) -> FileBytes:
    return FileBytes(memoryview(data), None)


def told(read: Callable[[], Any]) -> Any:
    """What `read` gives, or what its error says."""
    try:
        return read()
    except ValueError as error:
        return str(error)


# A row into which a file fits by its bytes, or not, and whose pixels it does not hold.
OTHER_DTYPE = {"uint8": "int8", "uint16": "int16", "int16": "uint16", "uint32": "float32"}
OTHER_DTYPE |= {"int32": "uint32", "float32": "int32", "float64": "int64"}
OTHER_SHAPE = {
    "as it is": lambda height, width: (height, width),
    "wider": lambda height, width: (height, width + 1),
    "turned": lambda height, width: (width, height),
    "two bands": lambda height, width: (2 * height, width),
}


@pytest.mark.parametrize("place", PLACES)
@settings(max_examples=80, deadline=None)
@given(
    raster=rasters(epsg=UTM),
    cut=st.integers(-3, 30),
    shape=st.sampled_from([*OTHER_SHAPE, "as it is", "as it is"]),
    other_dtype=st.booleans(),
)
def test_a_band_is_in_its_row_whatever_its_file_is_like(
    place, tmp_path_factory, raster, cut, shape, other_dtype
):
    """Also one that is compressed, big-endian, tiled, of another shape or type, or cut short."""
    pixels, options = raster
    pixels = pixels[: 2 if shape == "two bands" else 1]
    data = geotiff(pixels, **options)
    data = data[:-cut] if cut > 0 else data + bytes(-cut)
    dtype = OTHER_DTYPE[str(pixels.dtype)] if other_dtype else pixels.dtype
    row, expected = (np.zeros(OTHER_SHAPE[shape](*pixels.shape[1:]), dtype) for _ in range(2))
    files = {"b.json": b"{}", "x.tif": data, "z": b"last"}
    patch = place(tmp_path_factory.mktemp("patch"), files)
    loaded = patch.load(list(files), [None, row])
    assert [bytes(file.whole()) for file in loaded] == list(files.values())
    # Asked for in another order, into rows that hold something else.
    row[...] = 1
    last, file = patch.load(["z", "x.tif"], [None, row])
    assert bytes(last.head) == b"last"
    found = told(lambda: decode_band(file, "x.tif", 10, row))
    assert found == told(lambda: decode_band(whole(data), "x.tif", 10, expected))
    if not isinstance(found, str):
        assert row.tobytes() == expected.tobytes() == pixels[0].tobytes()


@pytest.mark.parametrize("place", PLACES)
def test_uncompressed_bands_are_copied_once(place, tmp_path, monkeypatch):
    bands = {f"{dtype}.tif": noise(dtype, 1, 9, 9) for dtype in ("uint16", "float32", "uint8")}
    rows = [np.empty((9, 9), band.dtype) for band in bands.values()]
    patch = place(tmp_path, {name: geotiff(band) for name, band in bands.items()})
    loaded = patch.load(list(bands), rows)
    monkeypatch.setattr(geotiff_fast, "decode", None)
    for file, band, row in zip(loaded, bands.values(), rows, strict=True):
        assert file.row is row and decode_band(file, "x.tif", 10, row)[0].gsd_m == 10
        assert row.tobytes() == band.tobytes()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("most", [1, 7, 100])
def test_a_file_system_may_give_less_at_once_than_asked_for(place, most, tmp_path, monkeypatch):
    files = {"a.tif": geotiff(noise("uint16", 1, 5, 5)), "b.json": b"{}", "c": b""}
    patch = place(tmp_path, files)
    row = np.empty((5, 5), np.uint16)
    read = os.preadv

    def little(descriptor: int, buffers: Sequence[Any], offset: int) -> int:
        views = [memoryview(buffer).cast("B") for buffer in buffers if memoryview(buffer).nbytes]
        return read(descriptor, [view[:most] for view in views[:1]], offset)

    monkeypatch.setattr(patches.os, "preadv", little)
    loaded = patch.load(list(files), [row])
    assert [bytes(file.whole()) for file in loaded] == list(files.values())
    assert row.tobytes() == noise("uint16", 1, 5, 5).tobytes()


def test_a_file_that_is_cut_after_it_was_opened_is_named(tmp_path, monkeypatch):
    data = geotiff(noise("uint16", 1, 9, 9))
    patch = in_folder(tmp_path, {"x.tif": data[:-40]})
    row = np.empty((9, 9), np.uint16)
    opened = patches.open_to_read
    monkeypatch.setattr(patches, "open_to_read", lambda path: (opened(path)[0], len(data)))
    (file,) = patch.load(["x.tif"], [row])
    assert bytes(file.whole()) == data[:-40]
    with pytest.raises(ValueError, match=r"x\.tif cannot be read"):
        decode_band(file, "x.tif", 10, row)


def test_a_band_is_checked_against_what_its_sensor_gives():
    data = geotiff(noise("uint16", 1, 20, 20))
    row = np.zeros((20, 20), np.uint16)
    assert decode_band(whole(data), "x.tif", 10, row)[0].gsd_m == 10
    assert row.tobytes() == noise("uint16", 1, 20, 20).tobytes()
    for size, gsd, dtype in ((21, 10, "uint16"), (20, 20, "uint16"), (20, 10, "int16")):
        with pytest.raises(ValueError, match=r"x\.tif ho.*expected|x\.tif has.*expected"):
            decode_band(whole(data), "x.tif", gsd, np.zeros((size, size), dtype))


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
        assert nodata_value(pixels[0], whole(data).whole, "x.tif") == (
            value if value in (0, declared) else None
        )
        pixels[0, 9, 9] += 1
        assert nodata_value(pixels[0], whole(geotiff(pixels, **options)).whole, "x.tif") is None


def directory_behind(path: Path) -> None:
    """As `gdal_edit -a_nodata` leaves a file: a new directory behind the pixels."""
    with rasterio.open(path, "r+") as dataset:
        dataset.nodata = -9999


def text_behind(path: Path) -> None:
    """As `tifffile` leaves a file when a tag's text becomes longer."""
    with rasterio.open(path) as dataset:
        pixels = dataset.read()
    data = bytearray(geotiff(pixels, nodata=7))
    (entries,) = struct.unpack_from("<H", data, 8)
    for at in range(10, 10 + 12 * entries, 12):
        if struct.unpack_from("<H", data, at) == (42113,):
            struct.pack_into("<HHII", data, at, 42113, 2, 6, len(data))
    path.write_bytes(data + b"-9999\0")


@pytest.mark.parametrize("edit", [directory_behind, text_behind])
def test_a_nodata_value_behind_the_pixels_is_found_though_the_row_was_written(edit, tmp_path):
    patch = in_folder(tmp_path, {"x.tif": geotiff(np.full((1, 9, 9), -9999, np.float32))})
    edit(tmp_path / "P/x.tif")
    row = np.empty((9, 9), np.float32)
    (file,) = patch.load(["x.tif"], [row])
    assert file.row is row
    assert decode_band(file, "x.tif", 10, row)[1] == -9999
    assert (row == -9999).all()


def test_a_file_that_only_the_fast_reader_opens_is_named_where_gdal_is_asked():
    with pytest.raises(ValueError, match=r"some/x\.tif cannot be read as a GeoTIFF"):
        nodata_value(np.ones((2, 2), np.uint16), whole(b"no TIFF").whole, "some/x.tif")
