"""Threads that read samples straight into a ring of batch tensors, ahead of the consumer.

Threads, because worker processes would copy every sample once more on its way to the parent;
they scale, because `preadv` runs without the interpreter lock.
"""

import os
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from threading import Event, Thread, current_thread

import numpy as np
import torch
from torch import Tensor

from fusmae.data.source import Source
from fusmae.data.whole import whole
from fusmae.sensors import ArraySpec

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Batch:
    """Samples as they are stored. B samples, C bands, H and W the array's own pixels.

    arrays: each array by name, (B, C, H, W) in its stored dtype.
    positions: (B,) int64, the place of each sample in the order.
    sample_ids: (B,) int64, its row in the split.
    weights: (B,) float32, 1, or 0 for a sample that only pads a short rank.
    """

    arrays: dict[str, Tensor]
    positions: Tensor
    sample_ids: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.positions)

    def tensors(self) -> list[Tensor]:
        """All tensors of the batch, in a fixed order."""
        return [*self.arrays.values(), self.positions, self.sample_ids, self.weights]

    def rows(self, start: int, stop: int) -> "Batch":
        """Views of samples start ... stop - 1."""
        return Batch(
            {name: array[start:stop] for name, array in self.arrays.items()},
            self.positions[start:stop],
            self.sample_ids[start:stop],
            self.weights[start:stop],
        )


