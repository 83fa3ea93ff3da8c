"""A cache keeps to its limit, and lets all who use it go on."""

import fcntl
import gc
import multiprocessing
import os
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest
import torch

from fusmae.data import SplitReader, locate_dataset, open_dataset
from fusmae.data.cache import Cache
from fusmae.data.cached_file import PART, CachedFile, beside
from fusmae.data.claim import claim
from fusmae.data.locks import close_locks, open_locks, try_lock
from fusmae.data.ring import Ring, RingOptions
from fusmae.data.source import LocalSource
from fusmae.manifest import read_manifest

from .remote_batches import limit_of

pytestmark = pytest.mark.timeout(60)


class GaveUp(Exception):
    """The test waited long enough."""


def patience(seconds):
    """A pause that ends the wait after so long."""
    end = time.monotonic() + seconds

    def pause(step):
        time.sleep(step)
        if time.monotonic() > end:
            raise GaveUp

    return pause


@pytest.fixture
def files(tmp_path):
    """Makes the files of a cache by their names, 100 bytes each."""
    (tmp_path / "many").mkdir()
    claim(tmp_path / "many")
    return lambda names: [CachedFile(tmp_path / "many/shards" / name, 100) for name in names]


@contextmanager
def waiting(cache, files, **options):
    """Somebody waits for these files as long as the context lasts; gives his pins."""
    stop, got = Event(), []

    def pause(step):
        if stop.wait(step):
            raise GaveUp

    def wait():
        with suppress(GaveUp):
            got.append(cache.pin(files, pause, **options))

    thread = Thread(target=wait)
    thread.start()
    time.sleep(0.2)
    try:
        yield got
    finally:
        stop.set()
        thread.join()


def test_who_waits_below_a_small_limit_does_not_keep_back_those_of_a_large_one(tmp_path, files):
    large, small = Cache(tmp_path, 10_000), Cache(tmp_path, 250)
    large.pin(files("abc"), patience(1))
    with waiting(small, files("x")):
        large.pin(files("d"), patience(0.1))


@pytest.mark.parametrize(("urgent", "seconds"), [(False, 0.1), (True, 5)])
def test_room_that_is_enough_is_had_though_somebody_waits_for_more(
    tmp_path, files, urgent, seconds
):
    cache = Cache(tmp_path, 500)
    held = cache.pin(files("abc"), patience(1))
    with waiting(cache, files("vwxyz"), is_urgent=lambda: urgent):
        evaluated = cache.pin(files("d"), patience(seconds))
        evaluated.release()
    held.release()


def test_who_needs_much_has_his_turn_among_those_who_need_little_again_and_again(tmp_path, files):
    cache, more = Cache(tmp_path, 500), iter(range(1000))
    held = deque(cache.pin(files([f"s{next(more)}"]), patience(1)) for _ in range(2))
    with waiting(cache, files("vwxy")) as got:
        for _ in range(30):
            # The first to ask after the release of one is the one who has released it.
            held.popleft().release()
            try:
                held.append(cache.pin(files([f"s{next(more)}"]), patience(0.2)))
            except GaveUp:
                break
        assert got


def test_what_is_being_fetched_stays_though_its_caller_lets_go_of_it(tmp_path, files):
    cache, (wanted, other) = Cache(tmp_path, 100), files("ab")
    pins = cache.pin([wanted], patience(1))

    def fetch(sink):
        pins.release()
        with pytest.raises(GaveUp):
            cache.pin([other], patience(0.1))
        sink.write(b"x" * 100)

    assert cache.settle(wanted, fetch)
    assert wanted.path.read_bytes() == b"x" * 100
    cache.pin([other], patience(1)).release()
    assert not wanted.path.exists()


def test_a_file_that_another_may_evict_just_then_is_not_fetched(tmp_path, files):
    cache, (wanted,) = Cache(tmp_path, 100), files("a")
    cache.pin([wanted], patience(1)).release()
    evicting = open_locks(tmp_path / "locks")
    assert try_lock(evicting, cache._pin_byte(wanted.path), fcntl.F_WRLCK)
    assert not cache.settle(wanted, lambda sink: pytest.fail("it is fetched"))
    close_locks(evicting)
    assert cache.settle(wanted, lambda sink: sink.write(b"x" * 100))


def test_what_came_first_is_evicted_first_and_no_more_than_is_needed(tmp_path, files):
    cache, names = Cache(tmp_path, 300), "cab"  # neither in the order of names nor of hashes
    for age, file in enumerate(files(names)):
        pins = cache.pin([file], patience(1))
        cache.settle(file, lambda sink: sink.write(b"x" * 100))
        os.utime(file.path, ns=(0, age))
        pins.release()
    for num_new in (1, 2):
        new = files(f"{num_new}")
        cache.pin(new, patience(1)).release()
        os.utime(beside(new[0].path, PART), ns=(0, 3 + num_new))
        assert [file.path.exists() for file in files(names)] == [i >= num_new for i in range(3)]


def test_single_samples_wait_for_room_no_longer_than_others_do(url, tmp_path, monkeypatch):
    monkeypatch.setattr("fusmae.data.cache.ROOM_WAIT_S", 0.3)
    dataset = locate_dataset(url, tmp_path)
    reader = SplitReader(dataset, "train", cache_gb=limit_of(dataset, 3))
    held = [reader.mirror.file(shard) for shard in reader.record.shards[:3]]
    pins = reader.mirror.cache.pin(held, patience(1))
    with pytest.raises(ValueError, match="have held the whole cache"):
        reader.info(reader.num_samples - 1)
    pins.release()
    reader.info(reader.num_samples - 1)


