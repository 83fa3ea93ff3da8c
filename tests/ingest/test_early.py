"""What is told before an archive is unpacked."""

import bz2
import gzip
import shutil
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas
import pytest

from fusmae_ingest import cluster
from fusmae_ingest.archive_note import write_note
from fusmae_ingest.archives import spool_folder
from fusmae_ingest.bigearthnet_tables import NameLists
from fusmae_ingest.glimpse import first_files
from fusmae_ingest.storage import LocalStore

from .packed_archives import metadata, pack, v2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"--s2": "v1-s1", "--s1": "v1-s2"}, "v1-s1.tar.gz holds S1 folders: give the S2 archive"),
        ({"--s2": "v2-s1", "--s1": "v2-s2"}, "or are --s2 and --s1 swapped?"),
        ({"--s2": "v1-s2", "--s1": "v2-s1"}, "BigEarthNet v1, but --s1 "),
        ({"--s2": "v2-s2", "--s1": "v1-s1"}, "BigEarthNet v2, but --s1 "),
        ({"--s2": "v2-maps", "--s1": "v2-s1"}, "v2-maps.tar.zst holds reference maps: "),
        ({"--s2": "v2-s2", "--s1": "v2-s1", "--maps": "v2-s2"}, "--s2 and --maps are both "),
        (
            {"--s2": "v2-maps", "--s1": "v2-s1", "--maps": "v2-s2"},
            "or are --s2 and --maps swapped?",
        ),
        ({"--s2": "v1-s2", "--s1": "v2-s2"}, "v2-s2.tar.zst holds S2 folders: give the S1 archive"),
        ({"--s2": "v1-s2", "--s1": "v1-s1", "--maps": "v2-maps"}, "these archives are v1"),
        ({"--s2": "v2-s2", "--s1": "v2-s1"}, "give --metadata"),
        ({"--s2": "v2-s2", "--s1": "nowhere"}, "nowhere: No such file"),
        ({"--s2": "v2-s2", "--s1": "empty"}, "empty ends at byte 0 without the mark"),
    ],
)
def test_archives_that_do_not_go_together_are_refused_unopened(
    packed, ingest, tmp_path, given, message
):
    (tmp_path / "empty").write_bytes(b"")
    told = [w for o, name in given.items() for w in (o, packed.get(name, tmp_path / name))]
    assert message in ingest("bigearthnet", *told, "--out", tmp_path / "d").error
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_tables_that_do_not_list_the_first_patches_are_refused_before_unpacking(
    packed, tables, ingest, tmp_path
):
    """Both tables of another archive, one twice, and each of the two alone."""
    for table in tables:
        shutil.copy(table, tmp_path)
    copies = [tmp_path / table.name for table in tables]
    for copy in copies:
        table = pandas.read_parquet(copy)
        table["patch_id"] = [name.replace("MSIL2A_20", "MSIL2A_30") for name in table.patch_id]
        table.to_parquet(copy)
    spool = tmp_path / "d.spool"
    for given, message in (
        (copies, "are the tables those of this archive?"),
        ([tables[0], tables[1], tables[0]], f"--metadata {tables[0]} is given twice: give "),
        ([copies[0]], "is a second one: give it too"),
        ([copies[1]], "has snow, cloud or shadow only: give metadata.parquet too"),
    ):
        assert message in ingest(*v2(packed), *metadata(given), "--out", tmp_path / "d").error
        assert not spool.exists()
    assert tables[0].name == "metadata.parquet"
    shutil.copy(tables[0], tmp_path / "renamed")
    given = metadata([*tables, tmp_path / "renamed"])
    message = f"renamed is the same as {tables[0]}: give "
    assert message in ingest(*v2(packed), *given, "--out", tmp_path / "d").error


def test_one_archive_given_for_two_sensors_is_said(packed, ingest, tmp_path):
    args = ("--s2", packed["v1-s2"], "--s1", packed["v1-s2"], "--out", tmp_path / "d")
    message = f"--s2 and --s1 are both {packed['v1-s2']}: give each its own archive"
    assert message in ingest("bigearthnet", *args).error


