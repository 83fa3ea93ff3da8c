"""A block on a worker of a Dask cluster: what it must see there, and whose fault an error is."""

import socket
import time
from pathlib import Path

from distributed import get_worker

from .convert import Job, convert
from .turn import TURN, has_turn

# A network file system may show a file late to another machine: nfs(5), acregmin, has 3 s.
_PATIENCE_S = 5.0


def convert_on_worker(job: Job) -> int | ValueError:
    """As `convert`; an error that comes again with every try is returned, not raised.

    Raises:
        OSError: the system's error, with this worker's name.
    """
    worker = f"worker {get_worker().address} on host {socket.gethostname()}"
    try:
        refuse_blindness(job, worker)
        return convert(job)
    except ValueError as error:
        return error
    except OSError as error:
        told = f"{error.strerror or error} (on {worker})"
        raise (
            OSError(error.errno, told, error.filename) if error.errno else OSError(told)
        ) from None


def refuse_blindness(job: Job, worker: str) -> None:
    """Look whether this machine sees the archives and the dataset that the run sees.

    Raises:
        ValueError: it does not; the message names the worker and the path.
        OSError: the dataset's place cannot be read.
    """
    for place in job.places:
        if not Path(place).exists():
            raise ValueError(
                f"{worker} does not see {place}: archives, and --spool where they are unpacked, "
                "must lie on a file system that all workers share, under the same path"
            )
    deadline = time.monotonic() + _PATIENCE_S
    while not has_turn(job.store, job.turn):
        if time.monotonic() > deadline:
            raise ValueError(
                f"{worker} does not see --out {job.store}: {job.store.zarr_location(TURN)}, made "
                "by this run, is not there; give a folder that all workers share, or a URL of an "
                "object store"
            )
        time.sleep(_PATIENCE_S / 10)
