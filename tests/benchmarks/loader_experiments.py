"""What our loader could have been: other ways to the same batches, and the bare copy.

Each is small and honest, and shares with ours what is not in question: the index, the order
and, but for the processes, the ring.
"""

import ctypes
import mmap
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import count, cycle
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from loader_data import SPLIT
from loader_systems import BATCH, GLOBAL, SEED, Epochs, System, cut_epochs
from torch import multiprocessing
from torch.utils.data import DataLoader, Dataset

from fusmae.data import Batch, Order, SplitReader
from fusmae.data.ring import Ring, RingOptions, empty_batch
from fusmae.data.source import LocalSource

# As the loader's default.
_SLOTS = 3
_CPU = torch.device("cpu")


class MmapReader(SplitReader):
    """`SplitReader` with the shards mapped into memory, once and for all.

    A page that lies past the end of a truncated file kills the process: `truncated_map`.
    """

    def __init__(self, dataset: Path, split: str) -> None:
        super().__init__(dataset, split)
        self._maps = []
        for shard in self.record.shards:
            with (dataset / shard.path).open("rb") as file:
                self._maps.append(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))

    def read_into(self, ids: npt.NDArray[np.int64], out: Mapping[str, npt.NDArray[Any]]) -> None:
        offsets = self.manifest.layout.offsets
        for row, (shard, start) in enumerate(zip(*self._locate(ids), strict=True)):
            for spec in self.arrays:
                size = int(np.prod(spec.shape))
                pixels = np.frombuffer(
                    self._maps[shard], spec.dtype, size, start + offsets[spec.name]
                )
                out[spec.name][row] = pixels.reshape(spec.shape)


def _batches_of(ring: Ring) -> Iterator[Batch]:
    while (batch := ring.next_batch()) is not None:
        yield batch


def mmap_threads(data: Path, workers: int) -> Epochs:
    reader = MmapReader(data / "dataset", SPLIT)
    order = Order(reader.shard_sizes, SEED)
    batches = ((position, BATCH) for position in count(0, BATCH))
    options = RingOptions(workers, _SLOTS, torch.cuda.is_available(), _CPU)
    ring = Ring(LocalSource(reader, order.samples), batches, BATCH, options)
    try:
        yield from cut_epochs(_batches_of(ring), reader.num_samples)
    finally:
        ring.close()


def _read_rows(reader: SplitReader, order: Order, rows: Batch, position: int) -> None:
    ids = order.samples(position, len(rows))
    rows.sample_ids.numpy()[:] = ids
    rows.positions.numpy()[:] = np.arange(position, position + len(rows))
    reader.read_into(ids, {name: array.numpy() for name, array in rows.arrays.items()})


class _WholeBatches(Dataset[Batch]):
    """Batch number t of the order, read by the same `preadv` into new tensors."""

    def __init__(self, dataset: Path) -> None:
        self.reader = SplitReader(dataset, SPLIT)
        self.order = Order(self.reader.shard_sizes, SEED)

    def __getitem__(self, number: int) -> Batch:
        batch = empty_batch(self.reader.arrays, BATCH, _CPU)
        _read_rows(self.reader, self.order, batch, number * BATCH)
        return batch


def processes_dataloader(data: Path, workers: int) -> Epochs:
    """`DataLoader` workers, which hand a batch over in shared memory that they allocate."""
    dataset = _WholeBatches(data / "dataset")
    loader = DataLoader(dataset, batch_size=None, sampler=count(), num_workers=workers)
    yield from cut_epochs(iter(loader), dataset.order.num_samples)


def _fill_slots(
    dataset: Path, slots: list[Batch], jobs: "SimpleQueue[Any]", done: "SimpleQueue[int]"
) -> None:
    torch.set_num_threads(1)
    reader = SplitReader(dataset, SPLIT)
    order = Order(reader.shard_sizes, SEED)
    while (job := jobs.get()) is not None:
        slot, start, stop, position = job
        _read_rows(reader, order, slots[slot].rows(start, stop), position)
        done.put(slot)


