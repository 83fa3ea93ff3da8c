"""A split as PyTorch knows it: `ds[i]`, `ds.sample(key)`, and a stream for a `DataLoader`.

For code that is not ours: numpy and torch are enough, except where keys or flags are looked up.
`TrainLoader` is faster, and is what several ranks need.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from fusmae.config import DataConfig, SubsetConfig
from fusmae.data.order import Order
from fusmae.data.reader import SplitReader, arrays_for
from fusmae.data.resume import consumed_of, describe_order
from fusmae.data.ring import Batch, Ring, RingOptions
from fusmae.data.source import LocalSource
from fusmae.data.subset import subset_ids
from fusmae.labels import multi_hot
from fusmae.manifest import Manifest, read_manifest
from fusmae.sensors import ArraySpec

Sample = dict[str, Any]
_WHOLE = SubsetConfig()
# Batches in memory at once, as in `TrainLoader`.
_RING = 3


def open_dataset(
    path: Path | str,
    split: str = "train",
    bands: Mapping[str, Sequence[str]] | None = None,
    labels: str | None = None,
    subset: SubsetConfig = _WHOLE,
    cache_gb: float = DataConfig.cache_gb,
) -> "DatasetView":
    """A split of a dataset of `fusmae-ingest`.

    Args:
        path: the folder that holds `dataset.json`; a URL's comes from `locate_dataset`.
        split: its name.
        bands: sensor -> band names; arrays without any of them are not read. None for all arrays.
        labels: a label set, to have the labels of each sample; None for none.
        subset: which samples; all by default.
        cache_gb: for a mirror, the limit of the cache that it lies in, in 10^9 bytes; an open
            view keeps an eighth of it, or one shard.

    Raises:
        ValueError: the dataset is broken or lacks the split, a band, the label set or the subset.
    """
    if "://" in str(path):
        raise ValueError(
            f"{path}: open_dataset reads a folder; stream a URL with "
            "TrainLoader(locate_dataset(URL, CACHE), ...)"
        )
    return DatasetView(Path(path), split, bands, labels, subset, cache_gb)


class DatasetView(Dataset[Sample]):
    """The samples of a split by number, from 0 to len - 1, or by key.

    A sample is a dict: `key`, each array by name as it is stored, a tensor (C, H, W) of all the
    array's bands at native resolution (`bands` names them), and `labels`, (classes,) float32 of
    0 and 1, if a label set was asked for. Goes through a `DataLoader` as it is.
    """

    def __init__(
        self,
        path: Path,
        split: str,
        bands: Mapping[str, Sequence[str]] | None,
        labels: str | None,
        subset: SubsetConfig,
        cache_gb: float = DataConfig.cache_gb,
    ) -> None:
        """As `open_dataset`."""
        self._arguments = (path, split, bands, labels, subset, cache_gb)
        manifest = read_manifest(path)
        arrays = None if bands is None else arrays_for(manifest, bands)
        self.reader = SplitReader(path, split, arrays, cache_gb)
        self.subset = subset
        self.subset_ids = subset_ids(self.reader, subset)
        if labels is not None and labels not in manifest.label_sets:
            raise ValueError(
                f"{path} has no label set {labels!r}; it has {list(manifest.label_sets)}"
            )
        self._label_set = labels

    def __reduce__(self) -> tuple[Any, ...]:
        # Open files and locks do not go to a worker process; it opens its own.
        return DatasetView, self._arguments

    @property
    def manifest(self) -> Manifest:
        return self.reader.manifest

    @property
    def arrays(self) -> tuple[ArraySpec, ...]:
        """What is read of each sample."""
        return self.reader.arrays

    @property
    def bands(self) -> dict[str, tuple[str, ...]]:
        """The bands of each array, in the order of its channels."""
        return {spec.name: spec.band_names for spec in self.arrays}

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of `labels`, in their order; none where no label set was asked for."""
        return self.manifest.label_sets[self._label_set] if self._label_set else ()

    def __len__(self) -> int:
        return self.reader.num_samples if self.subset_ids is None else len(self.subset_ids)

    def __getitem__(self, number: int) -> Sample:
        place = range(len(self))[number]
        return self._read(place if self.subset_ids is None else int(self.subset_ids[place]))

    def sample(self, key: str) -> Sample:
        """The sample with this key, in the subset or not.

        Raises:
            ValueError: the split has no such sample, or pyarrow is not installed.
        """
        if key not in self._rows:
            raise ValueError(f"split {self.reader.split!r} of {self.reader.dataset} has no {key!r}")
        return self._read(self._rows[key])

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {key: row for row, key in enumerate(self.reader.keys())}

    def _read(self, sample_id: int) -> Sample:
        rows = {spec.name: np.empty((1, *spec.shape), spec.dtype) for spec in self.arrays}
        self.reader.read_into(np.array([sample_id]), rows)
        key, _ = self.reader.describe(sample_id)
        arrays = {name: torch.from_numpy(row[0]) for name, row in rows.items()}
        labels = {"labels": self.labels_of([sample_id])[0]} if self._label_set else {}
        return {"key": key, **arrays, **labels}

    def labels_of(self, sample_ids: Sequence[int]) -> Tensor:
        """Labels of samples by their rows in the split, (n, classes) float32, from their JSON.

        Raises:
            ValueError: no label set was asked for, or a sample has no labels in it.
        """
        if self._label_set is None:
            raise ValueError("no label set was asked for: open_dataset(..., labels=NAME)")
        names = []
        for sample_id in sample_ids:
            key, info = self.reader.describe(sample_id)
            labels = info.get("labels", {}).get(self._label_set)
            if labels is None:
                raise ValueError(f"sample {key!r} has no {self._label_set} labels")
            names.append(labels)
        return torch.from_numpy(multi_hot(names, self.classes)).to(torch.float32)

    def stream(
        self,
        batch: int,
        seed: int = 0,
        epochs: int | None = None,
        window: int = 0,
        num_threads: int = 2,
    ) -> "SampleStream":
        """The samples in a shuffled order, in batches.

        Args:
            batch: samples of a batch.
            seed: of the order.
            epochs: visits of every sample, the last batch being smaller where it must; None for
                no end.
            window: shards to shuffle together; 0 for all of them.
            num_threads: threads that read, in each process.

        Raises:
            ValueError: a number is out of range.
        """
        return SampleStream(self, batch, seed, epochs, window, num_threads)


