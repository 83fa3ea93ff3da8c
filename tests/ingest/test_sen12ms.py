"""SEN12MS: published splits, real pairs to other readers, a simulated archive recounted."""

import gzip
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas
import pytest
import rasterio
import webdataset
import xarray

from fusmae.labels import IGBP_10
from fusmae.splits import SEN12MS_HOLD_OUT, sen12ms_split
from fusmae_ingest.geotiff_write import write_geotiff

from ..manifests import edit_manifest  # noqa: TID252

# The simplified scheme code by code, 1 to 17, written out as in schmitt-muc/SEN12MS.
SIMPLIFIED = [0, 0, 0, 0, 0, 1, 1, 2, 2, 3, 4, 5, 6, 5, 7, 8, 9]


@pytest.fixture(scope="module")
def real(real_v1) -> Path:
    return real_v1.parent / "sen12ms"


@pytest.fixture(scope="module")
def pairs(real, tmp_path_factory) -> Path:
    """The three real pairs without the real incomplete triplet."""
    root = tmp_path_factory.mktemp("sen12ms") / "archive"
    for folder in ("s1_101", "s2_101"):
        shutil.copytree(real / "ROIs1158_spring" / folder, root / "ROIs1158_spring" / folder)
    return root


@pytest.fixture(scope="module")
def simulated(tmp_path_factory, fusmae_ingest) -> Path:
    out = tmp_path_factory.mktemp("sen12ms") / "simulated"
    result = fusmae_ingest("simulate", "sen12ms", "--out", out, "--patches", 20, "--seed", 3)
    assert result.returncode == 0, result.stderr
    return out


def test_official_splits_are_the_published_lists(name_lists):
    folder = name_lists / "sen12ms"
    scenes = {f"{s}/s1_{n}" for s, numbers in SEN12MS_HOLD_OUT.items() for n in numbers}
    assert scenes == set((folder / "SEN12MS_holdOutScenes.txt").read_text().split())
    test = (folder / "test_list.txt").read_text().split()
    train = gzip.decompress((folder / "train_list_derived.txt.gz").read_bytes()).decode().split()
    counts = dict.fromkeys(("train", "val", "test"), 0)
    for names, published in ((test, "test"), (train, "train")):
        for name in names:
            roi, season, _, scene, _ = name.split("_")
            split = sen12ms_split(f"{roi}_{season}", int(scene))
            assert (split == "test") == (published == "test")
            counts[split] += 1
    # 162,555 are listed for training: 162,556 less the patch with NaN in its S1.
    assert counts == {"train": 162_555 - 19_088, "val": 19_088, "test": 18_106}


def test_real_pairs_without_land_cover_are_read_by_others_as_by_rasterio(
    pairs, fusmae_ingest, tmp_path
):
    out = tmp_path / "d"
    refused = fusmae_ingest("sen12ms", "--root", pairs, "--out", out)
    assert refused.returncode == 1 and "--no-lc" in refused.stderr and not out.exists()
    formats = ("--format", "shards", "--format", "zarr")
    result = fusmae_ingest("sen12ms", "--root", pairs, "--out", out, "--no-lc", *formats)
    assert result.returncode == 0, result.stderr
    shards = sorted(map(str, out.glob("shards/*/*.tar")))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode())
    store = xarray.open_zarr(next(out.glob("zarr/*.zarr")))
    assert len(samples) == store.sizes["sample"] == 3
    for row, sample in enumerate(samples):
        roi, season, scene, patch = sample["__key__"].split("_")
        assert str(store.sample_id.values[row]) == sample["__key__"]
        for kind in ("s1", "s2"):
            name = f"{roi}_{season}_{kind}_{scene}_{patch}.tif"
            with rasterio.open(pairs / f"{roi}_{season}" / f"{kind}_{scene}" / name) as file:
                pixels, grid = file.read(), tuple(file.transform)[:6]
            for stored in (sample[f"{kind}.npy"], store[kind].values[row]):
                assert stored.dtype == pixels.dtype
                np.testing.assert_array_equal(stored, pixels)
            assert tuple(sample["json"]["transform"]) == grid
    manifest = json.loads((out / "dataset.json").read_text())
    assert "L1C" in manifest["source"]["processing"]
    assert [band["name"] for band in manifest["arrays"][1]["bands"]][8:11] == ["B8A", "B09", "B10"]


def test_the_real_incomplete_triplet_is_refused_by_name(real, fusmae_ingest, tmp_path):
    args = ("sen12ms", "--root", real, "--out", tmp_path / "d", "--no-lc")
    with_lc = fusmae_ingest(*args[:-1])  # three pairs without land cover, one triplet without S2
    assert with_lc.returncode == 1
    assert "(files missing in all: 4, land cover: 3)" in with_lc.stderr
    assert "--no-lc does without land cover" in with_lc.stderr
    result = fusmae_ingest(*args)
    assert result.returncode == 1 and "ROIs1158_spring_s2_1_p30.tif is missing" in result.stderr
    assert "--no-lc" not in result.stderr
    result = fusmae_ingest(*args, "--on-error", "quarantine", "--max-bad", 0.25)
    assert result.returncode == 0, result.stderr
    line = json.loads((tmp_path / "d" / "quarantine.jsonl").read_text())
    assert line["key"] == "ROIs1158_spring_1_p30"
    assert "ROIs1158_spring/s2_1/ROIs1158_spring_s2_1_p30.tif" in line["reason"]