def _shared_batches(dataset: Path, slots: list[Batch], workers: int) -> Iterator[Batch]:
    """A slot's batch is read by all workers together, each its rows, as in our ring."""
    context = multiprocessing.get_context("fork")
    jobs, done = context.SimpleQueue(), context.SimpleQueue()
    children = [
        context.Process(target=_fill_slots, args=(dataset, slots, jobs, done), daemon=True)
        for _ in range(workers)
    ]
    for child in children:
        child.start()
    step = -(-BATCH // workers)
    starts = range(0, BATCH, step)

    def issue(slot: int, position: int) -> None:
        for start in starts:
            jobs.put((slot, start, min(start + step, BATCH), position + start))

    missing = [len(starts)] * len(slots)
    for slot in range(len(slots)):
        issue(slot, slot * BATCH)
    try:
        for number, slot in zip(count(), cycle(range(len(slots))), strict=False):
            while missing[slot]:
                missing[done.get()] -= 1
            yield slots[slot]
            missing[slot] = len(starts)
            issue(slot, (number + len(slots)) * BATCH)
    finally:
        for _ in children:
            jobs.put(None)
        for child in children:
            child.join()


def processes_shared_ring(data: Path, workers: int) -> Epochs:
    """The best that processes can do: our ring in shared memory, no copy, no allocation."""
    reader = SplitReader(data / "dataset", SPLIT)
    slots = [empty_batch(reader.arrays, BATCH, _CPU) for _ in range(_SLOTS)]
    for slot in slots:
        for tensor in slot.tensors():
            tensor.share_memory_()
    yield from cut_epochs(_shared_batches(data / "dataset", slots, workers), reader.num_samples)


def _copy_rows(plan: list[tuple[int, int, int]], ids: npt.NDArray[np.int64], first: int) -> None:
    """`plan` holds source, target and bytes a sample of each array."""
    for row, index in enumerate(ids.tolist(), first):
        for source, target, size in plan:
            ctypes.memmove(target + row * size, source + index * size, size)


def memcpy(data: Path, workers: int) -> Epochs:
    """Samples that lie in this process's memory, copied row by row: the ceiling."""
    reader = SplitReader(data / "dataset", SPLIT)
    order = Order(reader.shard_sizes, SEED)
    whole = empty_batch(reader.arrays, reader.num_samples, _CPU)
    reader.read_into(
        np.arange(reader.num_samples), {name: a.numpy() for name, a in whole.arrays.items()}
    )
    slots = [empty_batch(reader.arrays, BATCH, _CPU) for _ in range(_SLOTS)]

    def batches(pool: ThreadPoolExecutor) -> Iterator[Batch]:
        for number, slot in zip(count(), cycle(slots), strict=False):
            ids = order.samples(number * BATCH, BATCH)
            slot.sample_ids.numpy()[:] = ids
            slot.positions.numpy()[:] = np.arange(number * BATCH, (number + 1) * BATCH)
            plan = [
                (whole.arrays[name].data_ptr(), slot.arrays[name].data_ptr(), array[0].nbytes)
                for name, array in slot.arrays.items()
            ]
            step = -(-BATCH // workers)
            starts = range(0, BATCH, step)
            list(pool.map(lambda s: _copy_rows(plan, ids[s : s + step], s), starts))  # noqa: B023
            yield slot

    with ThreadPoolExecutor(workers) as pool:
        yield from cut_epochs(batches(pool), reader.num_samples)


EXPERIMENTS = {
    "ours with mmap": System(mmap_threads, "dataset", GLOBAL),
    "ours with DataLoader processes": System(processes_dataloader, "dataset", GLOBAL),
    "ours with a ring shared by processes": System(processes_shared_ring, "dataset", GLOBAL),
    "memcpy": System(memcpy, "dataset", GLOBAL),
}
