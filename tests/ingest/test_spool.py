"""Published archives to spools: every compression and every damage."""

import errno
import gzip
import hashlib
import os
import random
import re

import pytest

from fusmae_ingest import decompress
from fusmae_ingest import spool as module
from fusmae_ingest.spool import PUBLISHED_MD5, TAR_NAME

from .spools import (
    COMPRESSED,
    CONTENTS,
    TAR,
    contents,
    delete,
    make_contents,
    make_tar,
    no_progress,
    spool,
)


@pytest.mark.parametrize("kind", COMPRESSED)
@pytest.mark.parametrize("piece", [97, 1 << 18])
def test_a_spool_is_the_decompressed_tar_with_its_index(kind, piece, tmp_path, monkeypatch):
    monkeypatch.setattr(decompress, "_READ", piece)
    # The name says nothing: the first bytes do.
    path = tmp_path / "some.tar"
    path.write_bytes(COMPRESSED[kind])
    made = spool(path, tmp_path / "spool", no_progress)
    assert made.tar.read_bytes() == TAR
    assert contents(made.tar, made.index) == CONTENTS
    assert made.md5 == hashlib.md5(COMPRESSED[kind]).hexdigest()
    assert not made.md5_checked


def test_a_plain_tar_is_read_where_it_lies(tmp_path):
    path = tmp_path / "plain.tar"
    path.write_bytes(TAR)
    made = spool(path, tmp_path / "spool", no_progress)
    assert made.tar == path
    assert made.md5 is None
    assert contents(made.tar, made.index) == CONTENTS
    assert not list((tmp_path / "spool").glob("*.tar*"))


def test_a_spool_is_used_again_until_the_archive_changes(archive, tmp_path, monkeypatch):
    first = spool(archive, tmp_path / "spool", no_progress)
    with monkeypatch.context() as patched:
        patched.setattr(module, "decompressed", None)
        assert spool(archive, tmp_path / "spool", no_progress) == first
    other = make_contents(3)
    archive.write_bytes(gzip.compress(make_tar(other)))
    again = spool(archive, tmp_path / "spool", no_progress)
    assert contents(again.tar, again.index) == other


def test_a_spool_whose_tar_was_touched_is_made_again(archive, tmp_path):
    made = spool(archive, tmp_path / "spool", no_progress)
    os.truncate(made.tar, 5000)
    again = spool(archive, tmp_path / "spool", no_progress)
    assert again.tar.read_bytes() == TAR


def test_deleting_a_spool_leaves_only_the_archive(archive, tmp_path):
    spool(archive, tmp_path / "spool", no_progress)
    assert delete(tmp_path / "spool")
    assert list(tmp_path.iterdir()) == [archive]
    spool(archive, tmp_path / "spool", no_progress)
    (tmp_path / "spool" / "index" / "mine").write_text("x")
    (tmp_path / "spool" / "notes.txt").write_text("x")
    assert delete(tmp_path / "spool")
    left = {path.name for path in (tmp_path / "spool").rglob("*") if path.is_file()}
    assert left == {"mine", "notes.txt"}


@pytest.mark.parametrize("how", ["replaced", "rewritten"])
def test_an_archive_that_changes_while_it_is_unpacked_is_refused(archive, tmp_path, how):
    other = tmp_path / "other"
    other.write_bytes(archive.read_bytes())

    def change(done: int, total: int) -> None:
        if how == "replaced" and other.exists():
            other.replace(archive)
        elif how == "rewritten":
            os.utime(archive, ns=(1, 1))

    with pytest.raises(ValueError, match=r"mine\.tar\.gz was replaced or changed while"):
        spool(archive, tmp_path / "spool", change)
    assert not (tmp_path / "spool").exists()


def test_an_archive_in_its_own_spool_is_refused(archive, tmp_path):
    with pytest.raises(ValueError, match="give another --spool"):
        spool(archive, tmp_path, no_progress)
    assert archive.exists()