@pytest.mark.parametrize("plain", ["--s2", "--s1"])
def test_a_folder_and_an_archive_are_compared_too(
    packed, archive_v1, archive_v2, ingest, tmp_path, plain
):
    given = {"--s2": packed["v2-s2"], "--s1": packed["v2-s1"]}
    name = "BigEarthNet-v1.0" if plain == "--s2" else "BigEarthNet-S1-v1.0"
    given[plain] = archive_v1 / name
    told = [word for option, path in given.items() for word in (option, path)]
    assert (
        "give both from the same version"
        in ingest("bigearthnet", *told, "--out", tmp_path / "d").error
    )
    assert list(tmp_path.iterdir()) == []
    # The maps of a v2 dataset are looked at as well.
    maps = ("--maps", archive_v2 / "BigEarthNet-S2")
    told = ingest(*v2(packed), *maps, "--out", tmp_path / "d")
    assert "BigEarthNet-S2 holds S2 folders: " in told.error


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--metadata", "absent.parquet"], "absent.parquet: No such file or directory; give a "),
        (
            ["--metadata", "."],
            "--metadata .: Is a directory; give a table such as metadata.parquet",
        ),
        (["--metadata", "poor.parquet"], "poor.parquet lacks the columns"),
        (["--metadata", "cut.parquet"], "cut.parquet is no parquet table, or is damaged: download"),
        (["--split-lists", "nowhere"], "--split-lists nowhere lacks train.csv, val.csv, "),
        (["--split-lists", "torn"], "--split-lists torn/train.csv.bz2: "),
        (["--split", "official"], "--split official needs --split-lists"),
        (["--scheduler", "tcp://nowhere:1"], "no scheduler at tcp://nowhere:1"),
    ],
)
def test_options_that_cannot_work_are_refused_before_unpacking(
    packed, tables, ingest, lists, tmp_path, monkeypatch, extra, message
):
    monkeypatch.chdir(tmp_path)
    pandas.DataFrame({"patch_id": ["x"]}).to_parquet("poor.parquet")
    data = tables[0].read_bytes()
    Path("cut.parquet").write_bytes(data[: len(data) // 2])
    shutil.copytree(lists, "torn")
    Path("torn/train.csv").unlink()
    Path("torn/train.csv.bz2").write_bytes(b"BZh9")

    def check(address: str) -> None:
        raise ValueError(f"no scheduler at {address}")

    monkeypatch.setattr(cluster, "check_scheduler", check, raising=False)
    args = (*v2(packed), *metadata(tables), "--out", "d", *extra)
    assert message in ingest(*args).error
    assert not Path("d.spool").exists() and not Path("d").exists()


def test_all_lists_that_are_missing_are_named_with_their_source(
    archive_v1, paths, ingest, lists, tmp_path
):
    (lists / "val.csv").unlink()
    (lists / "patches_with_seasonal_snow.csv").unlink()
    told = ingest(
        "bigearthnet", *paths(archive_v1), "--split-lists", lists, "--out", tmp_path / "d"
    )
    assert f"{lists} lacks val.csv, patches_with_seasonal_snow.csv (or " in told.error
    assert "https://zenodo.org/records/12687186" in told.error


def test_lists_are_read_as_they_are_published_and_unpacked(lists, tmp_path):
    (lists / "train.csv").write_text("one,s1\ntwo,s1\n")
    plain = NameLists(lists, v2_table=True)
    assert plain.split_of == {"one": "train", "two": "train"}
    for module in (gzip, bz2):
        folder = tmp_path / module.__name__
        folder.mkdir()
        for path in lists.iterdir():
            packed = folder / f"{path.name}.{module.__name__.replace('gzip', 'gz')}"
            packed.write_bytes(module.compress(path.read_bytes()))
        assert NameLists(folder, v2_table=True).digest() == plain.digest()
        cut = packed.read_bytes()[:-9]
        packed.write_bytes(cut)
        with pytest.raises(ValueError, match=f"--split-lists {packed}: .*download it again"):
            NameLists(folder, v2_table=True)


@pytest.mark.parametrize(
    ("spool", "message"),
    [
        ("out", "is --out "),
        ("out/spool", "lies in --out "),
        (".", "lies around --"),
        ("archive/BigEarthNet-S1/spool", "lies in --s1 "),
        ("link/spool", "lies in --out "),
    ],
)
def test_a_spool_in_around_or_at_the_dataset_or_a_source_is_refused(
    packed, tables, archive_v2, ingest, tmp_path, monkeypatch, spool, message
):
    monkeypatch.chdir(tmp_path)
    Path("archive").symlink_to(archive_v2)
    Path("link").symlink_to("out")
    args = ("--s2", packed["v2-s2"], "--s1", "archive/BigEarthNet-S1", *metadata(tables))
    told = ingest("bigearthnet", *args, "--out", "out", "--spool", spool)
    assert f"--spool {spool} {message}" in told.error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive", "link"]


def test_a_dataset_in_a_source_is_refused(packed, tables, archive_v2, ingest, tmp_path):
    Path(tmp_path / "s1").symlink_to(archive_v2 / "BigEarthNet-S1")
    args = ("--s2", packed["v2-s2"], "--s1", tmp_path / "s1", *metadata(tables))
    inside = archive_v2 / "BigEarthNet-S1" / "out"
    assert f"--out {inside} lies in --s1" in ingest("bigearthnet", *args, "--out", inside).error
    (tmp_path / "root").mkdir()
    told = ingest("sen12ms", "--root", tmp_path / "root", "--out", tmp_path / "root")
    assert "lies in --root" in told.error
    assert not inside.exists()


@pytest.mark.parametrize("where", ["ben/sub", "link/sub", "ben/shards/train"])
def test_a_dataset_in_a_dataset_is_refused(packed, tables, archive_v2, ingest, tmp_path, where):
    (tmp_path / "ben").mkdir()
    (tmp_path / "ben" / "dataset.json").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "ben")
    args = ("--s2", packed["v2-s2"], "--s1", archive_v2 / "BigEarthNet-S1", *metadata(tables))
    told = ingest("bigearthnet", *args, "--out", tmp_path / where)
    assert f"--out {tmp_path / where} lies in the dataset {tmp_path}/ben" in told.error
    assert [path.name for path in (tmp_path / "ben").iterdir()] == ["dataset.json"]


def test_a_spool_that_is_a_dataset_or_a_users_folder_is_refused_and_stays(packed, ingest, tmp_path):
    args = ("bigearthnet", "--s2", packed["v1-s2"], "--s1", packed["v1-s1"])
    for at, named in (
        (".ingest/plan.json", ".ingest"),
        (".ingest/blocks/train-00000.json", ".ingest"),
        ("dataset.json", "dataset.json"),
        ("s2/archive.tar", "s2"),
        ("holidays/one.jpg", "holidays"),
    ):
        spool = tmp_path / named.strip(".") / "spool"
        (spool / at).parent.mkdir(parents=True, exist_ok=True)
        (spool / at).write_text("mine")
        told = ingest(*args, "--out", tmp_path / "d", "--spool", spool)
        assert f"--spool {spool} holds {named}, which is no part of a spool" in told.error
        assert [path for path in spool.rglob("*") if path.is_file()] == [spool / at]
        (spool / at).unlink()


@pytest.mark.parametrize("out", [".", "../d", "./", "../d/sub/.."])
def test_the_spool_of_the_folder_one_stands_in_lies_beside_it(tmp_path, monkeypatch, out):
    (tmp_path / "d" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "d")
    assert spool_folder(out, None).resolve() == tmp_path / "d.spool"


def test_the_room_of_all_archives_is_looked_for_before_the_first_is_unpacked(
    packed, ingest, tmp_path, monkeypatch
):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 5000))
    args = ("bigearthnet", "--s2", packed["v1-s2"], "--s1", packed["v1-s1"])
    told = ingest(*args, "--out", tmp_path / "d")
    for archive in (packed["v1-s2"], packed["v1-s1"]):
        assert f"{archive.name} unpacks to " in told.error
    assert list(tmp_path.iterdir()) == []


