import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusmae.data.order import Order, splitmix64

shard_sizes = st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any)
seeds = st.integers(0, 2**64 - 1)


def test_splitmix64_is_the_published_generator():
    # First outputs for seed 1234567, as in many ports of splitmix64.c (Rosetta Code,
    # "Pseudo-random numbers/Splitmix64").
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert splitmix64(1234567, np.arange(5)).tolist() == expected


def plain_splitmix64(seed, index):
    mask = 2**64 - 1
    state = (seed + 0x9E3779B97F4A7C15 * (index + 1)) & mask
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & mask
    state = (state ^ state >> 27) * 0x94D049BB133111EB & mask
    return state ^ state >> 31


def plain_epoch(sizes, seed, window, epoch):
    """The same order in Python integers and lists."""

    def shuffled(items, stream):
        start = plain_splitmix64(plain_splitmix64(seed, epoch), stream)
        return sorted(items, key=lambda item: plain_splitmix64(start, item))

    ends = np.cumsum(sizes).tolist()
    shards = shuffled(range(len(sizes)), 0)
    order = []
    for first in range(0, len(sizes), window or len(sizes)):
        chosen = shards[first : first + (window or len(sizes))]
        ids = [i for shard in chosen for i in range(ends[shard] - sizes[shard], ends[shard])]
        order += shuffled(ids, 1)
    return order


@given(shard_sizes, seeds, st.integers(0, 9), st.integers(0, 2**40))
def test_order_is_what_its_definition_in_plain_integers_says(sizes, seed, window, epoch):
    total = sum(sizes)
    ids = Order(sizes, seed, window).samples(epoch * total, total)
    assert ids.tolist() == plain_epoch(sizes, seed, window, epoch)


def test_order_never_changes_between_releases():
    # Golden, from `plain_epoch((4, 3, 4), 7, 2, 0)` and `(..., 1)`: runs resume in this order.
    order = Order((4, 3, 4), seed=7, window=2)
    assert order.samples(0, 22).tolist() == [
        *(1, 0, 5, 2, 3, 4, 6, 9, 10, 7, 8),
        *(8, 9, 5, 7, 10, 6, 4, 2, 1, 3, 0),
    ]
    assert order.digest == "cf5e74c1dabdf87ea2d2237ca03aa2ce64db7516a788a907e1bdd28f37aa16d6"


@given(shard_sizes, seeds, st.integers(0, 9), st.integers(0, 5))
def test_every_epoch_visits_every_sample_once(sizes, seed, window, epoch):
    order = Order(sizes, seed, window)
    total = sum(sizes)
    assert order.num_samples == total
    assert sorted(order.samples(epoch * total, total)) == list(range(total))


@given(shard_sizes, seeds, st.integers(1, 9))
def test_a_window_holds_whole_shards_and_nothing_else(sizes, seed, window):
    ids = Order(sizes, seed, window).samples(0, sum(sizes))
    shard_of_id = np.repeat(np.arange(len(sizes)), sizes)
    visited = shard_of_id[ids].tolist()
    # Walk through the epoch: a shard that has been begun and not finished is open.
    left = list(sizes)
    most_open = 0
    for shard in visited:
        left[shard] -= 1
        most_open = max(most_open, sum(0 < n < size for n, size in zip(left, sizes, strict=True)))
    assert most_open <= window


@given(shard_sizes, seeds, st.integers(0, 9), st.integers(0, 60), st.integers(0, 60))
def test_any_stretch_of_positions_is_the_same_as_one_by_one(sizes, seed, window, start, count):
    order = Order(sizes, seed, window)
    single = [int(Order(sizes, seed, window).samples(p, 1)[0]) for p in range(start, start + count)]
    assert order.samples(start, count).tolist() == single


@given(st.data(), shard_sizes, seeds, st.integers(0, 9))
def test_subset_is_visited_whole_whatever_order_it_is_given_in(data, sizes, seed, window):
    ids = data.draw(st.sets(st.integers(0, sum(sizes) - 1), min_size=1))
    given_ids = np.array(data.draw(st.permutations(sorted(ids))))
    order = Order(sizes, seed, window, given_ids)
    assert sorted(order.samples(0, len(ids))) == sorted(ids)
    assert order.digest == Order(sizes, seed, window, np.sort(given_ids)).digest


def test_digest_changes_with_everything_that_changes_the_order():
    digests = [
        Order((4, 3, 4), 7).digest,
        Order((4, 4, 3), 7).digest,
        Order((4, 3, 4), 8).digest,
        Order((4, 3, 4), 7, window=1).digest,
        Order((4, 3, 4), 7, window=2).digest,
        Order((4, 3, 4), 7, subset=np.arange(5)).digest,
    ]
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize("window", [0, 3, 99])
def test_digest_is_the_same_for_all_spellings_of_a_window_of_all_shards(window):
    order = Order((4, 3, 4), 7, window)
    assert order.digest == Order((4, 3, 4), 7).digest
    assert (order.samples(0, 22) == Order((4, 3, 4), 7).samples(0, 22)).all()


@settings(max_examples=20)
@given(seeds)
def test_shuffle_is_uniform(seed):
    # Each of 20 samples stands at each of 20 ranks in 1/20 of 400 epochs. The sum over the
    # table of (seen - expected)^2 / expected follows chi-square with 19 * 19 degrees of
    # freedom: mean 361, deviation 26.9. Six deviations are passed once in 10^9 tries.
    order = Order((5, 5, 5, 5), seed)
    epochs = np.stack([order.samples(20 * epoch, 20) for epoch in range(400)])
    seen = np.stack([(epochs == i).sum(axis=0) for i in range(20)])
    chi_square = ((seen - 20.0) ** 2 / 20.0).sum()
    assert chi_square < 361 + 6 * 26.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((), 0), "at least one sample"),
        (((0, 0), 0), "at least one sample"),
        (((3,), -1), "seed = -1"),
        (((3,), 2**64), "seed ="),
        (((3,), 0, -1), "window = -1"),
        (((3,), 0, 0, np.array([], int)), "subset"),
        (((3,), 0, 0, np.array([0, 3])), "from 0 to 2"),
        (((3,), 0, 0, np.array([1, 1])), "each once"),
    ],
)
def test_impossible_orders_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Order(*arguments)


def test_negative_positions_are_refused():
    with pytest.raises(ValueError, match="0 or more"):
        Order((3,), 0).samples(-1, 2)
