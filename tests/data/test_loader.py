import gc
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from fusmae.config import DataConfig, SubsetConfig
from fusmae.data import EvalLoader, MixtureLoader, Order, TrainLoader
from fusmae.data.reader import SplitReader
from fusmae.manifest import read_manifest
from fusmae.sample import decode

from .tiny_dataset import write_tiny_dataset

DATA = DataConfig(window=2)
SEED = 5
NUM_TRAIN = 41
ORDER = Order((12, 12, 12, 5), SEED, DATA.window)
# No test here waits for more than milliseconds; a hang ends here and not after minutes.
pytestmark = pytest.mark.timeout(60)


def train_loader(dataset, global_batch=8, rank=0, world_size=1, micro_batch=8, **options):
    return TrainLoader(dataset, DATA, SEED, global_batch, rank, world_size, micro_batch, **options)


def take_ids(loader, num_batches):
    """Sample ids of the next batches; read before the batch's tensors are overwritten."""
    return [int(i) for _ in range(num_batches) for i in next(loader).sample_ids]


def reading_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("fusmae-read")]


def assert_no_thread_is_left(seconds=5.0):
    deadline = time.monotonic() + seconds
    while reading_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert reading_threads() == []


@given(
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([1, 2]),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 5),
    st.integers(0, 100),
)
@settings(max_examples=40, deadline=None)
def test_ranks_micro_batches_threads_and_windows_only_cut_one_sequence_of_every_sample_once(
    tiny_dataset, world_size, micro_batch, num_threads, ring, window, start
):
    data, global_batch = replace(DATA, window=window), 16
    steps = -(-3 * NUM_TRAIN // global_batch)  # two whole epochs, wherever they begin
    per_step = global_batch // (world_size * micro_batch)
    options = {"num_threads": num_threads, "ring": ring, "start": start}
    loaders = [
        TrainLoader(
            tiny_dataset, data, SEED, global_batch, rank, world_size, micro_batch, **options
        )
        for rank in range(world_size)
    ]
    ids = [i for _ in range(steps) for loader in loaders for i in take_ids(loader, per_step)]
    order = Order((12, 12, 12, 5), SEED, window).samples(start, steps * global_batch)
    assert ids == order.tolist()
    to_epoch = -start % NUM_TRAIN
    for first in (to_epoch, to_epoch + NUM_TRAIN):
        assert sorted(ids[first : first + NUM_TRAIN]) == list(range(NUM_TRAIN))
    for loader in loaders:
        loader.close()


@given(st.integers(0, 100), st.integers(1, 6), st.integers(0, 6), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_resumption_gives_the_tail_of_the_sequence_also_with_another_batch(
    tiny_dataset, start, first_batch, num_steps, second_batch
):
    with train_loader(tiny_dataset, first_batch, micro_batch=first_batch, start=start) as loader:
        before = take_ids(loader, num_steps)
        state = json.loads(json.dumps(loader.state_dict()))
    consumed = start + num_steps * first_batch
    assert state["consumed"] == consumed
    assert before == ORDER.samples(start, consumed - start).tolist()
    with train_loader(tiny_dataset, second_batch, micro_batch=second_batch) as loader:
        loader.load_state_dict(state)
        assert take_ids(loader, 5) == ORDER.samples(consumed, 5 * second_batch).tolist()


def test_state_loaded_into_a_running_loader_is_not_ignored(tiny_dataset):
    with train_loader(tiny_dataset) as loader:
        state = loader.state_dict()
        first = take_ids(loader, 3)
        loader.load_state_dict(state)
        assert take_ids(loader, 3) == first


def test_step_cut_short_among_its_micro_batches_is_read_again(tiny_dataset):
    with train_loader(tiny_dataset, global_batch=8, micro_batch=2) as loader:
        take_ids(loader, 7)
        assert loader.state_dict()["consumed"] == 8
        take_ids(loader, 1)
        assert loader.state_dict()["consumed"] == 16


def test_every_rank_has_the_same_state(tiny_dataset):
    states = []
    for rank in range(4):
        with train_loader(tiny_dataset, 16, rank, 4, 2) as loader:
            take_ids(loader, 4)
            states.append(loader.state_dict())
    assert states == states[:1] * 4


@pytest.mark.parametrize(
    ("seed", "data", "message"),
    [
        (6, DATA, "seed was 5 and is 6"),
        (SEED, replace(DATA, window=1), "window was 2 and is 1; give the window that was"),
        (SEED, replace(DATA, split="test"), "split was 'train' and is 'test'"),
    ],
)
def test_state_of_another_order_is_refused_and_what_differs_named(
    tiny_dataset, seed, data, message
):
    state = train_loader(tiny_dataset).state_dict()
    with pytest.raises(ValueError, match=message):
        TrainLoader(tiny_dataset, data, seed, 8, 0, 1, 8).load_state_dict(state)


def test_state_of_other_shards_of_the_same_sizes_is_refused(tiny_dataset, tmp_path):
    other = write_tiny_dataset(tmp_path, {"train": (12, 12, 12, 5)}, seed=1)
    with pytest.raises(ValueError, match="order of samples: the shards have other contents"):
        train_loader(other).load_state_dict(train_loader(tiny_dataset).state_dict())


def test_state_of_other_keys_of_the_same_list_is_refused(tiny_dataset, tmp_path):
    keys = tmp_path / "keys.txt"
    data = replace(DATA, subset=SubsetConfig(keys=str(keys)))
    keys.write_text("train-0-0\ntrain-0-1\n")
    state = TrainLoader(tiny_dataset, data, SEED, 8, 0, 1, 8).state_dict()
    keys.write_text("train-0-0\ntrain-0-2\n")
    with pytest.raises(ValueError, match="order of samples: the subset holds other samples"):
        TrainLoader(tiny_dataset, data, SEED, 8, 0, 1, 8).load_state_dict(state)


def test_loaders_say_what_they_are(tiny_dataset):
    train, val = (f"{str(tiny_dataset)!r}, {split!r}" for split in ("train", "val"))
    loader = train_loader(tiny_dataset, 16, 1, 2, 4)
    told = (
        f"TrainLoader({train}, 41 samples an epoch, "
        "global_batch=16, rank=1, world_size=2, micro_batch=4)"
    )
    assert repr(loader) == told and repr(MixtureLoader([loader])) == f"MixtureLoader([{told}])"
    assert (
        repr(EvalLoader(tiny_dataset, "val", DATA, 4)) == f"EvalLoader({val}, 7 samples, batch=4)"
    )
    assert repr(SplitReader(tiny_dataset, "val")) == f"SplitReader({val})"


def test_a_dataloader_of_an_endless_loader_is_refused_with_what_to_do(tiny_dataset):
    with train_loader(tiny_dataset) as loader:
        for endless in (loader, MixtureLoader([loader])):
            told = f"a {type(endless).__name__} is endless .* iterate it itself, .*stream"
            with pytest.raises(TypeError, match=told):
                next(iter(DataLoader(endless, batch_size=None)))


def test_what_is_no_state_is_refused_as_such(tiny_dataset):
    with pytest.raises(ValueError, match=r"no state of a loader, it has \['sources'\]"):
        train_loader(tiny_dataset).load_state_dict({"sources": []})
    for state in (None, [], "state"):
        with pytest.raises(ValueError, match="is no state of a loader or a stream"):
            train_loader(tiny_dataset).load_state_dict(state)
        with pytest.raises(ValueError, match=r"no state of a mixture, which has {'sources'"):
            MixtureLoader([train_loader(tiny_dataset)]).load_state_dict(state)


def test_a_dict_for_a_config_is_refused_with_the_class(tiny_dataset):
    with pytest.raises(
        ValueError, match=r"data = {'window': 2} must be a fusmae\.config\.DataConf"
    ):
        TrainLoader(tiny_dataset, {"window": 2}, SEED, 8, 0, 1, 8)
    with pytest.raises(ValueError, match=r"must be a fusmae\.config\.DataConfig, such as"):
        EvalLoader(tiny_dataset, "val", {}, 8)


@pytest.mark.parametrize("consumed", [None, -1, 1.5])
def test_state_with_a_broken_count_is_refused(tiny_dataset, consumed):
    loader = train_loader(tiny_dataset)
    with pytest.raises(ValueError, match="consumed ="):
        loader.load_state_dict({**loader.state_dict(), "consumed": consumed})


def test_batches_hold_the_pixels_and_positions_of_their_samples(tiny_dataset):
    shards = read_manifest(tiny_dataset).split("train").shards
    samples = [s for shard in shards for s in decode((tiny_dataset / shard.path).read_bytes())]
    with train_loader(tiny_dataset, start=3, num_threads=3) as loader:
        for step in range(12):
            batch = next(loader)
            assert len(batch) == 8
            assert batch.positions.tolist() == list(range(3 + 8 * step, 11 + 8 * step))
            assert batch.sample_ids.tolist() == ORDER.samples(3 + 8 * step, 8).tolist()
            assert batch.weights.tolist() == [1.0] * 8
            for name, array in batch.arrays.items():
                expected = np.stack([samples[i][name] for i in batch.sample_ids])
                assert array.numpy().dtype == expected.dtype
                np.testing.assert_array_equal(array.numpy(), expected)


def test_pixels_come_straight_from_the_file_into_the_batch_that_is_handed_out(
    tiny_dataset, monkeypatch
):
    into, preadv = [], os.preadv

    def spied(fd, buffers, offset):
        into.extend(
            (buffer.ctypes.data, buffer.nbytes)
            for buffer in buffers
            if isinstance(buffer, np.ndarray)
        )
        return preadv(fd, buffers, offset)

    monkeypatch.setattr("fusmae.data.shard.os.preadv", spied)
    with train_loader(tiny_dataset, ring=1) as loader:
        batch = next(loader)
        rows = {row.data_ptr(): row.nbytes for array in batch.arrays.values() for row in array}
    assert sorted(into) == sorted(rows.items())  # each row by one read, and nothing else


def test_only_arrays_with_wanted_bands_are_read(tiny_dataset):
    data = replace(DATA, bands={"s2": ("B05",), "s1": ("VV",)})
    with TrainLoader(tiny_dataset, data, SEED, 4, 0, 1, 4) as loader:
        arrays = next(loader).arrays
    assert {name: array.dtype for name, array in arrays.items()} == {
        "s1": torch.float32,
        "s2_20m": torch.uint16,
    }


def test_batch_is_untouched_until_the_next_one_is_asked_for(tiny_dataset):
    with train_loader(tiny_dataset, ring=2) as loader:
        for _ in range(4):
            batch = next(loader)
            seen = batch.arrays["s1"].clone()
            time.sleep(0.02)  # for the threads to fill whatever they may fill
            assert torch.equal(batch.arrays["s1"], seen)


def break_a_shard(dataset):
    path = dataset / read_manifest(dataset).split("train").shards[1].path
    data = path.read_bytes()
    path.write_bytes(data[:5000] + bytes(len(data) - 5000))
    return path


@pytest.mark.parametrize("num_threads", [1, 4])
def test_error_in_a_thread_is_raised_by_next_and_closes_the_loader(tmp_path, num_threads):
    dataset = write_tiny_dataset(tmp_path, {"train": (12, 12, 12, 5)})
    path = break_a_shard(dataset)
    loader = train_loader(dataset, num_threads=num_threads)
    with pytest.raises(ValueError, match=rf"{path.name} does not hold array"):
        take_ids(loader, 10)
    assert_no_thread_is_left()
    with pytest.raises(ValueError, match="closed"):
        next(loader)


def test_batches_before_a_broken_sample_are_still_handed_out(tmp_path):
    dataset = write_tiny_dataset(tmp_path, {"train": (12, 12, 12, 5)})
    break_a_shard(dataset)
    ids = ORDER.samples(0, NUM_TRAIN)
    first_broken = int(np.flatnonzero((ids >= 12) & (ids < 24))[0])
    loader = train_loader(dataset, global_batch=1, micro_batch=1)
    assert take_ids(loader, first_broken) == ids[:first_broken].tolist()
    with pytest.raises(ValueError, match="does not hold array"):
        next(loader)


@pytest.mark.parametrize("num_batches", [0, 1, 5])
def test_closed_loader_leaves_no_thread_and_refuses_next(tiny_dataset, num_batches):
    loader = train_loader(tiny_dataset, num_threads=3)
    take_ids(loader, num_batches)
    loader.close()
    loader.close()
    assert reading_threads() == []
    with pytest.raises(ValueError, match="closed"):
        next(loader)


def test_dropped_loader_ends_its_threads(tiny_dataset):
    loader = train_loader(tiny_dataset, num_threads=3)
    next(loader)
    assert len(reading_threads()) == 3
    del loader
    gc.collect()
    assert_no_thread_is_left()


def test_evaluation_left_early_ends_its_threads(tiny_dataset):
    for _ in EvalLoader(tiny_dataset, "train", DATA, batch=2, num_threads=3):
        assert len(reading_threads()) == 3
        break
    gc.collect()
    assert_no_thread_is_left()


def test_close_wakes_a_consumer_that_waits(tiny_dataset, monkeypatch):
    reading, released = threading.Event(), threading.Event()

    def stuck(self, ids, out):
        reading.set()
        released.wait(30)

    monkeypatch.setattr(SplitReader, "read_into", stuck)
    loader = train_loader(tiny_dataset, num_threads=1)
    errors = []

    def consume():
        try:
            next(loader)
        except ValueError as error:
            errors.append(str(error))

    consumer = threading.Thread(target=consume)
    consumer.start()
    assert reading.wait(10)
    closer = threading.Thread(target=loader.close)
    closer.start()
    consumer.join(10)
    assert not consumer.is_alive()
    released.set()
    closer.join(10)
    assert errors == ["this loader is closed"]
    assert not closer.is_alive()


def test_program_that_never_closes_its_loader_ends(tiny_dataset):
    program = (
        "import sys; from pathlib import Path\n"
        "from fusmae.config import DataConfig; from fusmae.data import TrainLoader\n"
        "loader = TrainLoader(Path(sys.argv[1]), DataConfig(), 0, 4, 0, 1, 4, num_threads=4)\n"
        "next(loader); print('read')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tiny_dataset], capture_output=True, text=True, timeout=50
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "read\n", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"global_batch": 9}, "must be a multiple of 8"),
        ({"global_batch": 8, "world_size": 3}, "must be a multiple of 24"),
        ({"micro_batch": 0}, "micro_batch = 0 must be a whole number, 1 or more"),
        ({"global_batch": 0}, "global_batch = 0 must be"),
        ({"global_batch": 8.0}, r"global_batch = 8\.0 must be"),
        ({"rank": 2, "world_size": 2, "micro_batch": 4}, "rank = 2"),
        ({"world_size": 0}, "world_size = 0"),
        ({"start": -1}, "start = -1"),
        ({"num_threads": 0}, "num_threads = 0"),
        ({"ring": 0}, "ring = 0"),
    ],
)
def test_impossible_cuts_are_refused(tiny_dataset, options, message):
    with pytest.raises(ValueError, match=message):
        train_loader(tiny_dataset, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("options", [{"pin": True}, {"device": "cuda"}])
def test_cuda_without_a_device_is_refused(tiny_dataset, options):
    with pytest.raises(ValueError, match="no CUDA device"):
        train_loader(tiny_dataset, **options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("pin", [True, False])
def test_batches_on_a_gpu_are_the_callers_own_and_equal_those_on_a_cpu(tiny_dataset, pin):
    with (
        train_loader(tiny_dataset, ring=2) as on_cpu,
        train_loader(tiny_dataset, ring=2, pin=pin, device="cuda") as on_gpu,
    ):
        kept = [next(on_gpu) for _ in range(20)]
        for batch in kept:
            for ours, theirs in zip(batch.tensors(), next(on_cpu).tensors(), strict=True):
                assert ours.device.type == "cuda"
                assert torch.equal(ours.cpu(), theirs)


def test_streaming_loads_neither_models_nor_what_only_ingest_needs():
    program = (
        "import sys, fusmae.data\n"
        "bad = ['fusmae.model', 'fusmae.training', 'rasterio', 'zarr', 'deepspeed', 'pyarrow']\n"
        "print([name for name in bad if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
