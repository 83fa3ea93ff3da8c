"""A full disk, a lack of rights, Ctrl-C, two runs at once: one line each, and a rerun goes on."""

import gzip
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .trees import tree

OPTIONS = ("--format", "shards", "--format", "zarr", "--samples-per-shard", "2")
COMMAND = (sys.executable, "-m", "fusmae_ingest.cli")


@pytest.fixture(scope="module")
def whole(archive_v1, fusmae_ingest, paths, tmp_path_factory) -> dict[str, bytes]:
    """What an undisturbed run makes."""
    out = tmp_path_factory.mktemp("whole") / "d"
    result = fusmae_ingest("bigearthnet", *paths(archive_v1), "--out", out, *OPTIONS)
    assert result.returncode == 0, result.stderr
    return tree(out)


@pytest.fixture(scope="module")
def packed(archive_v1, tmp_path_factory) -> tuple[object, ...]:
    """The `--s2 X.tar.gz --s1 Y.tar.gz` arguments of the same archive."""
    folder = tmp_path_factory.mktemp("packed")
    args: list[object] = []
    for option, name in (("--s2", "BigEarthNet-v1.0"), ("--s1", "BigEarthNet-S1-v1.0")):
        with tarfile.open(folder / f"{option[2:]}.tar.gz", "w:gz") as tar:
            tar.add(archive_v1 / name, name)
        args += [option, folder / f"{option[2:]}.tar.gz"]
    return tuple(args)


def told(stderr: str) -> str:
    """The one line that a failed run says; progress bars and their listing are none."""
    assert "Traceback" not in stderr, stderr
    lines = [line for line in stderr.splitlines() if line.strip()]
    bars = ("Listing", "Converting", "Unpacking", "Indexing", "Verifying")
    (line,) = (line for line in lines if not line.startswith(bars))
    assert line.startswith("error: "), stderr
    return line


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
    out = disk("size=4m") / "d"
    args = ("bigearthnet", *paths(archive_v1), "--out", out, *OPTIONS, "--workers", workers)
    for _ in range(2):
        result = fusmae_ingest_process(*args)
        line = told(result.stderr)
        assert result.returncode == 1
        assert re.match(rf"error: {out}/\S+: No space left on device; make room there", line)
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
    packed, whole, disk, fusmae_ingest_process, tmp_path, full
):
    """There is no room for the first archive, or for the second beside it: both are looked at."""
    unpacked_kb = len(gzip.decompress(packed[1].read_bytes())) >> 10
    small = disk(f"size={unpacked_kb + (-1000 if full == 's2' else 1000)}k")
    args = ("bigearthnet", *packed, "--out", tmp_path / "d", *OPTIONS, "--spool", small / "spool")
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
    packed, whole, disk, fusmae_ingest_process, tmp_path
):
    """The estimate of room was right, and then another program took it."""
    small = disk("size=3m")
    code = (
        "from fusmae_ingest import archives, cli, spool\n"
        "archives.require_room = spool.require_room = lambda *_: None; cli.main()"
    )
    args = ["bigearthnet", *map(str, packed), "--out", str(tmp_path / "d"), *OPTIONS]
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
    archive_v1, whole, packed, ruled, fusmae_ingest, paths, tmp_path, kind, workers
):
    if kind == "archive":
        given = [shutil.copy(a, tmp_path) if isinstance(a, Path) else a for a in packed]
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


def processes_of(mark: str) -> list[str]:
    """Command lines of living processes with this mark in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"FUSMAE_TEST={mark}".encode() in entry.read_bytes():
                found.append((entry.parent / "cmdline").read_bytes().decode())
        except OSError:
            continue  # it has just ended, or is another user's
    return found


def interrupt(
    args: list[str], mark: str, moment: Callable[[], bool], terminate: bool = False
) -> tuple[int, str]:
    """Press Ctrl-C, for all processes of the terminal, at this moment; exit code and stderr.

    With `terminate` send SIGTERM instead, to the command alone.
    """
    process = subprocess.Popen(
        [*COMMAND, *args],
        env={**os.environ, "FUSMAE_TEST": mark},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Where the tests run in the background, Ctrl-C is ignored and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not moment():
        assert time.monotonic() < deadline and process.poll() is None
    if terminate:
        process.terminate()
    else:
        os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr


def check_interrupted(result: tuple[int, str], mark: str) -> None:
    code, stderr = result
    assert code == 130, stderr
    assert told(stderr) == "error: interrupted; run the same command again to go on"
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
        code, stderr = interrupt(args, str(out), moment, terminate=True)
        assert code == 143, stderr
        assert told(stderr) == "error: stopped; run the same command again to go on"
        assert processes_of(str(out)) == []
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


def test_ctrl_c_while_unpacking_is_one_line_and_a_rerun_goes_on(
    packed, whole, fusmae_ingest, tmp_path
):
    out, spool = tmp_path / "d", tmp_path / "d.spool"
    args = [str(a) for a in ("bigearthnet", *packed, "--out", out, *OPTIONS)]
    done = interrupt(args, str(out), lambda: (spool / "s2" / "archive.tar.partial").exists())
    check_interrupted(done, str(out))
    assert list(spool.rglob("*.tar*")) == [] and not out.exists()
    assert fusmae_ingest(*args).returncode == 0
    assert tree(out) == whole


def test_ctrl_c_while_verifying_is_one_line(archive_v1, fusmae_ingest, paths, tmp_path):
    out = tmp_path / "d"
    result = fusmae_ingest("bigearthnet", *paths(archive_v1), "--out", out, *OPTIONS)
    assert result.returncode == 0, result.stderr
    args = ["verify", str(out), "--workers", "2"]
    done = interrupt(args, str(out), lambda: len(processes_of(str(out))) > 2)
    check_interrupted(done, str(out))


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