def test_labels_of_a_simulated_archive_are_those_of_a_recount(simulated, fusmae_ingest, tmp_path):
    out = tmp_path / "d"
    args = ("--root", simulated, "--out", out, "--samples-per-shard", 4, "--format", "zarr")
    result = fusmae_ingest("sen12ms", *args, "--format", "shards")
    assert result.returncode == 0, result.stderr
    assert fusmae_ingest("verify", out).returncode == 0
    table = pandas.read_parquet(out / "samples.parquet").set_index("key")
    paths = sorted(simulated.glob("*/lc_*/*.tif"))
    assert len(table) == len(paths) == 20 and set(table.split) >= {"train", "test"}
    for path in paths:
        with rasterio.open(path) as file:
            codes = file.read(1)
        counts = [0] * 10
        for code, count in zip(*np.unique(codes, return_counts=True), strict=True):
            counts[SIMPLIFIED[code - 1]] += count
        row = table.loc[path.stem.replace("_lc_", "_")]
        assert list(row.fractions) == [count / 256**2 for count in counts]
        assert row.label_single == IGBP_10[counts.index(max(counts))]
        expected = [name for name, n in zip(IGBP_10, counts, strict=True) if n >= 0.1 * 256**2]
        assert list(row.labels_sen12ms_igbp10) == expected
        assert row.season == path.parents[1].name
    for split in ("train", "test"):
        store = xarray.open_zarr(out / f"zarr/{split}.zarr")
        rows = table.loc[list(store.sample_id.values)]
        np.testing.assert_array_equal(store.fractions.values, np.stack(rows.fractions))
        assert store.label_single.values.tolist() == rows.label_single.tolist()


def test_the_labels_of_the_real_land_cover_are_those_of_a_count(real, fusmae_ingest, tmp_path):
    root, name = tmp_path / "archive", "ROIs1158_spring_{}_1_p30.tif"
    for kind in ("s1", "lc"):
        shutil.copytree(real / f"ROIs1158_spring/{kind}_1", root / f"ROIs1158_spring/{kind}_1")
    lc = root / "ROIs1158_spring/lc_1" / name.format("lc")
    with rasterio.open(lc) as file:
        pixels, epsg, grid = file.read(), file.crs.to_epsg(), file.transform
    # The real S2 of the triplet is not at hand.
    s2 = root / "ROIs1158_spring/s2_1" / name.format("s2")
    s2.parent.mkdir()
    noise = np.random.default_rng(0).integers(1, 3000, (13, 256, 256), np.uint16)
    write_geotiff(s2, noise, epsg, grid.c, grid.f, grid.a)
    result = fusmae_ingest("sen12ms", "--root", root, "--out", tmp_path / "d")
    assert result.returncode == 0, result.stderr
    (shard,) = map(str, tmp_path.glob("d/shards/*/*.tar"))
    (sample,) = webdataset.WebDataset(shard, shardshuffle=False).decode()
    np.testing.assert_array_equal(sample["lc.npy"], pixels)
    counts = [0] * 10
    for code in pixels[0].flat:
        counts[SIMPLIFIED[code - 1]] += 1
    assert sum(count > 0 for count in counts) > 1
    told = sample["json"]
    assert told["fractions"] == [count / 256**2 for count in counts]
    assert told["label_single"] == IGBP_10[counts.index(max(counts))]


def test_splits_that_stay_empty_are_told_with_the_reason(pairs, simulated, fusmae_ingest, tmp_path):
    args = ("sen12ms", "--root", pairs, "--no-lc", "--out", tmp_path / "d")
    result = fusmae_ingest(*args)
    assert result.returncode == 0, result.stderr
    table = pandas.read_parquet(tmp_path / "d" / "samples.parquet")
    (filled,) = set(table.split)
    told = [line for line in result.stderr.splitlines() if line.startswith("note: ")]
    empty = [split for split in ("train", "val", "test") if split != filled]
    assert [line.split()[1] for line in told] == empty
    assert all(
        "it gets the " in line and "(1 scene here); more scenes may" in line for line in told
    )
    warned = f"warning: train is empty, so statistics, thus normalisation, are those of {filled}"
    assert (warned in result.stderr) == (filled != "train")
    few = ("--root", simulated, "--out", tmp_path / "e", "--limit", 1)
    result = fusmae_ingest("sen12ms", *few)
    assert result.stderr.count("note: ") == 2 and "a larger --limit" in result.stderr


