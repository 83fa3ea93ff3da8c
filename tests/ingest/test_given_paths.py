"""Errors show paths as the command gave them."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from fusmae_ingest.wording import as_given

GIVEN = ("bigearthnet", "--s2", "a/BigEarthNet-v1.0", "--s1", "a/BigEarthNet-S1-v1.0")


@pytest.fixture
def here(archive_v1, tmp_path, monkeypatch) -> Path:
    """The current folder, which holds an archive `a` with one damaged file."""
    shutil.copytree(archive_v1, tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def spoil() -> str:
    band = min(Path("a/BigEarthNet-v1.0").glob("*/*_B05.tif"))
    os.truncate(band, 1000)
    return str(band)


def test_a_relative_path_is_told_as_one(here, fusmae_ingest):
    assert fusmae_ingest(*GIVEN, "--out", "d").returncode == 0
    band = spoil()
    result = fusmae_ingest(*GIVEN, "--out", "e")
    assert f"error: {band} cannot be read" in result.stderr
    sources = ("--source", "a/BigEarthNet-v1.0", "--source", "a/BigEarthNet-S1-v1.0")
    result = fusmae_ingest("verify", "d", *sources)
    assert f": {band} cannot be read" in result.stderr and str(here) not in result.stderr
    result = fusmae_ingest(*GIVEN[:4], "a/nowhere", "--out", "e")
    assert "error: --s1 a/nowhere: No such file" in result.stderr
    result = fusmae_ingest(*GIVEN, "--out", "d/inside")
    assert "error: --out d/inside lies in the dataset d, " in result.stderr
    Path("t").mkdir()
    result = fusmae_ingest("sen12ms", "--root", "t", "--out", "s")
    assert "error: --root t holds no SEN12MS patches" in result.stderr
    shutil.rmtree(Path(band).parent)
    result = fusmae_ingest(*GIVEN, "--out", "f")
    assert "error: S1 patches without an S2 patch in a/BigEarthNet-v1.0: 1;" in result.stderr


@pytest.mark.parametrize("folder", ["data", ""])
def test_only_the_beginning_of_a_path_is_taken_off(tmp_path, monkeypatch, folder):
    monkeypatch.setattr(Path, "cwd", lambda: Path("/", folder))
    monkeypatch.setattr(sys, "argv", ["fusmae-ingest", "info", "d"])
    told = "/mnt/data/x, s3://data/x, https://data//x and and/or"
    assert as_given(told) == told
    assert as_given("--out '/data/x'") == ("--out 'x'" if folder else "--out '/data/x'")


@pytest.mark.parametrize("given", ["s3:/bucket/d", "file:/d"])
def test_a_url_with_a_slash_too_few_makes_no_folder(given, here, fusmae_ingest):
    result = fusmae_ingest(*GIVEN, "--out", given)
    assert result.returncode == 1
    assert f"error: {given}: is it a URL with a slash too few?" in result.stderr
    assert [path.name for path in here.iterdir()] == ["a"]


def test_an_absolute_path_is_told_as_one(here, fusmae_ingest):
    band = spoil()
    given = [here / word if word.startswith("a/") else word for word in GIVEN]
    assert f"error: {here / band} cannot" in fusmae_ingest(*given, "--out", "e").stderr


def test_a_current_folder_that_is_gone_is_one_line(tmp_path, monkeypatch, fusmae_ingest):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    result = fusmae_ingest("info", "d")
    assert result.returncode == 1 and result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["verify", "d"], "d/x: damaged"),
        (["verify", "HERE/d"], "HERE/d/x: damaged"),
        (["bigearthnet", "--scheduler=tcp://host:1"], "HERE/d/x: damaged"),
    ],
)
def test_where_the_command_itself_lies_does_not_matter(tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    words = ["HERE/.venv/bin/fusmae-ingest", *words]
    monkeypatch.setattr(sys, "argv", [word.replace("HERE", str(tmp_path)) for word in words])
    assert as_given(f"{tmp_path}/d/x: damaged") == told.replace("HERE", str(tmp_path))


@pytest.mark.parametrize(
    "arguments",
    [
        ("simulate", "bigearthnet", "--out", "", "--patches", "3"),
        ("bigearthnet", "--s2", "", "--s1", "s1", "--out", "d"),
        ("sen12ms", "--root", "", "--out", "d"),
        ("verify", "d", "--source", ""),
        ("preview", "d", "--out", ""),
        ("preview", ""),
    ],
)
def test_an_empty_path_is_not_the_folder_one_is_in(arguments, fusmae_ingest, tmp_path, monkeypatch):
    """As `--out "$UNSET"` would be."""
    monkeypatch.chdir(tmp_path)
    done = fusmae_ingest(*arguments)
    assert done.returncode == 2
    assert "'' names no place" in done.stderr
    assert list(tmp_path.iterdir()) == []
