"""`stream.set_epoch`: the loop over epochs, with workers, and from a state of anywhere in it."""

import itertools
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from fusmae.data import Order, open_dataset

SEED = 5
NUM_TRAIN = 41
NUM_EPOCHS = 3
ORDER = Order((12, 12, 12, 5), SEED)
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def make(tiny_dataset):
    """Gives a stream of the view of one array."""
    view = open_dataset(tiny_dataset, bands={"s1": ("VV",)})
    return lambda batch, epochs=1: view.stream(batch, SEED, epochs)


def seen_in(batches):
    """The positions and sample ids of batches."""
    return [
        pair
        for batch in batches
        for pair in zip(batch["positions"].tolist(), batch["sample_ids"].tolist(), strict=True)
    ]


def epoch(number, count=1):
    first, num = number * NUM_TRAIN, count * NUM_TRAIN
    return list(zip(range(first, first + num), ORDER.samples(first, num).tolist(), strict=True))


@given(st.integers(1, 50), st.integers(1, 2), st.lists(st.integers(0, 5), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_an_iteration_has_the_epochs_that_were_set(tiny_dataset, batch, epochs, numbers):
    stream = open_dataset(tiny_dataset, bands={"s1": ("VV",)}).stream(batch, SEED, epochs)
    for number in numbers:
        stream.set_epoch(number)
        assert seen_in(stream) == epoch(number, epochs)
        assert stream.state_dict()["consumed"] == (number + epochs) * NUM_TRAIN
    assert seen_in(stream) == epoch(numbers[-1], epochs)  # over again


@pytest.mark.parametrize(
    ("num_workers", "persistent"), [(0, False), (1, False), (1, True), (2, False), (2, True)]
)
def test_a_loop_over_epochs_is_the_endless_order_cut_at_epochs(make, num_workers, persistent):
    stream = make(4)
    loader = DataLoader(
        stream, batch_size=None, num_workers=num_workers, persistent_workers=persistent
    )
    for number in range(NUM_EPOCHS):
        stream.set_epoch(number)
        assert len(loader) == 11
        assert seen_in(loader) == epoch(number)
    stream.set_epoch(1)
    list(itertools.islice(loader, 2))  # left early, while workers read ahead
    stream.set_epoch(0)
    assert seen_in(loader) == epoch(0)


@given(st.integers(0, NUM_EPOCHS - 1), st.integers(0, 41), st.integers(1, 45), st.integers(1, 9))
@example(1, 41, 1, 4)
@example(1, 0, 8, 4)
@settings(max_examples=30, deadline=None)
def test_a_loop_goes_on_from_a_state_of_anywhere_in_it(tiny_dataset, at, taken, batch, other):
    view = open_dataset(tiny_dataset, bands={"s1": ("VV",)})
    stream = view.stream(batch, SEED, epochs=1)
    seen = []
    for number in range(at):
        stream.set_epoch(number)
        seen += seen_in(stream)
    stream.set_epoch(at)
    seen += seen_in(itertools.islice(stream, taken))
    state = json.loads(json.dumps(stream.state_dict()))

    resumed = view.stream(other, SEED, epochs=1)
    resumed.load_state_dict(state)
    assert seen + seen_in(resumed) == epoch(0, at + 1)  # of itself, to the end of its epoch

    resumed = view.stream(other, SEED, epochs=1)
    resumed.load_state_dict(state)
    for number in range(at, NUM_EPOCHS):
        resumed.set_epoch(number)
        seen += seen_in(resumed)
    assert seen == epoch(0, NUM_EPOCHS)


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("taken", [0, 3, 11])
def test_a_loop_with_workers_goes_on_from_the_batches_that_were_counted(
    make, num_workers, persistent, taken
):
    stream = make(4)
    options = {"batch_size": None, "num_workers": num_workers, "persistent_workers": persistent}
    stream.set_epoch(1)
    seen = seen_in(itertools.islice(DataLoader(stream, **options), taken))
    state = stream.state_dict(num_batches=taken)
    resumed = make(4)
    loader = DataLoader(resumed, **options)
    resumed.load_state_dict(state)
    for number in (1, 2):
        resumed.set_epoch(number)
        seen += seen_in(loader)
    assert seen == epoch(1, 2)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("taken", [0, 3, 10, 11, 12])
def test_torchdatas_stateful_loader_goes_on_in_a_loop(make, num_workers, every, taken):
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    def loader_of(stream):
        return stateful.StatefulDataLoader(
            stream, batch_size=None, num_workers=num_workers, snapshot_every_n_steps=every
        )

    stream = make(4)
    loader = loader_of(stream)
    stream.set_epoch(0)
    list(loader)
    stream.set_epoch(1)
    seen = seen_in(itertools.islice(loader, taken))
    state = json.loads(json.dumps(loader.state_dict()))
    is_over = taken > 11  # it saw the end, so the next one is of the next epoch
    resumed = make(4)
    loader = loader_of(resumed)
    loader.load_state_dict(state)
    for number in range(1 + is_over, NUM_EPOCHS):
        resumed.set_epoch(number)
        seen += seen_in(loader)
    assert seen == epoch(1, 2)


def test_the_stateful_loaders_state_of_the_end_goes_on_with_more_epochs_without_workers(make):
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    for num_workers in (0, 2):
        options = {"batch_size": None, "num_workers": num_workers}
        loader = stateful.StatefulDataLoader(make(4), **options)
        list(loader)
        resumed = stateful.StatefulDataLoader(make(4, 3), **options)
        resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
        if num_workers:
            with pytest.raises(ValueError, match=r"a worker .*: epochs was 1 and is 3"):
                next(iter(resumed))
        else:
            assert seen_in(resumed) == epoch(1, 2)


def test_an_endless_stream_begins_with_the_epoch_or_goes_on_in_it(make):
    stream = make(8, None)
    stream.set_epoch(2)
    seen = seen_in(itertools.islice(stream, 6))  # seven samples into the next epoch
    stream.set_epoch(3)
    assert seen + seen_in(itertools.islice(stream, 2)) == epoch(2, 2)[:64]
    for number, first in ((3, 146), (0, 0), (3, 123), (2, 82)):
        stream.set_epoch(number)
        assert stream.state_dict()["consumed"] == first
    list(itertools.islice(stream, 6))
    stream.set_epoch(2)
    assert stream.state_dict()["consumed"] == 82


def test_a_loop_over_several_epochs_at_a_time_goes_on_in_the_second_of_them(make):
    stream = make(4, 2)
    stream.set_epoch(1)
    seen = seen_in(itertools.islice(stream, 15))
    resumed = make(5, 2)
    resumed.load_state_dict(stream.state_dict())
    resumed.set_epoch(1)
    assert seen + seen_in(resumed) == epoch(1, 2)


@pytest.mark.parametrize("persistent", [False, True])
def test_a_stream_that_stands_at_its_end_starts_over_with_workers(make, persistent):
    stream = make(4)
    stream.set_epoch(1)
    list(stream)
    loader = DataLoader(stream, batch_size=None, num_workers=1, persistent_workers=persistent)
    for _ in range(2):
        assert seen_in(loader) == epoch(1)
        assert stream.state_dict(num_batches=2)["consumed"] == NUM_TRAIN + 8
        with pytest.raises(ValueError, match=r"state_dict\(num_batches=N\)"):
            stream.state_dict()


def test_an_epoch_that_is_set_within_an_iteration_holds_for_the_next(make):
    stream = make(4)
    batches = iter(stream)
    next(batches)
    stream.set_epoch(2)
    assert seen_in(batches) == epoch(0)[4:]
    assert seen_in(stream) == epoch(2)


@pytest.mark.parametrize("number", [-1, 1.0, True, "1", None])
def test_what_is_no_epoch_is_refused(make, number):
    with pytest.raises(ValueError, match=r"epoch = .* must be a whole number, 0 or more"):
        make(4).set_epoch(number)
