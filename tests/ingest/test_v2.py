"""BigEarthNet v2: tables, reference maps, splits and exclusions, on a simulated archive."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas
import pytest
import rasterio
import webdataset

from fusmae_ingest.bigearthnet_archive import detect_version
from fusmae_ingest.bigearthnet_tables import LISTS, NameLists
from fusmae_ingest.patches import Archive, FolderArchive
from fusmae_ingest.tar_archive import TarArchive
from fusmae_ingest.tar_index import index_tar

from .packed_archives import pack


@pytest.fixture(scope="module")
def arguments(archive_v2, paths) -> tuple[object, ...]:
    tables = sorted(archive_v2.glob("*.parquet"))
    assert len(tables) == 2
    metadata = [item for table in tables for item in ("--metadata", table)]
    return ("bigearthnet", *paths(archive_v2), *metadata)


@pytest.fixture(scope="module")
def metadata(archive_v2) -> pandas.DataFrame:
    tables = [pandas.read_parquet(path) for path in archive_v2.glob("*.parquet")]
    return pandas.concat(tables).set_index("patch_id")


@pytest.fixture(scope="module")
def dataset(archive_v2, arguments, fusmae_ingest, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("v2") / "dataset"
    maps = ("--maps", archive_v2 / "Reference_Maps")
    result = fusmae_ingest(*arguments, "--out", out, *maps, "--samples-per-shard", 5)
    assert result.returncode == 0, result.stderr
    return out


def test_labels_splits_flags_and_pairs_are_the_tables(dataset, metadata):
    table = pandas.read_parquet(dataset / "samples.parquet").set_index("key")
    assert set(table.index) == set(metadata.index)
    for name, row in table.iterrows():
        told = metadata.loc[name]
        assert set(row.labels_bigearthnet_19) == set(told.labels)
        assert row.split == row.split_v2 == told.split.replace("validation", "val")
        assert (row.s1_name, row.country, row.s2v1_name) == (
            told.s1_name,
            told.country,
            told.s2v1_name,
        )
        assert row.seasonal_snow == told.contains_seasonal_snow
        assert row.cloud_or_shadow == told.contains_cloud_or_shadow


def test_reference_maps_are_stored_pixel_for_pixel(dataset, archive_v2):
    shards = sorted(map(str, dataset.glob("shards/*/*.tar")))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode())
    assert len(samples) == 24
    for sample in samples:
        name = sample["__key__"]
        path = next(archive_v2.glob(f"Reference_Maps/*/{name}/{name}_reference_map.tif"))
        with rasterio.open(path) as file:
            np.testing.assert_array_equal(sample["map.npy"], file.read())


def test_a_map_of_other_ground_is_a_bad_pair(archive_v2, arguments, fusmae_ingest, tmp_path):
    maps = shutil.copytree(archive_v2 / "Reference_Maps", tmp_path / "maps")
    path = sorted(maps.rglob("*.tif"))[4]
    with rasterio.open(path, "r+") as file:
        file.transform = rasterio.Affine.translation(10, 0) @ file.transform
    args = (*arguments, "--maps", maps, "--out", tmp_path / "d")
    result = fusmae_ingest(*args)
    assert result.returncode == 1
    assert f"{path} lies at" in result.stderr and "cover the same ground" in result.stderr


def test_exclude_leaves_out_flagged_patches_only(arguments, fusmae_ingest, metadata, tmp_path):
    args = (*arguments, "--exclude", "snow,cloud", "--out", tmp_path / "d")
    assert fusmae_ingest(*args).returncode == 0
    kept = pandas.read_parquet(tmp_path / "d" / "samples.parquet")
    clear = metadata[~(metadata.contains_seasonal_snow | metadata.contains_cloud_or_shadow)]
    assert 0 < len(clear) < len(metadata)
    assert set(kept.key) == set(clear.index)


def test_google_split_hashes_the_v1_name(arguments, fusmae_ingest, tmp_path):
    from fusmae.splits import google_split

    args = (*arguments, "--split", "google", "--out", tmp_path / "d")
    assert fusmae_ingest(*args).returncode == 0
    table = pandas.read_parquet(tmp_path / "d" / "samples.parquet")
    assert [google_split(name) for name in table.s2v1_name] == list(table.split)


def test_the_simulation_is_said_wherever_it_shows(dataset, fusmae_ingest):
    shown = fusmae_ingest("info", dataset).stdout
    assert "simulated-bigearthnet-v2" in shown and "Simulated" in shown
    assert "Simulated" in (dataset / "README.md").read_text()
    assert all("simulated" in path.name for path in dataset.glob("shards/*/*.tar"))


def test_info_names_dtypes_as_numpy_does_and_gives_class_codes_no_mean(dataset, fusmae_ingest):
    lines = fusmae_ingest("info", dataset).stdout.splitlines()
    cells = {cell[1]: cell[3:] for line in lines if len(cell := re.split(r"\s{2,}", line)) == 8}
    assert cells["VV"][0] == "float32" and cells["B08"][0] == "uint16"
    assert float(cells["B08"][1]) > 0
    assert cells["CLC"][:3] == ["uint16", "-", "-"] and int(cells["CLC"][3]) >= 111


def test_without_tables_or_with_too_few_the_missing_one_is_named(
    archive_v2, arguments, fusmae_ingest, paths, tmp_path
):
    bare = fusmae_ingest("bigearthnet", *paths(archive_v2), "--out", tmp_path / "d")
    assert bare.returncode == 1 and "give --metadata" in bare.stderr
    first = ("--metadata", archive_v2 / "metadata.parquet")
    one = fusmae_ingest("bigearthnet", *paths(archive_v2), *first, "--out", tmp_path / "d")
    assert one.returncode == 1 and "is a second one: give it too" in one.stderr
    second = archive_v2 / "metadata_for_patches_with_snow_cloud_or_shadow.parquet"
    args = ("--metadata", second, "--out", tmp_path / "d")
    other = fusmae_ingest("bigearthnet", *paths(archive_v2), *args)
    assert other.returncode == 1 and "only: give metadata.parquet too" in other.stderr


def test_a_broken_row_and_an_absent_folder_are_said(archive_v2, fusmae_ingest, paths, tmp_path):
    copy = shutil.copytree(archive_v2, tmp_path / "archive")
    gone = next(copy.glob("BigEarthNet-S2/*/*"))
    shutil.rmtree(gone)
    (next(copy.glob("BigEarthNet-S2/*")) / ".ipynb_checkpoints").mkdir()
    tables = [item for path in sorted(copy.glob("*.parquet")) for item in ("--metadata", path)]
    command = ["bigearthnet", *paths(copy), *tables, "--out", tmp_path / "d"]
    told = f"patches of the tables without an S2 patch in {copy / 'BigEarthNet-S2'}: 1; the first: "
    result = fusmae_ingest(*command)
    line = result.stderr.splitlines()[-1]
    assert result.returncode == 1 and line.startswith(f"error: {told}{gone.name}; complete")
    assert line.endswith("or leave them out with --partial")
    result = fusmae_ingest(*command, "--partial")
    assert result.returncode == 0 and f"warning: {told}{gone.name}" in result.stderr
    for column, value in (("split", "holdout"), ("labels", None), ("s1_name", "../x")):
        table = pandas.read_parquet(copy / "metadata.parquet").astype({"split": object})
        table[column] = [value] * len(table)
        table.to_parquet(tmp_path / "broken.parquet")
        args = ("--metadata", tmp_path / "broken.parquet", *tables[2:], "--out", tmp_path / "e")
        result = fusmae_ingest("bigearthnet", *paths(copy), *args)
        assert result.returncode == 1 and "error: metadata row" in result.stderr, result.stderr


def test_what_a_table_leaves_open_is_null_and_not_a_word(
    archive_v2, metadata, fusmae_ingest, paths, tmp_path
):
    table = metadata.reset_index().astype(object)
    holes = ("country", "s2v1_name", "contains_seasonal_snow", "contains_cloud_or_shadow")
    table.loc[3, holes] = None
    table.to_parquet(tmp_path / "t.parquet")
    args = ("bigearthnet", *paths(archive_v2), "--metadata", tmp_path / "t.parquet")
    result = fusmae_ingest(*args, "--out", tmp_path / "d")
    assert result.returncode == 0, result.stderr
    made = pandas.read_parquet(tmp_path / "d" / "samples.parquet").set_index("key")
    told = ["country", "s2v1_name", "seasonal_snow", "cloud_or_shadow", "split_google"]
    assert made.loc[table.patch_id[3], told].isna().all()
    assert made.loc[table.patch_id[4], told].notna().all()
    unknown = fusmae_ingest(*args, "--exclude", "snow", "--out", tmp_path / "e")
    assert unknown.returncode == 1 and table.patch_id[3] in unknown.stderr


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("patch_id", None, "row 3 has the patch_id None"),
        ("labels", [None], "labels [None]"),
        ("contains_seasonal_snow", "False", "contains_seasonal_snow 'False'"),
    ],
)
def test_a_cell_that_tables_never_hold_is_refused(
    archive_v2, metadata, fusmae_ingest, paths, tmp_path, column, value, message
):
    table = metadata.reset_index().astype(object)
    if isinstance(value, str):
        table[column] = table[column].astype(str)
    table.at[3, column] = value
    table.to_parquet(tmp_path / "t.parquet")
    args = ("bigearthnet", *paths(archive_v2), "--metadata", tmp_path / "t.parquet")
    result = fusmae_ingest(*args, "--out", tmp_path / "d")
    assert result.returncode == 1 and message in result.stderr, result.stderr


def test_a_patch_that_is_there_twice_is_refused_by_name(
    archive_v2, arguments, metadata, fusmae_ingest, paths, tmp_path
):
    table = metadata.reset_index()
    pandas.concat([table, table[5:6]]).to_parquet(tmp_path / "t.parquet")
    args = ("bigearthnet", *paths(archive_v2), "--metadata", tmp_path / "t.parquet")
    in_one = fusmae_ingest(*args, "--out", tmp_path / "d")
    table[5:6].to_parquet(tmp_path / "more.parquet")
    more = ("--metadata", tmp_path / "more.parquet")
    in_two = fusmae_ingest(*arguments, *more, "--out", tmp_path / "d")
    assert in_one.returncode == in_two.returncode == 1
    assert f"{table.patch_id[5]} is in two rows" in in_one.stderr
    assert "is in two rows" in in_two.stderr

    copy = shutil.copytree(archive_v2, tmp_path / "archive")
    patch, other = (next(tile.iterdir()) for tile in sorted(copy.glob("BigEarthNet-S2/*"))[:2])
    shutil.copytree(patch, other.parent / patch.name)
    result = fusmae_ingest("bigearthnet", *paths(copy), *arguments[5:], "--out", tmp_path / "d")
    assert result.returncode == 1 and "are the same S2 patch" in result.stderr
    assert patch.name in result.stderr


def test_a_name_in_two_splits_is_refused(archive_v1, fusmae_ingest, paths, tmp_path):
    names = ("train", "val", "test", "patches_with_seasonal_snow", "patches_with_cloud_and_shadow")
    for name in names:
        (tmp_path / f"{name}.csv").write_text("one,s1\n" if name in ("train", "test") else "")
    args = ("--split", "official", "--split-lists", tmp_path, "--out", tmp_path / "d")
    result = fusmae_ingest("bigearthnet", *paths(archive_v1), *args)
    assert result.returncode == 1 and "one is in train.csv and in test.csv" in result.stderr


def test_other_lists_than_a_runs_own_are_refused(archive_v1, fusmae_ingest, paths, tmp_path):
    lists = tmp_path / "lists"
    lists.mkdir()
    names = ("train", "val", "test", "patches_with_seasonal_snow", "patches_with_cloud_and_shadow")
    for name in names:
        (lists / f"{name}.csv").write_text("")
    args = ("bigearthnet", *paths(archive_v1), "--out", tmp_path / "d")
    assert fusmae_ingest(*args).returncode == 0
    result = fusmae_ingest(*args, "--split-lists", lists)
    assert result.returncode == 1 and "(--split-lists: none then, " in result.stderr


def test_an_unfinished_simulation_is_not_taken_for_an_archive(
    archive_v1, fusmae_ingest, paths, tmp_path
):
    copy = shutil.copytree(archive_v1, tmp_path / "archive")
    (copy / "SIMULATED.json").rename(copy / ".SIMULATED.json.unfinished")
    result = fusmae_ingest("bigearthnet", *paths(copy), "--out", tmp_path / "d")
    assert result.returncode == 1 and "not finished" in result.stderr


def test_a_table_without_the_columns_is_refused(archive_v2, fusmae_ingest, paths, tmp_path):
    pandas.DataFrame({"patch_id": ["x"]}).to_parquet(tmp_path / "t.parquet")
    args = ("--metadata", tmp_path / "t.parquet", "--out", tmp_path / "d")
    result = fusmae_ingest("bigearthnet", *paths(archive_v2), *args)
    assert result.returncode == 1 and "lacks the columns" in result.stderr


def test_official_split_and_flags_come_from_the_lists(archive_v1, fusmae_ingest, paths, tmp_path):
    names = sorted(path.name for path in (archive_v1 / "BigEarthNet-v1.0").glob("S[12]*"))
    lists = tmp_path / "lists"
    lists.mkdir()
    parts = {"train": names[:10], "val": names[10:15], "test": names[15:20]}
    for split, part in parts.items():
        (lists / f"{split}.csv").write_text("".join(f"{name},s1\n" for name in part))
    (lists / "patches_with_seasonal_snow.csv").write_text(f"{names[0]}\n{names[20]}\n")
    (lists / "patches_with_cloud_and_shadow.csv").write_text(f"{names[11]}\n")
    args = (*paths(archive_v1), "--split", "official", "--split-lists", lists)
    result = fusmae_ingest("bigearthnet", *args, "--exclude", "snow", "--out", tmp_path / "d")
    assert result.returncode == 0, result.stderr
    table = pandas.read_parquet(tmp_path / "d" / "samples.parquet").set_index("key")
    expected = {name: split for split, part in parts.items() for name in part if name != names[0]}
    assert table.split.to_dict() == expected
    assert table.cloud_or_shadow.to_dict() == {name: name == names[11] for name in expected}


@pytest.mark.parametrize("in_tars", [(), ("s1",), ("s2", "s1")])
def test_archives_of_two_versions_are_refused_wherever_they_are(
    archive_v1, archive_v2, paths, tmp_path, in_tars
):
    def archive(root: Path, sensor: str) -> Archive:
        folder = dict(zip(("s2", "s1"), paths(root)[1::2], strict=True))[sensor]
        if sensor not in in_tars:
            return FolderArchive(folder, f"--{sensor}")
        packed, index = (tmp_path / f"{folder.name}{end}" for end in (".tar", ".index"))
        pack(folder, packed)
        index_tar(packed, index, lambda done, total: None)
        return TarArchive(packed, index)

    for root, version, other in ((archive_v1, "v1", archive_v2), (archive_v2, "v2", archive_v1)):
        optical = archive(root, "s2")
        assert detect_version(optical, archive(root, "s1")) == version
        with pytest.raises(ValueError, match=rf"BigEarthNet {version}, but --s1 .* of v[12]: give"):
            detect_version(optical, archive(other, "s1"))


def test_the_split_of_v2_comes_from_its_table_beside_the_lists(
    archive_v1, archive_v2, fusmae_ingest, paths, tmp_path
):
    names = sorted(path.name for path in (archive_v1 / "BigEarthNet-v1.0").glob("S[12]*"))
    lists = tmp_path / "lists"
    lists.mkdir()
    for name in LISTS:
        (lists / name).write_text("")
    alone = NameLists(lists, v2_table=True).digest()
    v2 = pandas.read_parquet(archive_v2 / "metadata.parquet").head(3)
    v2["s2v1_name"], v2["split"] = names[:3], ["train", "validation", "test"]
    v2.to_parquet(lists / "metadata.parquet")
    # Begun datasets stay the same: those without the table, and those of v2.
    assert NameLists(lists, v2_table=False).digest() == alone
    assert NameLists(lists, v2_table=True).digest() != alone
    args = ("bigearthnet", *paths(archive_v1), "--split-lists", lists, "--out", tmp_path / "d")
    assert fusmae_ingest(*args).returncode == 0
    table = pandas.read_parquet(tmp_path / "d" / "samples.parquet").set_index("key")
    told = table.split_v2.dropna().to_dict()
    assert told == dict(zip(names[:3], ["train", "val", "test"], strict=True))
    assert (table.split == table.split_google).all()
    (lists / "metadata.parquet").write_text("no table")
    result = fusmae_ingest(*args)
    assert f"--split-lists {lists / 'metadata.parquet'} is no parquet table" in result.stderr
    v2.assign(split="elsewhere").to_parquet(lists / "metadata.parquet")
    assert "its splits ['elsewhere'] are none of train, " in fusmae_ingest(*args).stderr
