"""Blocks on a real Dask cluster of two worker processes on the loopback, one of them killed."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from distributed import LocalCluster

OPTIONS = ("--format", "shards", "--format", "zarr", "--samples-per-shard", "2")


@pytest.fixture
def cluster():
    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address=None,
    ) as made:
        yield made


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def workers_of(cluster) -> list[int]:
    return [worker.process.process.pid for worker in cluster.workers.values() if worker.process]


@pytest.fixture(scope="module")
def serial(archive_v1, fusmae_ingest, paths, tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("serial") / "d"
    result = fusmae_ingest("bigearthnet", *paths(archive_v1), "--out", out, *OPTIONS)
    assert result.returncode == 0, result.stderr
    return tree(out)


def test_a_cluster_that_loses_a_worker_ends_in_the_bytes_of_a_serial_run(
    cluster, serial, archive_v1, paths, tmp_path
):
    out = tmp_path / "d"
    args = [*map(str, paths(archive_v1)), "--out", "d", "--scheduler", cluster.scheduler_address]
    command = [sys.executable, "-m", "fusmae_ingest.cli", "bigearthnet", *args, *OPTIONS]
    # A relative --out: the workers stand in other folders than the command.
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(out.glob(".ingest/blocks/*")):
        assert time.monotonic() < deadline and process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    first = workers_of(cluster)[0]
    psutil.Process(first).kill()
    _, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    assert first not in workers_of(cluster)
    assert tree(out) == serial


def test_a_bad_sample_on_a_cluster_is_named_in_one_line(
    cluster, archive_v1, fusmae_ingest, paths, tmp_path
):
    import shutil

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


def test_an_address_without_a_scheduler_is_one_line(archive_v1, fusmae_ingest, paths, tmp_path):
    for address in ("tcp://127.0.0.1:9", "nonsense"):
        out = ("--out", tmp_path / "d", "--scheduler", address)
        result = fusmae_ingest("bigearthnet", *paths(archive_v1), *out)
        assert result.returncode == 1 and f"--scheduler {address}" in result.stderr
        assert "Traceback" not in result.stderr