def empty_batch(
    specs: tuple[ArraySpec, ...], size: int, device: torch.device, pin: bool = False
) -> Batch:
    """An uninitialised batch of `size` samples."""

    def empty(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.empty(size, *shape, dtype=dtype, device=device, pin_memory=pin)

    return Batch(
        {
            spec.name: empty(getattr(torch, np.dtype(spec.dtype).name), *spec.shape)
            for spec in specs
        },
        empty(torch.int64),
        empty(torch.int64),
        empty(torch.float32),
    )


@dataclass(frozen=True)
class RingOptions:
    """How batches are read ahead; none of it changes what is read.

    num_threads: threads that read.
    ring: batches in memory at once, with the one that the consumer holds.
    pin: page-locked host memory, without which copies to a GPU do not overlap with anything.
    device: where the consumer wants the batches.
    own: each batch is the consumer's own, in memory of its own; on a GPU it always is.
    """

    num_threads: int
    ring: int
    pin: bool
    device: torch.device
    own: bool = False

    def __post_init__(self) -> None:
        whole("num_threads", self.num_threads)
        whole("ring", self.ring)
        if (self.pin or self.device.type == "cuda") and not torch.cuda.is_available():
            raise ValueError(
                f"pin = {self.pin}, device = {self.device}: there is no CUDA device here"
            )


class _Slot:
    """One place of the ring: a host batch and, for a GPU, what copies it there.

    `host` is None where each batch is the consumer's own. `copied` marks the end of the last copy
    out of it, after which it may be overwritten.
    """

    def __init__(self, host: Batch | None, device: torch.device) -> None:
        self.host = host
        self.filled: SimpleQueue[BaseException | None] = SimpleQueue()
        self.stream: torch.cuda.Stream | None = None
        self.copied: torch.cuda.Event | None = None
        if device.type == "cuda":
            self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class _Job:
    """Fill `rows`, a part of a slot's batch, with the samples from `position` on."""

    slot: _Slot
    rows: Batch
    device_rows: Batch | None
    position: int


def _fill(source: Source, num_real: int | None, job: _Job) -> None:
    """Read one job's samples and start their copy to the device.

    Positions from `num_real` on are padding.
    """
    rows, slot = job.rows, job.slot
    if slot.copied is not None:
        slot.copied.synchronize()
    positions = np.arange(job.position, job.position + len(rows))
    rows.positions.numpy()[:] = positions
    rows.weights.numpy()[:] = 1 if num_real is None else positions < num_real
    arrays = {name: array.numpy() for name, array in rows.arrays.items()}
    source.read(job.position, rows.sample_ids.numpy(), arrays)
    if job.device_rows is not None:
        with torch.cuda.stream(slot.stream):
            for target, host in zip(job.device_rows.tensors(), rows.tensors(), strict=True):
                target.copy_(host, non_blocking=True)


def _work(jobs: "SimpleQueue[_Job | None]", stopped: Event, fill: Callable[[_Job], None]) -> None:
    while (job := jobs.get()) is not None and not stopped.is_set():
        try:
            fill(job)
        except BaseException as error:  # whatever it is, the consumer waits for it and raises it
            job.slot.filled.put(error)
        else:
            job.slot.filled.put(None)


def _stop(
    process: int,
    jobs: "SimpleQueue[_Job | None]",
    stopped: Event,
    threads: Sequence[Thread],
    source: Source,
) -> None:
    """End the threads; each finishes the rows that it is reading, or stops waiting for them.

    They are waited for, because a thread that is inside torch when the interpreter exits aborts
    the process. A garbage collection may run this in one of the threads: there is no waiting
    then.
    """
    if os.getpid() != process:
        return  # a fork of the process that has the threads, and maybe locks that one held then
    stopped.set()
    source.stop()
    for _ in threads:
        jobs.put(None)
    if current_thread() not in threads:
        for thread in threads:
            if thread.is_alive():  # one that could not be started must not be joined
                thread.join()


class Ring:
    """The batches that `batches` names, each read by all threads together, in order.

    Only `next_batch` hands a slot back to the threads. Those know the queue and the source,
    never the ring: they end when it is dropped.
    """

    def __init__(
        self,
        source: Source,
        batches: Iterator[tuple[int, int]],
        batch: int,
        options: RingOptions,
        num_real: int | None = None,
    ) -> None:
        """Start the threads on the first batches.

        Args:
            source: gives the samples at positions; stopped by `close`, and if this fails.
            batches: first position and size of each batch, a size being at most `batch`.
            batch: samples that a slot has room for.
            options: threads, slots and devices.
            num_real: positions from here on get weight 0; None for no padding.
        """
        self._source, self._specs = source, source.arrays
        self._batches = batches
        self._options = options
        self._process = os.getpid()
        self._slots: list[_Slot] = []
        # Slots being filled, oldest first: the slot, its number of jobs, the first position, the
        # consumer's batch.
        self._ahead: deque[tuple[_Slot, int, int, Batch]] = deque()
        self._held: _Slot | None = None
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        stopped = Event()
        fill = partial(_fill, source, num_real)
        self._threads = [
            Thread(
                target=_work, args=(self._jobs, stopped, fill), name=f"fusmae-read-{i}", daemon=True
            )
            for i in range(options.num_threads)
        ]
        self._finalize = weakref.finalize(
            self, _stop, self._process, self._jobs, stopped, self._threads, source
        )
        try:
            self._start(batch)
        except BaseException:
            self.close()
            raise

    def _start(self, batch: int) -> None:
        options = self._options
        for _ in range(options.ring):
            host = None if options.own else empty_batch(self._specs, batch, _CPU, options.pin)
            self._slots.append(_Slot(host, options.device))
        for thread in self._threads:
            thread.start()
        for slot in self._slots:
            self._issue(slot)

    def _issue(self, slot: _Slot) -> None:
        """Give the threads the next batch to read into `slot`, if there is one."""
        position, size = next(self._batches, (0, 0))
        if size == 0:
            return
        host = slot.host or empty_batch(self._specs, size, _CPU)
        on_device = None
        if slot.stream is not None:
            with torch.cuda.stream(slot.stream):
                on_device = empty_batch(self._specs, size, self._options.device)
        step = -(-size // self._options.num_threads)
        starts = range(0, size, step)
        self._ahead.append((slot, len(starts), position, on_device or host.rows(0, size)))
        for start in starts:
            stop = min(start + step, size)
            device_rows = on_device.rows(start, stop) if on_device else None
            self._jobs.put(_Job(slot, host.rows(start, stop), device_rows, position + start))

    def next_batch(self) -> Batch | None:
        """The next batch, or None after the last one.

        On a CPU its tensors are views of a slot, overwritten from the next call on, unless the
        options say `own`; on a GPU they are the caller's own, ready for work on the current stream.

        Whoever catches what it raises, Ctrl-C among it, closes the ring: the batch that was
        waited for is lost.

        Raises:
            ValueError: the ring is closed, or this process is a fork of the one that started it.
            Exception: whatever a thread met while it read this batch.
        """
        self.check_process()
        if not self._finalize.alive:
            raise ValueError("this loader is closed")
        if self._held is not None:
            self._issue(self._held)
            self._held = None
        if not self._ahead:
            return None
        slot, num_jobs, position, batch = self._ahead.popleft()
        self._source.want(position, len(batch))
        for _ in range(num_jobs):
            error = slot.filled.get()
            if error is not None:
                raise error
        if slot.stream is not None and slot.copied is not None:
            slot.copied.record(slot.stream)
            current = torch.cuda.current_stream(self._options.device)
            current.wait_event(slot.copied)
            for tensor in batch.tensors():
                tensor.record_stream(current)
        self._held = slot
        return batch

    def check_process(self) -> None:
        """Raises ValueError in a fork of the process that started the ring: no thread is here."""
        if os.getpid() != self._process:
            raise ValueError(
                "this loader was started before a fork and cannot be used after it: open one in "
                "the new process, or start that with multiprocessing's 'spawn'"
            )

    def close(self) -> None:
        """End the threads, and wake a consumer that waits. May be called again."""
        stop = self._finalize.detach()
        if stop is not None:  # or somebody is at it, and need not be waited for
            for slot in self._slots:
                slot.filled.put(ValueError("this loader is closed"))
            _, end_threads, arguments, _ = stop
            end_threads(*arguments)
