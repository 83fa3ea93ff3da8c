"""Streaming from a store is streaming from disk, whatever the store does."""

import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusmae.config import DataConfig
from fusmae.data import EvalLoader, Order, SplitReader, TrainLoader, locate_dataset, open_dataset
from fusmae.data.stretches import num_own, runs, windows
from fusmae.manifest import read_manifest

from .conftest import assert_threads_end
from .object_store import LoopbackStore
from .remote_rank import digest

URL = "s3://datasets/many"
SEED = 5
DATA = DataConfig(window=2)
SHARD_SIZES = (6,) * 10 + (7, 7)
WORKER = Path(__file__).with_name("remote_rank.py")
pytestmark = pytest.mark.timeout(90)


def digests(dataset, steps, world_size=1, data=DATA, **options):
    """By rank: the digest of each of the next batches; ranks take turns, step by step."""
    share = 8 // world_size
    loaders = [
        TrainLoader(dataset, data, SEED, 8, rank, world_size, share, **options)
        for rank in range(world_size)
    ]
    try:
        return [
            list(by_rank)
            for by_rank in zip(
                *([digest(next(loader)) for loader in loaders] for _ in range(steps)), strict=True
            )
        ]
    finally:
        for loader in loaders:
            loader.close()


def shard_gets(store):
    return {path: count for path, count in store.gets.items() if path.endswith(".tar")}


def train_shards(dataset):
    return read_manifest(dataset).split("train").shards


@pytest.mark.parametrize("world_size", [1, 2])
def test_batches_are_those_of_the_local_dataset_from_a_cold_and_a_warm_cache(
    s3_store, big_window_dataset, tmp_path, world_size
):
    expected = digests(big_window_dataset, 20, world_size)  # two epochs and more
    for _ in range(2):
        dataset = locate_dataset(URL, tmp_path)
        assert digests(dataset, 20, world_size) == expected
        # Once each, by whichever rank; the loaders of a warm cache fetch nothing.
        fetched = {f"datasets/many/{shard.path}": 1 for shard in train_shards(dataset)}
        assert shard_gets(s3_store) == fetched


def start_rank(cache, rank, world_size, steps):
    command = [sys.executable, WORKER, URL, cache, rank, world_size, steps]
    return subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_two_processes_of_a_node_fetch_each_shard_once(s3_store, big_window_dataset, tmp_path):
    ranks = [start_rank(tmp_path, rank, 2, 20) for rank in range(2)]
    told = [rank.communicate(timeout=80) for rank in ranks]
    assert [json.loads(out) for out, _ in told] == digests(big_window_dataset, 20, 2)
    assert set(shard_gets(s3_store).values()) == {1} and len(shard_gets(s3_store)) == 12


def test_killed_rank_leaves_nothing_wrong(s3_store, big_window_dataset, tmp_path):
    dataset = locate_dataset(URL, tmp_path)
    s3_store.fault = lambda path, number: "stall" if path.endswith(".tar") else ""
    process = start_rank(tmp_path, 0, 1, 20)
    deadline = time.monotonic() + 60
    while not shard_gets(s3_store):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    assert list(dataset.rglob("*.part")) != []
    process.send_signal(signal.SIGKILL)
    process.communicate()
    s3_store.fault = lambda path, number: ""
    assert digests(dataset, 20) == digests(big_window_dataset, 20)
    assert list(dataset.rglob("*.part")) == []


def test_rank_that_waits_goes_on_when_the_one_that_fetches_is_killed(
    s3_store, big_window_dataset, tmp_path
):
    stalled = []

    def fault(path, number):
        if path.endswith(".tar") and not stalled:
            stalled.append(path)
            return "stall"
        return ""

    s3_store.fault = fault
    fetching = start_rank(tmp_path, 0, 1, 20)
    deadline = time.monotonic() + 60
    while not stalled:
        assert fetching.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    waiting = start_rank(tmp_path, 0, 1, 20)
    time.sleep(4)  # until it has imported torch and waits; too short a time tests less
    fetching.kill()
    fetching.communicate()
    out, _ = waiting.communicate(timeout=60)
    assert [json.loads(out)] == digests(big_window_dataset, 20)


def used_bytes(cache):
    total = 0
    for path in cache.glob("*/shards/**/*"):
        with suppress(FileNotFoundError):  # renamed or evicted meanwhile
            total += path.stat().st_size if path.is_file() else 0
    return total


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
    largest = max(shard.bytes for shard in train_shards(big_window_dataset))
    data = replace(DATA, window=3, cache_gb=4 * largest / 1e9)
    assert digests(locate_dataset(URL, tmp_path), 20, 2, data) == digests(
        big_window_dataset, 20, 2, data
    )


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


