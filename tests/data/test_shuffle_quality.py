"""The default window mixes like a uniform draw, by bounds that broken shuffles do not pass."""

import sys
from pathlib import Path

import numpy as np
import pytest

from fusmae.data.order import Order

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SHARDS = (256,) * 31 + (64,)
NUM_SAMPLES = sum(SHARDS)
BATCH = 64


@pytest.fixture(scope="module")
def quality():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import shuffle_quality
    finally:
        sys.path.remove(str(BENCHMARKS))
    return shuffle_quality


def is_well_shuffled(quality, visit):
    """Whether two epochs look independent and batches hold the classes of a uniform draw.

    Classes lie sorted over the shards, so the shuffle has all the mixing to do. Five deviations,
    of 1 / sqrt(samples) and of a batch's mean: a uniform shuffle misses them once in 10^6.
    """
    first, second = visit(0), visit(1)
    correlation = quality.position_correlation(first, second)
    classes = quality.classes_of(NUM_SAMPLES, is_sorted=True)
    away = max(abs(quality.classes_z(visit(epoch), classes, BATCH)) for epoch in (0, 1))
    return abs(correlation) < 5 / NUM_SAMPLES**0.5 and away < 5


@pytest.mark.parametrize("seed", range(5))
def test_the_default_window_is_a_uniform_shuffle(quality, seed):
    order = Order(SHARDS, seed)
    assert is_well_shuffled(quality, lambda epoch: order.samples(epoch * NUM_SAMPLES, NUM_SAMPLES))


def rotated(epoch):
    """One permutation for all epochs, begun elsewhere each time."""
    return np.roll(np.random.default_rng(0).permutation(NUM_SAMPLES), -100 * epoch)


def shards_only(epoch):
    """Shards permuted, samples as they lie."""
    shards = np.split(np.arange(NUM_SAMPLES), np.cumsum(SHARDS)[:-1])
    return np.concatenate(
        [shards[i] for i in np.random.default_rng(epoch).permutation(len(shards))]
    )


def buffered(epoch, size=1000):
    """Shards permuted, then a shuffle buffer."""
    rng = np.random.default_rng(epoch)
    ids, buffer = shards_only(epoch).tolist(), []
    visited = []
    for sample in ids:
        buffer.append(sample)
        if len(buffer) == size:
            visited.append(buffer.pop(rng.integers(size)))
    return np.array([*visited, *rng.permutation(buffer)])


def windowed(epoch):
    return Order(SHARDS, 0, window=8).samples(epoch * NUM_SAMPLES, NUM_SAMPLES)


@pytest.mark.parametrize(
    "broken", [rotated, shards_only, buffered, windowed, lambda epoch: np.arange(NUM_SAMPLES)]
)
def test_a_broken_or_partial_shuffle_does_not_pass(quality, broken):
    assert sorted(broken(0)) == list(range(NUM_SAMPLES))
    assert not is_well_shuffled(quality, broken)


def test_measures_are_those_of_a_plain_count(quality):
    rng = np.random.default_rng(0)
    first, second = rng.permutation(50), rng.permutation(50)
    places = [[int(np.flatnonzero(epoch == i)[0]) for i in range(50)] for epoch in (first, second)]
    expected = np.cov(*places, ddof=0)[0, 1] / (np.std(places[0]) * np.std(places[1]))
    assert quality.position_correlation(first, second) == pytest.approx(expected)
    classes = rng.integers(0, 4, 50)
    counted = [len({int(classes[i]) for i in first[b : b + 8]}) for b in range(0, 48, 8)]
    assert quality.distinct_classes(first, classes, 8).tolist() == counted


def test_the_benchmark_covers_ours_a_peer_and_no_shuffle(quality):
    pytest.importorskip("webdataset")
    results = quality.report(2000, 100, 20)["results"]
    assert {"ours, all shards (default)", "webdataset, buffer of 1000", "no shuffle"} <= set(
        results
    )
    assert results["no shuffle"]["correlation"] == 1.0
