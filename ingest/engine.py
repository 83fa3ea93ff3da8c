"""Runs the blocks: one after another in this process, or on a pool of spawned processes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.managers import SyncManager
from queue import Queue
from typing import Any

from .convert import Job, convert

_DIED = (
    "a worker process died (out of memory, or killed): run the same command again to go on, "
    "with fewer --workers if memory is short"
)


def run_blocks(jobs: Sequence[Job], workers: int, on_sample: Callable[[int], None]) -> None:
    """Convert every job's block; `on_sample(n)` is called as samples are done.

    No pixels pass between processes: a worker reads, writes and reports a count. Workers are
    spawned, since forking after GDAL was used can deadlock.

    Raises:
        ValueError: a sample is bad. Blocks that were done stay done.
        OSError: a file cannot be written.
        RuntimeError: a worker process died.
    """
    if workers == 1 or len(jobs) == 1:
        for job in jobs:
            convert(job, lambda: on_sample(1))
        return
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        _run_pool(jobs, workers, on_sample, context, manager)


def _run_pool(
    jobs: Sequence[Job],
    workers: int,
    on_sample: Callable[[int], None],
    context: multiprocessing.context.SpawnContext,
    manager: SyncManager,
) -> None:
    counts: Queue[int | None] = manager.Queue()
    listener = threading.Thread(target=_listen, args=(counts, on_sample), daemon=True)
    listener.start()
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)), mp_context=context, initializer=_follow_parent
    )
    try:
        futures: list[Future[None]] = [pool.submit(_convert_and_count, job, counts) for job in jobs]
        for future in as_completed(futures):
            future.result()
    except BrokenProcessPool:
        raise RuntimeError(_DIED) from None
    finally:
        pool.shutdown(cancel_futures=True)
        counts.put(None)
        listener.join()


def _follow_parent() -> None:
    """In a worker: die quietly at Ctrl-C, and at once when the parent is gone.

    Without it a worker whose parent was killed would wait for its next block for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_chunks(
    function: Callable[..., int], tasks: Sequence[tuple[Any, ...]], workers: int
) -> Iterator[int]:
    """`function(*task)` for every task, in any order, as results come.

    Raises:
        RuntimeError: a worker process died.
    """
    if workers == 1:
        for task in tasks:
            yield function(*task)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_follow_parent)
    try:
        for future in as_completed([pool.submit(function, *task) for task in tasks]):
            yield future.result()
    except BrokenProcessPool:
        raise RuntimeError(_DIED) from None
    finally:
        pool.shutdown(cancel_futures=True)


# Samples between two reports of a worker: often enough to watch, rarely enough to cost nothing.
_REPORT_EVERY = 32


def _convert_and_count(job: Job, counts: "Queue[int | None]") -> None:
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if done % _REPORT_EVERY == 0:
            counts.put(_REPORT_EVERY)

    convert(job, count)
    counts.put(done % _REPORT_EVERY)


def _listen(counts: "Queue[int | None]", on_sample: Callable[[int], None]) -> None:
    while (count := counts.get()) is not None:
        on_sample(count)
