"""The order in which training visits samples: a pure function of a few numbers.

Training is one endless sequence of positions. Nothing here reads a file, knows about ranks or
keeps a random state, so any position can be looked up at any time, on any machine.
"""

import hashlib
import json
import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fusmae.data.whole import whole

Ids = npt.NDArray[np.int64]

_MASK = (1 << 64) - 1
# Increment and multipliers of SplitMix64: Steele, Lea and Flood 2014, "Fast splittable
# pseudorandom number generators", in the variant of https://prng.di.unimi.it/splitmix64.c.
_GAMMA, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
# Shards and samples draw from separate streams, or shard i and sample i would share a key.
_SHARD_STREAM, _SAMPLE_STREAM = 0, 1
# Threads a little apart work on both sides of an epoch's end.
_CACHED_EPOCHS = 2


def splitmix64(seed: int, indices: Ids) -> npt.NDArray[np.uint64]:
    """Outputs number `indices` (from 0) of the SplitMix64 generator started at `seed`.

    Each output is a bijection of its index, so equal indices alone give equal outputs. It is
    spelled out, because numpy does not promise its generators' streams across versions.
    """
    state = np.uint64(seed & _MASK) + np.uint64(_GAMMA) * (indices.astype(np.uint64) + np.uint64(1))
    state = (state ^ (state >> np.uint64(30))) * np.uint64(_MIX_1)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(_MIX_2)
    return state ^ (state >> np.uint64(31))


def fold_seed(seed: int, *numbers: int) -> int:
    """One 64-bit seed from a seed and further numbers below 2**63, which all matter."""
    for number in numbers:
        seed = int(splitmix64(seed, np.array([number], np.int64))[0])
    return seed


class Order:
    """The endless, shuffled sequence of a split's samples.

    Position p is rank p % N in the order of epoch p // N, N being `num_samples`. In an epoch
    the shards are permuted, taken in windows of `window` shards, and the samples of each
    window are permuted: a reader needs `window` shards at a time, and a window of all shards
    is a uniform shuffle. Safe to use from several threads.
    """

    def __init__(
        self,
        shard_sizes: Sequence[int],
        seed: int,
        window: int = 0,
        subset: Ids | None = None,
    ) -> None:
        """Define the order.

        Args:
            shard_sizes: samples in each shard; the sample ids of a split count through them.
            seed: 0 or more, below 2**64.
            window: shards to shuffle together; 0 for all of them.
            subset: the sample ids to visit, in any order; None for all.

        Raises:
            ValueError: there is no sample, `window` or `seed` is out of range, or `subset`
                is empty, repeats an id or holds one that does not exist.
        """
        sizes = np.asarray(shard_sizes, np.int64)
        total = int(sizes.sum())
        if total == 0 or (sizes < 0).any():
            raise ValueError(f"an order needs at least one sample; shard sizes are {sizes}")
        seed, window = whole("seed", seed, least=0), whole("window", window, least=0)
        if seed > _MASK:
            raise ValueError(f"seed = {seed} must be below 2**64")
        self._ids = np.arange(total) if subset is None else _checked_subset(subset, total)
        self._shard_of_id = np.searchsorted(np.cumsum(sizes), self._ids, side="right")
        self._num_shards = len(sizes)
        self._window = min(window or len(sizes), len(sizes))
        self._seed = seed
        self._epochs: dict[int, Ids] = {}
        self._lock = threading.Lock()
        definition = {
            "algorithm": "splitmix64 windows 1",
            "shard_sizes": sizes.tolist(),
            "seed": seed,
            "window": self._window,
            "subset": None if subset is None else self._ids.tolist(),
        }
        self.digest = hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()

    @property
    def num_samples(self) -> int:
        """Samples of one epoch."""
        return len(self._ids)

    def samples(self, start: int, count: int) -> Ids:
        """The sample ids at positions start ... start + count - 1, shape (count,).

        Raises:
            ValueError: `start` or `count` is negative.
        """
        if start < 0 or count < 0:
            raise ValueError(f"positions from {start}, {count} of them: both must be 0 or more")
        ids = np.empty(count, np.int64)
        filled = 0
        while filled < count:
            epoch, rank = divmod(start + filled, self.num_samples)
            part = self._epoch(epoch)[rank : rank + count - filled]
            ids[filled : filled + len(part)] = part
            filled += len(part)
        return ids

    def window_at(self, position: int) -> tuple[int, int]:
        """First position, and one past the last, of the window that holds a position."""
        epoch, rank = divmod(position, self.num_samples)
        first = epoch * self.num_samples
        if self._window == self._num_shards:
            return first, first + self.num_samples
        ends = np.cumsum(np.bincount(self._window_of_shard(epoch)[self._shard_of_id]))
        window = int(np.searchsorted(ends, rank, side="right"))
        return first + (int(ends[window - 1]) if window else 0), first + int(ends[window])

    def _epoch(self, epoch: int) -> Ids:
        with self._lock:
            if epoch not in self._epochs:
                while len(self._epochs) >= _CACHED_EPOCHS:
                    del self._epochs[max(self._epochs, key=lambda known: abs(known - epoch))]
                self._epochs[epoch] = self._permute(epoch)
            return self._epochs[epoch]

    def _permute(self, epoch: int) -> Ids:
        keys = splitmix64(fold_seed(self._seed, epoch, _SAMPLE_STREAM), self._ids)
        shuffled = np.argsort(keys, kind="stable")
        if self._window < self._num_shards:
            window = self._window_of_shard(epoch)[self._shard_of_id[shuffled]]
            shuffled = shuffled[np.argsort(window, kind="stable")]
        return self._ids[shuffled]

    def _window_of_shard(self, epoch: int) -> Ids:
        keys = splitmix64(fold_seed(self._seed, epoch, _SHARD_STREAM), np.arange(self._num_shards))
        rank_of_shard = np.argsort(np.argsort(keys, kind="stable"), kind="stable")
        return rank_of_shard // self._window


def _checked_subset(subset: Ids, total: int) -> Ids:
    ids = np.sort(np.asarray(subset, np.int64))
    if len(ids) == 0 or ids[0] < 0 or ids[-1] >= total or (np.diff(ids) == 0).any():
        raise ValueError(
            f"a subset must hold at least one sample id, each once and from 0 to {total - 1}"
        )
    return ids
