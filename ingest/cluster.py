"""Blocks on a Dask cluster: the only user of dask here.

One task a block: the scheduler sees hundreds of tasks where single files would be millions.
Workers read the archive and write the dataset themselves, so both must be where every worker
finds them: a shared file system, or a URL for the dataset. What they do is in `cluster_worker`.
"""

import asyncio
import logging
import pickle
import socket
import time
import urllib.parse
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

try:
    from distributed import Client, as_completed
    from distributed.client import FutureCancelledError
    from distributed.core import connect
    from distributed.scheduler import KilledWorker
except ImportError as error:
    raise ValueError(f"--scheduler needs Dask ({error}): pip install 'fusmae[cluster]'") from None

from .cluster_worker import convert_on_worker
from .convert import Job
from .wording import say

# Those that dask's configuration gives a level of their own and that tell of lost connections.
_LOGGERS = ("distributed", "distributed.client", "tornado.application")
# A scheduler answers in milliseconds, and one that is busy with a big graph in a few seconds.
_ANSWER_S = 10
# Between two messages about workers that do not come.
_SAY_AGAIN_S = 30
# As often as dask's own `as_completed` looks.
_LOOK_S = 0.1
# Of what is not a sample's fault: a store that does not answer, a worker out of reach.
_RETRIES = 3


def run_on_cluster(
    address: str, jobs: Sequence[Job], on_sample: Callable[[int], None]
) -> Iterator[int]:
    """As `engine.run_blocks`, on the workers of the scheduler at `address`.

    The blocks of a worker that dies or retires are given to others. Blocks are there before any
    worker has to be: an adaptive cluster starts workers for them, and a batch system's may wait in
    its queue, for as long as it takes.

    Raises:
        ValueError: a sample is bad, a worker does not see the dataset or the archives, or no
            scheduler answers at the address.
        OSError: a file cannot be written.
        RuntimeError: the scheduler is gone, a worker lacks a package, or a block took down every
            worker that it was given to.
    """
    check_scheduler(address)
    with Client(address) as client:
        size = {
            client.submit(_parcel(job), pure=False, retries=_RETRIES): len(job.sources)
            for job in jobs
        }
        try:
            for future in _as_they_end(client, address, size):
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
        except ImportError as error:
            raise RuntimeError(
                f"--scheduler {address}: {error}: workers need the same environment as this "
                "command, fusmae and its packages"
            ) from None
        finally:
            client.cancel(list(size))


def _parcel(job: Job) -> Callable[[], int | ValueError]:
    """`convert_on_worker(job)`, sent so that any Python can unwrap it.

    A worker without this package would die of unpacking the job, before it could say why.
    Functions in functions travel by value.
    """
    content = pickle.dumps((convert_on_worker, job))

    def unwrap() -> int | ValueError:
        import pickle
        import socket

        try:
            function, job = pickle.loads(content)  # noqa: S301 (our own bytes)
        except ImportError as error:
            raise ImportError(f"worker on host {socket.gethostname()}: {error}") from None
        result: int | ValueError = function(job)
        return result

    return unwrap


def check_scheduler(address: str) -> None:
    """Return, within seconds, if a Dask scheduler answers at this address.

    Dask's own client would ask for a minute, and for ever where something else listens.

    Raises:
        ValueError: it is no such address, nothing answers, or what does is no scheduler.
    """
    place = urllib.parse.urlsplit(address)
    try:
        if not place.hostname or not place.port:
            raise ValueError
        socket.create_connection((place.hostname, place.port), timeout=_ANSWER_S).close()
    except ValueError:
        raise ValueError(
            f"--scheduler {address}: expected an address such as tcp://host:8786"
        ) from None
    except OSError as error:
        told = f"no host {place.hostname}" if isinstance(error, socket.gaierror) else error.strerror
        raise ValueError(
            f"--scheduler {address}: no Dask scheduler there ({told or 'no answer'}): start one "
            "with `dask scheduler`, and give the address that it prints"
        ) from None
    answers = f"--scheduler {address}: {place.hostname}:{place.port} answers but is no Dask"
    # Workers that come and go are the scheduler's business, not the reader's of our messages.
    for logger in _LOGGERS:
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    try:
        kind = asyncio.run(asyncio.wait_for(_kind(address), _ANSWER_S))
    except TimeoutError:
        raise ValueError(f"{answers} scheduler") from None
    except Exception as error:  # whatever Dask's reader of messages makes of other bytes
        raise ValueError(f"{answers} scheduler ({error})") from None
    if kind != "Scheduler":
        raise ValueError(f"{answers} scheduler: it is a {kind}")


async def _kind(address: str) -> Any:
    """What the Dask process there calls itself."""
    comm = await connect(address)
    try:
        await comm.write({"op": "identity", "reply": True})
        return (await comm.read())["type"]
    finally:
        comm.abort()


def _as_they_end(client: Any, address: str, blocks: Collection[Any]) -> Iterator[Any]:
    """Each of these futures when it has ended; says so while there is no worker for the others."""
    ended = as_completed(blocks)
    say_at = time.monotonic()
    while not ended.is_empty():
        if ended.has_ready():
            yield ended.next()
            say_at = time.monotonic() + _SAY_AGAIN_S
        elif time.monotonic() < say_at:
            time.sleep(_LOOK_S)
        else:
            if not client.nthreads():
                say(f"no worker at {address}; waiting for one (`dask worker {address}` starts it)")
            say_at = time.monotonic() + _SAY_AGAIN_S
