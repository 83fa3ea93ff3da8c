"""`TrainLoader`, the endless and exactly resumable stream of training."""

from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from fusmae.config import DataConfig
from fusmae.data.opening import Device, check_rank, no_len, open_split, resolve_device
from fusmae.data.order import Order
from fusmae.data.prefetch import RemoteSource
from fusmae.data.resume import consumed_of, describe_order
from fusmae.data.ring import Batch, Ring, RingOptions
from fusmae.data.source import Source
from fusmae.data.streams import training_source
from fusmae.data.subset import subset_ids
from fusmae.data.whole import whole


def _micro_batches(
    start: int, global_batch: int, rank: int, world_size: int, micro_batch: int
) -> Iterator[tuple[int, int]]:
    """First position and size of each micro-batch of a rank, without end.

    Global batch t owns positions [start + tB, start + (t + 1)B); each rank takes its
    contiguous share, in rank order, and cuts it into micro-batches.
    """
    share = global_batch // world_size
    for first in count(start + rank * share, global_batch):
        for position in range(first, first + share, micro_batch):
            yield position, micro_batch


class TrainLoader:
    """An endless iterator over one rank's micro-batches.

    On a CPU the tensors of a batch are overwritten once the next one has been asked for: clone
    what must live longer. On a GPU they are the caller's own.

    What is read depends on the dataset, `data`, `seed` and the position alone; ranks, batch
    sizes, threads and restarts only cut the same sequence differently. A thread's error is
    raised by `next`. What ends a `next` early, Ctrl-C too, closes the loader, so that no batch is
    skipped; `load_state_dict(state_dict())` opens it again. Use it as a context manager, or drop
    it.
    """

    def __init__(
        self,
        dataset: Path | str,
        data: DataConfig,
        seed: int,
        global_batch: int,
        rank: int,
        world_size: int,
        micro_batch: int,
        start: int = 0,
        num_threads: int = 2,
        ring: int = 3,
        pin: bool = False,
        device: Device = None,
        cache_share: float = 1.0,
    ) -> None:
        """Open the split; threads start with the first `next`.

        Args:
            dataset: the folder that holds `dataset.json`; a URL's comes from `locate_dataset`.
            data: split, subset, bands and shuffle window; only arrays with these bands are read.
            seed: of the order.
            global_batch: samples of one optimiser step, over all ranks and micro-batches.
            rank: this process's number, from 0 to world_size - 1.
            world_size: how many processes share the global batch.
            micro_batch: samples of one batch of this loader.
            start: positions that are already consumed.
            num_threads: threads that read.
            ring: batches in memory at once, with the one that the caller holds.
            pin: whether host memory is page-locked, which fast copies to a GPU need.
            device: where the batches are wanted; None for the CPU.
            cache_share: the part of a remote dataset's cache for this loader, less than 1 where
                several are read in turns.

        Raises:
            ValueError: a number is out of range or does not divide, the dataset is broken or
                lacks the split, a band or the subset, or CUDA is wanted where there is none.
        """
        check_rank(rank, world_size)
        global_batch = whole("global_batch", global_batch)
        micro_batch = whole("micro_batch", micro_batch)
        if global_batch % (world_size * micro_batch):
            raise ValueError(
                f"a global batch of {global_batch} does not divide into micro-batches of "
                f"{micro_batch} on {world_size} ranks; it must be a multiple of "
                f"{world_size * micro_batch}"
            )
        self._options = RingOptions(num_threads, ring, pin, resolve_device(device))
        self._reader = open_split(dataset, None, data)
        subset = subset_ids(self._reader, data.subset)
        mirror, shards = self._reader.mirror, self._reader.record.shards
        self._window = mirror.window(shards, data.window, cache_share) if mirror else data.window
        self._order = Order(self._reader.shard_sizes, seed, self._window, subset)
        self._data, self._seed = data, int(seed)
        self._cache_share = cache_share
        self._source: Source | None = None
        self._num_replaced = 0
        self._cut = (global_batch, rank, world_size, micro_batch)
        self._start = whole("start", start, least=0)
        self._num_batches = 0
        self._ring: Ring | None = None
        self._closed = False

    def __repr__(self) -> str:
        global_batch, rank, world_size, micro_batch = self._cut
        return (
            f"TrainLoader({self._reader.place}, {self.num_samples:,} samples an epoch, "
            f"{global_batch=}, {rank=}, {world_size=}, {micro_batch=})"
        )

    @property
    def num_samples(self) -> int:
        """Samples of one epoch."""
        return self._order.num_samples

    @property
    def global_batch(self) -> int:
        """Samples of one step over all ranks."""
        return self._cut[0]

    @property
    def micro_batches_per_step(self) -> int:
        """Batches of this loader that make its rank's share of one global batch."""
        global_batch, _, world_size, micro_batch = self._cut
        return global_batch // (world_size * micro_batch)

    @property
    def place(self) -> tuple[int, int, int]:
        """Before the next batch: whole steps, positions beyond them, batches beyond those."""
        first, beyond = divmod(self._start, self.global_batch)
        steps, batches = divmod(self._num_batches, self.micro_batches_per_step)
        return first + steps, beyond, batches

    def __len__(self) -> NoReturn:
        raise TypeError(no_len(self))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if self._closed:
            raise ValueError("this loader is closed")
        if self._ring is None:
            skip = self._data.on_bad_shard == "skip"
            self._source = training_source(
                self._reader, self._order, self._start, self._cut[:3], skip, self._cache_share
            )
            self._handed_out = _micro_batches(self._start, *self._cut)
            batches = _micro_batches(self._start, *self._cut)
            self._ring = Ring(self._source, batches, self._cut[-1], self._options)
        num_replaced = 0
        try:
            batch = self._ring.next_batch()
            if isinstance(self._source, RemoteSource):
                num_replaced = self._source.take_num_replaced(*next(self._handed_out))
        except BaseException:
            self._ring.close()
            raise
        assert batch is not None, "the training sequence has no end"
        self._num_batches += 1
        self._num_replaced += num_replaced
        return batch

    @property
    def num_replaced(self) -> int:
        """Samples of this loader's batches so far that stand in for one of a bad shard."""
        return self._num_replaced

    def state_dict(self) -> dict[str, Any]:
        """Where the sequence stands, the same on every rank, and what defines it; JSON-ready.

        `consumed` counts the positions of the global batches that have been handed out whole:
        a step cut short among its micro-batches is read again.
        """
        return self.state_after(self.place[0])

    def state_after(self, num_steps: int) -> dict[str, Any]:
        """The state as it was after so many whole steps, from position 0 on."""
        consumed = self._start % self.global_batch + num_steps * self.global_batch
        return {"consumed": consumed, **self._definition()}

    def _definition(self) -> dict[str, Any]:
        data = self._data
        return describe_order(self._reader, self._order, self._seed, self._window, data.subset)

    def consumed_in(self, state: Mapping[str, Any]) -> int:
        """The positions consumed in `state`, if it is of this loader's order.

        Raises:
            ValueError: as `load_state_dict`.
        """
        if self._ring is not None:
            self._ring.check_process()
        return consumed_of(state, self._definition())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the positions consumed in `state`; batches read ahead are dropped.

        Raises:
            ValueError: the state belongs to another order or other shards (what differs is
                named), it is not a state of this class, or this process is a fork.
        """
        consumed = self.consumed_in(state)
        self._drop_ring()
        self._start, self._num_batches = consumed, 0

    def _drop_ring(self) -> None:
        if self._ring is not None:
            self._ring.close()
            self._ring = None

    def close(self) -> None:
        """End the threads and close the files. May be called again."""
        self._closed = True
        self._drop_ring()
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
