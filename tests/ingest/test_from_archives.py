"""From the archives as they are published to the same bytes as from extracted folders."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .packed_archives import pack
from .trees import tree

OPTIONS = ("--format", "shards", "--format", "zarr", "--samples-per-shard", "4")


def folders(archive: Path, version: str) -> dict[str, Path]:
    names = {
        "v1": ("BigEarthNet-v1.0", "BigEarthNet-S1-v1.0"),
        "v2": ("BigEarthNet-S2", "BigEarthNet-S1"),
    }
    s2, s1 = names[version]
    given = {"--s2": archive / s2, "--s1": archive / s1}
    return given | ({"--maps": archive / "Reference_Maps"} if version == "v2" else {})


def arguments(given: dict[str, Path], archive: Path) -> list[object]:
    told = [word for option, path in given.items() for word in (option, path)]
    tables = sorted(archive.glob("*.parquet"))
    return ["bigearthnet", *told, *(word for table in tables for word in ("--metadata", table))]


@pytest.fixture(scope="module", params=["v1", "v2"])
def case(request, archive_v1, archive_v2, fusmae_ingest, tmp_path_factory):
    """(version, archive, the dataset from its folders)."""
    archive = {"v1": archive_v1, "v2": archive_v2}[request.param]
    out = tmp_path_factory.mktemp("folders") / "d"
    given = folders(archive, request.param)
    result = fusmae_ingest(*arguments(given, archive), "--out", out, *OPTIONS)
    assert result.returncode == 0, result.stderr
    return request.param, archive, tree(out)


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tar.zst"])
def test_the_bytes_are_those_from_folders_and_the_spool_goes(case, ending, fusmae_ingest, tmp_path):
    version, archive, expected = case
    # Away from the simulated archive's own signature.
    given = {
        option: pack(folder, tmp_path / f"mine-{folder.name}{ending}")
        for option, folder in folders(archive, version).items()
    }
    args = (*arguments(given, archive), "--out", tmp_path / "d", *OPTIONS, "--workers", 2)
    result = fusmae_ingest(*args)
    assert result.returncode == 0, result.stderr
    assert tree(tmp_path / "d") == expected
    left = {path.name for path in (tmp_path / "d.spool").rglob("*.tar")}
    assert left == set()
    # Indexes of plain tars are kept for the next time; of what was unpacked nothing is.
    assert (tmp_path / "d.spool" / "s2" / "index").exists() == (ending == ".tar")
    again = fusmae_ingest(*args)
    assert again.returncode == 0 and "already complete" in again.stdout
    assert not list((tmp_path / "d.spool").rglob("*.tar"))
    other = fusmae_ingest(*args, "--seed", 7)
    assert other.returncode == 1 and "--seed: 0 then, 7 now" in other.stderr


def test_a_kept_spool_is_used_again(case, fusmae_ingest, tmp_path):
    version, archive, expected = case
    given = {
        option: pack(folder, tmp_path / f"{option[2:]}.tar.gz")
        for option, folder in folders(archive, version).items()
    }
    args = arguments(given, archive)
    keep = ("--spool", tmp_path / "spool", "--keep-spool")
    assert fusmae_ingest(*args, "--out", tmp_path / "a", *OPTIONS, *keep).returncode == 0
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "spool").rglob("*") if p.is_file()}
    assert any(path.suffix == ".tar" for path in before)
    assert fusmae_ingest(*args, "--out", tmp_path / "b", *OPTIONS, *keep).returncode == 0
    assert {p: p.stat().st_mtime_ns for p in before if p.name != "lock"} == {
        p: time for p, time in before.items() if p.name != "lock"
    }
    assert tree(tmp_path / "a") == tree(tmp_path / "b") == expected


def test_bad_samples_are_told_alike_from_folders_and_from_a_tar(
    archive_v1, fusmae_ingest, tmp_path
):
    archive = shutil.copytree(archive_v1, tmp_path / "archive")
    s2 = sorted((archive / "BigEarthNet-v1.0").glob("S[12]*"))
    (s2[1] / f"{s2[1].name}_B05.tif").unlink()
    os.truncate(s2[4] / f"{s2[4].name}_B02.tif", 5000)
    tolerant = ("--on-error", "quarantine", "--max-bad", 0.5)
    given = folders(archive, "v1")
    result = fusmae_ingest(*arguments(given, archive), "--out", tmp_path / "a", *OPTIONS, *tolerant)
    assert result.returncode == 0, result.stderr
    tars = {o: pack(folder, tmp_path / f"{folder.name}.tar") for o, folder in given.items()}
    result = fusmae_ingest(*arguments(tars, archive), "--out", tmp_path / "b", *OPTIONS, *tolerant)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "a/quarantine.jsonl").read_text().count("\n") == 2
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_a_tar_says_by_itself_that_it_is_simulated(archive_v1, fusmae_ingest, tmp_path):
    given = {
        option: pack(folder, tmp_path / f"{option[2:]}.tar")
        for option, folder in folders(archive_v1, "v1").items()
    }
    result = fusmae_ingest(*arguments(given, archive_v1), "--out", tmp_path / "d")
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "d/dataset.json").read_text())["simulated"] is True


def test_an_archive_that_is_not_the_published_one_is_refused_unless_asked_for(
    archive_v1, fusmae_ingest, tmp_path
):
    given = {
        "--s2": pack(archive_v1 / "BigEarthNet-v1.0", tmp_path / "BigEarthNet-S2-v1.0.tar.gz"),
        "--s1": pack(archive_v1 / "BigEarthNet-S1-v1.0", tmp_path / "BigEarthNet-S1-v1.0.tar.gz"),
    }
    args = (*arguments(given, archive_v1), "--out", tmp_path / "d")
    result = fusmae_ingest(*args)
    assert result.returncode == 1 and "5a64e9ce38deb036a435a7b59494924c" in result.stderr
    assert "--any-archive" in result.stderr and "Traceback" not in result.stderr
    assert fusmae_ingest(*args, "--any-archive").returncode == 0


# Ends as by SIGKILL in the nth call of one of its functions.
KILLED = """
import os, signal, sys
from importlib import import_module
from fusmae_ingest import cli

