"""An order cut into stretches, the shards of which are held together: pure functions."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

# Shards of a stretch of an evaluation, which visits one after another.
_EVAL_SHARDS = 4


@dataclass(frozen=True)
class Stretch:
    """Positions `first` ... `stop - 1`, of which this rank reads `num_own`."""

    first: int
    stop: int
    num_own: int


def windows(
    window_at: Callable[[int], tuple[int, int]], own: Callable[[int, int], int], start: int
) -> Iterator[Stretch]:
    """The windows of a training order in which this rank reads anything, without end.

    Args:
        window_at: `Order.window_at`.
        own: how many of the positions from one to before another are this rank's.
        start: the first position that is read.
    """
    position = start
    while True:
        first, stop = window_at(position)
        count = own(position, stop)
        if count:
            yield Stretch(first, stop, count)
        position = stop


def num_own(
    start: int, global_batch: int, rank: int, world_size: int, first: int, stop: int
) -> int:
    """How many of positions first ... stop - 1 a rank reads, of a training from `start` on."""
    share = global_batch // world_size

    def before(position: int) -> int:
        steps, rest = divmod(position - start, global_batch)
        return steps * share + min(max(rest - rank * share, 0), share)

    return before(stop) - before(first)


def runs(shards: npt.NDArray[np.int64], first: int, max_shards: int) -> Iterator[Stretch]:
    """Stretches of at most so many shards, for positions that are all this rank's.

    Args:
        shards: the shard of the sample at each position, (n,).
        first: the first position.
        max_shards: 1 or more.
    """
    changes = np.flatnonzero(np.diff(shards)) + 1
    start, seen = 0, set[int]()
    for begin, _ in pairwise([0, *changes.tolist(), len(shards)]):
        shard = int(shards[begin])
        if shard not in seen and len(seen) == max_shards:
            yield Stretch(first + start, first + begin, begin - start)
            start, seen = begin, set()
        seen.add(shard)
    yield Stretch(first + start, first + len(shards), len(shards) - start)


def eval_shards(limit_bytes: int, largest: int) -> int:
    """Shards of a stretch of an evaluation: the next one must fit beside it, and other ranks."""
    return max(1, min(_EVAL_SHARDS, limit_bytes // largest // 4))
