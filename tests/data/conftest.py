"""Datasets and stores for the tests of streaming."""

import hashlib
import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import boto3
import numpy as np
import pytest
import s3fs
import torch
from moto.server import ThreadedMotoServer

from fusmae.data import DatasetView, SplitReader, open_dataset
from fusmae.manifest import Manifest, read_manifest
from fusmae.sensors import SEN12MS_S1, SEN12MS_S2

from ..manifests import edit_manifest  # noqa: TID252
from .object_store import LoopbackStore, no_fault
from .tiny_dataset import write_tiny_dataset

_KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset that tests only read: 41 train samples in 4 shards, 7 val, 12 test."""
    folder = tmp_path_factory.mktemp("tiny")
    return write_tiny_dataset(folder, {"train": (12, 12, 12, 5), "val": (7,), "test": (12,)})


@pytest.fixture(scope="session")
def tiny_sen12ms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 train samples in 2 shards, in SEN12MS's arrays at a tenth of their size."""
    specs = tuple(replace(spec, size_px=25) for spec in (SEN12MS_S1, SEN12MS_S2))
    return write_tiny_dataset(tmp_path_factory.mktemp("sen12ms"), {"train": (9, 9)}, specs, 7)


@pytest.fixture(scope="session")
def big_window_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """74 train samples in 12 shards of 6 or 7, 20 val samples in 5; the manifest vouches for
    `samples.parquet`."""
    folder = tmp_path_factory.mktemp("many")
    write_tiny_dataset(folder, {"train": (6,) * 10 + (7, 7), "val": (4,) * 5}, seed=3)
    table = (folder / "samples.parquet").read_bytes()
    digest = hashlib.sha256(table).hexdigest()
    files = [{"path": "samples.parquet", "bytes": len(table), "sha256": digest}]
    edit_manifest(folder, lambda manifest: manifest.update(files=files))
    return folder


@pytest.fixture
def view(tiny_dataset) -> DatasetView:
    """The train split of `tiny_dataset`, with labels."""
    return open_dataset(tiny_dataset, labels="bigearthnet-19")


@pytest.fixture
def manifest(tiny_dataset) -> Manifest:
    return read_manifest(tiny_dataset)


@pytest.fixture
def arrays(tiny_dataset) -> dict[str, torch.Tensor]:
    """The first 5 samples of the train split, as a batch."""
    reader = SplitReader(tiny_dataset, "train")
    rows = {s.name: np.zeros((5, *s.shape), s.dtype) for s in reader.arrays}
    reader.read_into(np.arange(5), rows)
    return {name: torch.from_numpy(array) for name, array in rows.items()}


@pytest.fixture(scope="session")
def s3_server() -> Iterator[tuple[str, int]]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture
def s3_store(s3_server, big_window_dataset, monkeypatch) -> Iterator[LoopbackStore]:
    """An S3 API with `big_window_dataset` at s3://datasets/many, behind a store that can fail.

    Retries are ours alone and fast.
    """
    with LoopbackStore(s3_server) as store:
        environment = {**_KEYS, "AWS_ENDPOINT_URL": store.url, "AWS_MAX_ATTEMPTS": "1"}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        retry_fast(monkeypatch, 0.01, 0.02, 0.04)
        monkeypatch.setattr("fusmae.data.origin.TIMEOUT_S", 2.0)
        s3fs.S3FileSystem.clear_instance_cache()  # they know the store of another test
        url = f"http://{s3_server[0]}:{s3_server[1]}"
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        client = boto3.client("s3", endpoint_url=url)
        client.create_bucket(Bucket="datasets")
        for path in big_window_dataset.rglob("*"):
            if path.is_file():
                key = f"many/{path.relative_to(big_window_dataset)}"
                client.put_object(Bucket="datasets", Key=key, Body=path.read_bytes())
        store.client = client
        yield store
        store.fault = no_fault
        assert_threads_end("fusmae-")


def retry_fast(monkeypatch: pytest.MonkeyPatch, *delays_s: float) -> None:
    """Let a store that fails be asked again after these delays alone."""
    monkeypatch.setattr("fusmae.data.origin.DELAYS_S", delays_s)
    monkeypatch.setattr("fusmae.data.origin.READ_DELAYS_S", delays_s)


@pytest.fixture
def url(big_window_dataset):
    return f"file://{big_window_dataset}"


def assert_threads_end(prefix: str, seconds: float = 10.0) -> None:
    """Fails if threads of such names are still there after so long."""
    for thread in threading.enumerate():
        if thread.name.startswith(prefix):
            thread.join(seconds)
    assert [t.name for t in threading.enumerate() if t.name.startswith(prefix)] == []
