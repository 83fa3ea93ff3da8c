"""Bands read from a patch's files into their rows, against decoding the whole file."""

import os
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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


@pytest.mark.parametrize("place", PLACES)
@settings(max_examples=80, deadline=None)
@given(raster=rasters(epsg=UTM), cut=st.integers(-3, 30), other=st.sampled_from([0, 1]))
def test_a_band_is_in_its_row_whatever_its_file_is_like(
    place, tmp_path_factory, raster, cut, other
):
    """Also where it declines: compressed, big-endian, tiled, of another size or type, cut short."""
    pixels, options = raster
    data = geotiff(pixels[:1], **options)
    data = data[:-cut] if cut > 0 else data + bytes(-cut)
    _, height, width = pixels.shape
    row, expected = (np.zeros((height, width + other), pixels.dtype) for _ in range(2))
    files = {"b.json": b"{}", "x.tif": data, "z": b"last"}
    patch = place(tmp_path_factory.mktemp("patch"), files)
    loaded = patch.load(list(files), [None, row])
    assert [bytes(file.whole()) for file in loaded] == list(files.values())
    # Asked for in another order, into rows that hold something else.
    row[...] = 1
    last, file = patch.load(["z", "x.tif"], [None, row])
    assert bytes(last.head) == b"last"
    grid = told(lambda: decode_band(file, "x.tif", 10, row))
    assert grid == told(lambda: decode_band(whole(data), "x.tif", 10, expected))
    if not isinstance(grid, str):
        assert row.tobytes() == expected.tobytes() == pixels[:1].tobytes()


@pytest.mark.parametrize("place", PLACES)
def test_uncompressed_bands_are_copied_once(place, tmp_path, monkeypatch):
    bands = {f"{dtype}.tif": noise(dtype, 1, 9, 9) for dtype in ("uint16", "float32", "uint8")}
    rows = [np.empty((9, 9), band.dtype) for band in bands.values()]
    patch = place(tmp_path, {name: geotiff(band) for name, band in bands.items()})
    loaded = patch.load(list(bands), rows)
    monkeypatch.setattr(geotiff_fast, "decode", None)
    for file, band, row in zip(loaded, bands.values(), rows, strict=True):
        assert file.row is row and decode_band(file, "x.tif", 10, row).gsd_m == 10
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
    assert decode_band(whole(data), "x.tif", 10, row).gsd_m == 10
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
        assert nodata_value(pixels[0], whole(data).whole) == (
            value if value in (0, declared) else None
        )
        pixels[0, 9, 9] += 1
        assert nodata_value(pixels[0], whole(geotiff(pixels, **options)).whole) is None
