"""Shards put together by hand against those that zarr-python writes, byte for byte."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from numcodecs import blosc

from fusmae.sensors import BIGEARTHNET_ARRAYS, S1, S2_20M, S2_60M, ArraySpec
from fusmae_ingest.layout import store_path, zarr_shard_path
from fusmae_ingest.zarr_store import encode_group, open_array, shard_parts


def encode_shard(spec: ArraySpec, stack: np.ndarray, samples_per_shard: int) -> bytes:
    return b"".join(shard_parts(spec, stack, samples_per_shard))


def pixels(spec: ArraySpec, num_samples: int, seed: int = 0) -> np.ndarray:
    """Smooth scenes with noise, so that chunks compress and differ in size."""
    rng = np.random.default_rng(seed)
    scenes = rng.normal(1000, 300, (num_samples, *spec.shape)).cumsum(axis=-1) / 8
    return scenes.clip(0, 65535).astype(spec.dtype)


def declare(root: Path, spec: ArraySpec, num_samples: int, samples_per_shard: int) -> Path:
    """A store with the array's metadata and no pixels."""
    rows = {"row": (("sample",), np.arange(num_samples), {})}
    store = root / store_path("train")
    for path, data in encode_group([spec], samples_per_shard, rows, {}).items():
        (store / path).parent.mkdir(parents=True, exist_ok=True)
        (store / path).write_bytes(data)
    return store


def zarr_python_shard(
    root: Path, spec: ArraySpec, stack: np.ndarray, samples_per_shard: int
) -> bytes:
    """The oracle: what zarr-python writes into a declared store."""
    store = declare(root, spec, len(stack), samples_per_shard)
    zarr.open_array(store, path=spec.name, mode="r+")[:] = stack
    return (root / zarr_shard_path("train", spec, 0)).read_bytes()


@pytest.mark.parametrize(
    ("num_samples", "samples_per_shard"),
    [
        (64, 64),  # full
        (48, 64),  # the last chunk absent
        (21, 64),  # a chunk filled up with zeros, two absent
        (1, 64),
        (10, 10),  # chunks of 2: 16 does not divide the shard
        (7, 7),
    ],
)
def test_shards_equal_those_of_zarr_python_to_the_byte(tmp_path, num_samples, samples_per_shard):
    for spec in (S1, S2_60M):
        stack = pixels(spec, num_samples)
        expected = zarr_python_shard(tmp_path, spec, stack, samples_per_shard)
        assert encode_shard(spec, stack, samples_per_shard) == expected


def test_noise_that_does_not_compress_equals_zarr_pythons(tmp_path):
    noise = np.random.default_rng(0).integers(0, 1 << 16, (32, *S2_20M.shape), np.uint16)
    expected = zarr_python_shard(tmp_path, S2_20M, noise, 32)
    assert encode_shard(S2_20M, noise, 32) == expected
    assert len(expected) > noise.nbytes


def read_back(root: Path, spec: ArraySpec, stack: np.ndarray) -> np.ndarray:
    """The stack through a shard of 32 places and plain zarr-python."""
    store = declare(root, spec, len(stack), 32)
    path = root / zarr_shard_path("train", spec, 0)
    path.parent.mkdir(parents=True)
    path.write_bytes(encode_shard(spec, stack, 32))
    return open_array(store, spec)[:]


def test_bit_patterns_of_floats_come_back_through_plain_zarr(tmp_path):
    stack = pixels(S1, 5)
    odd = np.array([0x80000000, 0x7FC00001, 0xFF800000, 1], "<u4").view("<f4")
    stack[3].reshape(-1)[:4] = odd  # minus zero, a NaN with payload, -inf, a subnormal
    stored = read_back(tmp_path, S1, stack)
    np.testing.assert_array_equal(stored.view("<u4"), stack.view("<u4"))


def test_chunks_of_all_zeros_are_stored_too(tmp_path):
    # zarr-python leaves them out by default, and then a lost chunk looks like zeros.
    zeros = np.zeros((32, *S2_60M.shape), np.uint16)
    np.testing.assert_array_equal(read_back(tmp_path, S2_60M, zeros), zeros)
    index = np.frombuffer(encode_shard(S2_60M, zeros, 32)[-36:-4], "<u8").reshape(2, 2)
    assert index[0, 0] == 0 and index[1, 0] == index[0, 1] > 0


def test_a_view_that_is_not_contiguous_encodes_as_its_copy():
    stack = pixels(S2_60M, 40)
    view = stack[::-1, :, ::-1]
    assert encode_shard(S2_60M, view, 32 * 2) == encode_shard(S2_60M, view.copy(), 32 * 2)


def test_encoding_uses_one_thread_and_its_bytes_do_not_depend_on_that():
    spec = BIGEARTHNET_ARRAYS[1]
    stack = pixels(spec, 16)
    blosc.set_nthreads(4)
    threaded = blosc.compress(stack, b"lz4", 5, blosc.BITSHUFFLE)
    shard = encode_shard(spec, stack, 16)
    assert blosc.get_nthreads() == 1
    assert shard.startswith(threaded)
