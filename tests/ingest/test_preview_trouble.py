"""Where the preview page is put, and what is refused: paths, damage, an absent package."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fusmae.manifest import read_manifest


@pytest.fixture(scope="module")
def dataset(shards_v1) -> Path:
    return shards_v1


def test_only_previews_are_replaced(dataset, fusmae_ingest, tmp_path):
    out = tmp_path / "notes.html"
    out.write_text("<html><title>years of notes</title></html>")
    os.mkfifo(tmp_path / "pipe")
    for place, told in (
        (out, "there and is no page of preview"),
        (tmp_path / "pipe", "no file that can be"),
    ):
        result = fusmae_ingest("preview", dataset, "--out", place)
        assert result.returncode == 1 and f"--out {place} is {told}" in result.stderr
    assert "years of notes" in out.read_text()
    result = fusmae_ingest("preview", dataset, "--out", out, "--force")
    assert result.returncode == 2 and "--force" in result.stderr


def test_a_page_that_cannot_be_written_is_named(dataset, fusmae_ingest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("thesis").write_text("")
    for out, told in (
        ("/proc/page.html", "/proc/page.html: No such file"),
        ("thesis/page.html", "thesis/page.html: "),
        (
            "s3://bucket/page.html",
            "--out s3://bucket/page.html is a URL, and preview writes a file",
        ),
    ):
        result = fusmae_ingest("preview", dataset, "--out", out, "--samples", 1)
        assert result.returncode == 1 and result.stderr.startswith(f"error: {told}"), result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"]


def test_a_page_lies_beside_the_name_that_was_given_or_in_the_folder_that_was(
    dataset, fusmae_ingest, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    Path("here/link").symlink_to(dataset)
    copy = shutil.copytree(dataset, "copy")
    for given, made in (
        (("here/link",), "here/link.html"),
        (("here/link/", "--out", "new/folder/"), "new/folder/link.html"),
        (("here/link", "--out", "here"), "here/link.html"),
        (("here/link", "--out", "page"), "page"),
        (("copy/../copy/.",), "copy/../copy.html"),
    ):
        result = fusmae_ingest("preview", *given, "--samples", 1)
        assert result.stdout == f"{made}: open it in a browser\n", result.stderr
        Path(made).unlink()
    monkeypatch.chdir(copy)
    assert fusmae_ingest("preview", ".", "--samples", 1).returncode == 0
    assert (tmp_path / "copy.html").is_file()
    (tmp_path / "copy.html").unlink()
    (tmp_path / "copy.html").mkdir()
    told = fusmae_ingest("preview", "../copy").stderr
    assert "--out ../copy.html is a folder: give" in told


def test_a_user_s_mistakes_are_told_in_a_line(dataset, fusmae_ingest, tmp_path):
    out = tmp_path / "page.html"
    for args, told in (
        ((tmp_path, "--out", out), "is " + str(tmp_path) + " a finished dataset"),
        ((dataset, "--out", out, "--split", "tset"), "['train', 'val', 'test']"),
        ((dataset, "--out", dataset / "page.html"), "lies in the dataset"),
        (("s3://bucket/ben",), "s3://bucket/ben is a URL, and preview reads a folder"),
    ):
        result = fusmae_ingest("preview", *args)
        assert result.returncode == 1 and told in result.stderr, result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert fusmae_ingest("preview", dataset, "--out", out, "--samples", 0).returncode == 2
    assert not out.exists() and not (dataset / "page.html").exists()


def test_a_shard_that_holds_something_else_is_named(dataset, fusmae_ingest, tmp_path):
    copy = shutil.copytree(dataset, tmp_path / "d")
    shard = copy / read_manifest(copy).splits["train"].shards[0].path
    shard.write_bytes(shard.read_bytes()[512:])
    result = fusmae_ingest("preview", copy, "--out", tmp_path / "page.html")
    assert result.returncode == 1 and f"{shard} does not hold S2" in result.stderr
    assert list(tmp_path.iterdir()) == [copy]


@pytest.mark.parametrize(
    "damage",
    [
        "shard lost",
        "index lost",
        "index cut",
        "text",
        "few",
        "samples.parquet",
        "histograms.parquet",
    ],
)
def test_a_damaged_dataset_is_told_in_a_line_that_says_what_finds_all(
    damage, dataset, fusmae_ingest, tmp_path, without_charts
):
    copy = shutil.copytree(dataset, tmp_path / "d")
    split = read_manifest(copy).splits["train"]
    index = copy / split.index.path
    if damage == "shard lost":
        (copy / split.shards[0].path).unlink()
    elif damage == "index lost":
        index.unlink()
    elif damage == "index cut":
        os.truncate(index, 130)
    elif damage == "text":
        index.write_text("hello {}\n" * 30)
    elif damage == "few":
        np.save(index, np.load(index)[:1])
    else:
        table = copy / damage
        table.write_bytes(table.read_bytes().replace(b"split", b"sqlit"))
    result = fusmae_ingest("preview", copy, "--out", tmp_path / "page.html")
    assert result.returncode == 1 and f"{copy}/" in result.stderr
    assert result.stderr.endswith(f"see fusmae-ingest verify {copy}\n")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("module", ["matplotlib", "PIL"])
def test_without_matplotlib_the_extra_to_install_is_named(module, dataset, tmp_path):
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        f"sys.argv = ['fusmae-ingest', 'preview', {str(dataset)!r}, '--out', "
        f"{str(tmp_path / 'page.html')!r}]\n"
        "from fusmae_ingest.cli import main; main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1 and "fusmae[report]" in result.stderr