@pytest.mark.parametrize("kind", ["500", "cut", "short", "flip", "stall"])
def test_faults_of_the_store_are_survived(s3_store, big_window_dataset, tmp_path, kind):
    # A stall costs its time limit: one shard's first request is enough.
    faulty = "000003.tar" if kind == "stall" else ""
    times = 1 if kind == "stall" else 2
    s3_store.fault = lambda path, number: kind if faulty in path and number < times else ""
    dataset = locate_dataset(URL, tmp_path)
    assert digests(dataset, 20) == digests(big_window_dataset, 20)
    assert SplitReader(dataset, "train").keys() == SplitReader(big_window_dataset, "train").keys()


@pytest.mark.parametrize("kind", ["flip", "short"])
def test_wrong_bodies_are_noticed_where_the_protocol_has_no_checksums(
    big_window_dataset, tmp_path, monkeypatch, kind
):
    monkeypatch.setattr("fusmae.data.origin.DELAYS_S", (0.01, 0.02, 0.04))
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


@pytest.mark.parametrize("first_is_local", [True, False])
def test_resumption_mid_epoch_crosses_between_disk_and_store(
    s3_store, big_window_dataset, tmp_path, first_is_local
):
    expected = digests(big_window_dataset, 20)[0]
    places = [big_window_dataset, locate_dataset(URL, tmp_path)]
    before, after = places if first_is_local else places[::-1]
    with TrainLoader(before, DATA, SEED, 8, 0, 1, 8) as loader:
        for _ in range(7):
            next(loader)
        state = loader.state_dict()
    with TrainLoader(after, DATA, SEED, 8, 0, 1, 8) as loader:
        next(loader)
        loader.load_state_dict(state)
        assert [digest(next(loader)) for _ in range(13)] == expected[7:]


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("scrambled", [False, True])
def test_evaluation_is_that_of_the_local_dataset(
    s3_store, big_window_dataset, tmp_path, world_size, scrambled
):
    ids = np.random.default_rng(0).permutation(74)[:50] if scrambled else None
    largest = max(shard.bytes for shard in train_shards(big_window_dataset))
    data = replace(DATA, cache_gb=3 * largest / 1e9)

    def visit(dataset, rank):
        loader = EvalLoader(dataset, "train", data, 7, rank, world_size, ids)
        return [digest(batch) for batch in loader]

    dataset = locate_dataset(URL, tmp_path)
    for rank in range(world_size):
        assert visit(dataset, rank) == visit(big_window_dataset, rank)
        assert used_bytes(tmp_path) <= 3 * largest


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


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_small_windows_are_fetched_several_at_a_time(s3_store, big_window_dataset, tmp_path):
    s3_store.fault = lambda path, number: "stall" if path.endswith(".tar") else ""
    dataset = locate_dataset(URL, tmp_path)
    with TrainLoader(dataset, replace(DATA, window=1), SEED, 8, 0, 1, 8) as loader:
        reading = Thread(target=partial(next, loader, None), daemon=True)
        reading.start()
        deadline = time.monotonic() + 20
        while len(shard_gets(s3_store)) < 8:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        loader.close()
        reading.join(10)
        assert not reading.is_alive()


def test_cache_full_of_what_others_hold_is_an_error_and_no_hang(s3_store, tmp_path, monkeypatch):
    monkeypatch.setattr("fusmae.data.cache.ROOM_WAIT_S", 0.3)
    dataset = locate_dataset(URL, tmp_path)
    largest = max(shard.bytes for shard in train_shards(dataset))
    data = replace(DATA, window=3, cache_gb=4 * largest / 1e9)
    with TrainLoader(dataset, data, 1, 8, 0, 1, 8) as loader:
        next(loader)
        with pytest.raises(ValueError, match="held the whole cache"):
            digests(dataset, 10, data=data)


def test_single_samples_are_fetched_on_demand(s3_store, big_window_dataset, tmp_path):
    reader = SplitReader(locate_dataset(URL, tmp_path), "train")
    local = SplitReader(big_window_dataset, "train")
    assert reader.info(70) == local.info(70)
    rows = [{s.name: np.zeros((3, *s.shape), s.dtype) for s in reader.arrays} for _ in range(2)]
    ids = np.array([70, 1, 71])
    reader.read_into(ids, rows[0])
    local.read_into(ids, rows[1])
    for name in rows[0]:
        np.testing.assert_array_equal(rows[0][name], rows[1][name])
    assert sum(shard_gets(s3_store).values()) == 2