place, name, left = sys.argv.pop(1), sys.argv.pop(1), int(sys.argv.pop(1))
module = import_module(f"fusmae_ingest.{place}")
real = getattr(module, name)

def call(*args):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args)

setattr(module, name, call)
cli.main()
"""


def test_killed_while_unpacking_and_while_converting_a_rerun_ends_in_the_same_bytes(
    case, fusmae_ingest, tmp_path
):
    version, archive, expected = case
    given = {
        option: pack(folder, tmp_path / f"{option[2:]}.tar.zst")
        for option, folder in folders(archive, version).items()
    }
    args = [*arguments(given, archive), "--out", tmp_path / "d", *OPTIONS]
    unpacked = {f"d.spool/{option[2:]}/archive.tar" for option in given}
    for moment, left in (
        (("spool", "_write", 3), {"d.spool/s2/archive.tar.partial"}),
        (("bigearthnet", "make_dataset", 1), unpacked),
        (("engine", "convert", 2), unpacked),
    ):
        command = [sys.executable, "-c", KILLED, *map(str, (*moment, *args))]
        assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
        found = (tmp_path / "d.spool").rglob("archive.tar*")
        assert {str(path.relative_to(tmp_path)) for path in found} == left
    assert len(list((tmp_path / "d").glob(".ingest/blocks/*"))) == 1
    result = fusmae_ingest(*args)
    assert result.returncode == 0, result.stderr
    assert tree(tmp_path / "d") == expected


@pytest.mark.parametrize("spoil", ["cut", "noise", "empty", "other"])
def test_a_damaged_archive_is_one_line(archive_v1, spoil, fusmae_ingest, tmp_path):
    given = {
        option: pack(folder, tmp_path / f"{option[2:]}.tar.gz")
        for option, folder in folders(archive_v1, "v1").items()
    }
    s2 = given["--s2"]
    data = bytearray(s2.read_bytes())
    if spoil == "cut":
        data = data[: len(data) // 2]
    elif spoil == "noise":
        data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
    else:
        data = bytearray(b"" if spoil == "empty" else b"no archive at all" * 100)
    s2.write_bytes(data)
    result = fusmae_ingest(*arguments(given, archive_v1), "--out", tmp_path / "d")
    assert result.returncode == 1 and str(s2) in result.stderr, result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "d" / "dataset.json").exists()
