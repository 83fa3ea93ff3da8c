"""A dataset in a real S3 API on the loopback (moto's server): the same bytes as on disk."""

import os
import subprocess
import sys
import time

import boto3
import pytest
import s3fs
from moto.server import ThreadedMotoServer

OPTIONS = ("--format", "shards", "--format", "zarr", "--samples-per-shard", "4")
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def s3():
    """A client of the server; `fusmae-ingest` finds it by the environment that s3fs reads."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {**KEYS, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        # fsspec keeps what was connected to other servers of this process.
        s3fs.S3FileSystem.clear_instance_cache()
        client = boto3.client("s3", endpoint_url=environment["AWS_ENDPOINT_URL"])
        client.create_bucket(Bucket="datasets")
        yield client
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def objects(s3, prefix: str) -> dict[str, bytes]:
    """Every object below a prefix of the bucket, by the rest of its key."""
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket="datasets", Prefix=f"{prefix}/")
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
    return {
        key.removeprefix(f"{prefix}/"): s3.get_object(Bucket="datasets", Key=key)["Body"].read()
        for key in keys
    }


@pytest.fixture(scope="module")
def on_disk(archive_v1, fusmae_ingest, paths, tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("disk") / "d"
    result = fusmae_ingest("bigearthnet", *paths(archive_v1), "--out", out, *OPTIONS)
    assert result.returncode == 0, result.stderr
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_a_dataset_in_s3_is_the_one_on_disk_byte_for_byte_and_verifies(
    s3, on_disk, archive_v1, fusmae_ingest, paths
):
    url = "s3://datasets/whole"
    args = ("bigearthnet", *paths(archive_v1), "--out", url, *OPTIONS, "--workers", 2)
    result = fusmae_ingest(*args)
    assert result.returncode == 0, result.stderr
    assert objects(s3, "whole") == on_disk
    for workers in (1, 2):
        verified = fusmae_ingest("verify", url, "--workers", workers)
        assert verified.returncode == 0, verified.stderr
    assert "bigearthnet-v1" in fusmae_ingest("info", url).stdout
    assert "already complete" in fusmae_ingest(*args).stdout
    other = fusmae_ingest(*args, "--seed", 1)
    assert other.returncode == 1 and "seed: 0 then, 1 now" in other.stderr


def test_verify_names_an_object_that_was_changed(s3, on_disk, fusmae_ingest):
    for path, data in on_disk.items():
        s3.put_object(Bucket="datasets", Key=f"spoilt/{path}", Body=data)
    shard = next(path for path in on_disk if path.endswith(".tar"))
    spoilt = bytearray(on_disk[shard])
    spoilt[len(spoilt) // 2] ^= 1
    s3.put_object(Bucket="datasets", Key=f"spoilt/{shard}", Body=bytes(spoilt))
    for workers in (1, 2):
        result = fusmae_ingest("verify", "s3://datasets/spoilt", "--workers", workers)
        assert result.returncode == 1
        assert f"s3://datasets/spoilt/{shard}: sha256" in result.stderr


def test_a_killed_run_is_completed_by_the_next(s3, on_disk, archive_v1, fusmae_ingest, paths):
    url = "s3://datasets/killed"
    # As the command, but it does not wait half a minute for the dead run's lock.
    code = "from fusmae_ingest import cli, object_store as o; o.LOCK_RENEWAL_S = 0.5; cli.main()"
    args = ("bigearthnet", *map(str, paths(archive_v1)), "--out", url, *OPTIONS)
    command = [sys.executable, "-c", code, *args]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not [k for k in objects(s3, "killed") if ".ingest/blocks/" in k]:
        assert time.monotonic() < deadline and process.poll() is None
    process.kill()
    process.wait()
    assert "dataset.json" not in objects(s3, "killed")
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "is locked" in result.stderr
    assert objects(s3, "killed") == on_disk


def test_two_runs_on_one_url_do_not_mix(s3, monkeypatch):
    from fusmae_ingest import object_store

    monkeypatch.setattr(object_store, "LOCK_RENEWAL_S", 0.2)
    one, other = (object_store.ObjectStore("s3://datasets/locked") for _ in range(2))
    refused = pytest.raises(ValueError, match="another run is writing s3://")
    with one.locked(), refused, other.locked():
        pass
    with other.locked():
        pass
    assert objects(s3, "locked") == {}


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("s3://no-such-bucket/d", "no-such-bucket"),
        ("nonsense://bucket/d", "nonsense"),
    ],
)
def test_a_place_that_cannot_be_written_is_one_line(
    s3, url, told, archive_v1, fusmae_ingest, paths
):
    result = fusmae_ingest("bigearthnet", *paths(archive_v1), "--out", url, *OPTIONS)
    assert result.returncode == 1 and told in result.stderr and "Traceback" not in result.stderr


def test_without_credentials_it_is_one_line(s3, archive_v1, paths, tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    environment |= {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"}
    environment["AWS_ENDPOINT_URL"] = os.environ["AWS_ENDPOINT_URL"]
    args = ["bigearthnet", *map(str, paths(archive_v1)), "--out", "s3://datasets/denied"]
    command = [sys.executable, "-m", "fusmae_ingest.cli", *args]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "s3://datasets/denied" in result.stderr
