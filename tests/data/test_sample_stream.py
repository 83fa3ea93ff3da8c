"""`ds.stream`: its order, its batches, and where a state of it resumes."""

import itertools
import json
import pickle
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.data import DataLoader

from fusmae.data import Order, Preprocess, open_dataset

from .tiny_dataset import write_tiny_dataset

SEED = 5
NUM_TRAIN = 41
ORDER = Order((12, 12, 12, 5), SEED)
pytestmark = pytest.mark.timeout(120)


def ids_of(batches):
    return [i for batch in batches for i in batch["sample_ids"].tolist()]


@pytest.mark.parametrize("options", [{}, {"batch_size": 8}, {"num_workers": 1}])
def test_a_dataloader_that_would_batch_the_batches_is_refused(view, options):
    with pytest.raises(ValueError, match=r"gives whole batches: DataLoader\(stream, batch_size=N"):
        next(iter(DataLoader(view.stream(4), **options)))


@given(st.integers(1, 50), st.integers(1, 3), st.integers(0, 5), st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_a_stream_is_the_order_and_ends_after_its_epochs(
    tiny_dataset, batch, epochs, window, num_threads
):
    view = open_dataset(tiny_dataset, bands={"s1": ("VV",)})
    stream = view.stream(batch, SEED, epochs, window, num_threads)
    order = Order((12, 12, 12, 5), SEED, window).samples(0, epochs * NUM_TRAIN).tolist()
    batches = list(stream)
    assert ids_of(batches) == order
    positions = [p for b in batches for p in b["positions"].tolist()]
    assert positions == list(range(epochs * NUM_TRAIN))
    assert {len(b["positions"]) for b in batches[:-1]} <= {batch}
    end = stream.state_dict()
    assert end["consumed"] == epochs * NUM_TRAIN
    assert ids_of(stream) == order  # over again
    for more in (0, 2):
        resumed = view.stream(batch, SEED, epochs + more, window)
        resumed.load_state_dict(end)
        rest = Order((12, 12, 12, 5), SEED, window).samples(epochs * NUM_TRAIN, more * NUM_TRAIN)
        assert ids_of(resumed) == rest.tolist()


def test_batches_of_a_stream_are_the_samples_and_stay_the_callers(view):
    batches = list(view.stream(8, SEED, epochs=2))
    for batch in batches:
        for row, sample_id in enumerate(batch["sample_ids"].tolist()):
            sample = view[sample_id]
            for name in (*view.bands, "labels"):
                assert torch.equal(
                    batch[name][row].to(torch.float64), sample[name].to(torch.float64)
                )


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_make_the_same_sequence_each_sample_once(view, num_workers):
    stream = view.stream(4, SEED, epochs=1)
    loader = DataLoader(stream, batch_size=None, num_workers=num_workers)
    batches = list(loader)
    assert ids_of(batches) == ORDER.samples(0, NUM_TRAIN).tolist()
    assert torch.equal(batches[3]["s2_60m"][1], view[int(batches[3]["sample_ids"][1])]["s2_60m"])


@given(st.integers(0, 12), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=20, deadline=None)
def test_a_state_gives_the_tail_also_in_other_batches(tiny_dataset, taken, batch, other):
    view = open_dataset(tiny_dataset, bands={"s1": ("VV",)})
    stream = view.stream(batch, SEED)
    before = ids_of(itertools.islice(DataLoader(stream, batch_size=None), taken))
    state = json.loads(json.dumps(stream.state_dict()))
    resumed = view.stream(other, SEED)
    resumed.load_state_dict(state)
    after = ids_of(itertools.islice(resumed, 5))
    assert before + after == ORDER.samples(0, taken * batch + 5 * other).tolist()


@given(st.integers(0, 42), st.integers(1, 45), st.integers(1, 9), st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_state_from_anywhere_in_a_finite_stream_gives_its_tail(
    tiny_dataset, taken, batch, other, count_outside
):
    view = open_dataset(tiny_dataset, bands={"s1": ("VV",)})
    stream = view.stream(batch, SEED, epochs=1)
    taken = min(taken, -(-NUM_TRAIN // batch))  # up to the last one, which may be smaller
    before = ids_of(itertools.islice(stream, taken))
    state = stream.state_dict()
    if count_outside:
        assert view.stream(batch, SEED, epochs=1).state_dict(num_batches=taken) == state
    for epochs in (1, 2):
        resumed = view.stream(other, SEED, epochs)
        resumed.load_state_dict(state)
        assert before + ids_of(resumed) == ORDER.samples(0, epochs * NUM_TRAIN).tolist()


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("epochs", [None, 1])
def test_workers_start_each_for_where_the_stream_stood(view, num_workers, persistent, epochs):
    stream = view.stream(4, SEED, epochs)
    stream.load_state_dict(view.stream(4, SEED).state_dict(num_batches=2))
    loader = DataLoader(
        stream, batch_size=None, num_workers=num_workers, persistent_workers=persistent
    )
    expected = ORDER.samples(8, 36 if epochs is None else NUM_TRAIN - 8).tolist()
    for taken in (3, 1, 9):  # left early, while the workers read ahead, then to the end
        assert ids_of(itertools.islice(loader, taken)) == expected[: 4 * taken]


def test_batches_counted_outside_resume_a_dataloader_with_workers(view):
    stream = view.stream(4, SEED)
    loader = DataLoader(stream, batch_size=None, num_workers=2)
    before = ids_of(itertools.islice(loader, 3))
    resumed = view.stream(4, SEED)
    resumed.load_state_dict(stream.state_dict(num_batches=3))
    after = ids_of(itertools.islice(DataLoader(resumed, batch_size=None, num_workers=2), 4))
    assert before + after == ORDER.samples(0, 7 * 4).tolist()


@pytest.mark.parametrize("start", [True, False])
def test_persistent_workers_go_on_from_a_state_that_is_loaded_between_iterations(view, start):
    stream = view.stream(4, SEED)
    if start:
        stream.load_state_dict(view.stream(4, SEED).state_dict(num_batches=2))
    loader = DataLoader(stream, batch_size=None, num_workers=2, persistent_workers=True)
    for num_batches in (2 * start, 5, 1):
        if num_batches != 2 * start:
            stream.load_state_dict(view.stream(4, SEED).state_dict(num_batches))
        assert ids_of(itertools.islice(loader, 3)) == ORDER.samples(4 * num_batches, 12).tolist()


def test_a_stream_that_workers_read_says_no_place_until_the_batches_are_told(view):
    stream = view.stream(4, SEED)
    assert stream.state_dict()["consumed"] == 0
    list(itertools.islice(DataLoader(stream, batch_size=None, num_workers=2), 3))
    with pytest.raises(ValueError, match=r"state_dict\(num_batches=N\)"):
        stream.state_dict()
    with pytest.raises(ValueError, match="num_batches = -1 must be a whole number, 0"):
        stream.state_dict(num_batches=-1)
    state = stream.state_dict(num_batches=3)
    assert state["consumed"] == 12
    stream.load_state_dict(state)
    assert stream.state_dict() == state
    assert ids_of(itertools.islice(stream, 1)) == ORDER.samples(12, 4).tolist()
    assert stream.state_dict()["consumed"] == 16


def test_a_finite_stream_has_a_len_and_an_endless_one_says_why_it_has_none(view):
    stream = view.stream(8, SEED, epochs=2)
    assert len(stream) == len(DataLoader(stream, batch_size=None)) == len(list(stream)) == 11
    with pytest.raises(TypeError, match="endless stream has no len: give it epochs=n"):
        len(view.stream(8))


def test_a_worker_resumes_from_its_own_state_and_no_other(view, monkeypatch):
    """What torchdata's StatefulDataLoader does: each worker saves and loads its copy's state."""

    def as_worker(number, count):
        info = SimpleNamespace(id=number, num_workers=count)
        monkeypatch.setattr("fusmae.data.sample_stream.get_worker_info", lambda: info)

    stream = view.stream(4, SEED)
    as_worker(1, 2)
    before = ids_of(itertools.islice(stream, 3))
    state = json.loads(json.dumps(stream.state_dict()))
    resumed = view.stream(4, SEED)
    resumed.load_state_dict(state)
    after = ids_of(itertools.islice(resumed, 2))
    mine = [ORDER.samples(4 * batch, 4).tolist() for batch in range(1, 11, 2)]
    assert before + after == [i for batch in mine for i in batch]

    other = view.stream(4, SEED)
    other.load_state_dict(state)
    as_worker(0, 2)
    with pytest.raises(ValueError, match=r"worker \(1, 2\)'s, and this is worker \(0, 2\)"):
        next(iter(other))
    for options, differs in (
        ((5, SEED), "batch was 4 and is 5"),
        ((4, SEED, 2), "epochs was None and is 2"),
        ((5, SEED, 2), "batch was 4 and is 5; epochs was None and is 2"),
    ):
        with pytest.raises(ValueError, match=rf"a worker of a DataLoader saved .*: {differs}$"):
            view.stream(*options).load_state_dict(state)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("taken", [0, 1, 4])
def test_torchdatas_stateful_loader_resumes_a_stream(view, num_workers, taken):
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    def make():
        stream = view.stream(4, SEED)
        return stateful.StatefulDataLoader(stream, batch_size=None, num_workers=num_workers)

    loader = make()
    before = ids_of(itertools.islice(loader, taken))
    state = json.loads(json.dumps(loader.state_dict()))
    resumed = make()
    resumed.load_state_dict(state)
    after = ids_of(itertools.islice(resumed, 3))
    assert before + after == ORDER.samples(0, 4 * taken + 12).tolist()


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("taken", range(6))
def test_a_worker_resumes_from_each_batch_of_a_finite_stream(view, monkeypatch, number, taken):
    info = SimpleNamespace(id=number, num_workers=2)
    monkeypatch.setattr("fusmae.data.sample_stream.get_worker_info", lambda: info)
    order = ORDER.samples(0, NUM_TRAIN).tolist()
    mine = [i for first in range(4 * number, NUM_TRAIN, 8) for i in order[first : first + 4]]
    stream = view.stream(4, SEED, epochs=1)
    before = ids_of(itertools.islice(stream, taken))
    resumed = view.stream(4, SEED, epochs=1)
    resumed.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    assert before + ids_of(resumed) == mine
    # The next one starts where the worker's copy was made, not where its state was loaded.
    assert ids_of(resumed) == mine


def test_a_worker_for_whom_there_is_no_batch_saves_a_state_of_the_end(view, monkeypatch):
    info = SimpleNamespace(id=2, num_workers=3)
    monkeypatch.setattr("fusmae.data.sample_stream.get_worker_info", lambda: info)
    stream = view.stream(45, SEED, epochs=1)
    assert list(stream) == []
    state = stream.state_dict()
    assert state["consumed"] == NUM_TRAIN
    stream.load_state_dict(state)
    assert list(stream) == []


def test_a_state_of_another_order_is_refused(view):
    state = view.stream(4, SEED).state_dict()
    with pytest.raises(ValueError, match="seed was 5 and is 6"):
        view.stream(4, 6).load_state_dict(state)
    with pytest.raises(ValueError, match="window was 0 and is 2; give the window that was"):
        view.stream(4, SEED, window=2).load_state_dict(state)
    with pytest.raises(ValueError, match="None is no state of a loader or a stream"):
        view.stream(4, SEED).load_state_dict(None)


@pytest.mark.parametrize("epoch", [0, 3])
def test_more_batches_than_an_iteration_has_are_refused(view, epoch):
    stream = view.stream(4, SEED, epochs=1)
    stream.set_epoch(epoch)
    assert stream.state_dict(num_batches=11)["consumed"] == (epoch + 1) * NUM_TRAIN
    with pytest.raises(ValueError, match=r"num_batches = 12 .* has 11 from here to its end"):
        stream.state_dict(num_batches=12)
    list(stream)
    with pytest.raises(ValueError, match=r"num_batches = 1 .* has 0 from here to its end"):
        stream.state_dict(num_batches=1)


def test_a_state_of_after_the_end_is_refused_unless_its_epoch_was_set(view):
    state = view.stream(4, SEED).state_dict(num_batches=35)  # 140, in epoch 3
    stream = view.stream(4, SEED, epochs=3)
    message = r"consumed = 140 is not from 0 to 123, .*: set_epoch\(3\) before it is loaded"
    with pytest.raises(ValueError, match=message):
        stream.load_state_dict(state)
    with pytest.raises(ValueError, match=r"consumed = 140 is not from 164 to 287"):
        stream.load_state_dict(state | {"epoch": 4})
    with pytest.raises(ValueError, match="epoch of the state = 'x' must be a whole number"):
        stream.load_state_dict(state | {"epoch": "x"})
    assert stream.state_dict()["consumed"] == 0  # as it was
    stream.set_epoch(3)
    stream.load_state_dict(state)
    assert ids_of(stream) == ORDER.samples(140, 6 * NUM_TRAIN - 140).tolist()


def test_a_stream_on_several_ranks_warns_once_that_each_gets_the_same(view, monkeypatch):
    for world_size in ("", "1", "two"):
        monkeypatch.setenv("WORLD_SIZE", world_size)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            view.stream(4)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.warns(UserWarning, match="every rank gets the same batches") as told:
        stream = view.stream(4, epochs=1)
        pickle.loads(pickle.dumps(stream))
        list(stream)
    assert [warning.filename for warning in told] == [__file__]


def test_the_ranks_of_torch_distributed_count_before_the_environments(view, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    store = FakeStore()
    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=store)
    try:
        with pytest.warns(UserWarning, match="every rank gets the same batches"):
            view.stream(4)
    finally:
        torch.distributed.destroy_process_group()


def test_numpys_whole_numbers_are_numbers_and_the_state_is_json(view):
    stream = view.stream(np.int64(4), np.int64(SEED), window=np.int64(2))
    assert len(next(iter(stream))["sample_ids"]) == 4
    assert json.loads(json.dumps(stream.state_dict())) == stream.state_dict()


def test_view_and_stream_can_be_sent_to_another_process(view):
    next(iter(view.stream(4, SEED)))
    view.sample("train-0-0")
    copy = pickle.loads(pickle.dumps(view))
    assert torch.equal(copy[7]["s1"], view[7]["s1"])
    stream = view.stream(4, SEED)
    next(iter(stream))
    copied = pickle.loads(pickle.dumps(stream))
    assert ids_of(itertools.islice(copied, 2)) == ORDER.samples(4, 8).tolist()


def test_a_stream_that_is_sent_belongs_to_the_dataset_that_is_opened_there(tmp_path):
    folder = write_tiny_dataset(tmp_path, {"train": (6, 6)})
    stream = open_dataset(folder).stream(4, SEED)
    sent, state = pickle.dumps(stream), stream.state_dict()
    assert pickle.loads(sent).state_dict() == state
    write_tiny_dataset(folder, {"train": (6, 6)}, seed=1)
    with pytest.raises(ValueError, match="the shards have other contents"):
        pickle.loads(sent).load_state_dict(state)


def test_states_after_each_batch_build_no_order_of_their_own(tiny_dataset, monkeypatch):
    built = []

    def counted(*arguments):
        built.append(arguments)
        return Order(*arguments)

    monkeypatch.setattr("fusmae.data.sample_stream.Order", counted)
    stream = open_dataset(tiny_dataset, subset={"fraction": 0.5}).stream(4, SEED, epochs=1)
    sent = len(pickle.dumps(stream))
    states = [stream.state_dict() for _ in stream]
    assert [state["consumed"] for state in states] == [4, 8, 12, 16, 20]
    assert len(built) <= 2  # the stream's, and one to read by
    assert len(pickle.dumps(stream)) <= sent + 100  # no order goes to workers


def test_batches_go_through_the_device_transforms_as_they_are(view):
    bands = {"s2": ("B04", "B11"), "s1": ("VV",)}
    preprocess = Preprocess(view.manifest, bands, 24)
    images = preprocess(next(iter(view.stream(4))))
    assert {name: tuple(image.shape) for name, image in images.items()} == {
        "s2": (4, 2, 24, 24),
        "s1": (4, 1, 24, 24),
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch = 0"),
        ({"batch": 4, "epochs": 0}, "epochs = 0"),
        ({"batch": 4, "num_threads": 0}, "num_threads = 0"),
        ({"batch": 4.0}, r"batch = 4\.0 must be a whole number, 1 or more"),
        ({"batch": True}, "batch = True must be a whole number"),
        ({"batch": 4, "epochs": 1.5}, r"epochs = 1\.5 must be a whole number"),
        ({"batch": 4, "epochs": "1"}, "epochs = '1' must be a whole number"),
        ({"batch": 4, "seed": -1}, "seed = -1"),
        ({"batch": 4, "seed": 0.5}, r"seed = 0\.5 must be a whole number, 0 or more"),
        ({"batch": 4, "seed": 2**64}, r"seed = 18446744073709551616 must be below 2\*\*64"),
        ({"batch": 4, "window": 1.5}, r"window = 1\.5 must be"),
        ({"batch": 4, "window": -1}, "window = -1"),
    ],
)
def test_impossible_streams_are_refused(view, options, message):
    with pytest.raises(ValueError, match=message):
        view.stream(**options)