def test_notes_of_datasets_that_end_together_do_not_hinder_each_other(packed, tmp_path):
    spool = tmp_path / "spool"

    def note(name: str) -> None:
        (tmp_path / name).mkdir()
        for turn in range(60):
            (tmp_path / name / "dataset.json").write_text(f"{name} {turn}")
            write_note(spool, LocalStore(str(tmp_path / name)), {"--s2": packed["v1-s2"]})

    with ThreadPoolExecutor() as pool:
        list(pool.map(note, "abc"))
    assert len(list(spool.glob("made-*.json"))) == len(list(spool.iterdir())) == 180


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tar.zst"])
def test_only_the_start_of_an_archive_is_looked_at(tmp_path, ending):
    for patch in range(60):
        (tmp_path / f"a/p{patch:02d}").mkdir(parents=True)
        for file in "xy":
            (tmp_path / f"a/p{patch:02d}/{file}").write_bytes(bytes(range(256)) * 40)
    archive = pack(tmp_path / "a", tmp_path / f"a{ending}")
    found = first_files(archive)
    # What one piece of the archive holds is told whole.
    assert 64 <= len(found) <= 120 and len(set(found)) == len(found)
    assert all((tmp_path / name).is_file() for name in found)
    (tmp_path / "no.tar").write_bytes(b"no archive at all" * 100)
    with pytest.raises(ValueError, match=r"no\.tar, byte 0: this is no header"):
        first_files(tmp_path / "no.tar")


def test_a_triplets_archive_instead_of_its_folder_is_said(ingest, tmp_path):
    (tmp_path / "s.tar.gz").write_bytes(b"x")
    told = ingest("sen12ms", "--root", tmp_path / "s.tar.gz", "--out", tmp_path / "d")
    assert "s.tar.gz is a file: extract it" in told.error
    told = ingest("sen12ms", "--root", tmp_path / "s", "--out", tmp_path / "d")
    assert f"--root {tmp_path / 's'} does not exist: give the folder that holds" in told.error
    told = ingest("sen12ms", "--root", tmp_path, "--split", tmp_path, "--out", tmp_path / "d")
    assert f"--split {tmp_path}: Is a directory; give official or a text file" in told.error
