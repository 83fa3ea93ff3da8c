"""The room of unpacked archives and of their shards is looked at before the first is unpacked."""

import random
import shutil
from types import SimpleNamespace

import pytest

from fusmae_ingest import decompress
from fusmae_ingest.decompress import UnpackedSize, unpacked_size
from fusmae_ingest.spool_room import require_room
from fusmae_ingest.storage import LocalStore

from .spools import COMPRESSED, TAR, no_progress, spool, zstd


@pytest.fixture
def set_free(monkeypatch):
    def set_(num_bytes: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=num_bytes))

    return set_


@pytest.fixture
def two(tmp_path):
    """Two archives by the folders where they would be unpacked."""
    archives = {tmp_path / "spool" / name: tmp_path / f"{name}.tar.gz" for name in ("s2", "s1")}
    for path in archives.values():
        path.write_bytes(COMPRESSED["one gzip member"])
    return archives


def test_the_size_is_told_exactly_or_guessed_from_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(decompress, "_READ", 512)
    path = tmp_path / "a"
    exact = UnpackedSize(len(TAR), len(TAR))
    path.write_bytes(COMPRESSED["one zstd frame"])
    monkeypatch.setattr(decompress, "_SAMPLE", 4000)
    assert unpacked_size(path) == exact
    # Exact, but for a frame that may follow.
    text = random.Random(0).randbytes(200_000).hex().encode()
    path.write_bytes(zstd(text))
    assert unpacked_size(path) == UnpackedSize(len(text), len(text))
    # The first frame says more than the file has bytes, and is not all.
    path.write_bytes(zstd(bytes(300_000)) + zstd(text))
    size = unpacked_size(path)
    assert size.least == path.stat().st_size < 300_000 < size.likely
    for kind in ("one gzip member", "gzip members", "zstd frames", "zstd of unknown size"):
        path.write_bytes(COMPRESSED[kind])
        size = unpacked_size(path)
        assert size == exact or size.least == path.stat().st_size < len(TAR)
        assert size.likely == pytest.approx(len(TAR), rel=0.5)
    monkeypatch.setattr(decompress, "_SAMPLE", 1 << 30)
    assert unpacked_size(path) == exact


def test_room_is_asked_for_all_archives_and_counts_what_will_be_swept(two, set_free, tmp_path):
    set_free(2 * len(TAR) - 1)
    told = r"s2 has \d+ MB free, but s2\.tar\.gz unpacks to \d+ MB, s1\.tar\.gz unpacks to \d+ MB: "
    with pytest.raises(ValueError, match=told):
        require_room(two)
    assert not (tmp_path / "spool").exists()
    # A killed run's tar gives its room back; a whole spool needs none.
    (tmp_path / "spool" / "s1").mkdir(parents=True)
    (tmp_path / "spool" / "s1" / "archive.tar.partial").write_bytes(b"x")
    require_room(two)
    shutil.rmtree(tmp_path / "spool")
    spool(tmp_path / "s1.tar.gz", tmp_path / "spool" / "s1", no_progress)
    set_free(len(TAR))
    require_room(two)


def test_a_guess_warns_once_and_only_the_archives_own_size_is_refused(
    two, set_free, monkeypatch, capsys
):
    monkeypatch.setattr(decompress, "_READ", 512)
    monkeypatch.setattr(decompress, "_SAMPLE", 4000)
    sizes = [unpacked_size(archive) for archive in two.values()]
    least, likely = sum(size.least for size in sizes), sum(size.likely for size in sizes)
    assert least < likely
    set_free(likely)
    require_room(two)
    assert capsys.readouterr().err == ""
    set_free(least)
    require_room(two)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: ") and line.endswith(
        "which may not fit: make room there, or give another --spool"
    )
    assert "s2.tar.gz unpacks to about " in line and "s1.tar.gz unpacks to about " in line
    set_free(least - 1)
    with pytest.raises(ValueError, match="MB free, but s2"):
        require_room(two)


def test_shards_beside_what_is_unpacked_count_and_those_that_are_there_do_not(
    two, set_free, tmp_path, capsys
):
    output = LocalStore(str(tmp_path / "d"))
    set_free(round(2 * len(TAR) * 1.9))
    require_room(two)
    assert capsys.readouterr().err == ""
    require_room(two, output)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"shards of all samples take about 0 MB in {output}, which may not fit" in line
    (tmp_path / "d" / "shards" / "train").mkdir(parents=True)
    (tmp_path / "d" / "shards" / "train" / "0.tar").write_bytes(bytes(2 * len(TAR)))
    require_room(two, output)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "warned"), [((), True), (("--limit", 4), False), (("--format", "zarr"), False)]
)
def test_a_run_says_early_that_spool_and_shards_may_not_fit(
    packed_v1, ingest, set_free, tmp_path, options, warned
):
    set_free(10_000_000)
    told = ingest("bigearthnet", *packed_v1, "--out", tmp_path / "d", *options)
    assert told.code == 0, told.err
    lines = [line for line in told.err.splitlines() if line.startswith("warning: ")]
    assert len(lines) == warned
    if warned:
        assert "s2 has 10 MB free, and v1-s2.tar.gz unpacks to " in lines[0]
        assert f"shards of all samples take about 7 MB in {tmp_path / 'd'}, which may" in lines[0]
