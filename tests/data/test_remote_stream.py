"""`ds.stream` and `DataLoader`s over a mirror whose cache is smaller than the dataset."""

import pytest
import torch
from torch.utils.data import DataLoader

from fusmae.data import Order, open_dataset

from .object_store import LoopbackStore
from .remote_batches import limit_of, shard_gets, train_shards

SEED = 5
SHARD_SIZES = (6,) * 10 + (7, 7)
NUM_TRAIN = sum(SHARD_SIZES)
pytestmark = [
    pytest.mark.timeout(90),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
]


@pytest.fixture
def remote(big_window_dataset, tmp_path):
    """Opens a view of the train split over HTTP, with a cache of so many shards."""
    with LoopbackStore(big_window_dataset) as store:

        def view(num_shards, **options):
            cache_gb = limit_of(big_window_dataset, num_shards)
            return open_dataset(store.url, cache=tmp_path, cache_gb=cache_gb, **options)

        view.store = store
        yield view


def ids_of(batches):
    return [i for batch in batches for i in batch["sample_ids"].tolist()]


@pytest.mark.parametrize(
    ("num_shards", "window"), [(1, 1), (3.5, 1), (6.5, 2), (9.5, 3), (13.5, 5), (14.5, 0)]
)
def test_the_window_is_what_the_cache_holds_and_no_shard_is_fetched_twice_an_epoch(
    remote, big_window_dataset, num_shards, window
):
    # One thread: of several, each may ask for the other's shard where two windows meet.
    stream = remote(num_shards).stream(4, SEED, epochs=3, num_threads=1)
    batches = list(stream)
    assert ids_of(batches) == Order(SHARD_SIZES, SEED, window).samples(0, 3 * NUM_TRAIN).tolist()
    gets = shard_gets(remote.store)
    assert len(gets) == len(train_shards(big_window_dataset)) and max(gets.values()) <= 3
    assert stream.state_dict()["window"] == window
    local = open_dataset(big_window_dataset)
    for batch in batches[::7]:
        row = int(batch["sample_ids"][0])
        assert torch.equal(batch["s2_20m"][0], local[row]["s2_20m"])


def test_a_stream_goes_on_from_the_state_of_one_on_disk_with_the_same_window(
    remote, big_window_dataset
):
    on_disk = open_dataset(big_window_dataset).stream(4, SEED, window=2)
    next(iter(on_disk))
    stream = remote(6.5).stream(4, SEED)
    stream.load_state_dict(on_disk.state_dict())
    assert ids_of([next(iter(stream))]) == Order(SHARD_SIZES, SEED, 2).samples(4, 4).tolist()


def test_a_window_that_the_cache_cannot_hold_is_refused_with_what_to_change(remote):
    with pytest.raises(ValueError, match=r"window = 5, .*window of a stream, cache_gb of a view"):
        remote(5.5).stream(4, window=5)


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("labels", [None, "bigearthnet-19"])
def test_workers_with_room_for_a_shard_each_make_the_sequence(remote, num_workers, labels):
    view = remote(num_workers + 1, labels=labels)
    view[0]  # the program itself holds a shard
    stream = view.stream(4, SEED, epochs=1)
    loader = DataLoader(stream, batch_size=None, num_workers=num_workers)
    window = stream.state_dict(num_batches=0)["window"]
    assert ids_of(loader) == Order(SHARD_SIZES, SEED, window).samples(0, NUM_TRAIN).tolist()


@pytest.mark.parametrize("as_stream", [True, False])
def test_more_workers_than_the_cache_has_shards_for_are_refused_at_once(remote, as_stream):
    view = remote(3.5)
    loader = (
        DataLoader(view.stream(4, SEED), batch_size=None, num_workers=3)
        if as_stream
        else DataLoader(view, batch_size=8, shuffle=True, num_workers=3)
    )
    with pytest.raises(ValueError, match=r"num_workers = 3 hold .* lower num_workers or raise"):
        next(iter(loader))


def test_a_cache_that_holds_the_split_serves_any_number_of_workers(remote):
    loader = DataLoader(remote(12), batch_size=8, num_workers=4)
    assert sum(len(batch["key"]) for batch in loader) == NUM_TRAIN


@pytest.mark.parametrize("num_shards", [0.5, 0.9])
def test_a_cache_of_less_than_a_shard_is_refused_when_it_is_opened(remote, num_shards):
    with pytest.raises(ValueError, match=r"cache_gb = .* is less than a shard of http://127"):
        remote(num_shards)
