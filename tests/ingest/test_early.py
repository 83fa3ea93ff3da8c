"""What is told before an archive is unpacked, and of a dataset that is complete without one."""

import bz2
import errno
import gzip
import hashlib
import io
import json
import shutil
import sys
import tarfile
from collections import namedtuple
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pandas
import pytest
import zstandard

from fusmae.manifest import MANIFEST_NAME, from_json, to_json
from fusmae_ingest import bigearthnet, cli, cluster
from fusmae_ingest.archive_note import write_note
from fusmae_ingest.archives import spool_folder
from fusmae_ingest.bigearthnet_tables import NameLists
from fusmae_ingest.glimpse import first_files
from fusmae_ingest.spool import PUBLISHED_MD5
from fusmae_ingest.spool_lock import SpoolLock
from fusmae_ingest.storage import LocalStore

LISTS = ("train", "val", "test", "patches_with_seasonal_snow", "patches_with_cloud_and_shadow")


@dataclass
class Told:
    """What a run said, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of a run that was refused."""
        assert self.code == 1 and "Traceback" not in self.err, self.err
        (line,) = (line for line in self.err.splitlines() if line.startswith("error: "))
        return line


Run = Callable[..., Told]


@pytest.fixture
def ingest(monkeypatch, capsys) -> Run:
    """Runs `fusmae-ingest ARGS` here: what is refused early is refused in no time."""

    def run(*args: object) -> Told:
        monkeypatch.setattr(sys, "argv", ["fusmae-ingest", *map(str, args)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        return Told(code, *capsys.readouterr())

    return run


def pack(folder: Path, out: Path) -> Path:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        tar.add(folder, folder.name)
    data = buffer.getvalue()
    if out.suffix == ".gz":
        data = gzip.compress(data, 1, mtime=0)
    elif out.suffix == ".zst":
        data = zstandard.ZstdCompressor().compress(data)
    out.write_bytes(data)
    return out


@pytest.fixture(scope="module")
def packed(archive_v1, archive_v2, tmp_path_factory) -> dict[str, Path]:
    """Compressed archives `v1-s2` to `v2-maps`."""
    root = tmp_path_factory.mktemp("packed")
    folders = {
        "v1-s2": archive_v1 / "BigEarthNet-v1.0",
        "v1-s1": archive_v1 / "BigEarthNet-S1-v1.0",
        "v2-s2": archive_v2 / "BigEarthNet-S2",
        "v2-s1": archive_v2 / "BigEarthNet-S1",
        "v2-maps": archive_v2 / "Reference_Maps",
    }
    return {
        name: pack(folder, root / f"{name}.tar.{'zst' if 'v2' in name else 'gz'}")
        for name, folder in folders.items()
    }


@pytest.fixture(scope="module")
def tables(archive_v2) -> list[Path]:
    return sorted(archive_v2.glob("*.parquet"))


def metadata(tables: list[Path]) -> list[object]:
    return [word for table in tables for word in ("--metadata", table)]


def v2(packed: dict[str, Path]) -> list[object]:
    return ["bigearthnet", "--s2", packed["v2-s2"], "--s1", packed["v2-s1"]]


@pytest.fixture
def lists(tmp_path) -> Path:
    folder = tmp_path / "lists"
    folder.mkdir()
    for name in LISTS:
        (folder / f"{name}.csv").write_text("")
    return folder


# A dataset that is complete ----------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(packed, tables, fusmae_ingest, tmp_path_factory) -> Path:
    """A complete v2 dataset of archives that are not unpacked any more."""
    out = tmp_path_factory.mktemp("finished") / "d"
    result = fusmae_ingest(*v2(packed), *metadata(tables), "--out", out)
    assert result.returncode == 0, result.stderr
    return out


@pytest.fixture
def complete(finished, tmp_path) -> Path:
    """A copy of it and of its note."""
    shutil.copytree(finished.with_name("d.spool"), tmp_path / "d.spool")
    return shutil.copytree(finished, tmp_path / "d")


def test_a_complete_dataset_is_told_without_unpacking(packed, tables, complete, ingest):
    before = sorted(complete.with_name("d.spool").rglob("*"))
    for given in (tables, tables[::-1]):
        told = ingest(*v2(packed), *metadata(given), "--out", complete)
        assert told.code == 0
        told_whole = "already complete, 24 samples in 3 shards; no archive was unpacked again"
        assert told.out == f"{complete}: {told_whole}\n"
    assert sorted(complete.with_name("d.spool").rglob("*")) == before
    assert all(path.suffix == ".json" for path in before)


def test_a_complete_dataset_that_lost_a_shard_is_mended(packed, tables, complete, ingest):
    shard = next(complete.glob("shards/test/*.tar"))
    data = shard.read_bytes()
    shard.unlink()
    args = (*v2(packed), *metadata(tables), "--out", complete)
    assert "--split: v2 then" in ingest(*args, "--split", "google").error
    told = ingest(*args)
    assert told.code == 0 and f"{complete}: mended" in told.out, told.err
    assert shard.read_bytes() == data
    assert "no archive was unpacked again" in ingest(*args).out


@pytest.mark.parametrize(
    ("extra", "difference"),
    [
        (["--split", "google"], "(--split: v2 then, google now)"),
        (["--exclude", "snow"], "(--exclude: none then, snow now)"),
        (["--limit", 5], "(--limit: none then, 5 now)"),
        (
            ["--format", "zarr", "--seed", 3],
            "(--seed: 0 then, 3 now, --format: shards then, zarr now)",
        ),
    ],
)
def test_other_options_than_a_complete_datasets_are_refused(
    packed, tables, complete, ingest, extra, difference
):
    told = ingest(*v2(packed), *metadata(tables), "--out", complete, *extra)
    assert difference in told.error
    assert not list(complete.with_name("d.spool").rglob("*.tar*"))


def test_a_limit_that_takes_all_is_no_other_option(packed, tables, complete, ingest):
    told = ingest(*v2(packed), *metadata(tables), "--out", complete, "--limit", 24)
    assert told.code == 0 and "no archive was unpacked again" in told.out


def test_other_tables_and_lists_than_a_complete_datasets_are_refused(
    packed, tables, complete, ingest, lists, tmp_path
):
    told = ingest(*v2(packed), *metadata(tables), "--out", complete, "--split-lists", lists)
    assert "(--split-lists: none then, contents " in told.error
    table = pandas.read_parquet(tables[0])
    table["country"] = "Nowhere"
    table.to_parquet(tmp_path / tables[0].name)
    told = ingest(*v2(packed), *metadata([tmp_path / tables[0].name, tables[1]]), "--out", complete)
    assert "(--metadata: contents " in told.error and " then, contents " in told.error
    shutil.copy(tables[0], tmp_path / "renamed")
    told = ingest(*v2(packed), *metadata([tmp_path / "renamed", tables[1]]), "--out", complete)
    assert told.code == 0


def test_other_archives_than_a_complete_datasets_are_refused(
    packed, tables, complete, ingest, archive_v2, tmp_path
):
    s1 = pack(archive_v2 / "BigEarthNet-S1", tmp_path / "v2-s1.tar.gz")
    args = ["bigearthnet", "--s2", packed["v2-s2"], "--s1", s1, *metadata(tables)]
    told = ingest(*args, "--out", complete)
    then, now = packed["v2-s1"].stat().st_size, s1.stat().st_size
    difference = f"--s1: v2-s1.tar.zst, {then:,} bytes then, v2-s1.tar.gz, {now:,} bytes now"
    assert difference in told.error
    args = ["bigearthnet", "--s2", packed["v1-s2"], "--s1", packed["v1-s1"]]
    told = ingest(*args, "--out", complete)
    assert "archive: simulated-bigearthnet-v2 then, bigearthnet-v1 now" in told.error
    assert not list(complete.with_name("d.spool").rglob("*.tar*"))


def test_an_archive_that_was_renamed_is_the_same(packed, tables, complete, ingest, tmp_path):
    s1 = shutil.copy(packed["v2-s1"], tmp_path / "BigEarthNet-S1-copy.tar.zst")
    args = ["bigearthnet", "--s2", packed["v2-s2"], "--s1", s1, *metadata(tables)]
    told = ingest(*args, "--out", complete)
    assert told.code == 0 and "no archive was unpacked again" in told.out


def test_what_an_older_dataset_has_no_record_of_is_not_compared(
    packed, tables, complete, ingest, lists
):
    path = complete / MANIFEST_NAME
    manifest = from_json(path.read_text(), str(path))
    plan = dict(manifest.options["plan"])
    for key in ("metadata", "split_lists", "limit"):
        del plan[key]
    path.write_text(to_json(replace(manifest, options={"plan": plan})))
    args = (*v2(packed), *metadata(tables), "--out", complete)
    told = ingest(*args, "--split-lists", lists)
    assert told.code == 0 and "no archive was unpacked again" in told.out
    assert "(samples in all: 24 then, 5 now)" in ingest(*args, "--limit", 5).error


def test_no_path_of_this_machine_is_in_the_dataset(complete, packed, tables):
    text = (complete / MANIFEST_NAME).read_text()
    assert len(json.loads(text)["options"]["plan"]["metadata"]) == 2
    for path in (*packed.values(), *tables):
        assert path.name not in text and str(path.parent) not in text


# Before anything is unpacked ---------------------------------------------------------------


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
    plain = NameLists(lists)
    assert plain.split_of == {"one": "train", "two": "train"}
    for module in (gzip, bz2):
        folder = tmp_path / module.__name__
        folder.mkdir()
        for path in lists.iterdir():
            packed = folder / f"{path.name}.{module.__name__.replace('gzip', 'gz')}"
            packed.write_bytes(module.compress(path.read_bytes()))
        assert NameLists(folder).digest() == plain.digest()
        cut = packed.read_bytes()[:-9]
        packed.write_bytes(cut)
        with pytest.raises(ValueError, match=f"--split-lists {packed}: .*download it again"):
            NameLists(folder)


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


# Around unpacking --------------------------------------------------------------------------


def test_a_limit_above_what_there_is_is_said(archive_v1, paths, ingest, tmp_path):
    args = ("bigearthnet", *paths(archive_v1), "--out", tmp_path / "d", "--samples-per-shard", 9)
    told = ingest(*args, "--limit", 1000)
    assert told.code == 0
    assert "--limit 1,000: there are 24 samples; all are taken" in told.out
    # So the dataset is that without a limit.
    told = ingest(*args)
    assert told.code == 0 and "already complete" in told.out


def test_the_md5_of_each_archive_is_told(packed, ingest, tmp_path, monkeypatch):
    s2, s1 = packed["v1-s2"], packed["v1-s1"]
    monkeypatch.setitem(PUBLISHED_MD5, s2.name, hashlib.md5(s2.read_bytes()).hexdigest())
    args = ("bigearthnet", "--s2", s2, "--s1", s1, "--out", tmp_path / "d", "--keep-spool")
    told = ingest(*args)
    assert told.code == 0, told.err
    assert f"{s2}: md5 as published" in told.out.splitlines()
    unchecked = f"{s1}: md5 not checked: {s1.name} is not the name of a published archive"
    assert unchecked in told.out.splitlines()
    told = ingest(*args[:-2], tmp_path / "e", "--spool", tmp_path / "d.spool", "--any-archive")
    assert (
        f"{s2}: md5 not compared with the publisher's: this run takes any archive"
        in told.out.splitlines()
    )


def test_what_another_run_uses_is_kept_and_goes_with_the_last(packed, ingest, tmp_path):
    spool = tmp_path / "spool"
    args = ["bigearthnet", "--s2", packed["v1-s2"], "--s1", packed["v1-s1"], "--spool", spool]
    with SpoolLock(spool / "s2") as other:
        other.share()
        # Nothing is there yet, and the other run may be about to look.
        assert "another run is using" in ingest(*args, "--out", tmp_path / "d").error
    assert ingest(*args, "--out", tmp_path / "d", "--keep-spool").code == 0
    with SpoolLock(spool / "s2") as other:
        other.share()
        told = ingest(*args, "--out", tmp_path / "e")
        assert told.code == 0 and f"{spool / 's2'} is kept: another run uses it" in told.out
        assert (spool / "s2" / "archive.tar").exists()
        assert not (spool / "s1").exists()
    assert ingest(*args, "--out", tmp_path / "f").code == 0
    assert not list(spool.rglob("*.tar"))


def test_what_stays_beside_the_dataset_is_told(packed, archive_v1, paths, ingest, tmp_path):
    s2, s1 = packed["v1-s2"], packed["v1-s1"]
    tar = pack(archive_v1 / "BigEarthNet-v1.0", tmp_path / "s2.tar")
    kept = {
        ("a", ("--s2", s2, "--s1", s1)): "a note on the archives",
        ("b", ("--s2", tar, "--s1", s1)): "a note on the archives and indexes",
        ("c", ("--s2", s2, "--s1", s1, "--keep-spool")): "what was unpacked",
    }
    for (name, args), what in kept.items():
        told = ingest("bigearthnet", *args, "--out", tmp_path / name)
        line = f"{tmp_path / name}.spool keeps {what} for the next run; it may be removed"
        assert told.code == 0 and line in told.out.splitlines()
    told = ingest("bigearthnet", *paths(archive_v1), "--out", tmp_path / "d")
    assert "spool" not in told.out and not (tmp_path / "d.spool").exists()


def test_a_run_that_fails_after_unpacking_says_what_is_kept_and_the_next_uses_it(
    archive_v1, packed, ingest, tmp_path
):
    copy = shutil.copytree(archive_v1 / "BigEarthNet-v1.0", tmp_path / "s2")
    patch = sorted(copy.glob("S[12]*"))[3]
    (patch / f"{patch.name}_B05.tif").unlink()
    s2 = pack(copy, tmp_path / "s2.tar.gz")
    args = ["bigearthnet", "--s2", s2, "--s1", packed["v1-s1"], "--out", tmp_path / "d"]
    told = ingest(*args)
    spool = tmp_path / "d.spool"
    assert "_B05.tif is missing" in told.error
    advice = f"what is unpacked stays for the next run; rm -r {spool}/s2 {spool}/s1 frees its "
    assert advice in told.error and "again to go on" not in told.error
    made = {path: path.stat().st_mtime_ns for path in spool.rglob("*.tar")}
    assert len(made) == 2
    with SpoolLock(spool / "s2") as other:
        other.share()
        assert f"rm -r {spool}/s1 frees its " in ingest(*args).error
    told = ingest(*args, "--on-error", "quarantine", "--max-bad", 0.5, "--keep-spool")
    assert told.code == 0, told.err
    assert {path: path.stat().st_mtime_ns for path in spool.rglob("*.tar")} == made


def test_an_interrupted_run_says_what_is_kept(packed, ingest, tmp_path, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bigearthnet, "make_dataset", interrupted)
    args = ["bigearthnet", "--s2", packed["v1-s2"], "--s1", packed["v1-s1"]]
    told = ingest(*args, "--out", tmp_path / "d")
    assert told.code == 130
    assert "again to go on; what is unpacked stays for the next run; rm -r " in told.err


def test_an_archive_that_is_refused_leaves_no_empty_spool(packed, ingest, tmp_path, monkeypatch):
    monkeypatch.setitem(PUBLISHED_MD5, packed["v1-s2"].name, "0" * 32)
    args = ["bigearthnet", "--s2", packed["v1-s2"], "--s1", packed["v1-s1"]]
    assert "--any-archive" in ingest(*args, "--out", tmp_path / "d").error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "goes_on"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EIO, "Input/output error"), True),
        (ConnectionResetError("reset"), True),
        (TimeoutError("timed out"), True),
        (PermissionError(errno.EACCES, "Permission denied"), True),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), False),
        (IsADirectoryError(errno.EISDIR, "Is a directory"), False),
        (OSError(errno.EINVAL, "Invalid argument"), False),
        (OSError("some library's own"), False),
        (ValueError("bad input"), False),
    ],
)
def test_only_what_a_rerun_mends_is_told_to_go_on(ingest, monkeypatch, error, goes_on):
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "commands", fail)
    told = ingest()
    assert str(error.args[-1]) in told.error
    assert told.error.endswith("run the same command again to go on") == goes_on
