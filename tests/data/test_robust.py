"""Broken files, forks and early ends: a clear error or correct data, never a hang or noise."""

import gc
import multiprocessing
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from fusmae.config import DataConfig
from fusmae.data import EvalLoader, SplitReader, TrainLoader, open_dataset
from fusmae.data.cache import Cache
from fusmae.data.cached_file import CachedFile
from fusmae.data.claim import claim
from fusmae.data.shard import OpenShard
from fusmae.manifest import read_manifest

from ..manifests import edit_manifest  # noqa: TID252
from .conftest import assert_threads_end
from .remote_rank import digest
from .tiny_dataset import write_tiny_dataset

DATA = DataConfig(window=2)
SPLITS = {"train": (12, 12, 12, 5), "val": (7,)}
# Well above what any of these needs, and a hang ends here.
pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def copied(tiny_dataset, tmp_path):
    return shutil.copytree(tiny_dataset, tmp_path / "copied")


@pytest.fixture
def other(tmp_path):
    """A dataset of the same splits and sizes with other samples in it."""
    return write_tiny_dataset(tmp_path / "other", SPLITS, seed=1)


def loader_of(dataset, **options):
    return TrainLoader(dataset, DATA, 5, 8, 0, 1, 8, **options)


def shard(dataset, index=0):
    return dataset / read_manifest(dataset).split("train").shards[index].path


def test_index_of_another_dataset_is_refused_though_its_shape_fits(copied):
    index = copied / "index" / "train.npy"
    offsets = np.load(index)
    # Of a dataset with the same counts: every offset is a sample's start, but another sample's.
    np.save(index, np.roll(offsets, 1))
    with pytest.raises(ValueError, match=r"train\.npy is not the one that its manifest"):
        loader_of(copied)


def test_manifest_of_a_newer_major_version_is_refused_by_name(copied):
    edit_manifest(copied, lambda manifest: manifest.update(format_version="2.0"))
    for open_loader in (loader_of, lambda dataset: EvalLoader(dataset, "val", DATA, 4)):
        with pytest.raises(ValueError, match=r"dataset\.json has format version 2\.0"):
            open_loader(copied)


def test_manifest_of_a_newer_minor_version_is_read(copied, tiny_dataset):
    edit_manifest(copied, lambda manifest: manifest.update(format_version="1.99", more=[1]))
    with loader_of(copied) as loader, loader_of(tiny_dataset) as expected:
        assert digest(next(loader)) == digest(next(expected))


@pytest.mark.parametrize("damage", [os.unlink, lambda path: os.truncate(path, 1024)])
def test_a_shard_that_is_missing_or_cut_short_is_told_before_anything_is_read(copied, damage):
    damage(shard(copied, 3))
    for open_loader in (
        loader_of,
        lambda dataset: EvalLoader(dataset, "train", DATA, 4),
        lambda dataset: open_dataset(dataset).stream(4),
    ):
        with pytest.raises(ValueError, match=r"000003\.tar.*[:;] copy it again, or remove"):
            open_loader(copied)


def test_shard_truncated_during_training_ends_it_by_name(copied):
    with loader_of(copied) as loader:
        next(loader)
        for index in range(4):
            os.truncate(shard(copied, index), 1024)
        with pytest.raises(
            ValueError, match=r"tiny-train-00000\d\.tar (ends early|has 1024 byt|was replaced or w)"
        ):
            for _ in range(20):
                next(loader)
    assert_threads_end("fusmae-read")


def test_shard_swapped_while_it_is_open_is_still_read_as_it_was(copied, other, tiny_dataset):
    with loader_of(copied) as loader, loader_of(tiny_dataset) as expected:
        for _ in range(6):  # an epoch and more: every shard is open
            assert digest(next(loader)) == digest(next(expected))
        for index in range(4):
            shutil.copy(shard(other, index), copied / "new")
            (copied / "new").replace(shard(copied, index))
        for _ in range(12):
            assert digest(next(loader)) == digest(next(expected))


def swap_for_another(copied, other):
    """Another shard of the same size and layout in the place of one, by rename."""
    target = shard(copied)
    source = bytearray(shard(other).read_bytes())
    assert len(source) == target.stat().st_size
    (copied / "new").write_bytes(source)
    (copied / "new").replace(target)


def test_shard_swapped_between_two_openings_is_refused(copied, other):
    reader = SplitReader(copied, "train")
    rows = {s.name: np.zeros((1, *s.shape), s.dtype) for s in reader.arrays}
    reader.read_into(np.array([0]), rows)
    reader.close()  # as when more shards are in use than may be open
    swap_for_another(copied, other)
    with pytest.raises(ValueError, match=r"tiny-train-000000\.tar was replaced"):
        reader.read_into(np.array([0]), rows)


