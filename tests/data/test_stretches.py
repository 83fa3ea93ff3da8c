"""Windows and runs cut the positions of every rank into stretches, each position in one."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusmae.data import Order
from fusmae.data.stretches import num_own, runs, windows

pytestmark = pytest.mark.timeout(90)


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
