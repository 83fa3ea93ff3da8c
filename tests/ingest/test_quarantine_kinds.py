"""Each kind of bad sample by itself: one line that names the file, and left out by quarantine."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from fusmae_ingest.geotiff import Grid, footprints, refuse_off_earth

S2_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")


@dataclass(frozen=True)
class Patches:
    """The folders of one pair."""

    s2: Path
    s1: Path

    def band(self, name: str) -> Path:
        folder = self.s1 if name in ("VV", "VH") else self.s2
        return folder / f"{folder.name}_{name}.tif"


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray], **profile: object) -> None:
    """The same raster with other pixels and another profile."""
    with rasterio.open(path) as file:
        told, pixels = file.profile, file.read()
    changed = change(pixels)
    told |= {"dtype": changed.dtype, "height": changed.shape[1], "width": changed.shape[2]}
    path.unlink()
    with rasterio.open(path, "w", **told | profile) as file:
        file.write(changed)


def nodata(bands: tuple[str, ...]) -> Callable[[Patches], None]:
    def spoil(patches: Patches) -> None:
        for band in bands:
            rewrite(patches.band(band), np.zeros_like)

    return spoil


def declared(bands: tuple[str, ...], value: float) -> Callable[[Patches], None]:
    """All pixels are the nodata value of which the files themselves tell."""

    def spoil(patches: Patches) -> None:
        for band in bands:
            rewrite(patches.band(band), lambda x: np.full_like(x, value), nodata=value)

    return spoil


def move_off_earth(patches: Patches) -> None:
    for band in (*S2_BANDS, "VV", "VH"):
        with rasterio.open(patches.band(band), "r+") as file:
            file.transform = from_origin(6e7, 5e7, file.transform.a, file.transform.a)


def claim_90_gigapixels(patches: Patches) -> None:
    path = patches.band("B02")
    shape = {"width": 300_000, "height": 300_000, "count": 1, "dtype": "uint16"}
    where = {"crs": "EPSG:32633", "transform": from_origin(6e5, 5e6, 10, 10)}
    sparse = {"SPARSE_OK": "TRUE", "BIGTIFF": "YES", "tiled": True}
    with rasterio.open(
        path, "w", driver="GTiff", **shape, **where, **sparse, blockxsize=8192, blockysize=8192
    ):
        pass
    assert path.stat().st_size < 1 << 20


def become_a_pipe(patches: Patches) -> None:
    patches.band("B03").unlink()
    os.mkfifo(patches.band("B03"))


def nest_json(patches: Patches) -> None:
    path = patches.s2 / f"{patches.s2.name}_labels_metadata.json"
    path.write_text("[" * 100_000)


def cut_s1_json(patches: Patches) -> None:
    os.truncate(patches.s1 / f"{patches.s1.name}_labels_metadata.json", 40)


def copy_s1(patches: Patches) -> None:
    """A second S1 patch that names the same S2 patch."""
    twin = patches.s1.name[:-1] + str(9 - int(patches.s1.name[-1]))
    assert not patches.s1.with_name(twin).exists()
    shutil.copytree(patches.s1, patches.s1.with_name(twin))
    for path in patches.s1.with_name(twin).iterdir():
        path.rename(path.with_name(path.name.replace(patches.s1.name, twin)))


SPOILERS = {
    "no S1": (lambda p: shutil.rmtree(p.s1), "has no S1 patch in"),
    "S1 JSON": (cut_s1_json, "_labels_metadata.json is not valid JSON"),
    "two S1": (copy_s1, "both claim the S2 patch"),
    "S1 nodata": (nodata(("VV", "VH")), "every pixel of every band is nodata"),
    "S2 nodata": (nodata(S2_BANDS), "every pixel of every band is nodata"),
    "S1 declared nodata": (
        declared(("VV", "VH"), -9999),
        "every pixel of every band is nodata (-9999)",
    ),
    "S2 declared nodata": (declared(S2_BANDS, 7), "every pixel of every band is nodata (7)"),
    "a band of S1 nodata": (nodata(("VH",)), "_VH.tif: every pixel is nodata (0)"),
    "a band of S1 declared nodata": (
        declared(("VV",), -9999),
        "_VV.tif: every pixel is nodata (-9999)",
    ),
    "a band of S2 declared nodata": (
        declared(("B09",), 65535),
        "_B09.tif: every pixel is nodata (65535)",
    ),
    "shape": (
        lambda p: rewrite(p.band("B04"), lambda x: x[:, :119]),
        "expected uint16(1, 120, 120)",
    ),
    "dtype": (lambda p: rewrite(p.band("B11"), np.float32), "expected uint16"),
    "grid": (
        lambda p: rewrite(p.band("VH"), np.copy, transform=from_origin(6e5, 5e6, 10, 10)),
        "the same ground",
    ),
    "off Earth": (move_off_earth, "outside of its projection"),
    "90 gigapixels": (claim_90_gigapixels, "300000"),
    "1 TiB": (lambda p: os.truncate(p.band("B08"), 1 << 40), "expected at most"),
    "pipe": (become_a_pipe, "is a pipe"),
    "nested JSON": (nest_json, "not valid JSON"),
}


@pytest.mark.parametrize("kind", SPOILERS)
def test_a_bad_pair_ends_the_run_or_is_left_out(kind, archive_v1, fusmae_ingest, paths, tmp_path):
    spoil, reason = SPOILERS[kind]
    archive = shutil.copytree(archive_v1, tmp_path / "archive")
    s2 = sorted((archive / "BigEarthNet-v1.0").glob("S2*"))[5]
    for s1 in (archive / "BigEarthNet-S1-v1.0").glob("S1*"):
        told = json.loads((s1 / f"{s1.name}_labels_metadata.json").read_text())
        if told["corresponding_s2_patch"] == s2.name:
            spoil(Patches(s2, s1))
            break
    args = ("bigearthnet", *paths(archive), "--out", tmp_path / "d")
    failed = fusmae_ingest(*args)
    assert failed.returncode == 1 and reason in failed.stderr, failed.stderr
    assert "; or leave such samples out: --on-error quarantine\n" in failed.stderr
    result = fusmae_ingest(*args, "--on-error", "quarantine", "--max-bad", 0.05)
    assert result.returncode == 0, result.stderr
    (line,) = (tmp_path / "d" / "quarantine.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert entry["key"] == s2.name and reason in entry["reason"]
    assert str(tmp_path) not in entry["reason"]


def test_dark_water_is_no_bad_pair(archive_v1, fusmae_ingest, paths, tmp_path):
    """Some versions of Sen2Cor write 0 in single bands of S2 there."""
    archive = shutil.copytree(archive_v1, tmp_path / "archive")
    for s2 in (archive / "BigEarthNet-v1.0").glob("S2*"):
        for band in ("B08", "B12", "B09"):
            rewrite(s2 / f"{s2.name}_{band}.tif", np.zeros_like)
    result = fusmae_ingest("bigearthnet", *paths(archive), "--out", tmp_path / "d")
    assert result.returncode == 0, result.stderr


def drop_a_band(path: Path) -> None:
    rewrite(path, lambda pixels: pixels[:12], count=12)


def spot(pixels: np.ndarray) -> np.ndarray:
    """One pixel that is no number."""
    spotted = pixels.copy()
    spotted[1, 100, 200] = np.nan
    return spotted


SEN12MS_SPOILERS = {
    "s1 nodata": ("s1", lambda p: rewrite(p, np.zeros_like), "every pixel of every band is nodata"),
    "s2 nodata": ("s2", lambda p: rewrite(p, np.zeros_like), "every pixel of every band is nodata"),
    "lc nodata": ("lc", lambda p: rewrite(p, np.zeros_like), "every pixel of every band is nodata"),
    "s1 declared nodata": (
        "s1",
        lambda p: rewrite(p, lambda x: np.full_like(x, -9999), nodata=-9999),
        "every pixel of every band is nodata (-9999)",
    ),
    "a band of s1 nodata": (
        "s1",
        lambda p: rewrite(p, lambda x: x * np.float32([1, 0])[:, None, None]),
        "every pixel of VH is nodata (0)",
    ),
    "NaN": ("s1", lambda p: rewrite(p, spot), "pixels that are not finite numbers"),
    "grid": (
        "s2",
        lambda p: rewrite(p, np.copy, transform=from_origin(6e5, 5e6, 10, 10)),
        "the same ground",
    ),
    "grid of lc": (
        "lc",
        lambda p: rewrite(p, np.copy, transform=from_origin(6e5, 5e6, 10, 10)),
        "the same ground",
    ),
    "zone": ("s2", lambda p: rewrite(p, np.copy, crs="EPSG:32601"), "the same ground"),
    "truncated": (
        "s2",
        lambda p: os.truncate(p, p.stat().st_size // 2),
        "cannot be read as a GeoTIFF",
    ),
    "size": ("s2", lambda p: rewrite(p, lambda x: x[:, :255]), "expected uint16(13, 256, 256)"),
    "bands": ("s2", drop_a_band, "expected uint16(13, 256, 256)"),
    "dtype": ("s1", lambda p: rewrite(p, np.float64), "expected float32(2, 256, 256)"),
}


@pytest.fixture(scope="module")
def triplets(tmp_path_factory, fusmae_ingest) -> Path:
    out = tmp_path_factory.mktemp("triplets") / "archive"
    result = fusmae_ingest("simulate", "sen12ms", "--out", out, "--patches", 4, "--seed", 3)
    assert result.returncode == 0, result.stderr
    return out


@pytest.mark.parametrize("kind", SEN12MS_SPOILERS)
def test_a_bad_triplet_ends_the_run_or_is_left_out(kind, triplets, fusmae_ingest, tmp_path):
    sensor, spoil, reason = SEN12MS_SPOILERS[kind]
    archive = shutil.copytree(triplets, tmp_path / "archive")
    path = sorted(archive.glob(f"ROIs*/{sensor}_*/*.tif"))[2]
    spoil(path)
    args = ("sen12ms", "--root", archive, "--out", tmp_path / "d")
    failed = fusmae_ingest(*args)
    assert failed.returncode == 1 and reason in failed.stderr and path.name in failed.stderr
    assert "; or leave such samples out: --on-error quarantine\n" in failed.stderr
    result = fusmae_ingest(*args, "--on-error", "quarantine", "--max-bad", 0.25)
    assert result.returncode == 0, result.stderr
    (line,) = (tmp_path / "d" / "quarantine.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert entry["key"] == path.stem.replace(f"_{sensor}_", "_")
    assert reason in entry["reason"] and str(tmp_path) not in entry["reason"]


def grid(epsg: int, left: float, top: float) -> Grid:
    return Grid(epsg, (10.0, 0.0, left, 0.0, -10.0, top), 120, 120)


def test_every_grid_that_passes_has_degrees():
    edges = [(x, y) for x in (-1e6, 166e3, 500e3, 834e3, 1.998e6) for y in (-9.99e6, 0, 1e7, 2e7)]
    for epsg in (32601, 32633, 32660, 32701, 32760):
        for left, top in edges:
            refuse_off_earth(grid(epsg, left, top), "x.tif")
            assert np.isfinite(footprints([grid(epsg, left, top)])).all()
    refuse_off_earth(grid(3035, 4e6, 3e6), "x.tif")
    off = (
        (32633, 5e7, 5e7),
        (32633, 5e5, np.nan),
        (3035, 5e8, 5e8),
        (4326, 400, 0),
        (999_999, 0, 0),
    )
    for epsg, left, top in off:
        with pytest.raises(ValueError, match=r"x\.tif lies at .* outside of its projection"):
            refuse_off_earth(grid(epsg, left, top), "x.tif")
