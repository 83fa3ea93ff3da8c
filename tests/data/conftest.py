"""Datasets for the tests of streaming."""

from pathlib import Path

import pytest

from .tiny_dataset import write_tiny_dataset


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset that tests only read: 41 train samples in 4 shards, 7 val, 12 test."""
    folder = tmp_path_factory.mktemp("tiny")
    return write_tiny_dataset(folder, {"train": (12, 12, 12, 5), "val": (7,), "test": (12,)})
