"""Ctrl-C and SIGTERM: one line, no process left, and a rerun goes on."""

import os
import sys

import pytest

from .conftest import OPTIONS
from .stopping import interrupt, processes_of, told
from .trees import tree

BOTH = pytest.mark.parametrize("terminate", [False, True], ids=["ctrl-c", "sigterm"])


def check_interrupted(result: tuple[int, str], mark: str, terminate: bool = False) -> None:
    code, stderr = result
    what, expected = ("stopped", 143) if terminate else ("interrupted", 130)
    assert code == expected, stderr
    assert told(stderr) == f"error: {what}; run the same command again to go on"
    assert processes_of(mark) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_while_converting_is_one_line_and_a_rerun_goes_on(
    archive_v1, whole, fusmae_ingest, paths, tmp_path, workers
):
    out = tmp_path / "d"
    args = [str(a) for a in ("bigearthnet", *paths(archive_v1), "--out", out, *OPTIONS)]
    args += ["--workers", str(workers)]
    # With one block done, then with three; in between the run goes on from the first.
    for blocks in (1, 3):
        done = interrupt(
            args, str(out), lambda n=blocks: len(list(out.glob(".ingest/blocks/*"))) >= n
        )
        check_interrupted(done, str(out))
        assert not (out / "dataset.json").exists()
    assert fusmae_ingest(*args).returncode == 0
    assert tree(out) == whole


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_is_one_line_and_a_rerun_goes_on(
    archive_v1, whole, fusmae_ingest, paths, tmp_path, workers
):
    """While it converts, and while workers start."""
    out = tmp_path / "d"
    args = [str(a) for a in ("bigearthnet", *paths(archive_v1), "--out", out, *OPTIONS)]
    args += ["--workers", str(workers)]
    moments = [lambda: list(out.glob(".ingest/blocks/*"))]
    if workers > 1:
        moments.insert(0, lambda: len(processes_of(str(out))) > 2)
    for moment in moments:
        check_interrupted(interrupt(args, str(out), moment, terminate=True), str(out), True)
        assert not (out / "dataset.json").exists()
    assert fusmae_ingest(*args).returncode == 0
    assert tree(out) == whole


def test_ctrl_c_while_workers_start_is_one_line(archive_v1, whole, fusmae_ingest, paths, tmp_path):
    out = tmp_path / "d"
    args = [str(a) for a in ("bigearthnet", *paths(archive_v1), "--out", out, *OPTIONS)]
    args += ["--workers", "2"]
    # The main process, the resource tracker, and a worker that is still importing.
    for others in (2, 3):
        done = interrupt(args, str(out), lambda n=others: len(processes_of(str(out))) > n - 1)
        check_interrupted(done, str(out))
    assert fusmae_ingest(*args).returncode == 0
    assert tree(out) == whole


# Waits for the stop with part of an archive unpacked: all of it takes 20 ms, and a test on a busy
# machine does not look in time.
PART_UNPACKED = """
import time
from fusmae_ingest import cli, spool
decompressed = spool.decompressed
def held(*args):
    for piece in decompressed(*args):
        yield piece
        time.sleep(60)
spool.decompressed = held
cli.main()
"""


@BOTH
def test_a_stop_while_unpacking_is_one_line_and_a_rerun_goes_on(
    packed_v1, whole, fusmae_ingest, tmp_path, terminate
):
    out, spool = tmp_path / "d", tmp_path / "d.spool"
    args = [str(a) for a in ("bigearthnet", *packed_v1, "--out", out, *OPTIONS)]
    partial = spool / "s2" / "archive.tar.partial"
    command = (sys.executable, "-c", PART_UNPACKED)
    done = interrupt(args, str(out), partial.exists, terminate, command)
    check_interrupted(done, str(out), terminate)
    assert list(spool.rglob("*.tar*")) == [] and not out.exists()
    assert fusmae_ingest(*args).returncode == 0
    assert tree(out) == whole


@BOTH
def test_a_stop_while_verifying_is_one_line(archive_v1, fusmae_ingest, paths, tmp_path, terminate):
    out = tmp_path / "d"
    result = fusmae_ingest("bigearthnet", *paths(archive_v1), "--out", out, *OPTIONS)
    assert result.returncode == 0, result.stderr
    args = ["verify", str(out), "--workers", "2"]
    # While workers start, and while one is at work.
    for others in (2, 3):
        done = interrupt(
            args, str(out), lambda n=others: len(processes_of(str(out))) >= n, terminate
        )
        check_interrupted(done, str(out), terminate)
    assert fusmae_ingest("verify", out).returncode == 0


@BOTH
@pytest.mark.parametrize("workers", [1, 2])
def test_a_stop_while_simulating_is_one_line_and_the_same_again_makes_the_archive(
    fusmae_ingest, tmp_path, workers, terminate
):
    out = tmp_path / "a"
    args = ["simulate", "bigearthnet", "--patches", "40", "--seed", "1", "--workers", str(workers)]
    whole = tmp_path / "whole"
    assert fusmae_ingest(*args, "--out", whole).returncode == 0
    args += ["--out", str(out)]

    def has_begun() -> bool:
        # The folders move meanwhile, which `os.walk` does not mind.
        return sum(len(files) for *_, files in os.walk(out)) > 20

    done = interrupt(args, str(out), has_begun, terminate)
    check_interrupted(done, str(out), terminate)
    assert fusmae_ingest(*args).returncode == 0
    assert tree(out) == tree(whole)