def test_a_url_is_opened_with_a_cache_and_paths_may_be_text(s3_store, big_window_dataset, tmp_path):
    view = open_dataset(URL, cache=str(tmp_path))
    assert torch.equal(view[70]["s1"], open_dataset(big_window_dataset)[70]["s1"])
    mirror = locate_dataset(URL, str(tmp_path))
    assert view.reader.dataset == mirror
    with TrainLoader(str(mirror), DATA, 1, 8, 0, 1, 8) as loader:
        assert len(next(loader)) == 8
    assert len(next(iter(EvalLoader(str(mirror), "val", DATA, 4)))) == 4
    with pytest.raises(ValueError, match=r"say where .* open_dataset\(URL, cache=FOLDER\)"):
        open_dataset(URL)
    with pytest.raises(ValueError, match=r"is a URL .* give locate_dataset\(URL, CACHE\) instead"):
        TrainLoader(URL, DATA, 1, 8, 0, 1, 8)


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


def test_full_disk_is_named_and_no_shard_is_called_bad(s3_store, tmp_path, monkeypatch):
    def full(self, record, sink, pause):
        raise OSError(28, "No space left on device")

    dataset = locate_dataset(URL, tmp_path)
    monkeypatch.setattr("fusmae.data.origin.Origin.fetch", full)
    with pytest.raises(OSError, match="No space left"):
        digests(dataset, 1)
    assert list(dataset.rglob("*.bad")) == []


def test_changed_dataset_is_mirrored_beside_the_old_one(s3_store, tmp_path):
    old = locate_dataset(URL, tmp_path)
    text = (old / "dataset.json").read_text()
    changed = json.dumps(json.loads(text) | {"seed": 9})
    s3_store.client.put_object(Bucket="datasets", Key="many/dataset.json", Body=changed)
    new = locate_dataset(URL, tmp_path)
    assert new != old and new.parent == old.parent == tmp_path
    assert read_manifest(new).seed == 9 and (old / "dataset.json").read_text() == text


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("s3://datasets/nothing", "there is no s3://datasets/nothing/dataset.json"),
        ("nonsense://x/y", "nonsense://x/y: Protocol not known"),
    ],
)
def test_place_without_a_dataset_is_named(s3_store, tmp_path, url, told):
    with pytest.raises(ValueError, match=told):
        locate_dataset(url, tmp_path)


def served(tmp_path, dataset, **changes):
    """A copy of a dataset's small files, its manifest changed."""
    folder = tmp_path / "served"
    folder.mkdir()
    table = json.loads((dataset / "dataset.json").read_text()) | changes
    (folder / "dataset.json").write_text(json.dumps(table))
    return folder


def test_manifest_of_a_newer_major_version_is_refused_by_its_url(big_window_dataset, tmp_path):
    with LoopbackStore(served(tmp_path, big_window_dataset, format_version="2.0")) as store:
        told = rf"{store.url}/dataset.json has format version 2.0; this fusmae reads 1.x"
        with pytest.raises(ValueError, match=told):
            locate_dataset(store.url, tmp_path / "cache")


def test_manifest_cannot_have_files_written_outside_of_the_mirror(big_window_dataset, tmp_path):
    outside = [{"path": "../../samples.parquet", "bytes": 1, "sha256": "0"}]
    files = json.loads((big_window_dataset / "dataset.json").read_text())["splits"]
    files["val"]["index"] = outside[0]
    folder = served(tmp_path, big_window_dataset, splits=files)
    refused = pytest.raises(ValueError, match="names a file outside of it")
    with LoopbackStore(folder) as store, refused:
        locate_dataset(store.url, tmp_path / "cache")


