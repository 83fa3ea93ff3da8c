"""Blocks on a real Dask cluster of two worker processes on the loopback, one of them lost."""

import os
import shutil
import signal
from collections.abc import Iterator

import psutil
import pytest
from distributed import Client, LocalCluster

from .clusters import hold_blocks, start, two_workers, wait_until, workers_of
from .conftest import OPTIONS
from .stopping import told
from .trees import tree


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with two_workers() as made:
        yield made


@pytest.mark.parametrize("end", ["killed", "retired"])
def test_a_cluster_that_loses_a_worker_ends_in_the_bytes_of_a_serial_run(
    cluster, whole, archive_v1, paths, tmp_path, end
):
    gate = tmp_path / "gate"
    with Client(cluster) as client:
        hold_blocks(client, gate, num_free=1)
    # A relative --out: the workers stand in other folders than the command.
    args = (*paths(archive_v1), "--out", "d", "--scheduler", cluster.scheduler_address)
    process = start("bigearthnet", *args, *OPTIONS, cwd=tmp_path)
    pids = workers_of(cluster)
    wait_until(lambda: {path.name for path in gate.iterdir()} == set(map(str, pids)), process)
    # Each has done one block and is in the middle of its next.
    num_done = len(list((tmp_path / "d").glob(".ingest/blocks/*")))
    num_blocks = sum(path.startswith("shards/") and path.endswith(".tar") for path in whole)
    assert num_done == 2 and num_blocks > 4
    if end == "killed":
        psutil.Process(pids[0]).kill()
    else:
        # As at the end of its `--lifetime`.
        with Client(cluster) as client:
            client.retire_workers(names=[next(iter(cluster.workers))])
    (gate / "open").touch()
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    wait_until(lambda: not psutil.pid_exists(pids[0]))
    assert tree(tmp_path / "d") == whole


def test_a_block_that_outlives_its_run_leaves_a_later_dataset_as_it_is(
    cluster, archive_v1, fusmae_ingest, paths, tmp_path
):
    gate, out = tmp_path / "gate", tmp_path / "d"
    args = ("bigearthnet", *paths(archive_v1), "--out", out, *OPTIONS)
    with Client(cluster) as client:
        hold_blocks(client, gate, num_free=0)
        process = start(*args, "--scheduler", cluster.scheduler_address)
        wait_until(lambda: len(list(gate.iterdir())) == 2, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        shutil.rmtree(out)
        # Blocks of the same names with other samples.
        result = fusmae_ingest(*args, "--seed", 5)
        assert result.returncode == 0, result.stderr
        later = tree(out)
        (gate / "open").touch()

        def num_at_work(dask_worker) -> int:
            return len(dask_worker.active_threads)

        wait_until(lambda: not any(client.run(num_at_work).values()))
    assert tree(out) == later


@pytest.mark.parametrize(
    ("number", "code", "what"),
    [(signal.SIGTERM, 143, "stopped"), (signal.SIGINT, 130, "interrupted")],
)
def test_a_stopped_run_on_a_cluster_is_one_line_and_a_rerun_goes_on(
    cluster, whole, archive_v1, paths, tmp_path, number, code, what
):
    gate, out = tmp_path / "gate", tmp_path / "d"
    args = ("bigearthnet", *paths(archive_v1), "--out", out, *OPTIONS)
    args = (*args, "--scheduler", cluster.scheduler_address)
    with Client(cluster) as client:
        hold_blocks(client, gate, num_free=1)
    process = start(*args)
    wait_until(lambda: len(list(gate.iterdir())) == 2, process)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == code
    assert told(stderr) == f"error: {what}; run the same command again to go on"
    done = {path: path.stat().st_mtime_ns for path in out.glob("shards/*/*.tar")}
    assert len(done) == 2 and not (out / "dataset.json").exists()
    # What the workers are in the middle of ends later, and is not their turn any more.
    (gate / "open").touch()
    again = start(*args)
    _, stderr = again.communicate(timeout=240)
    assert again.returncode == 0, stderr
    assert tree(out) == whole
    assert {path: path.stat().st_mtime_ns for path in done} == done


def test_what_a_finished_dataset_lost_is_made_again_on_a_cluster(
    cluster, whole, archive_v1, fusmae_ingest, paths, tmp_path
):
    out = tmp_path / "d"
    args = ("bigearthnet", *paths(archive_v1), "--out", out, *OPTIONS)
    args = (*args, "--scheduler", cluster.scheduler_address)
    for path, data in whole.items():
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_bytes(data)
    shards = sorted(out.glob("shards/train/*.tar"))
    for lost in ([shards[0], next(out.glob("zarr/test.zarr/s1/c/0/0/0/0"))], [out / "README.md"]):
        for path in lost:
            path.unlink()
        kept = shards[1].stat().st_mtime_ns
        result = fusmae_ingest(*args)
        assert result.returncode == 0, result.stderr
        assert f"{out}: mended, 24 samples" in result.stdout
        assert tree(out) == whole
        # A block's files are made again alone, and everything else from all blocks.
        assert (shards[1].stat().st_mtime_ns == kept) == (shards[0] in lost)


def test_a_bad_sample_on_a_cluster_is_named_in_one_line(
    cluster, archive_v1, fusmae_ingest, paths, tmp_path
):
    archive = shutil.copytree(archive_v1, tmp_path / "archive")
    band = next((archive / "BigEarthNet-v1.0").glob("*/*_B05.tif"))
    os.truncate(band, 1000)
    result = fusmae_ingest(
        "bigearthnet",
        *paths(archive),
        "--out",
        tmp_path / "d",
        *OPTIONS,
        "--scheduler",
        cluster.scheduler_address,
    )
    assert result.returncode == 1 and band.name in result.stderr
    assert "Traceback" not in result.stderr


def test_bad_samples_are_left_out_on_a_cluster_as_in_a_serial_run(
    cluster, archive_v1, fusmae_ingest, paths, tmp_path
):
    archive = shutil.copytree(archive_v1, tmp_path / "archive")
    for band in sorted((archive / "BigEarthNet-v1.0").glob("*/*_B05.tif"))[:2]:
        os.truncate(band, 1000)
    args = ("bigearthnet", *paths(archive), *OPTIONS, "--on-error", "quarantine", "--max-bad", 0.2)
    for out, more in (("serial", ()), ("d", ("--scheduler", cluster.scheduler_address))):
        result = fusmae_ingest(*args, "--out", tmp_path / out, *more)
        assert result.returncode == 0, result.stderr
    assert len((tmp_path / "d" / "quarantine.jsonl").read_text().splitlines()) == 2
    assert tree(tmp_path / "d") == tree(tmp_path / "serial")


def test_sen12ms_by_a_relative_root_is_made_on_a_cluster(cluster, fusmae_ingest, tmp_path):
    root = tmp_path / "archive"
    assert fusmae_ingest("simulate", "sen12ms", "--out", root, "--patches", 4).returncode == 0
    args = ("--out", "d", "--scheduler", cluster.scheduler_address)
    process = start("sen12ms", "--root", "archive", *args, cwd=tmp_path)
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    result = fusmae_ingest("sen12ms", "--root", root, "--out", tmp_path / "serial")
    assert result.returncode == 0, result.stderr
    assert tree(tmp_path / "d") == tree(tmp_path / "serial")
