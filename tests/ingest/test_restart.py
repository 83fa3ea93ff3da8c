"""SIGKILL at any moment leaves something that a rerun completes, byte for byte."""

import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .stopping import processes_of
from .trees import tree

OPTIONS = ("--format", "shards", "--format", "zarr", "--samples-per-shard", "2")


@pytest.fixture(scope="module")
def undisturbed(archive_v1, fusmae_ingest_process, paths, tmp_path_factory) -> tuple[Path, float]:
    """A dataset made in one go, and the seconds that took."""
    out = tmp_path_factory.mktemp("whole") / "dataset"
    begun = time.monotonic()
    result = fusmae_ingest_process("bigearthnet", *paths(archive_v1), "--out", out, *OPTIONS)
    assert result.returncode == 0, result.stderr
    return out, time.monotonic() - begun


def kill_at_random_until_done(args: list[str], seconds: float, draw: random.Random) -> int:
    """Start the command again and again, each time killed after a while; the number of kills."""
    kills = 0
    while True:
        process = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        # Later starts get longer, so that even an unlucky run ends.
        wait = draw.uniform(0.3, 1.0) * seconds * (1 + kills / 10)
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            continue
        assert process.returncode == 0, process.stderr.read().decode()
        return kills


def check_kills(archive, out, undisturbed, paths, draw, *extra) -> int:
    whole, seconds = undisturbed
    command = [sys.executable, "-m", "fusmae_ingest.cli", "bigearthnet"]
    args = [*command, *map(str, paths(archive)), "--out", str(out), *OPTIONS, *extra]
    kills = kill_at_random_until_done(args, seconds, draw)
    assert tree(out) == tree(whole)
    return kills


def test_killed_runs_end_in_the_same_bytes_as_an_undisturbed_one(
    archive_v1, undisturbed, paths, tmp_path
):
    kills = [
        check_kills(archive_v1, tmp_path / f"d{i}", undisturbed, paths, random.Random(i))
        for i in range(3)
    ]
    assert sum(kills) > 0


def test_a_killed_pool_leaves_no_process_behind(archive_v1, paths, tmp_path):
    out = tmp_path / "d"
    command = [sys.executable, "-m", "fusmae_ingest.cli", "bigearthnet", *OPTIONS]
    args = [*command, *map(str, paths(archive_v1)), "--out", str(out), "--workers", "2"]
    environment = {**os.environ, "FUSMAE_TEST": str(out)}
    process = subprocess.Popen(args, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(out.glob(".ingest/blocks/*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(processes_of(str(out))) > 2
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while processes_of(str(out)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_of(str(out)) == []


def test_a_killed_pool_ends_in_the_same_bytes(archive_v1, undisturbed, paths, tmp_path):
    draw = random.Random(9)
    check_kills(archive_v1, tmp_path / "d", undisturbed, paths, draw, "--workers", "2")


@pytest.mark.slow
def test_fifty_killed_runs(archive_v1, undisturbed, paths, tmp_path):
    kills = 0
    for i in range(25):
        workers = ("--workers", str(1 + i % 2))
        draw = random.Random(100 + i)
        kills += check_kills(archive_v1, tmp_path / f"d{i}", undisturbed, paths, draw, *workers)
    assert kills >= 50


def test_workers_and_a_second_run_change_no_byte(
    archive_v1, undisturbed, fusmae_ingest, paths, tmp_path
):
    args = ("bigearthnet", *paths(archive_v1), "--out", tmp_path / "d", *OPTIONS, "--workers", 2)
    assert fusmae_ingest(*args).returncode == 0
    assert tree(tmp_path / "d") == tree(undisturbed[0])
    assert fusmae_ingest(*args).returncode == 0
    assert tree(tmp_path / "d") == tree(undisturbed[0])


def test_verify_names_a_flipped_byte_a_missing_and_an_extra_file(
    undisturbed, fusmae_ingest, tmp_path
):
    whole = shutil.copytree(undisturbed[0], tmp_path / "d")
    files = sorted(p for p in whole.rglob("*") if p.is_file() and p.name != "dataset.json")
    for path in (files[0], next(p for p in files if p.suffix == ".tar"), files[-1]):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        result = fusmae_ingest("verify", whole)
        assert result.returncode == 1 and f"{path}: sha256" in result.stderr
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    (whole / "extra").write_text("x")
    moved = files[3].rename(tmp_path / "moved")
    result = fusmae_ingest("verify", whole)
    assert f"{whole / 'extra'}: not in the manifest" in result.stderr
    assert f"{files[3]}: missing" in result.stderr
    moved.rename(files[3])
    (whole / "extra").unlink()
    assert fusmae_ingest("verify", whole).returncode == 0


@pytest.mark.parametrize("verb", ["bigearthnet", "sen12ms"])
def test_two_runs_on_one_output_do_not_mix(archive_v1, fusmae_ingest, paths, tmp_path, verb):
    lock = tmp_path / "d" / ".ingest" / "lock"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        given = paths(archive_v1) if verb == "bigearthnet" else ("--root", archive_v1)
        result = fusmae_ingest(verb, *given, "--out", tmp_path / "d")
    assert result.returncode == 1 and "another run is writing" in result.stderr
    # Before it listed an archive.
    assert result.stderr.count("\n") == 1 and "Listing" not in result.stderr
