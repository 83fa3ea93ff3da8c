"""A split as PyTorch knows it: `ds[i]`, `ds.sample(key)`, and `ds.stream` (`sample_stream.py`).

For code that is not ours: for a folder numpy and torch are enough.
`TrainLoader` is faster, and is what several ranks need.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fusmae.config import DataConfig, SubsetConfig, build
from fusmae.data.bands import arrays_for
from fusmae.data.reader import SplitReader
from fusmae.data.remote import local_folder, locate_dataset
from fusmae.data.sample_stream import Sample, SampleStream
from fusmae.data.subset import subset_ids
from fusmae.data.whole import whole
from fusmae.labels import multi_hot
from fusmae.manifest import Manifest, read_manifest
from fusmae.sensors import ArraySpec

_WHOLE = SubsetConfig()
# Columns with what SEN12MS tells of classes beyond its label set; `info` names SET/label_single.
_COLUMNS = ("label_single", "fractions")


def open_dataset(
    path: Path | str,
    split: str = "train",
    bands: Mapping[str, Sequence[str]] | None = None,
    labels: str | None = None,
    subset: SubsetConfig | Mapping[str, Any] = _WHOLE,
    cache_gb: float = DataConfig.cache_gb,
    cache: Path | str | None = None,
) -> "DatasetView":
    """A split of a dataset of `fusmae-ingest`.

    Args:
        path: the folder that holds `dataset.json`, or a URL of fsspec.
        split: its name.
        bands: sensor -> band names; arrays without any of them are not read, the others are as
            they are stored, with all their bands. None for all arrays.
        labels: a label set, to have the labels of each sample; None for none.
        subset: which samples, as `SubsetConfig` or a dict of its fields; all by default.
        cache_gb: of a URL, the limit of its cache in 10^9 bytes; an open view keeps an eighth of
            it, or one shard.
        cache: of a URL, the local folder that its shards are fetched into.

    Raises:
        ValueError: the dataset is broken or lacks the split, a band, the label set or the subset;
            or it is at a URL and `cache` is missing.
    """
    if "://" in str(path) and cache is None:
        raise ValueError(
            f"{path} is a URL: say where its shards may be kept, open_dataset(URL, cache=FOLDER)"
        )
    if isinstance(subset, Mapping):
        subset = build(SubsetConfig, dict(subset), "subset.")
    if not isinstance(subset, SubsetConfig):
        raise ValueError(f"subset = {subset!r} must be a dict, such as {{'fraction': 0.1}}")
    if subset.keys and not isinstance(subset.keys, tuple):
        # As the dataset's: a worker process, whose folder may be another, reads the file again.
        subset = replace(subset, keys=Path(subset.keys).absolute())
    folder = local_folder(path) if cache is None else locate_dataset(path, cache)
    return DatasetView(folder, split, bands, labels, subset, cache_gb)


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
        if labels is not None and labels not in list(manifest.label_sets):
            raise ValueError(
                f"{path} has no label set {labels!r}; it has {list(manifest.label_sets)}"
                f"{_where_it_is(labels, self.reader)}"
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

    def __repr__(self) -> str:
        of = "" if self.subset_ids is None else f" of {self.reader.num_samples:,}"
        labels = f", labels={self._label_set!r}" if self._label_set else ""
        return (
            f"DatasetView({self.reader.place}, {len(self):,}{of} "
            f"samples of {', '.join(self.bands)}{labels})"
        )

    def __getitem__(self, number: int) -> Sample:
        """The sample of a number, from the end if below 0.

        Raises:
            TypeError: it is no whole number.
            IndexError: there are not so many samples.
        """
        try:
            if isinstance(number, bool):
                raise TypeError  # as numpy's, whose array[True] is not array[1]
            place = range(len(self))[index(number)]
        except TypeError:
            raise TypeError(
                f"ds[{number!r}] must be ds[NUMBER]; by a key it is ds.sample(KEY), several are "
                "[ds[i] for i in NUMBERS]"
            ) from None
        except IndexError:
            raise IndexError(f"ds[{number}]: it has {len(self):,} samples, from 0 on") from None
        return self._read(place if self.subset_ids is None else int(self.subset_ids[place]))

    def sample(self, key: str) -> Sample:
        """The sample with this key, in the subset or not.

        Raises:
            ValueError: the split has no such sample, or its shards hold another one in its place;
                or as `SplitReader.column`.
        """
        if not isinstance(key, str) or key not in self._rows:
            raise ValueError(
                f"split {self.reader.split!r} of {self.reader.dataset} has no sample {key!r}; its "
                f"keys are such as {next(iter(self._rows))!r}"
            )
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

    def keys_of(self, sample_ids: Sequence[int] | Tensor) -> list[str]:
        """The keys of samples by their rows in the split, such as a batch's `sample_ids`.

        Raises:
            ValueError: they are no such rows.
        """
        return [self.reader.describe(row)[0] for row in _rows_of(sample_ids)]

    def labels_of(self, sample_ids: Sequence[int] | Tensor) -> Tensor:
        """Labels of samples by their rows in the split, (n, classes) float32, from their JSON.

        Raises:
            ValueError: no label set was asked for, a sample has no labels in it, or they are no
                such rows.
        """
        if self._label_set is None:
            raise ValueError("no label set was asked for: open_dataset(..., labels=NAME)")
        names = []
        for row in _rows_of(sample_ids):
            key, info = self.reader.describe(row)
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
    ) -> SampleStream:
        """The samples in a shuffled order, in batches, the same on each rank of a distributed run.

        Warns where there are several ranks, to which `TrainLoader` gives a share each.

        Args:
            batch: samples of a batch.
            seed: of the order.
            epochs: visits of every sample in an iteration, of `len(ds)` samples each. Batches run
                on over the ends of epochs, and the last is smaller where it must. None for no end.
                1 for a loop over epochs, with `stream.set_epoch`.
            window: shards to shuffle together; 0 for all of them, or of a URL whose cache does
                not hold that, as many as docs/REMOTE.md says.
            num_threads: threads that read, in each process.

        Raises:
            ValueError: a number is out of range, a shard is missing, or the cache of a URL cannot
                hold the window.
        """
        return SampleStream(self, batch, seed, epochs, window, num_threads)


def _where_it_is(labels: object, reader: SplitReader) -> str:
    """Where to read what is no label set but looks like one; "" where the dataset has it not."""
    column = str(labels).rpartition("/")[2]
    try:
        is_there = column in _COLUMNS and column in reader.column_names()
    except ValueError:  # what there is cannot be told
        is_there = False
    if not is_there:
        return ""
    return (
        f". {column} is a column of samples.parquet: open the dataset without it, "
        f"ds.reader.column({column!r}) has a value for each row of the split"
    )


def _rows_of(sample_ids: Sequence[int] | Tensor) -> list[int]:
    try:
        return [whole("sample id", row, least=0) for row in sample_ids]
    except TypeError:
        raise ValueError(
            f"sample_ids = {sample_ids!r} must be a list of rows of the split, or the sample_ids "
            "of a batch"
        ) from None
