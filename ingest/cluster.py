"""Blocks on a Dask cluster: the only user of dask here.

One task a block: the scheduler sees hundreds of tasks where single files would be millions.
Workers read the archive and write the dataset themselves, so both must be where every worker
finds them: a shared file system, or a URL for the dataset.
"""

import logging
import socket
import urllib.parse
from collections.abc import Callable, Iterator, Sequence

from distributed import Client, as_completed
from distributed.client import FutureCancelledError
from distributed.scheduler import KilledWorker

from .convert import Job, convert

# Workers of a batch system may wait in its queue while the scheduler is already up.
_WAIT_FOR_WORKERS_S = 600
# Of what is not a sample's fault: a store that does not answer, a worker out of reach.
_RETRIES = 3


def run_on_cluster(
    address: str, jobs: Sequence[Job], on_sample: Callable[[int], None]
) -> Iterator[int]:
    """As `engine.run_blocks`, on the workers of the scheduler at `address`.

    The blocks of a worker that dies are given to others.

    Raises:
        ValueError: a sample is bad, or no scheduler answers at the address.
        OSError: a file cannot be written.
        RuntimeError: no worker came, or a block took down every worker that it was given to.
    """
    # Workers that come and go are the scheduler's business, not the reader's of our messages.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    _refuse_silent(address)
    with Client(address) as client:
        try:
            client.wait_for_workers(1, timeout=_WAIT_FOR_WORKERS_S)
        except TimeoutError:
            raise RuntimeError(
                f"--scheduler {address}: no worker within {_WAIT_FOR_WORKERS_S} s; start some, "
                "then run the same command again"
            ) from None
        size = {
            client.submit(_convert, job, pure=False, retries=_RETRIES): len(job.sources)
            for job in jobs
        }
        try:
            for future in as_completed(size):
                outcome = future.result()
                if isinstance(outcome, ValueError):
                    raise outcome
                on_sample(size[future])
                yield outcome
        except FutureCancelledError:
            raise RuntimeError(
                f"--scheduler {address} is gone: start it, then run the same command again to go on"
            ) from None
        except KilledWorker:
            raise RuntimeError(
                "a block took down every worker that it was given to (out of memory?): start "
                "workers with more memory or fewer threads, then run the same command again"
            ) from None
        finally:
            client.cancel(list(size))


def _refuse_silent(address: str) -> None:
    """Look whether anything listens there: Dask's client would ask for a minute.

    Raises:
        ValueError: it is no such address, or nothing answers.
    """
    place = urllib.parse.urlsplit(address)
    try:
        if not place.hostname or not place.port:
            raise ValueError("expected an address such as tcp://host:8786")
        socket.create_connection((place.hostname, place.port), timeout=30).close()
    except (OSError, ValueError) as error:
        raise ValueError(f"--scheduler {address}: no Dask scheduler: {error}") from None


def _convert(job: Job) -> int | ValueError:
    try:
        return convert(job)
    except ValueError as error:
        return error  # returned, since trying again would not make the sample a good one
