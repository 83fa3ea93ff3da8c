"""Bad input: one line that names the file and says what to do; nothing looks complete."""

import os
import re
import shutil
from pathlib import Path

import pytest
import rasterio

from fusmae_ingest.dataset import refuse_other_plan
from fusmae_ingest.geotiff import decode_raster
from fusmae_ingest.storage import LocalStore

from .packed_archives import pack


@pytest.fixture
def archive(archive_v1, tmp_path) -> Path:
    """A copy of the simulated archive that a test may spoil."""
    return shutil.copytree(archive_v1, tmp_path / "archive")


@pytest.fixture
def patch(archive) -> Path:
    return sorted((archive / "BigEarthNet-v1.0").glob("S[12]*"))[5]


@pytest.fixture
def refused(archive, fusmae_ingest, paths, tmp_path):
    """Runs ingest on the archive, expects one line of error and no finished dataset."""

    def run(*extra: object) -> str:
        out = tmp_path / "dataset"
        result = fusmae_ingest("bigearthnet", *paths(archive), "--out", out, *extra)
        assert result.returncode == 1
        assert "Traceback" not in result.stderr
        lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and result.stderr.rstrip().endswith(lines[0]), result.stderr
        assert not (out / "dataset.json").exists()
        verified = fusmae_ingest("verify", out)
        assert verified.returncode == 1 and "Traceback" not in verified.stderr
        return lines[0]

    return run


def test_missing_band_file(patch, refused):
    path = patch / f"{patch.name}_B05.tif"
    path.unlink()
    message = refused("--samples-per-shard", 8)
    assert str(path) in message and "missing" in message


@pytest.mark.parametrize("keep", [0, 4, 300, 0.5, 0.999])
def test_truncated_tiff(patch, refused, keep):
    path = patch / f"{patch.name}_B02.tif"
    size = path.stat().st_size
    os.truncate(path, keep if isinstance(keep, int) else int(keep * size))
    message = refused()
    assert str(path) in message and "extract it again" in message


def test_a_file_that_is_no_tiff(patch, refused):
    path = patch / f"{patch.name}_B8A.tif"
    path.write_bytes(b"<html>not found</html>" * 100)
    assert str(path) in refused()


def rewrite(path: Path, **changes) -> None:
    """The same raster with another profile."""
    with rasterio.open(path) as file:
        profile, pixels = file.profile, file.read()
    profile.update(changes)
    path.unlink()
    with rasterio.open(path, "w", **profile) as file:
        file.write(pixels.astype(profile["dtype"])[:, : profile["height"]])


def s1_folder(archive: Path) -> Path:
    return sorted((archive / "BigEarthNet-S1-v1.0").glob("S[12]*"))[7]


def test_s1_on_another_grid_than_s2(archive, refused):
    folder = s1_folder(archive)
    for band in ("VV", "VH"):
        path = folder / f"{folder.name}_{band}.tif"
        _, grid = decode_raster(path.read_bytes(), path.name)
        moved = rasterio.Affine.translation(10, 0) @ rasterio.Affine(*grid.transform)
        rewrite(path, transform=moved)
    message = refused()
    assert folder.name in message and "same ground" in message


def test_s1_in_another_utm_zone(archive, refused):
    folder = s1_folder(archive)
    path = folder / f"{folder.name}_VV.tif"
    rewrite(path, crs="EPSG:32601")
    message = refused()
    assert folder.name in message and "EPSG:32601" in message


def test_another_dtype_or_shape_than_the_sensors(patch, refused):
    path = patch / f"{patch.name}_B02.tif"
    rewrite(path, dtype="float32")
    message = refused()
    assert str(path) in message and "float32" in message and "expected uint16" in message


def test_s1_that_is_not_finite(archive, refused):
    folder = s1_folder(archive)
    path = folder / f"{folder.name}_VH.tif"
    with rasterio.open(path, "r+") as file:
        pixels = file.read()
        pixels[0, 3, 4] = float("nan")
        file.write(pixels)
    message = refused()
    assert str(path) in message and "not finite" in message


def test_broken_json_and_unknown_label(patch, refused):
    path = patch / f"{patch.name}_labels_metadata.json"
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    assert str(path) in refused()


def test_s2_patch_without_s1(archive, refused):
    shutil.rmtree(s1_folder(archive))
    assert "has no S1 patch" in refused()


def test_swapped_paths(archive, fusmae_ingest, tmp_path):
    s2, s1 = archive / "BigEarthNet-S1-v1.0", archive / "BigEarthNet-v1.0"
    result = fusmae_ingest("bigearthnet", "--s2", s2, "--s1", s1, "--out", tmp_path / "d")
    assert result.returncode == 1 and not (tmp_path / "d").exists()
    assert result.stderr.count("\n") == 1 and "are --s2 and --s1 swapped?" in result.stderr


