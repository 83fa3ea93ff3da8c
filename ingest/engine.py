"""Runs the blocks: one after another here, on a pool of spawned processes, or on a cluster."""

import functools
import multiprocessing
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection

from .convert import Job, convert
from .pool import run_tasks

# Takes jobs and `on_sample`; yields the number of bad samples of each block: see `run_blocks`.
Executor = Callable[[Sequence[Job], Callable[[int], None]], Iterator[int]]

# Samples between two reports of a worker: often enough to watch, rarely enough to cost nothing.
_REPORT_EVERY = 32

# Where this process reports the samples it has done; set once in each worker. A pipe that all
# write to: a count is so short that writes never mix, and no worker can die with a lock on it.
_counts: Connection | None = None


def executor(workers: int, scheduler: str | None) -> Executor:
    """What runs blocks: the Dask cluster of this scheduler, or `workers` processes here."""
    if scheduler is None:
        return functools.partial(run_blocks, workers)
    from .cluster import run_on_cluster

    return functools.partial(run_on_cluster, scheduler)


def run_blocks(
    workers: int, jobs: Sequence[Job], on_sample: Callable[[int], None]
) -> Iterator[int]:
    """Convert every job's block; `on_sample(n)` is called as samples are done.

    Yields the number of bad samples of each block, as blocks end.

    No pixels pass between processes: a worker reads, writes and reports a count.

    Raises:
        ValueError: a sample is bad. Blocks that were done stay done.
        OSError: a file cannot be written.
        RuntimeError: a worker process died.
    """
    if workers == 1 or len(jobs) == 1:
        for job in jobs:
            yield convert(job, lambda: on_sample(1))
        return
    receiver, counts = multiprocessing.Pipe(duplex=False)
    listener = threading.Thread(target=_listen, args=(receiver, on_sample), daemon=True)
    listener.start()
    tasks = [(job,) for job in jobs]
    try:
        yield from run_tasks(_convert_and_count, tasks, workers, _report_to, (counts,))
    finally:
        # The last end that is open: the workers are gone.
        counts.close()
        listener.join()


def _report_to(counts: Connection) -> None:
    global _counts
    _counts = counts


def _convert_and_count(job: Job) -> int:
    assert _counts is not None
    counts, done = _counts, 0

    def count() -> None:
        nonlocal done
        done += 1
        if done % _REPORT_EVERY == 0:
            counts.send(_REPORT_EVERY)

    num_bad = convert(job, count)
    counts.send(done % _REPORT_EVERY)
    return num_bad


def _listen(counts: Connection, on_sample: Callable[[int], None]) -> None:
    with counts, suppress(EOFError):
        while True:
            on_sample(counts.recv())
