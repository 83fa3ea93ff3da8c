"""Simulated archives: genuine layout, pure functions of the seed, said to be simulated."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas
import pytest
import rasterio

from fusmae_ingest import simulate
from fusmae_ingest.geotiff_write import write_geotiff

from .trees import tree


def profile(path: Path) -> dict[str, object]:
    """What rasterio says of a file, apart from where it lies."""
    with rasterio.open(path) as file:
        told = {key: file.profile[key] for key in ("dtype", "width", "height", "count", "nodata")}
        blocks = (file.block_shapes, file.profile["tiled"], file.profile.get("compress"))
        return {**told, "blocks": blocks, "gsd": file.res, "utm": file.crs.to_epsg() // 100}


def test_v1_files_have_the_real_ones_names_profiles_and_json_fields(archive_v1, real_v1):
    for kind in ("BigEarthNet-v1.0", "BigEarthNet-S1-v1.0"):
        real = sorted((real_v1 / kind).glob("S[12]*"))[0]
        simulated = sorted((archive_v1 / kind).glob("S[12]*"))[0]
        names = [
            sorted(p.name.removeprefix(d.name) for p in d.iterdir()) for d in (real, simulated)
        ]
        assert names[0] == names[1]
        for name in names[0]:
            paths = [folder / f"{folder.name}{name}" for folder in (real, simulated)]
            if name.endswith(".json"):
                tables = [json.loads(path.read_text()) for path in paths]
                assert tables[0].keys() == tables[1].keys()
                assert tables[0]["coordinates"].keys() == tables[1]["coordinates"].keys()
                crs = [rasterio.CRS.from_wkt(table["projection"]).to_epsg() for table in tables]
                assert all(32601 <= code <= 32660 for code in crs)
            else:
                assert profile(paths[0]) == profile(paths[1])


def test_v2_tables_have_the_published_columns_and_types(archive_v2, name_lists):
    for name in (
        "metadata.parquet",
        "metadata_for_patches_with_snow_cloud_or_shadow.parquet",
    ):
        ours = pandas.read_parquet(archive_v2 / name)
        theirs = pandas.read_parquet(name_lists / "bigearthnet-v2" / name)
        assert list(ours.columns) == list(theirs.columns)
        assert list(ours.dtypes) == list(theirs.dtypes)
        assert set(ours.split) <= set(theirs.split)
        flagged = ours.contains_seasonal_snow | ours.contains_cloud_or_shadow
        assert flagged.all() if "snow" in name else not flagged.any()


@pytest.mark.parametrize(("dtype", "size"), [("uint16", 120), ("uint16", 20), ("float32", 120)])
def test_the_geotiff_writer_is_read_back_by_rasterio(tmp_path, dtype, size):
    rng = np.random.default_rng(0)
    pixels = (rng.normal(0, 9000, (size, size)) % 65536).astype(dtype)
    path = tmp_path / "x.tif"
    write_geotiff(path, pixels, 32633, 404_400, 5_342_400, 1200 / size)
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(file.read(1), pixels)
        assert file.crs.to_epsg() == 32633
        assert tuple(file.bounds) == (404_400, 5_341_200, 405_600, 5_342_400)


def test_the_geotiff_writer_gives_the_bytes_of_every_real_file(real_v1, tmp_path):
    paths = sorted(real_v1.rglob("*.tif"))
    assert len(paths) == 84
    for path in paths:
        with rasterio.open(path) as file:
            pixels, epsg, grid = file.read(1), file.crs.to_epsg(), file.transform
        write_geotiff(tmp_path / "x.tif", pixels, epsg, grid.c, grid.f, grid.a)
        assert (tmp_path / "x.tif").read_bytes() == path.read_bytes(), path


def test_the_same_seed_gives_the_same_bytes_on_any_number_of_workers(
    archive_v1, fusmae_ingest, tmp_path
):
    args = ("simulate", "bigearthnet", "--patches", 24, "--seed", 1, "--workers", 2)
    assert fusmae_ingest(*args, "--out", tmp_path / "a").returncode == 0
    assert tree(tmp_path / "a") == tree(archive_v1)


def test_a_killed_run_goes_on_to_the_same_bytes(archive_v1, fusmae_ingest, tmp_path):
    args = ["simulate", "bigearthnet", "--patches", "24", "--seed", "1", "--out", tmp_path / "a"]
    command = [sys.executable, "-m", "fusmae_ingest.cli", *args]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("a/BigEarthNet-v1.0/*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "a" / "SIMULATED.json").exists()
    other = fusmae_ingest(*args[:-1], tmp_path / "a", "--version", "v2")
    assert other.returncode == 1 and "version = v1" in other.stderr
    assert fusmae_ingest(*args).returncode == 0
    assert tree(tmp_path / "a") == tree(archive_v1)
    again = fusmae_ingest(*args)
    assert again.returncode == 0 and "already holds" in again.stdout


def test_other_folders_and_other_seeds_are_refused(archive_v1, fusmae_ingest, tmp_path):
    (tmp_path / "mine").write_text("x")
    args = ("simulate", "bigearthnet", "--patches", 24)
    assert "not an empty folder" in fusmae_ingest(*args, "--seed", 1, "--out", tmp_path).stderr
    copy = shutil.copytree(archive_v1, tmp_path / "copy")
    assert "with seed = 1" in fusmae_ingest(*args, "--seed", 2, "--out", copy).stderr


def test_an_archive_says_which_simulator_made_it_and_no_other_goes_on_with_it(
    archive_v1, fusmae_ingest, tmp_path
):
    told = json.loads((archive_v1 / "SIMULATED.json").read_text())
    assert told["simulator_sha256"] == simulate.simulator_sha256()
    copy = shutil.copytree(archive_v1, tmp_path / "copy")
    args = ("simulate", "bigearthnet", "--patches", 24, "--seed", 1, "--out", copy)
    # Whole archives of before stay as they are.
    del told["simulator_sha256"]
    (copy / "SIMULATED.json").write_text(json.dumps(told))
    assert "already holds" in fusmae_ingest(*args).stdout
    (copy / "SIMULATED.json").rename(copy / ".SIMULATED.json.unfinished")
    assert "with simulator_sha256 = None: use another --out" in fusmae_ingest(*args).stderr


@pytest.mark.parametrize("layout", ["bigearthnet", "sen12ms"])
def test_a_second_run_on_one_folder_is_refused_while_the_first_is_at_work(
    layout, fusmae_ingest, tmp_path, monkeypatch
):
    args, told = ("simulate", layout, "--patches", 2, "--out", tmp_path / "a"), []

    def meanwhile(*given):
        monkeypatch.undo()
        told.append(fusmae_ingest(*args))
        return write(*given)

    write = simulate._write
    monkeypatch.setattr(simulate, "_write", meanwhile)
    assert fusmae_ingest(*args).returncode == 0
    assert told[0].returncode == 1
    assert told[0].stderr == (
        f"error: another run is writing {tmp_path / 'a'}: wait for it, or stop it\n"
    )
    assert "already holds" in fusmae_ingest(*args).stdout


@pytest.mark.parametrize(
    ("text", "told"), [("[]", "holds no JSON object"), ('{"seed', "is not valid JSON")]
)
def test_a_spoilt_signature_is_named(text, told, fusmae_ingest, tmp_path):
    (tmp_path / "SIMULATED.json").write_text(text)
    result = fusmae_ingest("simulate", "bigearthnet", "--patches", 2, "--out", tmp_path)
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert f"{tmp_path / 'SIMULATED.json'} {told}" in result.stderr


def test_labels_are_the_classes_that_cover_a_twentieth_of_the_map(archive_v2):
    from fusmae.labels import BIGEARTHNET_43, labels_43_to_19
    from fusmae_ingest.simulated_classes import CLC_CODES

    name_of = {CLC_CODES[name]: name for name in BIGEARTHNET_43}
    table = pandas.concat(pandas.read_parquet(p) for p in archive_v2.glob("*.parquet"))
    for row in table.itertuples():
        path = next(archive_v2.glob(f"Reference_Maps/*/{row.patch_id}/*.tif"))
        with rasterio.open(path) as file:
            codes, counts = np.unique(file.read(1), return_counts=True)
        large = [name_of[code] for code in codes[counts >= 0.05 * 120 * 120]]
        assert sorted(labels_43_to_19(large)) == list(row.labels)


@pytest.mark.parametrize("kind", ["bigearthnet", "sen12ms"])
def test_a_limit_of_file_sizes_is_told_with_the_file_and_how_to_raise_it(tmp_path, kind):
    # Less than a band of 10 m takes.
    command = f"ulimit -f 8; exec {sys.executable} -m fusmae_ingest.cli simulate {kind} "
    command += f"--out {tmp_path}/a --patches 2"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"error: {tmp_path}/a/") and ".tif: File too large; raise the" in line
    assert "(ulimit -f), then run the same command again to go on" in line
