"""Loaders that end early: no batch is skipped, no thread stays, the message is the right one."""

import signal
import threading
import time

import pytest

from fusmae.config import DataConfig
from fusmae.data import EvalLoader, Order, SplitReader, TrainLoader, locate_dataset

from .conftest import assert_threads_end

SEED = 5
DATA = DataConfig(window=2)
ORDER = Order((12, 12, 12, 5), SEED, DATA.window)
pytestmark = pytest.mark.timeout(60)


def loader_of(dataset, **options):
    return TrainLoader(dataset, DATA, SEED, 8, 0, 1, 4, **options)


def take_ids(loader, num_batches):
    return [i for _ in range(num_batches) for i in next(loader).sample_ids.tolist()]


class _Interrupt(BaseException):
    """As KeyboardInterrupt, which would end the test run."""


@pytest.fixture
def slow_reads(monkeypatch):
    """Reads wait for `released`, and the main thread is interrupted while it waits for them."""
    read_into, released = SplitReader.read_into, threading.Event()

    def read_late(self, ids, out):
        released.wait(30)
        read_into(self, ids, out)

    def interrupt(*_):
        released.set()
        raise _Interrupt

    monkeypatch.setattr(SplitReader, "read_into", read_late)
    before = signal.signal(signal.SIGALRM, interrupt)
    yield released
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_no_batch_is_skipped_when_next_is_interrupted(tiny_dataset, slow_reads):
    with loader_of(tiny_dataset) as loader:
        slow_reads.set()
        first = take_ids(loader, 2)
        loader.load_state_dict(loader.state_dict())
        slow_reads.clear()
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(_Interrupt):
            next(loader)
        assert_threads_end("fusmae-read")
        with pytest.raises(ValueError, match="this loader is closed"):
            next(loader)
        state = loader.state_dict()
        assert state["consumed"] == 8
        loader.load_state_dict(state)
        assert first + take_ids(loader, 4) == ORDER.samples(0, 24).tolist()


def test_loader_goes_on_from_its_state_after_an_error_of_a_thread(tiny_dataset, monkeypatch):
    def broken(self, ids, out):
        raise OSError(5, "Input/output error", "shard")

    with loader_of(tiny_dataset) as loader:
        state = loader.state_dict()
        with monkeypatch.context() as patch:
            patch.setattr(SplitReader, "read_into", broken)
            with pytest.raises(OSError, match="Input/output"):
                next(loader)
        with pytest.raises(ValueError, match="this loader is closed"):
            next(loader)
        loader.load_state_dict(state)
        assert take_ids(loader, 2) == ORDER.samples(0, 8).tolist()


def start_training(dataset):
    next(loader_of(dataset))


def start_evaluation(dataset):
    next(iter(EvalLoader(dataset, "train", DATA, 4)))


@pytest.mark.parametrize("start", [start_training, start_evaluation])
@pytest.mark.parametrize("remote", [True, False])
def test_ring_that_cannot_be_made_leaves_no_thread(
    big_window_dataset, tmp_path, monkeypatch, start, remote
):
    num_made = 0

    def out_of_memory(*_):
        nonlocal num_made
        num_made += 1
        time.sleep(0.1)  # for the threads that fetch
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr("fusmae.data.ring.empty_batch", out_of_memory)
    where = f"file://{big_window_dataset}" if remote else big_window_dataset
    dataset = locate_dataset(where, tmp_path)
    with pytest.raises(RuntimeError, match="out of memory") as kept:
        start(dataset)
    assert num_made == 1
    assert_threads_end("fusmae-", seconds=2)
    del kept


def test_thread_that_cannot_be_started_ends_those_that_were(tiny_dataset, monkeypatch):
    begin = threading.Thread.start

    def start(thread):
        if thread.name == "fusmae-read-2":
            raise RuntimeError("can't start new thread")
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    loader = loader_of(tiny_dataset, num_threads=4)
    with pytest.raises(RuntimeError, match="can't start new thread") as kept:
        next(loader)
    assert_threads_end("fusmae-read", seconds=2)
    del kept
