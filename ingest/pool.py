"""Tasks on spawned worker processes, results as they come."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

R = TypeVar("R")

# What ends a run.
_ENDING = (signal.SIGINT, signal.SIGTERM)


def run_tasks(
    function: Callable[..., R],
    tasks: Sequence[tuple[Any, ...]],
    workers: int,
    setup: Callable[..., None] | None = None,
    setup_args: tuple[Any, ...] = (),
) -> Iterator[R]:
    """`function(*task)` for every task, in any order; in this process if `workers` is 1.

    Workers are spawned, since forking after GDAL was used can deadlock. The first error ends
    the rest. `setup(*setup_args)` is called once in each process that runs tasks; its arguments
    may hold what only a process that starts can inherit: locks, pipes.

    Raises:
        RuntimeError: a worker process died.
    """
    if workers == 1 or len(tasks) < 2:
        if setup:
            setup(*setup_args)
        for task in tasks:
            yield function(*task)
        return
    context = multiprocessing.get_context("spawn")
    size = min(workers, len(tasks))
    pool = ProcessPoolExecutor(
        size, mp_context=context, initializer=_start_worker, initargs=(setup, setup_args)
    )
    try:
        for future in as_completed(_submit(pool, function, tasks)):
            yield future.result()
    except BrokenProcessPool:
        raise RuntimeError(
            "a worker process died (out of memory, or killed): run the same command again to "
            "go on, with fewer --workers if memory is short"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def run_in_order(
    function: Callable[..., R],
    tasks: Sequence[tuple[Any, ...]],
    workers: int,
    setup: Callable[..., None] | None = None,
    setup_args: tuple[Any, ...] = (),
) -> Iterator[R]:
    """As `run_tasks`, with the results in the order of the tasks."""
    numbered = [(function, number, task) for number, task in enumerate(tasks)]
    early: dict[int, R] = {}
    turn = 0
    for number, result in run_tasks(_numbered, numbered, workers, setup, setup_args):
        early[number] = result
        while turn in early:
            yield early.pop(turn)
            turn += 1


def _numbered(function: Callable[..., R], number: int, task: tuple[Any, ...]) -> tuple[int, R]:
    return number, function(*task)


def _submit(
    pool: ProcessPoolExecutor, function: Callable[..., R], tasks: Sequence[tuple[Any, ...]]
) -> list[Future[R]]:
    """Submit all tasks; the workers start here."""
    with _interrupts_held_back():
        return [pool.submit(function, *task) for task in tasks]


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Ctrl-C and SIGTERM come after the block; in processes that start in it, at `_follow_parent`.

    A worker that is still importing would answer it with a traceback, and a pool that is left
    in the middle of starting its workers waits for them for ever.
    """
    came: list[int] = []
    main = threading.current_thread() is threading.main_thread()
    # Another thread may take the signal, and Python then calls the handler in the main one.
    handlers = {n: signal.signal(n, lambda n, _: came.append(n)) for n in _ENDING} if main else {}
    # What starts inherits the mask.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for signum in came:
        signal.raise_signal(signum)


def _start_worker(setup: Callable[..., None] | None, setup_args: tuple[Any, ...]) -> None:
    _follow_parent()
    # A worker starts no processes. Locks that libraries make (numcodecs') would else have names,
    # which one that dies at Ctrl-C leaves behind, with a warning.
    multiprocessing.set_start_method("fork", force=True)
    if setup:
        setup(*setup_args)


def _follow_parent() -> None:
    """In a worker: die quietly at Ctrl-C and SIGTERM, and at once when the parent is gone.

    Without it a worker whose parent was killed would wait for its next task for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
