"""Faults of the store are survived; a shard that stays bad ends the run or is skipped."""

from dataclasses import replace
from threading import Event

import numpy as np
import pytest

from fusmae.data import Order, SplitReader, TrainLoader, locate_dataset, open_dataset

from .conftest import assert_threads_end, retry_fast
from .object_store import LoopbackStore
from .remote_batches import DATA, SEED, URL, digests, shard_gets

SHARD_SIZES = (6,) * 10 + (7, 7)
pytestmark = pytest.mark.timeout(90)


@pytest.mark.parametrize("kind", ["500", "cut", "short", "flip", "stall"])
def test_faults_of_the_store_are_survived(s3_store, big_window_dataset, tmp_path, kind):
    # A stall costs our time limit, of 2 s here: one shard's first request is enough.
    faulty = "000003.tar" if kind == "stall" else ""
    times = 1 if kind == "stall" else 2
    s3_store.fault = lambda path, number: kind if faulty in path and number < times else ""
    dataset = locate_dataset(URL, tmp_path)
    assert digests(dataset, 20) == digests(big_window_dataset, 20)
    assert SplitReader(dataset, "train").keys() == SplitReader(big_window_dataset, "train").keys()


@pytest.fixture
def silence(monkeypatch):
    """Who asks a `file://` store, which is none of asyncio, for a shard while this is on waits
    for ever; gives how to turn it on, and the shards that were asked for then."""
    from fsspec.implementations.local import LocalFileSystem

    read, over, asked = LocalFileSystem.cat_file, Event(), []
    over.set()

    def cat_file(self, path, start=None, end=None, **options):
        if path.endswith(".tar") and not over.is_set():
            asked.append(path)
            over.wait()
        return read(self, path, start, end, **options)

    monkeypatch.setattr(LocalFileSystem, "cat_file", cat_file)
    monkeypatch.setattr("fusmae.data.origin.TIMEOUT_S", 0.3)
    retry_fast(monkeypatch, 0.01, 0.02)
    yield over.clear, asked
    over.set()
    assert_threads_end("fusmae-")


def test_a_store_without_asyncio_that_stays_silent_is_an_error_in_time(url, tmp_path, silence):
    begin, asked = silence
    view = open_dataset(url, cache=tmp_path)
    begin()
    with pytest.raises(ValueError, match=r"000000\.tar, asked 3 times: no answer in 0\.3 s"):
        view[0]
    assert len(asked) == 3


@pytest.mark.parametrize("kind", ["flip", "short"])
def test_wrong_bodies_are_noticed_where_the_protocol_has_no_checksums(
    big_window_dataset, tmp_path, monkeypatch, kind
):
    retry_fast(monkeypatch, 0.01, 0.02, 0.04)
    with LoopbackStore(big_window_dataset) as store:
        store.fault = lambda path, number: kind if "json" not in path and number < 2 else ""
        dataset = locate_dataset(store.url, tmp_path)
        assert digests(dataset, 20) == digests(big_window_dataset, 20)
        assert set(shard_gets(store).values()) == {3}


def spoil(store, path, change):
    """Put another content, made by `change`, in the place of an object."""
    key = {"Bucket": "datasets", "Key": f"many/{path}"}
    body = change(bytearray(store.client.get_object(**key)["Body"].read()))
    store.client.put_object(**key, Body=bytes(body))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (None, "asked 4 times"),
        (lambda body: body[:5000], "5000 of .* bytes came from byte 0 on"),
        (lambda body: body[:600] + b"?" + body[601:], "has sha256"),
    ],
)
def test_shard_that_stays_bad_ends_the_run_with_its_name_after_the_batches_before(
    s3_store, big_window_dataset, tmp_path, change, reason
):
    order = Order(SHARD_SIZES, SEED, 2)
    first_bad = next(
        first
        for first, stop in all_windows(order)
        if 11 in shards_of(order.samples(first, stop - first))
    )
    if change:
        spoil(s3_store, "shards/train/tiny-train-000011.tar", change)
    else:
        s3_store.fault = lambda path, number: "500" if path.endswith("000011.tar") else ""
    dataset = locate_dataset(URL, tmp_path)
    with TrainLoader(dataset, DATA, SEED, 1, 0, 1, 1) as loader:
        ids = [int(next(loader).sample_ids) for _ in range(first_bad)]
        assert ids == order.samples(0, first_bad).tolist()
        name = rf"s3://datasets/many/shards/train/tiny-train-000011\.tar.*{reason}"
        with pytest.raises(ValueError, match=name):
            next(loader)