class SampleStream(IterableDataset[Sample]):
    """Batches of a view in the order of `TrainLoader`, for `DataLoader(stream, batch_size=None)`.

    A batch is a dict: each array by name, (B, C, H, W), `positions` and `sample_ids`, (B,) int64,
    and `labels`, (B, classes), if the view has them; all are the caller's own. Of n workers of a
    `DataLoader`, worker w makes batches w, w + n, ..., which the `DataLoader` hands out in turn:
    the same sequence as without workers, each sample once an epoch.

    Iterated again, it goes on after the last batch that was taken; after its end it starts over.
    Workers have copies of it, so a `DataLoader` with workers starts each iteration where this
    one stands.
    """

    def __init__(
        self,
        view: DatasetView,
        batch: int,
        seed: int,
        epochs: int | None,
        window: int,
        num_threads: int,
    ) -> None:
        """As `DatasetView.stream`."""
        if batch < 1 or num_threads < 1 or (epochs is not None and epochs < 1):
            raise ValueError(
                f"batch = {batch}, num_threads = {num_threads} and epochs = {epochs} "
                "must be 1 or more"
            )
        self._view = view
        self._batch, self._num_threads = batch, num_threads
        self._seed, self._window = seed, window
        self._stop = None if epochs is None else epochs * len(view)
        # First position of the next batch, and the worker that it is the next of.
        self._next = 0
        self._worker: tuple[int, int] | None = None
        self._order()  # refuses what is out of range

    def _order(self) -> Order:
        view = self._view
        return Order(view.reader.shard_sizes, self._seed, self._window, view.subset_ids)

    def _first_and_step(self) -> tuple[int, int]:
        """The position of this process's next batch, and how far apart its batches are."""
        info = get_worker_info()
        worker = None if info is None or info.num_workers == 1 else (info.id, info.num_workers)
        if self._worker not in (None, worker):
            raise ValueError(
                f"this state is worker {self._worker}'s, and this is worker {worker}: "
                "resume with the number of workers with which it was saved"
            )
        number, count = worker or (0, 1)
        first = self._next + (0 if self._worker else number * self._batch)
        self._worker = worker
        return first, count * self._batch

    def __iter__(self) -> Iterator[Sample]:
        first, step = self._first_and_step()
        self._next = first
        options = RingOptions(self._num_threads, _RING, False, torch.device("cpu"))
        source = LocalSource(self._view.reader, self._order().samples)
        ring = Ring(source, self._cuts(first, step), self._batch, options)
        try:
            while (batch := ring.next_batch()) is not None:
                sample = self._own(batch)
                self._next += step
                yield sample
        finally:
            ring.close()
        self._next, self._worker = 0, None

    def _cuts(self, first: int, step: int) -> Iterator[tuple[int, int]]:
        position = first
        while self._stop is None or position < self._stop:
            left = self._batch if self._stop is None else self._stop - position
            yield position, min(self._batch, left)
            position += step

    def _own(self, batch: Batch) -> Sample:
        """A copy: the next batch overwrites this one's tensors."""
        sample = {name: array.clone() for name, array in batch.arrays.items()}
        sample["positions"] = batch.positions.clone()
        sample["sample_ids"] = batch.sample_ids.clone()
        if self._view.classes:
            sample["labels"] = self._view.labels_of(batch.sample_ids.tolist())
        return sample

    def state_dict(self, num_batches: int = 0) -> dict[str, Any]:
        """Where the stream stands, JSON-ready.

        Args:
            num_batches: batches that workers have handed out in this iteration; without workers
                the stream counts by itself.
        """
        state = {"consumed": self._next + num_batches * self._batch, **self._definition()}
        return state | ({"worker": [*self._worker, self._batch]} if self._worker else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the batches that were taken before `state`.

        In batches of another size too, unless a worker saved the state.

        Raises:
            ValueError: the state belongs to another order or other shards, and what differs is
                named; or to a worker with batches of another size.
        """
        consumed = consumed_of(state, self._definition())
        *worker, batch = state.get("worker") or [self._batch]
        if batch != self._batch:
            raise ValueError(
                f"this state is a worker's with batches of {batch}, these are of {self._batch}"
            )
        self._next = consumed
        self._worker = (worker[0], worker[1]) if worker else None

    def _definition(self) -> dict[str, Any]:
        view = self._view
        return describe_order(view.reader, self._order(), self._seed, self._window, view.subset)