def test_the_archives_parent_instead_of_its_folders(archive, fusmae_ingest, tmp_path):
    s1 = archive / "BigEarthNet-S1-v1.0"
    result = fusmae_ingest("bigearthnet", "--s2", archive, "--s1", s1, "--out", tmp_path / "d")
    assert result.returncode == 1 and "give one of these folders" in result.stderr


def test_one_archive_for_both_sensors(archive, fusmae_ingest, tmp_path):
    s2 = archive / "BigEarthNet-v1.0"
    args = ("--s2", s2, "--s1", f"{s2}/../{s2.name}", "--out", tmp_path / "d")
    result = fusmae_ingest("bigearthnet", *args)
    assert result.returncode == 1 and "--s2 and --s1 are both " in result.stderr


def test_missing_folder_and_unknown_option(archive, fusmae_ingest, paths, tmp_path):
    result = fusmae_ingest("bigearthnet", "--s2", "/nowhere", "--s1", "/nowhere", "--out", "x")
    assert result.returncode == 1 and "/nowhere: No such file" in result.stderr
    result = fusmae_ingest("bigearthnet", *paths(archive), "--out", tmp_path / "d", "--sed", 1)
    assert result.returncode == 2 and "--seed" in result.stderr


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--split", "v2"), "v1 has google and official"),
        (("--split", "official"), "--split-lists"),
        (("--exclude", "snow"), "--split-lists"),
        (("--metadata", "m.parquet"), "belong to BigEarthNet v2"),
        (
            ("--split-lists", "/nowhere", "--split", "official"),
            "/nowhere lacks train.csv, val.csv, ",
        ),
    ],
)
def test_combinations_that_cannot_work_are_refused_by_name(refused, extra, message):
    assert message in refused(*extra)


def test_an_output_folder_with_something_else_in_it(archive, fusmae_ingest, paths, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    result = fusmae_ingest("bigearthnet", *paths(archive), "--out", tmp_path / "mine")
    assert result.returncode == 1 and "give a new folder" in result.stderr
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_other_options_on_the_same_output_are_refused_with_the_difference(
    archive, fusmae_ingest, paths, tmp_path
):
    args = ("bigearthnet", *paths(archive), "--out", tmp_path / "d")
    assert fusmae_ingest(*args).returncode == 0
    result = fusmae_ingest(*args, "--seed", 5)
    assert result.returncode == 1 and "--seed: 0 then, 5 now" in result.stderr
    again = fusmae_ingest(*args)
    assert again.returncode == 0 and "already complete" in again.stdout


def test_other_archives_are_told_without_digests(tmp_path):
    old = {"seed": 0, "samples": "ab12", "facts": "cd34", "num_samples": 7}
    store = LocalStore(str(tmp_path))
    for new, told in (
        (
            {"facts": "ef56"},
            "(the archives, or what tables or lists say of their samples, are others now)",
        ),
        ({"samples": "ef56", "num_samples": 5}, "(samples in all: 7 then, 5 now)"),
        ({"num_samples": 5, "seed": 1}, "(--seed: 0 then, 1 now)"),
    ):
        with pytest.raises(ValueError, match=re.escape(told)):
            refuse_other_plan(store, old, old | new)


def test_an_output_that_cannot_be_written(archive, fusmae_ingest, paths):
    result = fusmae_ingest("bigearthnet", *paths(archive), "--out", "/proc/nowhere")
    assert result.returncode == 1
    assert result.stderr.rstrip().splitlines()[-1].startswith("error: /proc/nowhere")


def test_an_output_that_is_a_file_is_refused_before_an_archive_is_unpacked(
    archive, fusmae_ingest, paths, tmp_path
):
    (tmp_path / "thesis.tex").write_text("x")
    _, s2, _, s1 = paths(archive)
    packed = pack(s2, tmp_path / "s2.tar.gz")
    args = ("bigearthnet", "--s2", packed, "--s1", s1, "--out", tmp_path / "thesis.tex")
    result = fusmae_ingest(*args)
    assert result.returncode == 1 and "give a new folder" in result.stderr
    assert (tmp_path / "thesis.tex").read_text() == "x"
    assert not (tmp_path / "thesis.tex.spool").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_blocks_beyond_the_memory_are_one_line(refused, workers):
    # Zarr's index of such a shard alone has more bytes than a process has addresses.
    huge = ("--samples-per-shard", 10**15, "--format", "zarr", "--workers", workers)
    message = refused(*huge)
    assert "not enough memory (Unable to allocate" in message
    assert "a smaller --samples-per-shard" in message
