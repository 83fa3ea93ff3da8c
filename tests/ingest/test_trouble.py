"""A full disk, a lack of rights, Ctrl-C, two runs at once: one line each, and a rerun goes on."""

import gzip
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .conftest import OPTIONS
from .stopping import COMMAND, processes_of, told
from .trees import tree


@pytest.fixture
def disk(tmp_path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small disk, `disk("size=4m")`, and again with other options."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> Path:
        again = "remount," if os.path.ismount(place) else ""
        command = ["mount", "-t", "tmpfs", "-o", again + options, "tmpfs", str(place)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("needs the command mount")
        if done.returncode:
            pytest.skip(f"needs the right to mount a disk: {done.stderr.strip()}")
        return place

    yield mount
    if os.path.ismount(place):
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_one_line_and_with_more_room_a_rerun_goes_on(
    archive_v1, whole, disk, fusmae_ingest_process, paths, workers
):
    # Enough for the shards, so that the run begins, and not for zarr beside them.
    out = disk("size=8m") / "d"
    args = ("bigearthnet", *paths(archive_v1), "--out", out, *OPTIONS, "--workers", workers)
    full = rf"error: {out}/\S+: No space left on device; make room there"
    # The second run may see before it begins that there is none.
    for expected in (full, rf"{full}|error: {out} has room for .*: make room there"):
        result = fusmae_ingest_process(*args)
        assert result.returncode == 1
        # That zarr may not fit is said before.
        line = told(re.sub(r"(?m)^warning: .*enough only if zarr.*$", "", result.stderr))
        assert re.match(expected, line)
        assert not (out / "dataset.json").exists()
        assert list(out.glob(".ingest/unnamed/*")) == []
    done = {path: path.stat().st_mtime_ns for path in out.glob(".ingest/blocks/*")}
    assert done
    shards = {p: p.stat().st_mtime_ns for p in out.glob("shards/*/*.tar")}
    disk("size=64m")
    result = fusmae_ingest_process(*args)
    assert result.returncode == 0, result.stderr
    assert tree(out) == whole
    # What was done is not done again.
    kept = [path for path, time_ns in shards.items() if path.stat().st_mtime_ns == time_ns]
    assert len(kept) >= len(done)


@pytest.mark.parametrize("full", ["s2", "s1"])
def test_a_spool_without_room_is_one_line(
    packed_v1, whole, disk, fusmae_ingest_process, tmp_path, full
):
    """There is no room for the first archive, or for the second beside it: both are looked at."""
    unpacked_kb = len(gzip.decompress(packed_v1[1].read_bytes())) >> 10
    small = disk(f"size={unpacked_kb + (-1000 if full == 's2' else 1000)}k")
    args = (
        "bigearthnet",
        *packed_v1,
        "--out",
        tmp_path / "d",
        *OPTIONS,
        "--spool",
        small / "spool",
    )
    result = fusmae_ingest_process(*args)
    assert result.returncode == 1
    assert re.search(rf"{small}/spool/s2 has .* free, .*make room there", told(result.stderr))
    assert list(small.rglob("*.tar*")) == []
    assert not (tmp_path / "d").exists()
    disk("size=64m")
    result = fusmae_ingest_process(*args)
    assert result.returncode == 0, result.stderr
    assert tree(tmp_path / "d") == whole


def test_a_disk_that_fills_up_while_unpacking_is_one_line(
    packed_v1, whole, disk, fusmae_ingest_process, tmp_path
):
    """The estimate of room was right, and then another program took it."""
    small = disk("size=3m")
    code = (
        "from fusmae_ingest import archives, cli\n"
        "archives.require_room = lambda *_: None; cli.main()"
    )
    args = ["bigearthnet", *map(str, packed_v1), "--out", str(tmp_path / "d"), *OPTIONS]
    command = [sys.executable, "-c", code, *args, "--spool", str(small / "spool")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    line = told(result.stderr)
    assert result.returncode == 1 and f"{small}/spool/s2: No space left on device" in line
    assert list(small.rglob("*.tar*")) == []
    disk("size=64m")
    result = fusmae_ingest_process(*args, "--spool", small / "spool")
    assert result.returncode == 0, result.stderr
    assert tree(tmp_path / "d") == whole


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_becomes_read_only_is_one_line(
    archive_v1, whole, disk, fusmae_ingest_process, paths, workers
):
    out = disk("size=64m") / "d"
    disk("ro")
    args = ("bigearthnet", *paths(archive_v1), "--out", out, *OPTIONS, "--workers", workers)
    result = fusmae_ingest_process(*args)
    line = told(result.stderr)
    assert result.returncode == 1 and f"error: {out}: Read-only file system; make it" in line
    disk("rw")
    result = fusmae_ingest_process(*args)
    assert result.returncode == 0, result.stderr
    assert tree(out) == whole


@pytest.fixture
def ruled() -> list[str]:
    """What to put before a command so that file modes bind it, even for root."""
    if os.geteuid():
        return []
    command = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("root needs setpriv to be refused anything")
    return command


@pytest.mark.parametrize("workers", [1, 2])
def test_an_output_without_permission_is_one_line(
    archive_v1, whole, ruled, fusmae_ingest, paths, tmp_path, workers
):
    parent = tmp_path / "parent"
    parent.mkdir(mode=0o555)
    args = [str(a) for a in ("bigearthnet", *paths(archive_v1), "--out", parent / "d", *OPTIONS)]
    args += ["--workers", str(workers)]
    result = subprocess.run([*ruled, *COMMAND, *args], capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert f"{parent}/d: Permission denied; change its permissions" in told(result.stderr)
    parent.chmod(0o755)
    (parent / "d" / "shards").mkdir(parents=True, mode=0o555)
    (parent / "d" / ".ingest").mkdir()
    result = subprocess.run([*ruled, *COMMAND, *args], capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert re.search(r"/d/shards\S*: Permission denied; change its", told(result.stderr))
    (parent / "d" / "shards").chmod(0o755)
    assert fusmae_ingest(*args).returncode == 0
    assert tree(parent / "d") == whole


@pytest.mark.parametrize("kind", ["file", "folder", "archive"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_source_without_permission_is_one_line_that_names_it(
    archive_v1, whole, packed_v1, ruled, fusmae_ingest, paths, tmp_path, kind, workers
):
    if kind == "archive":
        given = [shutil.copy(a, tmp_path) if isinstance(a, Path) else a for a in packed_v1]
        closed = Path(given[1])
    else:
        given = list(paths(shutil.copytree(archive_v1, tmp_path / "archive")))
        folder = sorted(path for path in given[1].iterdir() if path.is_dir())[5]
        closed = folder if kind == "folder" else folder / f"{folder.name}_B05.tif"
    mode = closed.stat().st_mode
    closed.chmod(0)
    out = tmp_path / "d"
    args = [str(a) for a in ("bigearthnet", *given, "--out", out, *OPTIONS)]
    args += ["--workers", str(workers)]
    result = subprocess.run([*ruled, *COMMAND, *args], capture_output=True, text=True, timeout=120)
    line = told(result.stderr)
    assert result.returncode == 1 and str(closed) in line and "ermission" in line
    assert not (out / "dataset.json").exists()
    closed.chmod(mode)
    assert fusmae_ingest(*args).returncode == 0
    assert tree(out) == whole


def test_a_killed_worker_ends_the_run_in_one_line(
    archive_v1, whole, fusmae_ingest, paths, tmp_path
):
    out = tmp_path / "d"
    args = [str(a) for a in ("bigearthnet", *paths(archive_v1), "--out", out, *OPTIONS)]
    args += ["--workers", "2"]
    environment = {**os.environ, "FUSMAE_TEST": str(out)}
    process = subprocess.Popen(
        [*COMMAND, *args], env=environment, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not list(out.glob(".ingest/blocks/*")):
        assert time.monotonic() < deadline and process.poll() is None
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    worker = next(
        int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    os.kill(worker, signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1 and "a worker process died" in told(stderr)
    assert processes_of(str(out)) == []
    assert fusmae_ingest(*args).returncode == 0
    assert tree(out) == whole


@pytest.mark.parametrize("workers", ["1", "2"])
def test_two_runs_at_once_on_one_output_make_the_dataset_and_the_refused_one_says_so(
    archive_v1, whole, fusmae_ingest, paths, tmp_path, workers
):
    out = tmp_path / "d"
    args = [str(a) for a in ("bigearthnet", *paths(archive_v1), "--out", out, *OPTIONS)]
    command = [*COMMAND, *args, "--workers", workers]
    runs = []
    for _ in range(2):
        runs.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    ends = [(run.communicate(timeout=120)[1], run.returncode) for run in runs]
    assert 0 in [code for _, code in ends]
    for stderr, code in ends:
        if code:
            assert code == 1 and "another run " in told(stderr)
    assert tree(out) == whole
    assert fusmae_ingest("verify", out).returncode == 0


def test_a_run_that_waits_for_another_ones_end_finds_the_dataset_complete(
    archive_v1, whole, paths, tmp_path, monkeypatch
):
    """One run ends between the other's look for the manifest and its lock."""
    import contextlib

    from fusmae_ingest import cli, storage

    out = tmp_path / "d"
    locked = storage.LocalStore.locked

    @contextlib.contextmanager
    def late(store):
        for path, data in whole.items():
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            (out / path).write_bytes(data)
        written.update({path: (out / path).stat().st_mtime_ns for path in whole})
        with locked(store):
            yield

    written: dict[str, int] = {}
    monkeypatch.setattr(storage.LocalStore, "locked", late)
    args = ("bigearthnet", *paths(archive_v1), "--out", out, *OPTIONS)
    monkeypatch.setattr(sys, "argv", ["fusmae-ingest", *map(str, args)])
    cli.main()
    assert {path: (out / path).stat().st_mtime_ns for path in whole} == written
    assert tree(out) == whole