def test_shard_swapped_after_the_loader_was_opened_and_before_its_first_use_is_refused(
    copied, other, tiny_dataset
):
    data = replace(DATA, window=1)
    with (
        TrainLoader(copied, data, 5, 5, 0, 1, 5, num_threads=1, ring=1) as loader,
        TrainLoader(tiny_dataset, data, 5, 5, 0, 1, 5) as expected,
    ):
        next(expected), next(loader)
        for index in range(4):  # the dataset is made anew; one shard is open
            shutil.copy(shard(other, index), copied / "new")
            (copied / "new").replace(shard(copied, index))
        with pytest.raises(ValueError, match=r"tiny-train-00000\d\.tar was replaced"):
            for _ in range(20):
                assert digest(next(loader)) == digest(next(expected))


def overwrite(copied, other):
    """Another shard's bytes in the file of one, which stays the same file."""
    with shard(copied).open("r+b") as file:
        file.write(shard(other).read_bytes())


def test_shard_overwritten_in_place_is_noticed_by_the_next_read(copied, other):
    reader = SplitReader(copied, "train")
    rows = {s.name: np.zeros((1, *s.shape), s.dtype) for s in reader.arrays}
    reader.read_into(np.array([0]), rows)
    overwrite(copied, other)
    refused = r"tiny-train-000000\.tar was replaced or written to"
    with pytest.raises(ValueError, match=refused):
        reader.read_into(np.array([0]), rows)
    with pytest.raises(ValueError, match=refused):
        reader.info(0)


def test_shard_overwritten_during_a_read_gives_no_sample(copied, other, monkeypatch):
    reader = SplitReader(copied, "train")
    rows = {s.name: np.zeros((1, *s.shape), s.dtype) for s in reader.arrays}
    reader.read_into(np.array([0]), rows)
    read = OpenShard.read

    def overwritten_first(self, buffers, num_bytes, offset):
        overwrite(copied, other)
        read(self, buffers, num_bytes, offset)

    monkeypatch.setattr(OpenShard, "read", overwritten_first)
    with pytest.raises(ValueError, match=r"tiny-train-000000\.tar was replaced or written to"):
        reader.read_into(np.array([0]), rows)


