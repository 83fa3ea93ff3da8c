"""Blocks on a real Dask cluster whose dataset lies in a real S3 API on the loopback."""

import psutil
import pytest
from distributed import Client

from .clusters import hold_blocks, start, two_workers, wait_until, workers_of
from .s3_server import objects, serving
from .trees import tree

OPTIONS = ("--format", "shards", "--format", "zarr", "--samples-per-shard", "4")


@pytest.fixture
def s3_and_cluster():
    """Workers are started second, so that they find the server by their environment too."""
    with serving() as client, two_workers() as cluster:
        yield client, cluster


def test_a_cluster_that_loses_a_worker_writes_to_s3_the_bytes_of_a_serial_run_on_disk(
    s3_and_cluster, archive_v1, fusmae_ingest, paths, tmp_path
):
    s3, cluster = s3_and_cluster
    args = ("bigearthnet", *paths(archive_v1), *OPTIONS)
    result = fusmae_ingest(*args, "--out", tmp_path / "d")
    assert result.returncode == 0, result.stderr
    serial = tree(tmp_path / "d")
    assert sum(path.endswith(".tar") for path in serial) > 4
    gate = tmp_path / "gate"
    with Client(cluster) as client:
        hold_blocks(client, gate, num_free=1)
    process = start(*args, "--out", "s3://datasets/d", "--scheduler", cluster.scheduler_address)
    # Each has done one block and is in the middle of its next.
    wait_until(lambda: len(list(gate.iterdir())) == 2, process)
    psutil.Process(workers_of(cluster)[0]).kill()
    (gate / "open").touch()
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    assert objects(s3, "d") == serial
