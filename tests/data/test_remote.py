"""Streaming from a store is streaming from disk, whatever the store does."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from fusmae.data import EvalLoader, SplitReader, TrainLoader, locate_dataset

from .remote_batches import DATA, SEED, URL, digests, shard_gets, train_shards, used_bytes
from .remote_rank import digest

WORKER = Path(__file__).with_name("remote_rank.py")
pytestmark = pytest.mark.timeout(90)


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


@pytest.mark.parametrize("is_asynchronous", [True, False])
def test_program_that_ends_while_a_store_is_silent_does_not_wait_for_it(
    s3_store, url, tmp_path, is_asynchronous
):
    s3_store.fault = lambda path, number: "stall" if path.endswith(".tar") else ""
    program = (
        "import sys, time; from pathlib import Path\n"
        "from fusmae.config import DataConfig; from fusmae.data import locate_dataset\n"
        "from fusmae.data.loader import TrainLoader; from threading import Event, Thread\n"
        "from fsspec.implementations.local import LocalFileSystem\n"
        "dataset = locate_dataset(sys.argv[1], Path(sys.argv[2]))\n"
        "LocalFileSystem.cat_file = lambda *_, **__: Event().wait()\n"
        "loader = TrainLoader(dataset, DataConfig(), 0, 4, 0, 1, 4)\n"
        "Thread(target=lambda: next(loader), daemon=True).start()\n"
        "time.sleep(1); print('end')\n"
    )
    place = URL if is_asynchronous else url
    done = subprocess.run(
        [sys.executable, "-c", program, place, tmp_path], capture_output=True, text=True, timeout=40
    )
    assert (done.returncode, done.stdout) == (0, "end\n"), done.stderr
