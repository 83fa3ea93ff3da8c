"""What a ring reads from: the samples that stand at given positions of an order."""

import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fusmae.data.on_demand import OnDemand
from fusmae.data.reader import SplitReader
from fusmae.sensors import ArraySpec

Ids = npt.NDArray[np.int64]
# Gives the sample ids at positions start ... start + count - 1, shape (count,).
Samples = Callable[[int, int], Ids]


class Source(Protocol):
    """`read` is called by the ring's reading threads, the rest by the consumer's."""

    @property
    def arrays(self) -> tuple[ArraySpec, ...]:
        """The arrays of a sample, in stored order."""

    def read(self, position: int, ids: Ids, out: Mapping[str, npt.NDArray[Any]]) -> None:
        """Read the samples from `position` on: `ids` is filled with theirs, (n,), and each array
        of `out` with their pixels, (n, bands, size_px, size_px)."""

    def want(self, position: int, count: int) -> None:
        """Learn which samples the consumer waits for now; the threads read ahead of these."""

    def stop(self) -> None:
        """Make reads that wait for something raise. May be called again."""


class LocalSource:
    """A split that is here as a whole, or the mirror of one, fetched as it is read."""

    def __init__(self, reader: SplitReader, samples: Samples) -> None:
        self._reader, self._samples = reader, samples
        self._stopped = threading.Event()
        # With a way to stop of its own: the reader may be another's as well.
        self._on_demand: OnDemand | None = None
        if reader.mirror:
            self._on_demand = OnDemand(reader.mirror, reader.record.shards, self._pause)

    @property
    def arrays(self) -> tuple[ArraySpec, ...]:
        return self._reader.arrays

    def read(self, position: int, ids: Ids, out: Mapping[str, npt.NDArray[Any]]) -> None:
        ids[:] = self._samples(position, len(ids))
        if self._on_demand:
            self._reader.read_into(ids, out, self._on_demand.open)
        else:
            self._reader.read_into(ids, out)

    def want(self, position: int, count: int) -> None:
        """As `Source.want`, of no use here."""

    def stop(self) -> None:
        """As `Source.stop`; a request that the store has not answered ends first."""
        self._stopped.set()
        if self._on_demand:
            self._on_demand.close()

    def _pause(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise ValueError("this loader is closed")