@pytest.mark.parametrize("ranges", [True, False])
def test_http_server_with_and_without_ranges(big_window_dataset, tmp_path, monkeypatch, ranges):
    monkeypatch.setattr("fusmae.data.origin.PIECE_BYTES", 10_000)
    with LoopbackStore(big_window_dataset, ranges=ranges) as store:
        dataset = locate_dataset(store.url, tmp_path)
        assert digests(dataset, 20) == digests(big_window_dataset, 20)
        pieces = sum(-(-shard.bytes // 10_000) for shard in train_shards(dataset))
        assert sum(shard_gets(store).values()) == (pieces if ranges else 12)


def test_pythons_own_http_server(big_window_dataset, tmp_path):
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    server = subprocess.Popen(
        command,
        cwd=big_window_dataset,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        port = server.stdout.readline().split(" port ")[1].split()[0]
        dataset = locate_dataset(f"http://127.0.0.1:{port}", tmp_path)
        assert digests(dataset, 20) == digests(big_window_dataset, 20)
    finally:
        server.kill()
        server.communicate()


def test_hugging_face_urls_are_understood(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    from fusmae.data.origin import Origin

    monkeypatch.setattr(hub.HfFileSystem, "cat_file", lambda self, path, **_: path.encode())
    text = Origin("hf://datasets/owner/name").read_manifest()
    assert text == b"datasets/owner/name/dataset.json"


def test_rate_limit_of_the_loopback_store_holds(big_window_dataset, tmp_path):
    total = sum(shard.bytes for shard in train_shards(big_window_dataset))
    with LoopbackStore(big_window_dataset, bytes_per_s=total) as store:
        dataset = locate_dataset(store.url, tmp_path)
        started = time.monotonic()
        with TrainLoader(dataset, DataConfig(), SEED, 8, 0, 1, 8) as loader:
            next(loader)
        assert 0.8 < time.monotonic() - started < 20


def test_local_paths_do_not_import_fsspec(tiny_dataset):
    program = (
        "import sys; from pathlib import Path\n"
        "from fusmae.config import DataConfig\n"
        "from fusmae.data import TrainLoader, locate_dataset\n"
        "dataset = locate_dataset(sys.argv[1], Path('none'))\n"
        "loader = TrainLoader(dataset, DataConfig(), 0, 4, 0, 1, 4)\n"
        "next(loader); loader.close()\n"
        "print([m for m in ('fsspec', 'aiohttp') if m in sys.modules], Path('none').exists())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tiny_dataset], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "[] False\n", done.stderr


def test_program_that_ends_while_a_store_is_silent_does_not_wait_for_it(s3_store, tmp_path):
    s3_store.fault = lambda path, number: "stall" if path.endswith(".tar") else ""
    program = (
        "import sys, time; from pathlib import Path\n"
        "from fusmae.config import DataConfig; from fusmae.data import locate_dataset\n"
        "from fusmae.data.loader import TrainLoader; from threading import Thread\n"
        "dataset = locate_dataset(sys.argv[1], Path(sys.argv[2]))\n"
        "loader = TrainLoader(dataset, DataConfig(), 0, 4, 0, 1, 4)\n"
        "Thread(target=lambda: next(loader), daemon=True).start()\n"
        "time.sleep(1); print('end')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, URL, tmp_path], capture_output=True, text=True, timeout=40
    )
    assert (done.returncode, done.stdout) == (0, "end\n"), done.stderr


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=8),
    st.integers(0, 3),
    st.integers(0, 60),
    st.sampled_from([(8, 1), (8, 2), (12, 3), (4, 4)]),
)
def test_windows_cover_every_position_of_every_rank_once(sizes, window, start, cut):
    global_batch, world_size = cut
    order = Order(sizes, 0, window)
    until = start + 100
    for rank in range(world_size):
        share = global_batch // world_size

        def own(first, stop, rank=rank):
            return num_own(start, global_batch, rank, world_size, first, stop)

        counted = 0
        end = start
        for stretch in islice(windows(order.window_at, own, start), 40):
            mine = [
                p
                for p in range(max(stretch.first, start), stretch.stop)
                if (p - start) % global_batch // share == rank
            ]
            assert len(mine) == stretch.num_own > 0
            assert stretch.stop > end - 1
            counted, end = counted + len(mine), stretch.stop
            if end >= until:
                break
        reached = [p for p in range(start, end) if (p - start) % global_batch // share == rank]
        assert counted == len(reached)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(0, 9))
def test_runs_cover_all_positions_with_one_shard_each(shards, first):
    found = list(runs(np.array(shards), first))
    assert [s.first for s in found] == [first, *(s.stop for s in found[:-1])]
    assert found[-1].stop == first + len(shards)
    for stretch in found:
        part = shards[stretch.first - first : stretch.stop - first]
        assert stretch.num_own == len(part) and len(set(part)) == 1


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 4), st.integers(0, 90))
def test_a_window_is_the_positions_whose_shards_stand_together(sizes, window, position):
    order = Order(sizes, 3, window)
    first, stop = order.window_at(position)
    assert first <= position < stop
    epoch_first = position // order.num_samples * order.num_samples
    shards = np.searchsorted(np.cumsum(sizes), np.arange(sum(sizes)), side="right")
    inside = set(shards[order.samples(first, stop - first)])
    outside = set(shards[order.samples(epoch_first, first - epoch_first)])
    outside |= set(shards[order.samples(stop, epoch_first + order.num_samples - stop)])
    assert not inside & outside and len(inside) <= (window or len(sizes))
