"""The cache stays within its limit and its disk, and what cannot fit is refused."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from fusmae.config import DataConfig
from fusmae.data import EvalLoader, TrainLoader, locate_dataset

from ..training.conftest import fill  # noqa: TID252
from .remote_batches import (
    DATA,
    SEED,
    URL,
    digests,
    limit_of,
    shard_gets,
    train_shards,
    used_bytes,
)
from .remote_rank import digest

pytestmark = pytest.mark.timeout(90)


def test_cache_stays_within_its_limit_and_refetches_what_it_evicted(
    s3_store, big_window_dataset, tmp_path
):
    largest = max(shard.bytes for shard in train_shards(big_window_dataset))
    data = replace(DATA, cache_gb=4.5 * largest / 1e9)
    expected = digests(big_window_dataset, 30, data=data)
    dataset = locate_dataset(URL, tmp_path)
    most = 0
    with TrainLoader(dataset, data, SEED, 8, 0, 1, 8) as loader:
        for step in range(30):
            assert digest(next(loader)) == expected[0][step]
            most = max(most, used_bytes(tmp_path))
    assert 2 * largest < most <= 4.5 * largest
    assert max(shard_gets(s3_store).values()) > 1  # the cache was too small to keep any


def test_window_that_fills_the_cache_works_without_a_second_one_beside_it(
    s3_store, big_window_dataset, tmp_path
):
    data = replace(DATA, window=3, cache_gb=limit_of(big_window_dataset, 4))
    assert digests(locate_dataset(URL, tmp_path), 20, 2, data, ring=1) == digests(
        big_window_dataset, 20, 2, data
    )


# Room for one window, for two and for two with the spare room of the default; windows that are less
# than a ring, and a start that leaves less than one of a window.
@pytest.mark.parametrize(
    ("window", "room", "start"),
    [(3, 4, 0), (3, 6, 0), (3, 8, 0), (2, 4, 0), (0, 8, 0), (0, 10, 0), (4, 8, 16), (4, 10, 16)],
)
def test_a_rank_that_comes_later_finds_room(
    url, big_window_dataset, tmp_path, monkeypatch, window, room, start
):
    data = replace(DATA, window=window, cache_gb=limit_of(big_window_dataset, room))
    dataset = locate_dataset(url, tmp_path)
    monkeypatch.setattr("fusmae.data.cache.ROOM_WAIT_S", 5.0)
    with (
        TrainLoader(dataset, data, SEED, 8, 1, 2, 4, start=start) as early,
        TrainLoader(dataset, data, SEED, 8, 0, 2, 4, start=start) as late,
    ):
        next(early)
        time.sleep(0.5)  # to read ahead as far as it can
        next(late)
        assert [len(next(loader)) for _ in range(20) for loader in (late, early)] == [4] * 40


def test_two_runs_with_other_orders_share_a_cache_that_holds_one_window_of_each(
    s3_store, big_window_dataset, tmp_path
):
    largest = max(shard.bytes for shard in train_shards(big_window_dataset))
    data = replace(DATA, cache_gb=4 * largest / 1e9)
    dataset = locate_dataset(URL, tmp_path)

    def run(place, seed):
        with TrainLoader(place, data, seed, 8, 0, 1, 8) as loader:
            return [digest(next(loader)) for _ in range(20)]

    with ThreadPoolExecutor(2) as pool:
        remote = list(pool.map(run, [dataset] * 2, [1, 2]))
    assert remote == [run(big_window_dataset, seed) for seed in (1, 2)]
    assert used_bytes(tmp_path) <= 4 * largest


def test_loaders_that_are_read_in_turns_go_on_if_each_has_its_share_of_the_cache(
    s3_store, big_window_dataset, tmp_path
):
    largest = max(shard.bytes for shard in train_shards(big_window_dataset))
    data = DataConfig(cache_gb=13 * largest / 1e9)
    dataset = locate_dataset(URL, tmp_path)
    with (
        TrainLoader(dataset, data, 1, 8, 0, 1, 8, cache_share=0.5) as one,
        TrainLoader(dataset, data, 2, 8, 0, 1, 8, cache_share=0.5) as other,
    ):
        assert one.state_dict()["window"] == (6 - 2) // 2
        for _ in range(20):
            next(one), next(other)
    assert used_bytes(tmp_path) <= 13 * largest
    with pytest.raises(ValueError, match="lower data"):
        TrainLoader(dataset, replace(data, window=4), 1, 8, 0, 1, 8, cache_share=0.5)


@pytest.mark.parametrize(
    ("num_held", "window"), [(4, 0), (8, 0), (13, 0), (14, 0), (4, 3), (5, 3), (13, 12)]
)
def test_evaluation_beside_a_training_that_is_not_read_meanwhile(
    s3_store, big_window_dataset, tmp_path, num_held, window
):
    largest = max(shard.bytes for shard in train_shards(big_window_dataset))
    data = DataConfig(window=window, cache_gb=num_held * largest / 1e9)
    dataset = locate_dataset(URL, tmp_path)
    with TrainLoader(dataset, data, SEED, 8, 0, 1, 8) as loader:
        next(loader)
        time.sleep(0.5)  # for the next window to be fetched
        visited = [digest(batch) for batch in EvalLoader(dataset, "val", data, 7)]
    assert visited == [digest(batch) for batch in EvalLoader(big_window_dataset, "val", data, 7)]


def test_cache_full_of_what_others_hold_is_an_error_and_no_hang(s3_store, tmp_path, monkeypatch):
    monkeypatch.setattr("fusmae.data.cache.ROOM_WAIT_S", 0.3)
    dataset = locate_dataset(URL, tmp_path)
    largest = max(shard.bytes for shard in train_shards(dataset))
    data = replace(DATA, window=3, cache_gb=4 * largest / 1e9)
    with TrainLoader(dataset, data, 1, 8, 0, 1, 8, ring=1) as loader:
        next(loader)  # and holds the rest of its window
        with pytest.raises(ValueError, match="held the whole cache"):
            digests(dataset, 10, data=data)


def test_default_window_is_what_half_the_cache_holds(s3_store, big_window_dataset, tmp_path):
    largest = max(shard.bytes for shard in train_shards(big_window_dataset))
    dataset = locate_dataset(URL, tmp_path)

    def window(shards_held):
        data = DataConfig(cache_gb=shards_held * largest / 1e9)
        return TrainLoader(dataset, data, SEED, 8, 0, 1, 8).state_dict()

    # Two shards' room is left to an evaluation: 14 hold all 12, 13 only (13 - 2) // 2 at a time.
    assert window(13.5)["window"] == 5
    assert window(4.5)["window"] == 1
    assert window(14.5)["window"] == 0
    local = TrainLoader(big_window_dataset, DataConfig(), SEED, 8, 0, 1, 8).state_dict()
    assert window(14.5)["digest"] == local["digest"]
    with pytest.raises(ValueError, match=rf"up to {largest:,} bytes .* raise data.cache_gb"):
        window(3.5)


def test_window_larger_than_the_cache_is_refused_with_both_numbers(s3_store, tmp_path):
    dataset = locate_dataset(URL, tmp_path)
    largest = max(shard.bytes for shard in train_shards(dataset))
    data = DataConfig(window=5, cache_gb=5.5 * largest / 1e9)
    told = rf"{6 * largest:,} and the cache may hold {11 * largest // 2:,}"
    with pytest.raises(ValueError, match=told):
        TrainLoader(dataset, data, SEED, 8, 0, 1, 8)


def test_cache_larger_than_its_disk_is_refused_with_both_numbers(s3_store, tmp_path, monkeypatch):
    dataset = locate_dataset(URL, tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    total = sum(shard.bytes for shard in train_shards(dataset))
    with pytest.raises(ValueError, match=rf"grow to {total:,} bytes and its disk has 1,000"):
        digests(dataset, 1)


def test_full_disk_is_named_and_no_shard_is_called_bad(url, big_window_dataset, small_disk):
    dataset = locate_dataset(url, small_disk)
    data = replace(DATA, window=1, cache_gb=limit_of(big_window_dataset, 4))
    with TrainLoader(dataset, data, SEED, 8, 0, 1, 8) as loader:
        next(loader)
        fill(small_disk / "filler")
        told = r"No space left on device: free room there, .*another --cache: '.*\.tar\.part'$"
        with pytest.raises(OSError, match=told):
            for _ in range(20):
                next(loader)
    assert list(dataset.rglob("*.bad")) == []
    (small_disk / "filler").unlink()
    assert digests(dataset, 20, data=data) == digests(big_window_dataset, 20, data=data)
