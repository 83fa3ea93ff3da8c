"""One run writes into a folder at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Hold a run's folder, which is made if need be; a killed process gives it back.

    Nothing is written into it, and it is removed again if it is still empty at the end. Where the
    file system has no such locks, as some that are shared, it goes without.

    Raises:
        ValueError: another process holds it.
        OSError: the folder cannot be made.
    """
    run.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(run, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ValueError(
            f"another process writes into {run}: a stopped run may still be saving; wait until it "
            "has ended, or give another --out"
        ) from None
    except OSError:
        pass
    try:
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # also of copies that a fork has
        os.close(descriptor)
        with suppress(OSError):
            run.rmdir()
