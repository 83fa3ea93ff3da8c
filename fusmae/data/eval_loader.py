"""`EvalLoader`: one visit of every sample of a split, or of some of it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fusmae.config import DataConfig
from fusmae.data.opening import Device, check_rank, open_split, resolve_device
from fusmae.data.ring import Batch, Ring, RingOptions
from fusmae.data.streams import evaluation_source
from fusmae.data.subset import evaluated_ids
from fusmae.data.whole import whole


class EvalLoader:
    """One rank's share of a split, each sample once and in order, each time it is iterated.

    The samples are cut into one contiguous share a rank, all of one length; the last shares
    are filled up with repeats of weight 0, whose positions are `num_samples` or more. On one
    rank nothing is padded. The last batch may be smaller. Batches live as in `TrainLoader`.
    """

    def __init__(
        self,
        dataset: Path | str,
        split: str,
        data: DataConfig,
        batch: int,
        rank: int = 0,
        world_size: int = 1,
        sample_ids: npt.NDArray[np.int64] | None = None,
        num_threads: int = 2,
        ring: int = 3,
        pin: bool = False,
        device: Device = None,
    ) -> None:
        """Open the split; threads live as long as an iteration.

        Args:
            dataset: the folder that holds `dataset.json`; a URL's comes from `locate_dataset`.
            split: the split to visit; `data.split` is the one to train on.
            data: the bands, only arrays with these are read; and `data.subset.exclude`, whose
                samples are left out. The subset's other fields are of training alone.
            batch: samples of a batch.
            rank: this process's number, from 0 to world_size - 1.
            world_size: how many processes share the samples.
            sample_ids: the samples to visit, in this order, excluded or not; None for the
                whole split without what is excluded.
            num_threads: threads that read.
            ring: batches in memory at once, with the one that the caller holds.
            pin: whether host memory is page-locked, which fast copies to a GPU need.
            device: where the batches are wanted; None for the CPU.

        Raises:
            ValueError: a number is out of range, there is no sample, the dataset is broken or
                lacks the split, a band, a sample or an excluded flag, or CUDA is wanted where
                there is none.
        """
        check_rank(rank, world_size)
        self._options = RingOptions(num_threads, ring, pin, resolve_device(device))
        self._reader = open_split(dataset, split, data)
        last = self._reader.num_samples - 1
        if sample_ids is None:
            sample_ids = evaluated_ids(self._reader, data.subset)
        ids = np.asarray(sample_ids)
        are_whole = ids.ndim == 1 and ids.dtype.kind in "iu"  # a mask is neither
        if not are_whole or len(ids) == 0 or ids.min() < 0 or ids.max() > last:
            raise ValueError(
                f"an evaluation of split {split!r} needs sample ids from 0 to {last}, got {ids}"
            )
        ids, self.num_samples = ids.astype(np.int64), len(ids)
        share = -(-len(ids) // world_size)
        self._ids = np.concatenate([ids, np.repeat(ids[-1:], share * world_size - len(ids))])
        self._positions = range(rank * share, (rank + 1) * share)
        self._batch = whole("batch", batch)

    def __repr__(self) -> str:
        return (
            f"EvalLoader({self._reader.place}, {self.num_samples:,} samples, batch={self._batch})"
        )

    def __len__(self) -> int:
        """Batches of one visit, the same on every rank."""
        return -(-len(self._positions) // self._batch)

    def __iter__(self) -> Iterator[Batch]:
        stop = self._positions.stop
        ring = Ring(
            evaluation_source(self._reader, self._ids, self._positions),
            ((first, min(self._batch, stop - first)) for first in self._positions[:: self._batch]),
            self._batch,
            self._options,
            self.num_samples,
        )
        try:
            while (batch := ring.next_batch()) is not None:
                yield batch
        finally:
            ring.close()
