"""An option that would do nothing is refused, or said to do nothing where that does no harm."""

import pytest

from .packed_archives import pack

ARCHIVE = ("bigearthnet", "--s2", "a", "--s1", "b", "--out", "d")


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ((*ARCHIVE, "--max-bad", 0.1), "--max-bad belongs to --on-error quarantine"),
        (("sen12ms", "--root", "a", "--out", "d", "--max-bad", 0.001), "--max-bad belongs to"),
        ((*ARCHIVE, "--workers", 2, "--scheduler", "tcp://a:1"), "--workers are processes here"),
        (("verify", "d", "--samples", 3), "--samples belongs to --source"),
        (("verify", "d", "--spool", "s"), "--spool belongs to --source"),
    ],
)
def test_an_option_that_another_makes_idle_is_a_wrong_usage(fusmae_ingest, args, told):
    result = fusmae_ingest(*args)
    assert result.returncode == 2
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("Error: "))
    assert told in line


def test_options_of_unpacking_are_said_to_be_idle_where_nothing_is_unpacked(
    archive_v1, fusmae_ingest, paths, tmp_path
):
    args = ("bigearthnet", *paths(archive_v1), "--out", tmp_path / "d", "--keep-spool")
    result = fusmae_ingest(*args, "--any-archive", "--spool", tmp_path / "spool")
    assert result.returncode == 0, result.stderr
    notes = [line for line in result.stderr.splitlines() if line.startswith("note: ")]
    assert notes == [
        "note: --keep-spool, --any-archive do nothing here: no archive is compressed",
        "note: --spool does nothing here: folders are read in place",
    ]


def test_a_plain_tar_needs_a_spool_for_its_index_only(archive_v1, fusmae_ingest, tmp_path):
    args: list[object] = ["bigearthnet", "--out", tmp_path / "d", "--spool", tmp_path / "spool"]
    for option, folder in (("--s2", "BigEarthNet-v1.0"), ("--s1", "BigEarthNet-S1-v1.0")):
        args += [option, pack(archive_v1 / folder, tmp_path / f"{folder}.tar")]
    result = fusmae_ingest(*args, "--keep-spool")
    assert result.returncode == 0, result.stderr
    notes = [line for line in result.stderr.splitlines() if line.startswith("note: ")]
    assert notes == ["note: --keep-spool does nothing here: no archive is compressed"]


def test_a_preview_of_more_samples_than_there_are_says_so(made_datasets, fusmae_ingest, tmp_path):
    args = ("preview", made_datasets["sen12ms"], "--out", tmp_path / "p.html", "--split", "train")
    for given in ((), ("--samples", 1)):
        assert "note: " not in fusmae_ingest(*args, *given).stderr
    result = fusmae_ingest(*args, "--samples", 1000)
    assert result.returncode == 0, result.stderr
    assert "note: --samples 1,000: train has " in result.stderr
