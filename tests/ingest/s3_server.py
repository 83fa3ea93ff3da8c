"""A real S3 API on the loopback (moto's server), which `fusmae-ingest` finds by the environment."""

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest
import s3fs
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}


@contextmanager
def serving() -> Iterator[Any]:
    """A client of a server with one bucket, `datasets`."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {**KEYS, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(S3Response, "put_object", _one_at_a_time(S3Response.put_object))
        for name, value in environment.items():
            patch.setenv(name, value)
        # fsspec keeps what was connected to other servers of this process.
        s3fs.S3FileSystem.clear_instance_cache()
        client = boto3.client("s3", endpoint_url=environment["AWS_ENDPOINT_URL"])
        client.create_bucket(Bucket="datasets")
        yield client
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def _one_at_a_time(function: Any) -> Any:
    """S3 looks at a PUT's condition and writes in one step; moto's threads do not."""
    lock = threading.Lock()

    @functools.wraps(function)
    def locked(*args: Any, **kwargs: Any) -> Any:
        with lock:
            return function(*args, **kwargs)

    return locked


def objects(s3: Any, prefix: str) -> dict[str, bytes]:
    """Every object below a prefix of the bucket, by the rest of its key."""
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket="datasets", Prefix=f"{prefix}/")
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
    return {
        key.removeprefix(f"{prefix}/"): s3.get_object(Bucket="datasets", Key=key)["Body"].read()
        for key in keys
    }
