"""Runs the blocks: one after another in this process, or on a pool of spawned processes."""

import multiprocessing
import threading
from collections.abc import Callable, Sequence
from queue import Queue

from .convert import Job, convert
from .pool import run_tasks


def run_blocks(jobs: Sequence[Job], workers: int, on_sample: Callable[[int], None]) -> None:
    """Convert every job's block; `on_sample(n)` is called as samples are done.

    No pixels pass between processes: a worker reads, writes and reports a count.

    Raises:
        ValueError: a sample is bad. Blocks that were done stay done.
        OSError: a file cannot be written.
        RuntimeError: a worker process died.
    """
    if workers == 1 or len(jobs) == 1:
        for job in jobs:
            convert(job, lambda: on_sample(1))
        return
    with multiprocessing.get_context("spawn").Manager() as manager:
        counts: Queue[int | None] = manager.Queue()
        listener = threading.Thread(target=_listen, args=(counts, on_sample), daemon=True)
        listener.start()
        try:
            for _ in run_tasks(_convert_and_count, [(job, counts) for job in jobs], workers):
                pass
        finally:
            counts.put(None)
            listener.join()


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
