"""A dataset that is complete is told, or refused, without its archives being unpacked again."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas
import pytest

from fusmae.manifest import MANIFEST_NAME
from fusmae_ingest import archives, bigearthnet

from ..manifests import edit_manifest  # noqa: TID252
from .packed_archives import metadata, pack, v2


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


def test_what_a_run_left_unpacked_that_was_killed_at_its_end_goes(
    packed, tables, ingest, tmp_path, monkeypatch
):
    args = (*v2(packed), *metadata(tables), "--out", tmp_path / "d")

    def kill(path: Path, option: str, spooling: archives.Spooling) -> None:
        if option == "--s1":
            raise KeyboardInterrupt
        archives.delete_unpacked(path, option, spooling)

    with monkeypatch.context() as patched:
        patched.setattr(bigearthnet, "delete_unpacked", kill)
        assert ingest(*args).code == 130
    assert (tmp_path / "d.spool/s1/archive.tar").exists()
    assert not (tmp_path / "d.spool/s2").exists()
    kept = ingest(*args, "--keep-spool")
    assert kept.code == 0 and (tmp_path / "d.spool/s1/archive.tar").exists()
    told = ingest(*args)
    assert told.code == 0 and "no archive was unpacked again" in told.out
    assert not (tmp_path / "d.spool").exists()


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
    def forget(manifest: dict[str, Any]) -> None:
        for key in ("metadata", "split_lists", "limit"):
            del manifest["options"]["plan"][key]

    edit_manifest(complete, forget)
    args = (*v2(packed), *metadata(tables), "--out", complete)
    told = ingest(*args, "--split-lists", lists)
    assert told.code == 0 and "no archive was unpacked again" in told.out
    assert "(samples in all: 24 then, 5 now)" in ingest(*args, "--limit", 5).error


def test_no_path_of_this_machine_is_in_the_dataset(complete, packed, tables):
    text = (complete / MANIFEST_NAME).read_text()
    assert len(json.loads(text)["options"]["plan"]["metadata"]) == 2
    for path in (*packed.values(), *tables):
        assert path.name not in text and str(path.parent) not in text
