"""What a dataset lacks of its archive: the end of the run, the card and `info` say the same."""

import json
import shutil

import pytest

from fusmae.manifest import read_manifest
from fusmae_ingest.left_out import left_out_counts, left_out_told

from ..manifests import edit_manifest  # noqa: TID252


@pytest.fixture
def make(archive_v1, fusmae_ingest, paths, tmp_path):
    """Ingests `archive_v1` after `spoil(archive)`; the dataset and what the run said."""

    def run(*options, spoil=lambda archive: None):
        archive = shutil.copytree(archive_v1, tmp_path / "archive")
        spoil(archive)
        out = tmp_path / "d"
        result = fusmae_ingest("bigearthnet", *paths(archive), "--out", out, *options)
        assert result.returncode == 0, result.stderr
        return out, result

    return run


def assert_told(out, result, fusmae_ingest, counts, phrase):
    """The same counts and words in all places."""
    shown = fusmae_ingest("info", out)
    told = json.loads(fusmae_ingest("info", out, "--json").stdout)["left_out"]
    assert told == counts
    assert f"; left out: {phrase}\n" in result.stdout and f"Left out: {phrase}\n" in shown.stdout
    card = (out / "README.md").read_text().partition("## Left out\n\n")[2]
    assert card.startswith(f"- {phrase}.\n")


def test_pairs_in_no_split_list_are_warned_of_and_counted(make, fusmae_ingest, lists):
    names = None

    def cut(archive):
        nonlocal names
        names = sorted(path.name for path in archive.glob("BigEarthNet-v1.0/S2*"))
        (lists / "train.csv").write_text("\n".join(names[:4]))
        (lists / "test.csv").write_text("\n".join(names[4:10]))
        (lists / "patches_with_seasonal_snow.csv").write_text("\n".join(names[10:12]))

    out, result = make("--split", "official", "--split-lists", lists, spoil=cut)
    assert f"warning: 12 of 24 patches are in none of the lists of {lists}" in result.stderr
    assert names[12] in result.stderr and names[10] not in result.stderr
    assert "note: val is empty by the rule official" in result.stderr
    phrase = "14 in no split by the rule official"
    assert_told(out, result, fusmae_ingest, {"no_split": 14}, phrase)


def test_lists_that_name_every_patch_are_not_warned_of(make, lists):
    def name_all(archive):
        names = [path.name for path in archive.glob("BigEarthNet-v1.0/S2*")]
        (lists / "train.csv").write_text("\n".join(names[:20]))
        (lists / "patches_with_cloud_and_shadow.csv").write_text("\n".join(names[20:]))

    _, result = make("--split", "official", "--split-lists", lists, spoil=name_all)
    assert "warning" not in result.stderr


def test_absent_s2_patches_are_counted(make, fusmae_ingest):
    def remove(archive):
        for folder in sorted(archive.glob("BigEarthNet-v1.0/S2*"))[:13]:
            shutil.rmtree(folder)

    out, result = make("--partial", spoil=remove)
    phrase = "13 without an S2 patch in the archive"
    assert_told(out, result, fusmae_ingest, {"without_s2": 13}, phrase)


def test_a_limit_is_counted(make, fusmae_ingest):
    out, result = make("--limit", 5)
    assert_told(out, result, fusmae_ingest, {"limit": 19}, "19 by --limit 5")


def test_excluded_patches_are_counted(make, fusmae_ingest, lists):
    def flag(archive):
        names = [path.name for path in archive.glob("BigEarthNet-v1.0/S2*")]
        (lists / "train.csv").write_text("\n".join(names[3:]))
        (lists / "patches_with_seasonal_snow.csv").write_text("\n".join(names[:3]))

    out, result = make("--split-lists", lists, "--exclude", "snow", spoil=flag)
    assert_told(out, result, fusmae_ingest, {"exclude": 3}, "3 with snow (--exclude)")


def test_bad_samples_are_counted(make, fusmae_ingest):
    def spoil(archive):
        next(archive.glob("BigEarthNet-v1.0/*/*_B05.tif")).unlink()

    out, result = make("--on-error", "quarantine", "--max-bad", 0.1, spoil=spoil)
    phrase = "1 as bad, each named with its reason in quarantine.jsonl"
    assert_told(out, result, fusmae_ingest, {"bad": 1}, phrase)
    listed = json.loads((out / "croissant.json").read_text())["distribution"]
    assert "quarantine.jsonl" in {entry["@id"] for entry in listed}


def test_nothing_left_out_is_said(make, fusmae_ingest):
    out, result = make()
    assert "; nothing left out\n" in result.stdout
    assert "Left out: nothing\n" in fusmae_ingest("info", out).stdout
    assert "## Left out\n\nNothing that the archive held." in (out / "README.md").read_text()


def test_a_dataset_of_before_the_counts_says_that_some_are_left_out(make):
    out, _ = make("--limit", 5)
    edit_manifest(out, lambda manifest: manifest["options"]["plan"].pop("left_out"))
    manifest = read_manifest(out)
    assert left_out_counts(manifest) == {"limit": None}
    assert left_out_told(manifest) == ["some by --limit 5"]
