"""What a loader's ring reads from: the disk, or shards that are fetched ahead."""

from functools import partial

import numpy as np

from fusmae.data.order import Order
from fusmae.data.prefetch import RemoteSource
from fusmae.data.reader import SplitReader
from fusmae.data.source import Ids, LocalSource, Source
from fusmae.data.stretches import num_own, runs, windows


def training_source(
    reader: SplitReader,
    order: Order,
    start: int,
    cut: tuple[int, int, int],
    skip: bool,
    share: float,
) -> Source:
    """The samples at the positions of an order that a rank reads from `start` on.

    Args:
        reader: of the split.
        order: of the split's samples.
        start: the first position of the first global batch.
        cut: global batch, rank, world size.
        skip: whether bad shards are skipped.
        share: the part of a remote dataset's cache for this loader.

    Raises:
        ValueError: as `RemoteSource`.
    """
    if reader.mirror is None:
        return LocalSource(reader, order.samples)
    own = partial(num_own, start, *cut)
    stretches = windows(order.window_at, own, start)
    return RemoteSource(reader, order.samples, stretches, skip, share)


def check_read_ahead(
    reader: SplitReader, order: Order, window: int, sizes: tuple[int, int, int], ring: int
) -> None:
    """Refuse windows with which ranks that share a cache may wait for each other for ever.

    A rank whose ring has room for all that it reads of a window lets go of that window and holds
    the next one. Where both do not fit, a rank that comes later finds no room for the first.

    Args:
        reader: of the split.
        order: of the split's samples.
        window: shards of a window; 0 for all.
        sizes: global batch, world size, micro-batch.
        ring: batches in memory at once.

    Raises:
        ValueError: the cache does not hold two windows, and one may fill no more than the ring.
    """
    global_batch, world_size, micro_batch = sizes
    if reader.mirror is None or world_size == 1 or not window:
        return
    largest = max(shard.bytes for shard in reader.record.shards)
    counts, room = np.sort(order.shard_counts), reader.mirror.cache.limit_bytes // largest
    if room >= min(2 * window, len(counts)):
        return
    rest = len(counts) % window  # the last window of an epoch
    smallest = rest if rest and rest + window > room else window
    steps, more = divmod(int(counts[:smallest].sum()), global_batch)
    share = global_batch // world_size
    fewest = steps * share + max(0, more - (global_batch - share))
    if fewest <= ring * micro_batch:
        raise ValueError(
            f"a window of {smallest} shards may hold only {fewest} samples of a rank, whose ring "
            f"of {ring} batches of {micro_batch} has room for them all: ranks that share a cache "
            f"without room for two windows, of {2 * window * largest:,} bytes, could wait for each "
            "other for ever; raise data.cache_gb or data.window"
        )


def evaluation_source(reader: SplitReader, ids: Ids, positions: range) -> Source:
    """The samples `ids`, of which the rank reads those at `positions`, each once.

    Nothing is skipped: a score of an unknown part of a split would be none.

    Raises:
        ValueError: as `RemoteSource`.
    """

    def samples(start: int, size: int) -> Ids:
        return ids[start : start + size]

    if reader.mirror is None:
        return LocalSource(reader, samples)
    shards = reader.shards_of(ids[positions.start : positions.stop])
    stretches = runs(shards, positions.start)
    return RemoteSource(reader, samples, stretches, skip=False, share=1.0)
