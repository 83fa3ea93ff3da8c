"""A spool that other runs use, that a killed run left, or that is a folder of the user's."""

import fcntl
import gzip
import hashlib
import os
import shutil
import subprocess
import sys

import pytest

from fusmae_ingest import spool as module
from fusmae_ingest.spool import delete_spool
from fusmae_ingest.spool_lock import SpoolLock

from .spools import CONTENTS, TAR, contents, delete, make_contents, make_tar, no_progress, spool


def test_a_run_that_unpacks_keeps_others_out(archive, tmp_path):
    with SpoolLock(tmp_path / "spool") as lock:
        lock.exclude()
        with pytest.raises(ValueError, match=r"another run is unpacking in .*spool"):
            spool(archive, tmp_path / "spool", no_progress)


def test_what_a_run_reads_is_read_by_others_and_neither_removed_nor_replaced(archive, tmp_path):
    folder, other = tmp_path / "spool", tmp_path / "other.tar.gz"
    other.write_bytes(gzip.compress(make_tar(make_contents(3))))
    with SpoolLock(folder) as lock:
        made = module.spool(archive, lock, no_progress)
        assert spool(archive, folder, no_progress) == made
        assert not delete(folder)
        with pytest.raises(ValueError, match=r"another run is using .*give another --spool"):
            spool(other, folder, no_progress)
        assert contents(made.tar, made.index) == CONTENTS
        # Once it is alone it may.
        assert delete_spool(lock)
    assert not folder.exists()


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    """One run removes the folder between another's opening of the lock and its locking."""
    folder, flock = tmp_path / "spool", fcntl.flock

    def late(file, kind):
        monkeypatch.setattr(fcntl, "flock", flock)
        shutil.rmtree(folder)
        flock(file, kind)

    with SpoolLock(folder) as lock:
        monkeypatch.setattr(fcntl, "flock", late)
        lock.share()
        with SpoolLock(folder) as other:
            assert not other.is_alone()


def test_an_index_that_is_not_whole_makes_no_spool(archive, tmp_path):
    folder = tmp_path / "spool"
    made = spool(archive, folder, no_progress)
    for name in ("index.json", "members.npy", "patches.npy"):
        assert module.is_spooled(archive, folder)
        size = (made.index / name).stat().st_size
        os.truncate(made.index / name, size - 1)
        assert not module.is_spooled(archive, folder)
        assert spool(archive, folder, no_progress) == made


# Forks children that spool and are killed: at each opening, renaming and removing of a file in
# turn, then at random moments. After each kill, what is found must be whole or not taken.
KILLS = """
import hashlib, os, random, signal, sys, time
from pathlib import Path
from fusmae_ingest import spool as module
from fusmae_ingest.spool import _find
from fusmae_ingest.spool_lock import SpoolLock
from fusmae_ingest.tar_archive import TarArchive

archive, folder, expected = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
ignore = lambda done, total: None

def spool(archive, folder, progress):
    with SpoolLock(folder) as lock:
        return module.spool(archive, lock, progress)

def delete_spool(folder):
    with SpoolLock(folder) as lock:
        assert module.delete_spool(lock)

def digest(tar, index):
    opened, sum = TarArchive(tar, index), hashlib.sha256()
    for patch in opened.patches():
        for file in patch.files():
            sum.update(file.encode() + bytes(patch.load([file])[0].whole()))
    return sum.hexdigest()

def killed(wait, die_at=None):
    child = os.fork()
    if child == 0:
        seen = 0
        def count(event, args):
            nonlocal seen
            if event in EVENTS and str(folder) in str(args[0]):
                seen += 1
                if seen == die_at:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(count)
        try:
            spool(archive, folder, ignore)
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(1)
        os._exit(0)
    if wait is not None:
        time.sleep(wait)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]

def check(again):
    if _find(archive, folder) is not None:
        assert digest(folder / "archive.tar", folder / "index") == expected, "taken, not whole"
    if again:
        made = spool(archive, folder, ignore)
        assert digest(made.tar, made.index) == expected
        assert sorted(os.listdir(folder)) == ["archive.tar", "index", "lock"]

steps = 0
while True:
    delete_spool(folder)
    status = killed(None, die_at=steps + 1)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0
        break
    steps += 1
    check(again=True)
rounds = random.Random(0)
for turn in range(12):
    # Now and then a rerun meets what a killed run left, killed in its turn.
    if turn % 3 == 0:
        delete_spool(folder)
    killed(rounds.uniform(0, 0.06))
    check(again=turn % 3 == 2)
print(steps)
"""


def test_a_run_killed_at_any_moment_leaves_nothing_that_passes_for_a_spool(tmp_path):
    contents = make_contents(120)
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(gzip.compress(make_tar(contents), 1))
    expected = hashlib.sha256()
    for files in contents.values():
        for name, data in files.items():
            expected.update(name.encode() + data)
    command = [sys.executable, "-c", KILLS, archive, tmp_path / "spool", expected.hexdigest()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
    # The partial tar, its renaming, two arrays and the head of the index, each made and renamed.
    assert int(result.stdout) >= 10


# Folders that are not ours ------------------------------------------------------------------


@pytest.mark.parametrize("theirs", ["archive.tar", "archive.tar.partial", "index/index.json"])
@pytest.mark.parametrize("with_lock", [False, True])
def test_a_users_folder_is_refused_and_left_as_it_is(archive, tmp_path, theirs, with_lock):
    folder = tmp_path / "mine"
    (folder / theirs).parent.mkdir(parents=True)
    (folder / theirs).write_text("years of work")
    if with_lock:
        (folder / "lock").write_text("")
    plain = tmp_path / "plain.tar"
    plain.write_bytes(TAR)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for source in (archive, plain):
        with pytest.raises(ValueError, match="holds files that are not fusmae-ingest's"):
            spool(source, folder, no_progress)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
