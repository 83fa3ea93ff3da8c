"""What a run tells around unpacking: checksums, what is kept beside the dataset, how to go on."""

import errno
import hashlib
import shutil

import pytest

from fusmae_ingest import bigearthnet, cli
from fusmae_ingest.spool import PUBLISHED_MD5
from fusmae_ingest.spool_lock import SpoolLock

from .packed_archives import pack


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


def test_what_was_unpacked_of_another_archive_is_there_for_who_takes_it(
    packed, ingest, tmp_path, monkeypatch
):
    monkeypatch.setitem(PUBLISHED_MD5, packed["v1-s2"].name, "0" * 32)
    args = ["bigearthnet", "--s2", packed["v1-s2"], "--s1", packed["v1-s1"]]
    assert "--any-archive" in ingest(*args, "--out", tmp_path / "d").error
    assert list(tmp_path.iterdir()) == [tmp_path / "d.spool"]
    (tar,) = tmp_path.glob("d.spool/*/archive.tar")
    unpacked = tar.stat().st_ino
    told = ingest(*args, "--out", tmp_path / "d", "--any-archive", "--keep-spool")
    assert told.code == 0 and tar.stat().st_ino == unpacked


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
