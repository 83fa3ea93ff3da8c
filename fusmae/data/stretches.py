"""An order cut into stretches, the shards of which are held together: pure functions."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt


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


def runs(shards: npt.NDArray[np.int64], first: int) -> Iterator[Stretch]:
    """Stretches of one shard each, for positions that are all this rank's.

    Args:
        shards: the shard of the sample at each position, (n,); n is 1 or more.
        first: the first position.
    """
    changes = np.flatnonzero(np.diff(shards)) + 1
    for start, stop in pairwise([0, *changes.tolist(), len(shards)]):
        yield Stretch(first + start, first + stop, stop - start)