def open_shards(cache):
    """The size of each shard in `cache` that this process has open, evicted or not."""
    sizes = {}
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            name = str(fd.readlink())
            if ".tar" in name and name.startswith(f"{cache}/"):
                status = fd.stat()
                sizes[status.st_ino] = status.st_size
    return list(sizes.values())


@pytest.mark.parametrize("view", [False, True])
def test_evicted_shards_are_not_kept_on_the_disk_by_open_files(url, tmp_path, view):
    dataset = locate_dataset(url, tmp_path)
    cache_gb = limit_of(dataset, 3.5)
    if view:
        reader = open_dataset(dataset, cache_gb=cache_gb).reader
    else:
        reader = SplitReader(dataset, "train", cache_gb=cache_gb)
    for number in np.random.default_rng(0).permutation(reader.num_samples):
        reader.info(int(number))
        fetched = [path.stat().st_size for path in dataset.rglob("*.tar")]
        # What is open is still in its folder, and so part of what is counted.
        assert sum(fetched) <= cache_gb * 1e9 and 0 < len(open_shards(tmp_path)) <= 1
        assert set(open_shards(tmp_path)) <= set(fetched)
    reader.close()
    assert open_shards(tmp_path) == []


def test_several_open_shards_are_kept_for_random_access_to_a_large_cache(url, tmp_path):
    dataset = locate_dataset(url, tmp_path)
    reader = SplitReader(dataset, "train", cache_gb=limit_of(dataset, 8 * 5.5))
    for number in range(reader.num_samples):
        reader.info(number)
    assert (
        len(open_shards(tmp_path)) >= 5
        and sum(open_shards(tmp_path)) <= limit_of(dataset, 5.5) * 1e9
    )
    del reader
    gc.collect()
    # Nobody has them pinned any more.
    assert open_shards(tmp_path) == []
    shard = read_manifest(dataset).split("val").shards[0]
    cache = Cache(tmp_path, shard.bytes)
    cache.pin([CachedFile(dataset / shard.path, shard.bytes)], patience(1)).release()


def test_two_that_read_at_random_from_a_cache_of_one_shard_both_end(
    url, big_window_dataset, tmp_path
):
    dataset = locate_dataset(url, tmp_path)
    local = SplitReader(big_window_dataset, "train")

    def visit(seed):
        reader = SplitReader(dataset, "train", cache_gb=limit_of(dataset, 1))
        for number in np.random.default_rng(seed).permutation(reader.num_samples)[:20]:
            assert reader.info(int(number)) == local.info(int(number))
        reader.close()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(visit, [1, 2]))


def test_streams_of_a_view_share_a_cache_of_one_shard(url, big_window_dataset, tmp_path):
    dataset = locate_dataset(url, tmp_path)
    remote = open_dataset(dataset, cache_gb=limit_of(dataset, 1)).stream(8, seed=1, epochs=1)
    local = open_dataset(big_window_dataset).stream(8, 1, 1, window=1)
    for got, expected in zip(remote, local, strict=True):
        assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_views_of_one_process_that_are_open_together_share_a_cache_of_one_shard(
    url, big_window_dataset, tmp_path, monkeypatch
):
    monkeypatch.setattr("fusmae.data.cache.ROOM_WAIT_S", 0.3)
    dataset = locate_dataset(url, tmp_path)
    views = [open_dataset(dataset, s, cache_gb=limit_of(dataset, 1)) for s in ("train", "val")]
    local = [open_dataset(big_window_dataset, split) for split in ("train", "val")]
    for number in range(0, 20, 7):
        for view, expected in zip(views, local, strict=True):
            assert torch.equal(view[number]["s1"], expected[number]["s1"])
    streams = [view.stream(8, seed=1, epochs=1, window=1) for view in (*views, *local)]
    for *got, train, val in zip(*streams, strict=False):
        assert torch.equal(got[0]["s1"], train["s1"]) and torch.equal(got[1]["s1"], val["s1"])


def test_who_waits_for_room_is_told_soon_how_much_there_is_and_is_needed(
    tmp_path, files, monkeypatch
):
    monkeypatch.setattr("fusmae.data.cache.ROOM_WARN_S", 0.05)
    cache = Cache(tmp_path, 250)
    held = cache.pin(files("ab"), patience(1))
    with (
        pytest.warns(UserWarning, match="1 shard of 100 bytes.* of 250 bytes: raise data.cache_gb"),
        pytest.raises(GaveUp),
    ):
        cache.pin(files("c"), patience(0.3))
    held.release()


def test_pins_of_a_reader_are_its_own_after_a_fork(url, tmp_path):
    dataset = locate_dataset(url, tmp_path)
    reader = SplitReader(dataset, "train", cache_gb=limit_of(dataset, 1))
    expected = reader.info(0)

    def child(told):
        told.send(reader.info(0))
        reader.close()

    told, tell = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=child, args=(tell,))
    process.start()
    assert told.recv() == expected
    process.join(20)
    other = reader.mirror.file(reader.record.shards[5])
    with pytest.raises(GaveUp):  # the parent's pin holds the only room
        Cache(tmp_path, reader.mirror.cache.limit_bytes).pin([other], patience(0.2))


def test_stream_over_a_store_that_fails_ends_at_once(url, tmp_path, monkeypatch):
    def fail(self, *_, **__):
        raise OSError("503 slow down")

    view = open_dataset(locate_dataset(url, tmp_path))
    monkeypatch.setattr("fusmae.data.origin.Origin._read", fail)
    ring = Ring(
        LocalSource(view.reader, lambda first, size: np.arange(first, first + size)),
        iter([(0, 4)]),
        4,
        RingOptions(2, 3, False, torch.device("cpu")),
    )
    time.sleep(0.5)
    started = time.monotonic()
    ring.close()
    assert time.monotonic() - started < 2
