"""A cache owns what it has made, keeps to its limit, and lets all who use it go on."""

import fcntl
import gc
import json
import multiprocessing
import shutil
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest
import torch

from fusmae.config import DataConfig
from fusmae.data import (
    EvalLoader,
    SplitReader,
    TrainLoader,
    locate_dataset,
    location_of,
    open_dataset,
)
from fusmae.data.cache import Cache
from fusmae.data.cached_file import CachedFile
from fusmae.data.claim import claim, claimed_files
from fusmae.data.remote import _locked
from fusmae.data.ring import Ring, RingOptions
from fusmae.data.source import LocalSource
from fusmae.manifest import read_manifest

from .remote_rank import digest
from .tiny_dataset import write_tiny_dataset

SEED = 5
DATA = DataConfig(window=2)
pytestmark = pytest.mark.timeout(60)


def limit_of(dataset, num_shards):
    """`data.cache_gb` with room for so many shards."""
    return num_shards * max(s.bytes for s in read_manifest(dataset).split("train").shards) / 1e9


def train(dataset, steps=20, data=DATA):
    with TrainLoader(dataset, data, SEED, 8, 0, 1, 8) as loader:
        return [digest(next(loader)) for _ in range(steps)]


@pytest.fixture
def url(big_window_dataset):
    return f"file://{big_window_dataset}"


@pytest.fixture
def small(big_window_dataset):
    """A recipe whose cache is too small for an epoch."""
    return replace(DATA, cache_gb=limit_of(big_window_dataset, 4.5))


@pytest.fixture
def precious(tmp_path):
    """The folder of somebody's datasets, one of them in it, and all its files."""
    folder = tmp_path / "data"
    (folder / "precious").mkdir(parents=True)
    write_tiny_dataset(folder / "precious", {"train": (8,) * 5}, seed=9)
    (folder / "precious/shards/train/mine.part").write_text("not a part of anything")
    files = files_below(folder)
    yield folder
    assert files_below(folder).items() >= files.items()


def files_below(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_cache_that_is_a_folder_of_datasets_leaves_them_alone(
    url, big_window_dataset, precious, small
):
    dataset = locate_dataset(url, precious)
    assert train(dataset, data=small) == train(big_window_dataset)
    fetched = sum(path.stat().st_size for path in dataset.rglob("*.tar"))
    assert 0 < fetched <= small.cache_gb * 1e9


def test_mirror_behind_a_link_is_kept_in_its_own_cache(
    url, big_window_dataset, precious, small, tmp_path
):
    mirror = locate_dataset(url, tmp_path / "cache")
    link = precious / "ben"
    link.symlink_to(mirror)
    assert train(link, data=small) == train(big_window_dataset)
    assert not (precious / "locks").exists()
    assert location_of(link) == location_of(mirror) == url


def test_link_to_a_mirror_of_another_cache_is_not_followed(url, precious, small, tmp_path):
    other = locate_dataset(url, tmp_path / "cache")
    train(other)
    before = files_below(other)
    (precious / "ben").symlink_to(other)
    train(locate_dataset(url, precious), data=small)
    assert files_below(other) == before


@pytest.mark.parametrize("move", [shutil.copytree, shutil.move])
def test_finished_mirror_that_was_copied_or_moved_is_a_dataset_on_disk(
    url, big_window_dataset, precious, small, tmp_path, move
):
    mirror = locate_dataset(url, tmp_path / "cache")
    train(mirror, data=DataConfig())
    move(mirror, precious / "ben")
    before = files_below(precious)
    assert train(precious / "ben", data=small) == train(big_window_dataset)
    assert files_below(precious) == before
    assert location_of(precious / "ben") == str(precious / "ben")


def test_unfinished_mirror_that_was_copied_is_refused_with_its_url(url, precious, tmp_path):
    shutil.copytree(locate_dataset(url, tmp_path / "cache"), precious / "ben")
    with pytest.raises(ValueError, match=rf"lacks 12 of 12 shards of split 'train'.*{url}"):
        train(precious / "ben")


def test_cache_that_was_copied_is_not_taken_over(url, precious, tmp_path):
    mirror = locate_dataset(url, tmp_path / "cache")
    shutil.copytree(mirror, precious / mirror.name)
    with pytest.raises(ValueError, match=rf"was copied or moved from {mirror} and is not touched"):
        locate_dataset(url, precious)


def test_folder_that_stands_where_a_mirror_belongs_is_not_touched(url, precious, tmp_path):
    name = locate_dataset(url, tmp_path / "cache").name
    (precious / "precious").rename(precious / name)
    with pytest.raises(ValueError, match="was not made by this cache and is not touched"):
        locate_dataset(url, precious)
    (precious / name).rename(precious / "precious")


@pytest.mark.parametrize("linked", ["shards", "shards/train"])
def test_mirror_whose_shards_were_linked_to_others_is_refused(url, precious, tmp_path, linked):
    mirror = locate_dataset(url, tmp_path / "cache")
    (mirror / linked).parent.mkdir(exist_ok=True)
    (mirror / linked).symlink_to(precious / "precious" / linked)
    with pytest.raises(ValueError, match=r"leads to .*: remove the link"):
        train(mirror)
    # Nor are they counted or deleted for the sake of another mirror of the cache.
    Cache(tmp_path / "cache", 1)
    assert list(claimed_files(tmp_path / "cache")) == []


def test_mirror_whose_making_was_cut_short_is_made_again(url, big_window_dataset, tmp_path):
    mirror = locate_dataset(url, tmp_path / "cache")
    for path in mirror.iterdir():
        if path.name != "lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (mirror / ".tmp-cached-at").write_text("half")
    assert train(locate_dataset(url, tmp_path / "cache")) == train(big_window_dataset)


def test_lock_of_a_mirror_does_not_outlive_its_holder_in_a_fork(tmp_path):
    release, wait = multiprocessing.Pipe()
    with _locked(tmp_path / "lock"):
        child = multiprocessing.get_context("fork").Process(target=wait.recv)
        child.start()
    try:
        with (tmp_path / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert child.is_alive()
    finally:
        release.send(None)
        child.join(20)


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


def test_empty_split_of_a_mirror_is_refused_as_one_on_disk_is(big_window_dataset, tmp_path):
    place = tmp_path / "empty"
    shutil.copytree(big_window_dataset, place)
    np.save(place / "index/val.npy", np.zeros(0, np.int64))
    index = (place / "index/val.npy").read_bytes()
    manifest = json.loads((place / "dataset.json").read_text())
    record = {"path": "index/val.npy", "bytes": len(index), "sha256": sha256(index).hexdigest()}
    manifest["splits"]["val"] |= {"num_samples": 0, "shards": [], "index": record}
    (place / "dataset.json").write_text(json.dumps(manifest))
    for dataset in (place, locate_dataset(f"file://{place}", tmp_path / "cache")):
        with pytest.raises(ValueError, match=r"split 'val' of .* has no samples"):
            train(dataset, data=replace(DATA, split="val"))
        with pytest.raises(ValueError, match=r"has no samples; .*'train': 74, 'val': 0"):
            EvalLoader(dataset, "val", DATA, 8)


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
