"""A view's samples as a stream of shuffled batches, which workers share and a state resumes."""

import os
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch.utils.data import IterableDataset, get_worker_info
from torch.utils.data._utils.collate import default_collate_fn_map

from fusmae.data.order import Order
from fusmae.data.resume import consumed_of, describe_order
from fusmae.data.ring import Batch, Ring, RingOptions
from fusmae.data.source import LocalSource
from fusmae.data.whole import whole

if TYPE_CHECKING:
    from fusmae.data.view import DatasetView

Sample = dict[str, Any]
# Batches in memory at once, as in `TrainLoader`.
_RING = 3


class StreamBatch(Sample):
    """A dict that `DataLoader(stream)`, without `batch_size=None`, cannot batch once more."""


def _refuse_to_batch(*_: object, **__: object) -> NoReturn:
    raise ValueError("a stream gives whole batches: DataLoader(stream, batch_size=None)")


class SampleStream(IterableDataset[Sample]):
    """Batches of a view in the order of `TrainLoader`, for `DataLoader(stream, batch_size=None)`.

    A batch is a dict: each array by name, (B, C, H, W), `positions` and `sample_ids`, (B,) int64,
    and `labels`, (B, classes), if the view has them; all are the caller's own. A `DataLoader` with
    a batch size, which would batch them once more, gets a ValueError. Of n workers of a
    `DataLoader`, worker w makes batches w, w + n, ..., which the `DataLoader` hands out in turn:
    the same sequence as without workers, each sample once an epoch.

    An iteration goes on where the stream stands, which is after the last batch that was taken, or
    begins the epoch that `set_epoch` named; after the end it starts over. Workers read ahead of
    what is taken, so they do not move it: each iteration of a `DataLoader` with workers starts
    where this one stands when it begins.
    """

    def __init__(
        self,
        view: "DatasetView",
        batch: int,
        seed: int,
        epochs: int | None,
        window: int,
        num_threads: int,
    ) -> None:
        """As `DatasetView.stream`."""
        view.reader.check_shards()
        self._view = view
        self._batch, self._num_threads = whole("batch", batch), whole("num_threads", num_threads)
        self._seed, window = whole("seed", seed, least=0), whole("window", window, least=0)
        mirror, shards = view.reader.mirror, view.reader.record.shards
        self._window = mirror.stream_window(shards, window) if mirror else window
        self._epochs = None if epochs is None else whole("epochs", epochs)
        # The first epoch of an iteration, and the position at which the next one starts. A worker
        # does not move them, and in its first iteration has those that it was made with; then
        # those that are shared: the position, 1 for workers that have read, the epoch.
        self._epoch = self._next = 0
        self._shared = torch.zeros(3, dtype=torch.int64)
        self._share()
        self._is_used_copy = False
        # What `state_dict` tells: where the stream stands, which after its end is not where the
        # next iteration starts; in a worker its next batch, with (its number, how many).
        self._place: tuple[int, tuple[int, int] | None] = (0, None)
        self._is_loaded = False  # the next iteration starts at `_place`
        self._definition = self._describe()  # refuses what is out of range
        if _num_ranks() > 1:
            warnings.warn(
                "every rank gets the same batches of a stream: TrainLoader(..., rank=..., "
                "world_size=...) shares them out",
                stacklevel=3,  # the line with ds.stream(...)
            )

    def _order(self) -> Order:
        view = self._view
        return Order(view.reader.shard_sizes, self._seed, self._window, view.subset_ids)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._definition = self._describe()  # the dataset was opened anew
        self._share()  # with workers of this copy; what came to a worker is shared already

    def _share(self) -> None:
        self._shared.share_memory_()  # type: ignore[no-untyped-call]

    def _ends(self, epoch: int) -> tuple[int, int | None]:
        """First position of an iteration that begins with an epoch, and one past its last."""
        first = epoch * len(self._view)
        return first, None if self._epochs is None else first + self._epochs * len(self._view)

    def __repr__(self) -> str:
        stop = self._ends(0)[1]
        end = "endless" if stop is None else f"{stop:,} samples"
        return (
            f"SampleStream({end}, batch={self._batch}, seed={self._seed}, window={self._window} "
            f"of {self._view!r})"
        )

    def __bool__(self) -> bool:
        return True  # also of an endless one, which has no len

    def __len__(self) -> int:
        """Batches from the start to the end, for a progress bar; an endless stream has no len."""
        stop = self._ends(0)[1]
        if stop is None:
            raise TypeError(
                "an endless stream has no len: give it epochs=n, or count len(ds) samples an epoch"
            )
        return -(-stop // self._batch)

    def set_epoch(self, epoch: int) -> None:
        """Begin the next iteration with this epoch, or go on in it if the stream stands in it.

        With `epochs=1`, in `for epoch in range(n): stream.set_epoch(epoch); for batch in stream:`,
        each epoch has an order of its own, and positions go on from one to the next. So does a
        loop that starts with the epoch in which the state that was loaded was saved. Persistent
        workers of a `DataLoader` follow it, too.

        Args:
            epoch: from 0 on; of a stream with `epochs=n` the first of n.

        Raises:
            ValueError: it is no whole number, 0 or more.
        """
        epoch = whole("epoch", epoch, least=0)
        # A state of the end of these epochs, too, leaves nothing of them to do.
        goes_on = epoch == self._epoch and self._epochs is not None
        if not goes_on and not self._is_in(epoch, self._next):
            self._next = self._ends(epoch)[0]
        self._epoch, self._is_loaded = epoch, False
        self._place = self._next, None
        self._move(self._next)

    def _is_in(self, epoch: int, position: int) -> bool:
        return position // len(self._view) == epoch

    def _first_batch(self, worker: tuple[int, int]) -> int:
        """The position at which a worker's iteration starts."""
        if self._is_used_copy and not self._is_loaded:
            self._next, _, self._epoch = self._shared.tolist()
        position, owner = self._place if self._is_loaded else (self._next, None)
        if owner not in (None, worker):
            raise ValueError(
                f"this state is worker {owner}'s, and this is worker {worker}: "
                "resume with the number of workers with which it was saved"
            )
        self._is_loaded = False
        position = position if owner else position + worker[0] * self._batch
        return _clamp(position, self._ends(self._epoch)[1])

    def __iter__(self) -> Iterator[Sample]:
        # How torch is told about a type. Here, because a worker collates its own batches.
        default_collate_fn_map[StreamBatch] = _refuse_to_batch
        info = get_worker_info()
        worker = (info.id, info.num_workers) if info else (0, 1)
        position = self._first_batch(worker)
        self._stand_at(position, worker)
        self._shared[1] = self._is_used_copy = info is not None
        return self._batches(position, self._epoch, worker)

    def _batches(self, position: int, epoch: int, worker: tuple[int, int]) -> Iterator[Sample]:
        step, (first, stop) = worker[1] * self._batch, self._ends(epoch)
        options = RingOptions(self._num_threads, _RING, False, torch.device("cpu"), own=True)
        source = LocalSource(self._view.reader, self._order().samples)
        ring = Ring(source, self._cuts(position, stop, step), self._batch, options)
        try:
            while (batch := ring.next_batch()) is not None:
                sample = self._sample(batch)
                position = _clamp(position + step, stop)
                if epoch == self._epoch:  # else another was set, which holds
                    self._stand_at(position, worker)
                    self._start_over_at(stop, first)
                yield sample
        finally:
            ring.close()
        if epoch == self._epoch:
            self._start_over_at(stop, first)  # also where a state left nothing

    def _start_over_at(self, stop: int | None, first: int) -> None:
        """Have the next iteration start at `first` if this one, of no worker, is at its end."""
        if get_worker_info() is None and self._place[0] == stop:
            self._move(first)

    def _stand_at(self, position: int, worker: tuple[int, int]) -> None:
        self._place = position, worker if worker[1] > 1 else None
        if get_worker_info() is None:
            self._move(position)

    def _move(self, position: int) -> None:
        self._next = position
        self._shared[:] = torch.tensor([position, 0, self._epoch])

    def _cuts(self, first: int, stop: int | None, step: int) -> Iterator[tuple[int, int]]:
        position = first
        while stop is None or position < stop:
            yield position, _clamp(position + self._batch, stop) - position
            position += step

    def _sample(self, batch: Batch) -> Sample:
        sample = StreamBatch(batch.arrays)
        sample["positions"], sample["sample_ids"] = batch.positions, batch.sample_ids
        if self._view.classes:
            sample["labels"] = self._view.labels_of(batch.sample_ids.tolist())
            if self._view.reader.mirror and get_worker_info():
                self._view.reader.close()  # the shards that other workers may need room for
        return sample

    def state_dict(self, num_batches: int | None = None) -> dict[str, Any]:
        """Where the stream stands, JSON-ready.

        Args:
            num_batches: batches that workers have handed out in this iteration; without workers
                the stream counts by itself.

        Raises:
            ValueError: workers have read, and it is not said how many batches were taken; or it is
                less than none, or more than a finite stream has.
        """
        if num_batches is not None:
            num_batches = whole("num_batches", num_batches, least=0)
        has_read = bool(self._shared[1]) and get_worker_info() is None
        if num_batches is None and has_read:
            raise ValueError(
                "workers of a DataLoader have read ahead of what was taken of this stream: say how "
                "many batches were, stream.state_dict(num_batches=N)"
            )
        position, worker = (self._next, None) if has_read else self._place
        num_batches, stop = num_batches or 0, self._ends(self._epoch)[1]
        if stop is not None and num_batches > (left := -((position - stop) // self._batch)):
            raise ValueError(
                f"num_batches = {num_batches} is too many: the stream has {left} from here to its "
                "end; count those of one iteration"
            )
        consumed = _clamp(position + num_batches * self._batch, stop)
        state = {"consumed": consumed, "epoch": self._epoch, **self._definition}
        return state | ({"worker": [*worker, self._batch, self._epochs]} if worker else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the batches that were taken before `state`, from the next iteration on.

        In batches of another size and for other epochs too, unless a worker saved the state.
        The iteration that was under way goes on, to the end of its epochs as this stream counts
        them; or that of the epoch that was set here, if the state stands in it.

        Raises:
            ValueError: the state belongs to another order or other shards, and what differs is
                named; or to a worker with batches of another size or other epochs; or it lies
                beyond the end.
        """
        consumed = consumed_of(state, self._definition)
        saved = state.get("worker")
        epoch = self._epoch
        if saved or not self._is_in(epoch, consumed):
            epoch = whole("epoch of the state", state.get("epoch", 0), least=0)
        if saved:
            self._check_worker(*saved[2:])
        first, stop = self._ends(epoch)
        if consumed < first or (stop is not None and consumed > stop):
            raise ValueError(
                f"consumed = {consumed} is not from {first} to {stop}, where this stream ends: "
                f"set_epoch({consumed // len(self._view)}) before it is loaded, or give the stream "
                "more epochs"
            )
        self._place = consumed, tuple(saved[:2]) if saved else None
        self._epoch, self._is_loaded = epoch, True
        if get_worker_info() is None and not saved:
            self._move(consumed)

    def _check_worker(self, batch: int, epochs: int | None) -> None:
        pairs = {"batch": (batch, self._batch), "epochs": (epochs, self._epochs)}
        differs = [
            f"{name} was {was} and is {now}" for name, (was, now) in pairs.items() if was != now
        ]
        if differs:
            raise ValueError(
                "a worker of a DataLoader saved this state, and it fits only the batch and epochs "
                f"with which it was saved: {'; '.join(differs)}"
            )

    def _describe(self) -> dict[str, Any]:
        view = self._view
        return describe_order(view.reader, self._order(), self._seed, self._window, view.subset)


def _num_ranks() -> int:
    """Ranks of torch.distributed, or that a launcher such as torchrun says there are."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    told = os.environ.get("WORLD_SIZE", "")
    return int(told) if told.isdecimal() else 1


def _clamp(position: int, stop: int | None) -> int:
    """The last batch may be smaller: nothing after it is consumed."""
    return position if stop is None else min(position, stop)
