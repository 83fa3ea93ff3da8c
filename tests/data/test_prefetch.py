"""Shards are fetched ahead, in the order of their use, and no longer than they are wanted."""

import threading
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from threading import Event, Thread

import pytest

from fusmae.data import Order, SplitReader, TrainLoader, locate_dataset

from .conftest import assert_threads_end
from .object_store import LoopbackStore
from .remote_batches import DATA, SEED, limit_of, shard_gets

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def store(big_window_dataset):
    with LoopbackStore(big_window_dataset) as store:
        yield store


def until(is_so):
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def windows_of(dataset, window, num_windows):
    """The names of the shards of the first windows, each in the order of their first use."""
    reader = SplitReader(dataset, "train")
    order = Order(reader.shard_sizes, SEED, window)
    windows, position = [], 0
    for _ in range(num_windows):
        first, stop = order.window_at(position)
        shards = reader.shards_of(order.samples(first, stop - first))
        windows.append([reader.record.shards[shard].path for shard in dict.fromkeys(shards)])
        position = stop
    return windows


def test_shards_are_fetched_in_the_order_of_use_while_the_window_before_is_read(
    store, big_window_dataset, tmp_path, monkeypatch
):
    monkeypatch.setattr("fusmae.data.prefetch.NUM_FETCHERS", 1)
    # Room for two windows, where half of it, which small windows may fill ahead, is too little.
    data = replace(DATA, window=3, cache_gb=limit_of(big_window_dataset, 7))
    asked = []
    store.fault = lambda path, number: asked.append(path) or ""
    dataset = locate_dataset(store.url, tmp_path)
    asked.clear()
    one, two, _ = windows_of(big_window_dataset, 3, 3)
    with TrainLoader(dataset, data, SEED, 2, 0, 1, 2, ring=1) as loader:
        next(loader)
        until(lambda: len(asked) == 6)
        assert asked == one + two
        time.sleep(0.3)  # in which it would go on
        assert len(asked) == 6


def test_ranks_in_step_fetch_the_shards_of_a_window_once_though_others_are_evicted(
    store, big_window_dataset, tmp_path
):
    data = replace(DATA, window=3, cache_gb=limit_of(big_window_dataset, 7))
    dataset = locate_dataset(store.url, tmp_path)
    ranks = [TrainLoader(dataset, data, SEED, 8, rank, 2, 4, ring=1) for rank in range(2)]
    for _ in range(30):  # three epochs and more
        for rank in ranks:
            next(rank)
    for rank in ranks:
        rank.close()
    # Those that were read, and two more that may have been held ahead.
    windows = windows_of(big_window_dataset, 3, -(-8 * 30 // 18) + 2)
    needed = Counter(shard for window in windows for shard in window)
    gets = shard_gets(store)
    assert sum(gets.values()) > 24  # of 12: they were evicted
    assert all(count <= needed[shard] for shard, count in gets.items())


@pytest.mark.parametrize("name", ["fusmae-plan", "fusmae-fetch-3"])
def test_a_thread_that_cannot_be_started_ends_those_that_were_and_lets_go_of_shards(
    store, big_window_dataset, tmp_path, monkeypatch, name
):
    begin = threading.Thread.start

    def start(thread):
        if thread.name == name:
            if name != "fusmae-plan":
                until(lambda: shard_gets(store))  # the first window is pinned
            raise RuntimeError("can't start new thread")
        begin(thread)

    # Room for the shards of one window and one more.
    data = replace(DATA, window=3, cache_gb=limit_of(big_window_dataset, 4))
    dataset = locate_dataset(store.url, tmp_path)
    first, second = windows_of(big_window_dataset, 3, 2)
    assert not set(first) & set(second)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        loader = TrainLoader(dataset, data, SEED, 2, 0, 1, 2)
        with pytest.raises(RuntimeError, match="can't start new thread") as kept:
            next(loader)
    assert_threads_end("fusmae-")
    position = len(first) * 6 + 3  # in the second window
    with TrainLoader(dataset, data, SEED, 2, 0, 1, 2, start=position) as loader:
        next(loader)
    del kept  # nothing of it was needed to let go


def test_a_closed_loader_finishes_the_pieces_under_way_and_no_shard(store, tmp_path, monkeypatch):
    monkeypatch.setattr("fusmae.data.origin.PIECE_BYTES", 2000)
    gate = Event()
    store.fault = lambda path, number: gate.wait() and ""
    gate.set()
    dataset = locate_dataset(store.url, tmp_path)
    gate.clear()
    with TrainLoader(dataset, DATA, SEED, 8, 0, 1, 8) as loader:
        reading = Thread(target=partial(pytest.raises, ValueError, next, loader))
        reading.start()
        until(lambda: sum(shard_gets(store).values()) == 8)  # by as many fetchers
    reading.join()
    gate.set()
    assert_threads_end("fusmae-")
    assert set(shard_gets(store).values()) == {1}
