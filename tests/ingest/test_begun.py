"""A begun dataset goes on with the archives that it was begun with, mended or not, alone."""

import json
import os
import shutil
from pathlib import Path

import pytest
import rasterio

from .conftest import OPTIONS
from .packed_archives import pack
from .trees import tree


def brighten(folder: Path, pattern: str) -> None:
    """Other pixels under the same names."""
    for path in folder.rglob(pattern):
        with rasterio.open(path, "r+") as file:
            file.write(file.read() + 1)


def s1_of(archive: Path, s2: str) -> Path:
    for path in (archive / "BigEarthNet-S1-v1.0").glob("*/*.json"):
        if json.loads(path.read_text())["corresponding_s2_patch"] == s2:
            return path.parent
    raise AssertionError(s2)


def files(archive: Path, ending: str) -> tuple[object, ...]:
    """The options that give the archive as folders, or as tars of this ending."""
    given = []
    for option, name in (("--s2", "BigEarthNet-v1.0"), ("--s1", "BigEarthNet-S1-v1.0")):
        folder = archive / name
        given += [option, pack(folder, archive / f"{name}-mine{ending}") if ending else folder]
    return tuple(given)


@pytest.mark.parametrize("ending", ["", ".tar", ".tar.gz"])
def test_another_archive_of_the_same_names_is_not_mixed_in(
    archive_v1, whole, ending, fusmae_ingest, tmp_path
):
    mine = shutil.copytree(archive_v1, tmp_path / "mine")
    other = shutil.copytree(archive_v1, tmp_path / "other")
    brighten(other, "*_VH.tif")
    cut = sorted(mine.glob("BigEarthNet-v1.0/*/*_B03.tif"))[-1]
    os.truncate(cut, 500)
    args = ("--out", tmp_path / "d", *OPTIONS)
    assert fusmae_ingest("bigearthnet", *files(mine, ending), *args).returncode == 1
    begun = tree(tmp_path / "d")
    assert any(path.startswith(".ingest/blocks/") for path in begun)

    told = fusmae_ingest("bigearthnet", *files(other, ending), *args)
    assert told.returncode == 1
    assert "was begun with other archives (S2" in told.stderr and "or a new folder" in told.stderr
    assert tree(tmp_path / "d") == begun

    shutil.copy(archive_v1 / cut.relative_to(mine), cut)
    result = fusmae_ingest("bigearthnet", *files(mine, ending), *args)
    assert result.returncode == 0, result.stderr
    assert tree(tmp_path / "d") == whole


def test_another_sen12ms_of_the_same_names_is_not_mixed_in(fusmae_ingest, tmp_path):
    mine = tmp_path / "mine"
    assert fusmae_ingest("simulate", "sen12ms", "--out", mine, "--patches", 4).returncode == 0
    other = shutil.copytree(mine, tmp_path / "other")
    brighten(other, "*_s2_*.tif")
    os.truncate(sorted(mine.glob("*/s1_*/*.tif"))[-1], 500)
    args = ("--out", tmp_path / "d", "--samples-per-shard", 1)
    assert fusmae_ingest("sen12ms", "--root", mine, *args).returncode == 1
    told = fusmae_ingest("sen12ms", "--root", other, *args)
    assert told.returncode == 1 and "was begun with other archives (ROIs" in told.stderr


def cut_json(s1: Path) -> None:
    os.truncate(s1 / f"{s1.name}_labels_metadata.json", 40)


@pytest.mark.parametrize("spoil", [shutil.rmtree, cut_json])
def test_a_pair_without_its_s1_is_taken_in_when_that_is_restored(
    archive_v1, whole, spoil, fusmae_ingest, paths, tmp_path
):
    archive = shutil.copytree(archive_v1, tmp_path / "archive")
    s1 = s1_of(archive, sorted((archive / "BigEarthNet-v1.0").glob("S2*"))[3].name)
    spoil(s1)
    args = ("bigearthnet", *paths(archive), "--out", tmp_path / "d", *OPTIONS)
    tolerant = ("--on-error", "quarantine")
    refused = fusmae_ingest(*args, *tolerant)
    assert refused.returncode == 1 and "mend them" in refused.stderr
    assert list(tmp_path.glob("d/.ingest/blocks/*"))

    shutil.copytree(archive_v1 / "BigEarthNet-S1-v1.0" / s1.name, s1, dirs_exist_ok=True)
    result = fusmae_ingest(*args, *tolerant)
    assert result.returncode == 0, result.stderr
    assert tree(tmp_path / "d") == whole
