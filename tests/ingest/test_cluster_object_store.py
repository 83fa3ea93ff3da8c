"""Blocks on a real Dask cluster whose dataset lies in a real S3 API on the loopback."""

import pytest
from distributed import LocalCluster

from .s3_server import objects, serving
from .trees import tree

OPTIONS = ("--format", "shards", "--format", "zarr", "--samples-per-shard", "4")


@pytest.fixture
def s3_and_scheduler():
    """Workers are started second, so that they find the server by their environment too."""
    with (
        serving() as client,
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address=None,
        ) as cluster,
    ):
        yield client, cluster.scheduler_address


def test_a_cluster_writes_to_s3_the_bytes_of_a_serial_run_on_disk(
    s3_and_scheduler, archive_v1, fusmae_ingest, paths, tmp_path
):
    s3, scheduler = s3_and_scheduler
    args = ("bigearthnet", *paths(archive_v1), *OPTIONS)
    result = fusmae_ingest(*args, "--out", tmp_path / "d")
    assert result.returncode == 0, result.stderr
    result = fusmae_ingest(*args, "--out", "s3://datasets/d", "--scheduler", scheduler)
    assert result.returncode == 0, result.stderr
    serial = tree(tmp_path / "d")
    assert sum(path.endswith(".tar") for path in serial) > 4
    assert objects(s3, "d") == serial