def test_progress_counts_the_bytes_of_the_file(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(decompress, "_READ", 1000)
    seen: list[tuple[int, int]] = []
    spool(archive, tmp_path / "spool", lambda done, total: seen.append((done, total)))
    size = archive.stat().st_size
    assert seen == [(min(at + 1000, size), size) for at in range(0, size, 1000)]


# The md5 -----------------------------------------------------------------------------------


def test_published_sums_are_sums():
    assert all(re.fullmatch("[0-9a-f]{32}", md5) for md5 in PUBLISHED_MD5.values())


def test_the_published_sum_is_compared_and_the_record_says_so(archive, tmp_path, monkeypatch):
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setitem(PUBLISHED_MD5, archive.name, md5)
    assert spool(archive, tmp_path / "spool", no_progress).md5_checked
    assert not spool(archive, tmp_path / "spool", no_progress, check_md5=False).md5_checked


def test_another_sum_than_the_published_one_is_refused(archive, tmp_path, monkeypatch):
    md5, folder = hashlib.md5(archive.read_bytes()).hexdigest(), tmp_path / "spool"
    monkeypatch.setitem(PUBLISHED_MD5, archive.name, "0" * 32)
    refused = rf"has the md5 {md5}, the published mine\.tar\.gz has 0{{32}}: .*--any-archive"
    with pytest.raises(ValueError, match=refused):
        spool(archive, folder, no_progress)
    # It stays for who takes it all the same.
    made = (folder / TAR_NAME).stat().st_ino
    assert spool(archive, folder, no_progress, check_md5=False).md5 == md5
    assert (folder / TAR_NAME).stat().st_ino == made
    # A spool that was taken as it is does not pass for a checked one later.
    with pytest.raises(ValueError, match=refused):
        spool(archive, folder, no_progress)


# Damage ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", COMPRESSED)
def test_damage_is_one_line_and_leaves_nothing(kind, tmp_path):
    whole, path = COMPRESSED[kind], tmp_path / "a.tar.x"
    draw = random.Random(kind)
    spoilt = [whole[:size] for size in draw.sample(range(40, len(whole) - 20), 8)]
    spoilt += [whole[:-1], whole + b"garbage", whole + whole]
    for data in spoilt:
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"a\.tar\.x.*download (it|the archive) again") as info:
            spool(path, tmp_path / "spool", no_progress)
        assert "\n" not in str(info.value)
        assert not (tmp_path / "spool").exists()


@pytest.mark.parametrize("piece", [97, 1 << 18])
def test_zeros_after_gzip_are_padding_and_nothing_else_is(archive, piece, tmp_path, monkeypatch):
    monkeypatch.setattr(decompress, "_READ", piece)
    whole = archive.read_bytes()
    for data in (whole + bytes(1000) + b"garbage", whole[:-8] + bytes(1000)):
        archive.write_bytes(data)
        with pytest.raises(ValueError, match="download it again"):
            spool(archive, tmp_path / "spool", no_progress)
    archive.write_bytes(whole + bytes(1000))
    assert spool(archive, tmp_path / "spool", no_progress).tar.read_bytes() == TAR
    archive.write_bytes(COMPRESSED["one zstd frame"] + bytes(1000))
    with pytest.raises(ValueError, match="download it again"):
        spool(archive, tmp_path / "spool", no_progress)


def test_a_flipped_bit_is_found_by_gzips_own_checksum(archive, tmp_path):
    data = bytearray(archive.read_bytes())
    data[-8] ^= 1
    archive.write_bytes(data)
    with pytest.raises(ValueError, match="is damaged before byte"):
        spool(archive, tmp_path / "spool", no_progress)


@pytest.mark.parametrize("start", [b"BZh91AY", b"\xfd7zXZ\x00", b"PK\x03\x04", b"PAR1"])
def test_other_compressions_are_refused_by_name(start, tmp_path):
    (tmp_path / "a").write_bytes(start)
    with pytest.raises(
        ValueError, match=r"is a (bzip2|xz|zip|parquet) file: give a folder, a \.tar"
    ):
        spool(tmp_path / "a", tmp_path / "spool", no_progress)


def test_an_archive_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no\.tar: No such file"):
        spool(tmp_path / "no.tar", tmp_path / "spool", no_progress)


def test_a_disk_that_fills_up_gives_back_its_room(archive, tmp_path, monkeypatch):
    def full(target: int, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_write", full)
    with pytest.raises(ValueError, match=r"No space left on device, and mine\.tar\.gz unpacks to"):
        spool(archive, tmp_path / "spool", no_progress)
    assert not (tmp_path / "spool").exists()