def test_the_known_bad_patch_is_left_out_and_named(pairs, fusmae_ingest, tmp_path):
    root = tmp_path / "archive"
    for path in sorted(pairs.rglob("*_p30.tif")):
        kind = path.name.split("_")[2]
        for name in (f"ROIs1868_summer_{kind}_146_p202.tif", f"ROIs1868_summer_{kind}_146_p1.tif"):
            copy = root / "ROIs1868_summer" / f"{kind}_146" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    result = fusmae_ingest("sen12ms", "--root", root, "--out", tmp_path / "d", "--no-lc")
    assert result.returncode == 0 and "ROIs1868_summer_146_p202" in result.stderr
    table = pandas.read_parquet(tmp_path / "d" / "samples.parquet")
    assert table.key.tolist() == ["ROIs1868_summer_146_p1"]


def test_a_list_of_ones_own_makes_the_test_split(pairs, fusmae_ingest, tmp_path):
    (tmp_path / "test.txt").write_text("ROIs1158_spring_s2_101_p31.tif\n")
    args = ("sen12ms", "--root", pairs, "--no-lc", "--split", tmp_path / "test.txt")
    assert fusmae_ingest(*args, "--out", tmp_path / "d").returncode == 0
    table = pandas.read_parquet(tmp_path / "d" / "samples.parquet").set_index("key")
    assert table.index[table.split == "test"].tolist() == ["ROIs1158_spring_101_p31"]
    (tmp_path / "test.txt").write_text(
        "ROIs1158_spring_s2_101_p31.tif\nROIs1158_spring_s2_7_p31.tif\n"
    )
    result = fusmae_ingest(*args, "--out", tmp_path / "d")
    assert result.returncode == 0 and "warning: 1 of the 2 patches" in result.stderr
    assert "ROIs1158_spring_7_p31" in result.stderr
    for nothing in ("ROIs1158_spring_s2_7_p31.tif\n", ""):
        (tmp_path / "test.txt").write_text(nothing)
        result = fusmae_ingest(*args, "--out", tmp_path / "e")
        assert result.returncode == 1 and "give a list of this archive" in result.stderr
    (tmp_path / "test.txt").write_text("p31\n")
    result = fusmae_ingest(*args, "--out", tmp_path / "e")
    assert result.returncode == 1 and "'p31'" in result.stderr


def test_another_list_on_the_same_output_is_told_and_an_older_dataset_knows_none(
    simulated, fusmae_ingest, tmp_path
):
    scenes = sorted({path.name.rpartition("_p")[0] for path in simulated.glob("*/s2_*/*.tif")})
    lists = [tmp_path / f"{n}.txt" for n in range(2)]
    for scene, path in zip(scenes, lists, strict=False):
        path.write_text("\n".join(p.name for p in simulated.glob(f"*/s2_*/{scene}_p*.tif")))
    args = ("sen12ms", "--root", simulated, "--out", tmp_path / "d", "--split")
    result = fusmae_ingest(*args, lists[0])
    assert result.returncode == 0 and "warning" not in result.stderr
    other = fusmae_ingest(*args, lists[1])
    assert other.returncode == 1
    assert re.search(
        r"\(test patches of --split: contents \w+ then, contents \w+ now\)", other.stderr
    )
    official = fusmae_ingest(*args, "official")
    assert "--split: list then, official now" in official.stderr
    edit_manifest(tmp_path / "d", lambda table: table["options"]["plan"].pop("split_list"))
    assert "already complete" in fusmae_ingest(*args, lists[0]).stdout
    assert (
        "what tables or lists say of their samples, are others now"
        in fusmae_ingest(*args, lists[1]).stderr
    )


def test_a_list_that_cuts_scenes_gets_a_warning_with_their_number(pairs, fusmae_ingest, tmp_path):
    (tmp_path / "test.txt").write_text("ROIs1158_spring_s2_101_p31.tif\n")
    args = ("sen12ms", "--root", pairs, "--no-lc", "--split", tmp_path / "test.txt")
    result = fusmae_ingest(*args, "--out", tmp_path / "d")
    assert result.returncode == 0
    line = next(line for line in result.stderr.splitlines() if line.startswith("warning: --split"))
    assert "test.txt cuts 1 scene, in test and in train or val" in line
    assert line.endswith("the first: ROIs1158_spring_101")


def test_the_geotiff_writer_gives_the_bytes_of_every_real_file(real, tmp_path):
    paths = sorted(real.rglob("*.tif"))
    assert len(paths) == 8
    for path in paths:
        with rasterio.open(path) as file:
            pixels, epsg, grid = file.read(), file.crs.to_epsg(), file.transform
        write_geotiff(tmp_path / "x.tif", pixels, epsg, grid.c, grid.f, grid.a)
        assert (tmp_path / "x.tif").read_bytes() == path.read_bytes(), path