def test_a_file_system_that_gives_less_than_it_is_asked_for_is_asked_again(
    tiny_dataset, monkeypatch
):
    reader, ids = SplitReader(tiny_dataset, "train"), np.array([3, 0, 40])
    whole, parts = (
        {spec.name: np.zeros((3, *spec.shape), spec.dtype) for spec in reader.arrays}
        for _ in range(2)
    )
    reader.read_into(ids, whole)
    lengths = []

    def short(fd, buffers, offset):
        wanted = sum(memoryview(buffer).nbytes for buffer in buffers)
        data = os.pread(fd, max(1, wanted // 3), offset)
        left = data
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            size = min(len(view), len(left))
            view[:size], left = left[:size], left[size:]
        lengths.append(len(data))
        return len(data)

    monkeypatch.setattr("fusmae.data.shard.os.preadv", short)
    reader.read_into(ids, parts)
    assert min(lengths) == 1
    for name, array in whole.items():
        np.testing.assert_array_equal(parts[name], array)


@pytest.mark.parametrize("error", [MemoryError("none left"), KeyboardInterrupt(), SystemExit(3)])
def test_whatever_a_thread_raises_reaches_the_consumer(tiny_dataset, monkeypatch, error):
    read_into, calls = SplitReader.read_into, []

    def failing(self, ids, out):
        calls.append(1)
        if len(calls) == 5:
            raise error
        read_into(self, ids, out)

    monkeypatch.setattr(SplitReader, "read_into", failing)
    loader = loader_of(tiny_dataset)
    with pytest.raises(type(error)) as raised:
        for _ in range(10):
            next(loader)
    assert raised.value is error
    assert_threads_end("fusmae-read")
    with pytest.raises(ValueError, match="this loader is closed"):
        next(loader)


def test_loader_closed_while_batches_are_read_ahead_refuses_the_next(tiny_dataset):
    loader = loader_of(tiny_dataset, ring=6, num_threads=4)
    next(loader)
    loader.close()
    assert_threads_end("fusmae-read")
    with pytest.raises(ValueError, match="this loader is closed"):
        next(loader)
    with pytest.raises(ValueError, match="this loader is closed"):
        next(iter(loader))


def test_evaluation_broken_off_can_be_started_again(tiny_dataset):
    loader = EvalLoader(tiny_dataset, "train", DATA, 4)
    expected = [digest(batch) for batch in loader]
    for batch in loader:
        assert digest(batch) == expected[0]
        break
    gc.collect()
    assert_threads_end("fusmae-read")
    assert [digest(batch) for batch in loader] == expected


def run_program(program, *arguments, timeout=50):
    """Run lines of Python that may use `TrainLoader`, `EvalLoader`, `DATA` and `dataset`."""
    head = (
        "import os, sys, multiprocessing; from pathlib import Path\n"
        "from fusmae.config import DataConfig; from fusmae.data import EvalLoader, TrainLoader\n"
        "DATA = DataConfig(window=2); dataset = Path(sys.argv[1])\n"
        "def train(): return TrainLoader(dataset, DATA, 5, 8, 0, 1, 8)\n"
        "def ids(loader): return next(loader).sample_ids.tolist()\n"
    )
    return subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", head + program, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def test_program_that_leaves_an_evaluation_in_its_middle_ends(tiny_dataset):
    done = run_program(
        "batches = iter(EvalLoader(dataset, 'train', DATA, 2, num_threads=4, ring=4))\n"
        "next(batches); print('read')\n",
        tiny_dataset,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "read\n", "")


FORK = """
def forked(function):
    child = os.fork()
    if child == 0:
        try:
            function()
        except ValueError as error:
            print(str(error)[:50], flush=True)
        {end}
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)"])
def test_loader_that_was_started_before_a_fork_is_an_error_in_the_child(tiny_dataset, end):
    done = run_program(
        FORK.format(end=end) + "loader = train(); ids(loader)\n"
        "state = loader.state_dict()\n"
        "forked(lambda: ids(loader))\n"
        "forked(lambda: loader.load_state_dict(state))\n"
        "forked(lambda: loader.close())\n"
        "print(ids(loader) == [ids(l) for l in [train()] for _ in range(2)][1])\n",
        tiny_dataset,
    )
    refused = "this loader was started before a fork and cannot b"
    assert done.stdout.split("\n") == [refused, "0", refused, "0", "0", "True", ""], done.stderr
    assert done.stderr == ""


def test_loaders_opened_but_not_started_before_a_fork_work_in_the_child(tiny_dataset):
    done = run_program(
        FORK.format(end="os._exit(0)") + "loader = train()\n"
        "evaluation = EvalLoader(dataset, 'val', DATA, 4)\n"
        "forked(lambda: print(ids(loader), [b.sample_ids.tolist() for b in evaluation]))\n"
        "print(ids(loader), [b.sample_ids.tolist() for b in evaluation])\n",
        tiny_dataset,
    )
    told = done.stdout.splitlines()
    assert done.returncode == 0 and told[1] == "0", done.stderr
    assert told[0] == told[2] and told[0].endswith("[[0, 1, 2, 3], [4, 5, 6]]")


def test_child_of_multiprocessing_with_fork_opens_its_own_loader(tiny_dataset):
    done = run_program(
        "loader = train(); first = ids(loader)\n"
        "def child(queue): queue.put(ids(train()))\n"
        "context = multiprocessing.get_context('fork'); queue = context.Queue()\n"
        "process = context.Process(target=child, args=(queue,)); process.start()\n"
        "print(queue.get(timeout=30) == first); process.join(30); print(process.exitcode)\n"
        "print(len(ids(loader)))\n",
        tiny_dataset,
    )
    assert done.stdout == "True\n0\n8\n", done.stderr


def test_fork_of_a_process_that_streams_from_a_store(s3_store, big_window_dataset, tmp_path):
    done = run_program(
        FORK.format(end="os._exit(0)") + "from fusmae.data import locate_dataset\n"
        "dataset = locate_dataset('s3://datasets/many', Path(sys.argv[2]))\n"
        "loader = train(); first = ids(loader)\n"
        "forked(lambda: ids(loader))\n"
        "forked(lambda: print(ids(train()) == first))\n"
        "print(len(ids(loader)))\n",
        big_window_dataset,
        tmp_path,
    )
    refused = "this loader was started before a fork and cannot b"
    assert done.stdout.split("\n") == [refused, "0", "True", "0", "8", ""], done.stderr


def test_locks_of_a_cache_do_not_outlive_their_holder_in_a_fork(tmp_path):
    (tmp_path / "many").mkdir()
    claim(tmp_path / "many")
    files = [CachedFile(tmp_path / "many/shards" / name, 6) for name in ("a.tar", "b.tar")]
    cache = Cache(tmp_path, limit_bytes=6)
    pins = cache.pin(files[:1], pause=never)
    assert cache.settle(files[0], lambda sink: None)
    release, wait = multiprocessing.Pipe()
    with cache._changing():
        child = multiprocessing.get_context("fork").Process(target=wait.recv)
        child.start()
    try:
        pins.release()
        # The child has copies of both descriptors: the one that held the pin, the one that changed.
        cache.pin(files[1:], pause=never).release()
        assert child.is_alive()
    finally:
        release.send(None)
        child.join(20)


def never(seconds):
    raise AssertionError("somebody still holds a lock")


def test_remote_loader_left_early_lets_go_of_its_shards(s3_store, tmp_path):
    from fusmae.data import locate_dataset

    dataset = locate_dataset("s3://datasets/many", tmp_path)
    largest = max(s.bytes for s in read_manifest(dataset).split("train").shards)
    data = replace(DATA, cache_gb=4 * largest / 1e9)
    for seed in range(4):  # were one still held, the next would find no room
        loader = TrainLoader(dataset, data, seed, 8, 0, 1, 8)
        next(loader)
        del loader
        gc.collect()
        for _ in EvalLoader(dataset, "val", data, 4):
            break
        gc.collect()
    assert_threads_end("fusmae-")
