"""Datasets of past format versions are read for ever: see golden/README.md."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import xarray

from fusmae.data import SplitReader, open_dataset
from fusmae.manifest import read_manifest
from fusmae.sample import decode
from fusmae_ingest.storage import manifest_of, open_store
from fusmae_ingest.verify import find_problems

GOLDEN = Path(__file__).parent / "golden"
PIXELS = json.loads((GOLDEN / "pixels.json").read_text())


def sha256(pixels: np.ndarray) -> str:
    return hashlib.sha256(pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()).hexdigest()


@pytest.fixture(params=["format-1.2"])
def golden(request) -> Path:
    return GOLDEN / request.param


def test_it_verifies(golden):
    store = open_store(str(golden))
    assert list(find_problems(store, manifest_of(store), lambda done, total: None)) == []


def test_shards_zarr_and_the_streaming_reader_hold_the_sources_pixels(golden):
    manifest = read_manifest(golden)
    arrays = [spec.name for spec in manifest.arrays]
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    samples = [s for shard in shards for s in decode((golden / shard.path).read_bytes())]
    decoded = {s["__key__"]: {name: sha256(s[name]) for name in arrays} for s in samples}
    assert decoded == PIXELS
    for split, record in manifest.splits.items():
        if not record.num_samples:
            continue
        store = xarray.open_zarr(golden / f"zarr/{split}.zarr")
        reader = SplitReader(golden, split)
        rows = {s.name: np.empty((record.num_samples, *s.shape), s.dtype) for s in manifest.arrays}
        reader.read_into(np.arange(record.num_samples), rows)
        for row, key in enumerate(store.sample_id.values):
            for name in arrays:
                assert sha256(store[name][row].values) == PIXELS[key][name]
                assert sha256(rows[name][row]) == PIXELS[key][name]
        reader.close()


def test_the_view_finds_samples_by_key(golden):
    view = open_dataset(golden, "train", labels="bigearthnet-19")
    for key, pixels in PIXELS.items():
        sample = view.sample(key)
        assert {name: sha256(sample[name].numpy()) for name in pixels} == pixels
        assert sample["labels"].shape == (19,) and sample["labels"].sum() >= 1
