"""What a loader's ring reads from: the disk, or shards that are fetched ahead."""

from functools import partial

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
