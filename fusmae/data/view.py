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
            ValueError: the split has no such sample, its shards hold another one in its place, or
                pyarrow is not installed.
        """
        if key not in self._rows:
            raise ValueError(f"split {self.reader.split!r} of {self.reader.dataset} has no {key!r}")
        sample = self._read(self._rows[key])
        self.reader.check_key(sample["key"], key)
        return sample

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
    Workers have copies of it and read ahead of what is taken: each iteration of a `DataLoader`
    with workers starts where this one stood when they got them.
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
        # First position of the next batch. In a worker it stays what it was.
        self._next = 0
        # What `state_dict` tells: that, or a worker's next batch and (its number, how many).
        self._place: tuple[int, tuple[int, int] | None] = (0, None)
        self._is_loaded = False  # the next iteration starts at `_place`
        self._order()  # refuses what is out of range

    def _order(self) -> Order:
        view = self._view
        return Order(view.reader.shard_sizes, self._seed, self._window, view.subset_ids)

    def _first_batch(self, worker: tuple[int, int]) -> int:
        """The position at which a worker's iteration starts."""
        position, owner = self._place if self._is_loaded else (self._next, None)
        if owner not in (None, worker):
            raise ValueError(
                f"this state is worker {owner}'s, and this is worker {worker}: "
                "resume with the number of workers with which it was saved"
            )
        self._is_loaded = False
        return position if owner else position + worker[0] * self._batch

    def __iter__(self) -> Iterator[Sample]:
        info = get_worker_info()
        worker = (info.id, info.num_workers) if info else (0, 1)
        position, step = self._first_batch(worker), worker[1] * self._batch
        self._stand_at(position, worker)
        options = RingOptions(self._num_threads, _RING, False, torch.device("cpu"))
        source = LocalSource(self._view.reader, self._order().samples)
        ring = Ring(source, self._cuts(position, step), self._batch, options)
        try:
            while (batch := ring.next_batch()) is not None:
                sample = self._own(batch)
                position = self._clamp(position + step)
                self._stand_at(position, worker)
                yield sample
        finally:
            ring.close()
        self._stand_at(0, (0, 1))

    def _stand_at(self, position: int, worker: tuple[int, int]) -> None:
        self._place = position, worker if worker[1] > 1 else None
        if get_worker_info() is None:
            self._next = position

    def _clamp(self, position: int) -> int:
        """The last batch may be smaller: nothing after it is consumed."""
        return position if self._stop is None else min(position, self._stop)

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
        position, worker = self._place
        consumed = self._clamp(position + num_batches * self._batch)
        state = {"consumed": consumed, **self._definition()}
        return state | ({"worker": [*worker, self._batch, self._stop]} if worker else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the batches that were taken before `state`.

        In batches of another size and for other epochs too, unless a worker saved the state.

        Raises:
            ValueError: the state belongs to another order or other shards, and what differs is
                named; or to a worker with batches of another size or other epochs.
        """
        consumed = consumed_of(state, self._definition())
        saved = state.get("worker")
        number, count, batch, stop = saved or (0, 1, self._batch, self._stop)
        if (batch, stop) != (self._batch, self._stop):
            raise ValueError(
                f"this state is a worker's with batches of {batch}, these are of {self._batch}; or "
                f"its epochs end at {stop} and these at {self._stop}"
            )
        self._place = consumed, (number, count) if saved else None
        self._is_loaded = True
        if get_worker_info() is None and not saved:
            self._next = consumed

    def _definition(self) -> dict[str, Any]:
        view = self._view
        return describe_order(view.reader, self._order(), self._seed, self._window, view.subset)
