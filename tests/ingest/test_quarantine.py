"""Bad samples: left out by name, their places filled, the rest as if they had never been."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st

from fusmae.manifest import read_manifest
from fusmae.sample import decode
from fusmae_ingest import cli, dataset, rounds
from fusmae_ingest.plan import plan_blocks

from ..manifests import edit_manifest  # noqa: TID252
from .trees import tree

OPTIONS = ("--samples-per-shard", 4, "--format", "shards", "--format", "zarr")
TOLERANT = ("--on-error", "quarantine", "--max-bad", 0.5)
ALLOWING = rounds.Tolerance(quarantine=True)


def spoil(path: Path, value: float) -> None:
    """Every pixel of a raster becomes `value`."""
    with rasterio.open(path) as file:
        profile, pixels = file.profile, file.read()
    with rasterio.open(path, "w", **profile) as file:
        file.write(np.full_like(pixels, value))


@pytest.fixture(scope="module")
def spoilt(archive_v1, tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """An archive with five bad pairs, and a word of the reason of each, by S2 name."""
    archive = shutil.copytree(archive_v1, tmp_path_factory.mktemp("spoilt") / "archive")
    s2 = sorted((archive / "BigEarthNet-v1.0").glob("S[12]*"))
    s1_of = {}
    for folder in (archive / "BigEarthNet-S1-v1.0").glob("S[12]*"):
        facts = json.loads((folder / f"{folder.name}_labels_metadata.json").read_text())
        s1_of[facts["corresponding_s2_patch"]] = folder
    (s2[1] / f"{s2[1].name}_B05.tif").unlink()
    os.truncate(s2[4] / f"{s2[4].name}_B02.tif", 5000)
    vv, vh = (s1_of[s2[i].name] for i in (7, 11))
    spoil(vv / f"{vv.name}_VV.tif", np.nan)
    spoil(vh / f"{vh.name}_VH.tif", np.inf)
    (s2[16] / f"{s2[16].name}_labels_metadata.json").write_text("{}")
    reasons = ("B05.tif is missing", "B02.tif", "VV.tif", "VH.tif", "list of labels")
    return archive, {s2[i].name: r for i, r in zip((1, 4, 7, 11, 16), reasons, strict=True)}


@pytest.fixture(scope="module")
def made(spoilt, fusmae_ingest, paths, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("made") / "dataset"
    result = fusmae_ingest("bigearthnet", *paths(spoilt[0]), "--out", out, *OPTIONS, *TOLERANT)
    assert result.returncode == 0, result.stderr
    assert "5 as bad" in result.stdout and "quarantine.jsonl" in result.stdout
    return out


def test_each_bad_sample_is_named_with_its_reason_and_no_other(spoilt, made):
    lines = [json.loads(line) for line in (made / "quarantine.jsonl").read_text().splitlines()]
    assert {line["key"] for line in lines} == set(spoilt[1])
    for line in lines:
        assert spoilt[1][line["key"]] in line["reason"]
        assert str(spoilt[0]) not in line["reason"]


def test_the_dataset_is_dense_and_as_planned_without_the_bad_names(spoilt, made, fusmae_ingest):
    manifest = read_manifest(made)
    split_of = {}
    for entry in (json.loads(line) for line in (made / "quarantine.jsonl").open()):
        split_of[entry["key"]] = entry["split"]
    stored = {}
    for split, record in manifest.splits.items():
        keys = [s["__key__"] for x in record.shards for s in decode((made / x.path).read_bytes())]
        stored[split] = keys
        split_of |= dict.fromkeys(keys, split)
        assert [x.num_samples for x in record.shards[:-1]] == [4] * (len(record.shards) - 1)
    planned = plan_blocks(split_of, list(manifest.splits), 4, 0, set(spoilt[1]))
    for split, keys in stored.items():
        assert keys == [name for b in planned if b.split == split for name in b.names]
    assert fusmae_ingest("verify", made).returncode == 0


def test_workers_and_an_earlier_failed_run_change_no_byte(
    spoilt, made, fusmae_ingest, paths, tmp_path
):
    args = ("bigearthnet", *paths(spoilt[0]), "--out", tmp_path / "d", *OPTIONS)
    assert fusmae_ingest(*args).returncode == 1
    assert fusmae_ingest(*args, *TOLERANT[:2]).returncode == 1
    assert fusmae_ingest(*args, *TOLERANT, "--workers", 2).returncode == 0
    assert tree(tmp_path / "d") == tree(made)


def test_more_bad_samples_than_allowed_end_the_run(spoilt, fusmae_ingest, paths, tmp_path):
    args = ("bigearthnet", *paths(spoilt[0]), "--out", tmp_path / "d", *OPTIONS, *TOLERANT[:2])
    result = fusmae_ingest(*args)
    assert result.returncode == 1 and "more than --max-bad 0.001 allows (0)" in result.stderr
    assert "leave so many out: --on-error quarantine --max-bad 0.0" in result.stderr
    assert not (tmp_path / "d" / "dataset.json").exists()


def test_mended_files_come_back(archive_v1, spoilt, fusmae_ingest, paths, tmp_path):
    archive = shutil.copytree(spoilt[0], tmp_path / "archive")
    args = ("bigearthnet", *paths(archive), "--out", tmp_path / "d", *OPTIONS)
    assert fusmae_ingest(*args, "--on-error", "quarantine").returncode == 1
    shutil.copytree(archive_v1, archive, dirs_exist_ok=True)
    result = fusmae_ingest(*args, "--on-error", "quarantine")
    assert result.returncode == 0, result.stderr
    whole = ("bigearthnet", *paths(archive_v1), "--out", tmp_path / "whole", *OPTIONS)
    assert fusmae_ingest(*whole).returncode == 0
    assert tree(tmp_path / "d") == tree(tmp_path / "whole")


@pytest.mark.parametrize(
    ("tolerance", "limit"),
    [
        (("--on-error", "quarantine", "--max-bad", 0.1), "--max-bad 0.1"),
        (("--on-error", "quarantine"), "--max-bad 0.001"),
        ((), "--on-error fail"),
    ],
)
def test_a_rerun_that_allows_fewer_bad_samples_is_refused(
    spoilt, made, fusmae_ingest, paths, tolerance, limit
):
    before = tree(made)
    args = ("bigearthnet", *paths(spoilt[0]), "--out", made, *OPTIONS)
    result = fusmae_ingest(*args, *tolerance)
    assert result.returncode == 1, result.stdout
    assert f"5 of 24 samples are bad, more than {limit} allows" in result.stderr
    assert any(name in result.stderr for name in spoilt[1])
    assert "as it is, give --on-error quarantine --max-bad 0.21; to take mended" in result.stderr
    assert tree(made) == before
    assert fusmae_ingest(*args, *TOLERANT).returncode == 0


def test_bad_samples_of_a_run_that_was_stopped_count_for_the_next(
    spoilt, made, fusmae_ingest, paths, tmp_path, monkeypatch
):
    """All blocks are done and only the end is missing, so no block would meet a bad sample."""
    args = ("bigearthnet", *paths(spoilt[0]), "--out", tmp_path / "d", *OPTIONS)
    stop_before_the_end(monkeypatch, (*args, *TOLERANT))
    result = fusmae_ingest(*args, "--on-error", "quarantine", "--max-bad", 0.1)
    assert result.returncode == 1 and "5 of 24 samples are bad" in result.stderr
    assert fusmae_ingest(*args, *TOLERANT).returncode == 0
    assert tree(tmp_path / "d") == tree(made)


@pytest.mark.parametrize("samples_per_shard", [1, 4])
def test_mended_files_come_back_without_quarantine_too(
    archive_v1, spoilt, fusmae_ingest, paths, tmp_path, samples_per_shard
):
    archive = shutil.copytree(spoilt[0], tmp_path / "archive")
    args = ("bigearthnet", "--out", tmp_path / "d", "--samples-per-shard", samples_per_shard)
    assert fusmae_ingest(*args, *paths(archive), *TOLERANT[:2]).returncode == 1
    still = fusmae_ingest(*args, *paths(archive))
    assert still.returncode == 1 and "more than --on-error fail allows" in still.stderr
    shutil.copytree(archive_v1, archive, dirs_exist_ok=True)
    result = fusmae_ingest(*args, *paths(archive))
    assert result.returncode == 0, result.stderr
    assert "; nothing left out" in result.stdout
    whole = (*args[:2], tmp_path / "whole", *args[3:], *paths(archive_v1))
    assert fusmae_ingest(*whole).returncode == 0
    assert tree(tmp_path / "d") == tree(tmp_path / "whole")


@pytest.mark.parametrize("plan", ["", "3", "null", "{}"])
def test_notes_and_blocks_beside_a_broken_plan_are_not_used(
    archive_v1, fusmae_ingest, paths, tmp_path, plan
):
    scratch = tmp_path / "d" / ".ingest"
    (scratch / "bad").mkdir(parents=True)
    (scratch / "plan.json").write_text(plan)
    (scratch / "bad" / "0.json").write_text('{"no_sample_of_this_run": "reason"}')
    args = ("bigearthnet", *paths(archive_v1), "--out", tmp_path / "d")
    result = fusmae_ingest(*args)
    assert result.returncode == 0, result.stderr


def test_max_bad_allows_exactly_the_share_that_it_says():
    for num_bad, total in ((29, 100), (7, 1000), (57, 100)):
        assert rounds.allowed(total, rounds.Tolerance(True, num_bad / total)) == num_bad
    assert rounds.allowed(1000, rounds.Tolerance(True, 0.0289)) == 28


@given(st.integers(1, 600_000), st.integers(0, 600_000), st.booleans())
def test_the_way_out_that_is_told_allows_so_many(num_bad, num_good, quarantine):
    total = num_bad + num_good
    *words, last = rounds.way_out(num_bad, total, rounds.Tolerance(quarantine)).split()
    named = "--max-bad" in words
    allowed = rounds.allowed(total, rounds.Tolerance(True, float(last)) if named else ALLOWING)
    assert num_bad <= allowed and (not named or allowed <= 1.1 * num_bad)


def test_a_mended_sample_is_not_taken_back_and_the_run_says_so(
    archive_v1, made, fusmae_ingest, paths
):
    before = tree(made)
    args = ("bigearthnet", *paths(archive_v1), "--out", made, *OPTIONS)
    result = fusmae_ingest(*args, *TOLERANT)
    assert result.returncode == 0
    assert "quarantine.jsonl; to take mended samples in, ingest to a new --out" in result.stdout
    assert tree(made) == before


def test_a_dataset_that_does_not_say_how_it_was_made_is_refused(
    archive_v1, made, fusmae_ingest, paths, tmp_path
):
    out = shutil.copytree(made, tmp_path / "d")
    edit_manifest(out, lambda manifest: manifest["options"].pop("plan"))
    result = fusmae_ingest("bigearthnet", *paths(archive_v1), "--out", out, *OPTIONS)
    assert result.returncode == 1 and "options.plan" in result.stderr


@pytest.mark.parametrize("file", ["blocks/*.json", "bad/*.json", "plan.json", "begun.json"])
def test_what_is_cut_short_beside_the_blocks_counts_as_not_done(
    spoilt, made, fusmae_ingest, paths, tmp_path, monkeypatch, file
):
    args = ("bigearthnet", *paths(spoilt[0]), "--out", tmp_path / "d", *OPTIONS, *TOLERANT)
    stop_before_the_end(monkeypatch, args)
    torn = sorted((tmp_path / "d" / ".ingest").glob(file))
    for number, path in enumerate(torn):
        # Of JSON that is whole but holds something else there is some too.
        path.write_text("{}" if number == 1 else path.read_text()[:-7])
    assert torn
    result = fusmae_ingest(*args)
    assert result.returncode == 0, result.stderr
    assert tree(tmp_path / "d") == tree(made)


def stop_before_the_end(monkeypatch: pytest.MonkeyPatch, args: tuple[object, ...]) -> None:
    """Run until every block is done, and no further."""

    def stop(*_: object) -> None:
        raise ValueError("stopped")

    with monkeypatch.context() as patched:
        patched.setattr(dataset, "finish", stop)
        patched.setattr(sys, "argv", ["fusmae-ingest", *map(str, args)])
        with pytest.raises(SystemExit):
            cli.main()