def all_windows(order):
    position = 0
    while position < order.num_samples:
        first, stop = order.window_at(position)
        yield first, stop
        position = stop


def shards_of(ids):
    return np.searchsorted(np.cumsum(SHARD_SIZES), ids, side="right")


def test_missing_shard_ends_the_run_at_once(s3_store, tmp_path):
    s3_store.client.delete_object(Bucket="datasets", Key="many/shards/train/tiny-train-000002.tar")
    dataset = locate_dataset(URL, tmp_path)
    with pytest.raises(ValueError, match=r"cannot read s3://.*tiny-train-000002\.tar"):
        digests(dataset, 20)
    assert s3_store.gets["datasets/many/shards/train/tiny-train-000002.tar"] == 1


def replaced_ids(order, bad, positions):
    """By hand: the id at each position, or that of the next good one around its window."""
    chosen = []
    for position in positions:
        first, stop = order.window_at(position)
        ring = [*range(position, stop), *range(first, position)]
        ids = order.samples(first, stop - first)
        chosen.append(
            next(int(ids[q - first]) for q in ring if shards_of(ids[q - first]) not in bad)
        )
    return chosen


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.filterwarnings("ignore:skipped")
def test_bad_shards_are_skipped_and_counted_if_the_recipe_says_so(s3_store, tmp_path, world_size):
    bad = {3, 11}
    s3_store.fault = lambda path, n: "500" if path.endswith(("train-000003.tar", "11.tar")) else ""
    order = Order(SHARD_SIZES, SEED, 3)
    data = replace(DATA, window=3, on_bad_shard="skip")
    dataset = locate_dataset(URL, tmp_path)
    share, steps = 8 // world_size, 20
    loaders = [TrainLoader(dataset, data, SEED, 8, r, world_size, share) for r in range(world_size)]
    for step in range(steps):
        for rank, loader in enumerate(loaders):
            batch = next(loader)
            positions = range(8 * step + rank * share, 8 * step + (rank + 1) * share)
            assert batch.positions.tolist() == list(positions)
            assert batch.weights.tolist() == [1.0] * share
            assert batch.sample_ids.tolist() == replaced_ids(order, bad, positions)
    wanted = shards_of(order.samples(0, 8 * steps))
    assert sum(loader.num_replaced for loader in loaders) == np.isin(wanted, list(bad)).sum() > 0
    for loader in loaders:
        loader.close()


@pytest.mark.filterwarnings("ignore:skipped")
def test_pixels_of_a_replaced_sample_are_those_of_its_id(s3_store, big_window_dataset, tmp_path):
    s3_store.fault = lambda path, n: "500" if path.endswith("train-000000.tar") else ""
    data = replace(DATA, on_bad_shard="skip")
    reader = SplitReader(big_window_dataset, "train")
    with TrainLoader(locate_dataset(URL, tmp_path), data, SEED, 8, 0, 1, 8) as loader:
        for _ in range(10):
            batch = next(loader)
            names = list(batch.arrays)
            rows = {s.name: np.empty((8, *s.shape), s.dtype) for s in reader.arrays}
            reader.read_into(batch.sample_ids.numpy(), rows)
            for name in names:
                np.testing.assert_array_equal(batch.arrays[name].numpy(), rows[name])
        assert loader.num_replaced > 0


@pytest.mark.filterwarnings("ignore:skipped")
def test_window_without_a_good_shard_ends_the_run_also_when_skipping(s3_store, tmp_path):
    s3_store.fault = lambda path, n: "500" if path.endswith("train-000000.tar") else ""
    data = replace(DATA, window=1, on_bad_shard="skip")
    with pytest.raises(ValueError, match=r"no shard of a window is readable.*000000\.tar"):
        digests(locate_dataset(URL, tmp_path), 20, data=data)


def test_bad_shard_is_asked_for_again_by_the_next_run(s3_store, big_window_dataset, tmp_path):
    dataset = locate_dataset(URL, tmp_path)
    s3_store.fault = lambda path, n: "500" if path.endswith(".tar") else ""
    with pytest.raises(ValueError, match="asked 4 times"):
        digests(dataset, 20)
    assert_threads_end("fusmae-")
    s3_store.fault = lambda path, n: ""
    assert digests(dataset, 20) == digests(big_window_dataset, 20)
    assert list(dataset.rglob("*.bad")) == []
