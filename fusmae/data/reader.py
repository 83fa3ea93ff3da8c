"""Samples of a split by id: from the offset index straight into the rows of a batch.

The tar is never parsed: the manifest's layout says how far each array lies from the byte at
which its sample starts. What is read is still checked, byte for byte, to be that array.
"""

import functools
import hashlib
import io
import json
import tarfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fusmae.config import DataConfig
from fusmae.data.on_demand import OnDemand
from fusmae.data.read_plan import array_runs
from fusmae.data.remote import SAMPLES_NAME, local_folder, mirror_of
from fusmae.data.shard import OpenShard, most_open, replaced, version_at
from fusmae.data.table import column_names, has_pyarrow, read_column
from fusmae.labels import label_column
from fusmae.manifest import REPAIR, read_manifest
from fusmae.sample import TAR_BLOCK

# Text in KEY.json, as JSON knows no times.
_TIMES = ("time_s1", "time_s2")


class SplitReader:
    """The samples of one split of a dataset; safe to use from many threads.

    A shard of a mirror that is not there yet is fetched when it is opened.
    """

    def __init__(
        self,
        dataset: Path | str,
        split: str,
        arrays: Sequence[str] | None = None,
        cache_gb: float = DataConfig.cache_gb,
    ) -> None:
        """Read the manifest and the split's index; shards are opened when first needed.

        Args:
            dataset: the folder that holds `dataset.json`; a URL's comes from `locate_dataset`.
            split: the name of a split.
            arrays: the arrays that `read_into` reads; None for all of them.
            cache_gb: for a mirror, the limit of the cache that it lies in, in 10^9 bytes.

        Raises:
            ValueError: the dataset, the split, an array or the index is missing or broken, the
                split is empty, or `cache_gb` is not enough for a shard.
        """
        self.dataset = dataset = local_folder(dataset)
        self.split = split
        self.manifest = read_manifest(dataset)
        self.record = self.manifest.split(split)
        if self.record.num_samples == 0:
            raise ValueError(
                f"split {split!r} of {dataset} has no samples; those of its splits are "
                f"{ {name: record.num_samples for name, record in self.manifest.splits.items()} }"
            )
        self.mirror = mirror_of(dataset, cache_gb, split, self.record.shards)
        layout = self.manifest.layout
        known = [spec.name for spec in layout.arrays]
        wanted = known if arrays is None else list(arrays)
        if not wanted or not set(wanted) <= set(known):
            raise ValueError(f"cannot read arrays {wanted}: {dataset} has {known}")
        self.arrays = tuple(spec for spec in layout.arrays if spec.name in wanted)
        self._runs = array_runs(self.arrays, layout.offsets)
        self._json_offset = layout.json_offset
        self._ends = np.cumsum([shard.num_samples for shard in self.record.shards])
        self._offsets = self._read_index()
        # A shard may be opened long after the index was read, and more than once: it must be the
        # file that the index belongs to. Those of a mirror come and go, each checked as it comes.
        shards = () if self.mirror else self.record.shards
        self._versions = [version_at(dataset / shard.path) for shard in shards]
        self._gathered: dict[str, list[Any]] = {}
        self._shard: Callable[[int], OpenShard]
        if self.mirror:
            on_demand = OnDemand(self.mirror, self.record.shards)
            self._shard, self._close_shards = on_demand.open, on_demand.close
        else:
            cached = functools.lru_cache(most_open(len(shards)))(self._open)
            self._shard, self._close_shards = cached, cached.cache_clear

    def __repr__(self) -> str:
        return f"SplitReader({self.place})"

    @property
    def place(self) -> str:
        """Dataset and split, as reprs show them."""
        return f"{str(self.dataset)!r}, {self.split!r}"

    @property
    def num_samples(self) -> int:
        return self.record.num_samples

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        """Samples in each shard, in order."""
        return tuple(shard.num_samples for shard in self.record.shards)

    def _read_index(self) -> npt.NDArray[np.int64]:
        if self.record.index is None:
            raise ValueError(
                f"split {self.split!r} of {self.dataset} has no shards: "
                "run fusmae-ingest with --format shards"
            )
        if sum(self.shard_sizes) != self.num_samples:
            raise ValueError(
                f"split {self.split!r} of {self.dataset}: the manifest counts "
                f"{self.num_samples} samples and its shards {sum(self.shard_sizes)}"
            )
        path = self.dataset / self.record.index.path
        try:
            data = path.read_bytes()
            offsets = np.load(io.BytesIO(data), allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ValueError(f"cannot read index {path}: {reason}: {REPAIR}") from None
        if offsets.shape != (self.num_samples,) or offsets.dtype != np.int64:
            raise ValueError(
                f"index {path} is {offsets.dtype}{offsets.shape}, "
                f"its manifest says int64({self.num_samples},): {REPAIR}"
            )
        if hashlib.sha256(data).hexdigest() != self.record.index.sha256:
            raise ValueError(
                f"index {path} is not the one that its manifest was written with, and would give "
                f"other samples: {REPAIR}"
            )
        return offsets

    def check_shards(self) -> None:
        """Raises ValueError if a shard is missing or of another size; those of a mirror come."""
        for shard, version in enumerate(self._versions):
            if version is None or version[2] != self.record.shards[shard].bytes:
                self._open(shard)

    def _open(self, shard: int) -> OpenShard:
        record = self.record.shards[shard]
        opened = OpenShard(self.dataset / record.path, record)
        if opened.version != self._versions[shard]:
            raise ValueError(replaced(opened.path))
        return opened

    def shards_of(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The shard that each sample lies in, as its place in `record.shards`."""
        return np.searchsorted(self._ends, ids, side="right")

    def _locate(self, ids: npt.NDArray[np.int64]) -> tuple[list[int], list[int]]:
        """The shard of each sample and the byte at which the sample starts in it."""
        if len(ids) and not (ids.min() >= 0 and ids.max() < self.num_samples):
            raise ValueError(
                f"sample ids must be from 0 to {self.num_samples - 1}, "
                f"got {ids.min()} to {ids.max()}"
            )
        return self.shards_of(ids).tolist(), self._offsets[ids].tolist()

    def read_into(
        self,
        ids: npt.NDArray[np.int64],
        out: Mapping[str, npt.NDArray[Any]],
        open_shard: Callable[[int], OpenShard] | None = None,
    ) -> None:
        """Read samples `ids`, shape (n,): sample ids[i] into row i of each array of `out`.

        Args:
            ids: sample ids, in any order; repeats are fine.
            out: for each of this reader's arrays a C-contiguous array of shape
                (n, bands, size_px, size_px) and the stored dtype.
            open_shard: gives a shard by its place in `record.shards`; None for this reader's own
                way, which of a mirror keeps few.

        Raises:
            ValueError: an id does not exist, `out` is of another shape or dtype, or a shard
                is missing, truncated or does not hold the arrays where the index says.
            OSError: the disk failed; the message names the shard.
        """
        for spec in self.arrays:
            rows, shape = out[spec.name], (len(ids), *spec.shape)
            if rows.shape != shape or rows.dtype != spec.dtype or not rows.flags.c_contiguous:
                raise ValueError(
                    f"array {spec.name!r} wants a contiguous {np.dtype(spec.dtype)}{shape}, "
                    f"got {rows.dtype}{rows.shape}"
                )
        plan = [
            (run, [(out[piece.name], bytearray(piece.gap_bytes), piece) for piece in run.pieces])
            for run in self._runs
        ]
        for row, (shard_index, start) in enumerate(zip(*self._locate(ids), strict=True)):
            shard = (open_shard or self._shard)(shard_index)
            for run, targets in plan:
                buffers = [part for rows, gap, _ in targets for part in (gap, rows[row])]
                shard.read(buffers, run.num_bytes, start + run.start)
                for _, gap, piece in targets:
                    if not gap.endswith(piece.header):
                        raise ValueError(
                            f"shard {shard.path} does not hold array {piece.name!r} of the sample "
                            f"at byte {start}: the index and the shard are not of one dataset"
                        )
            shard.check_unchanged()

    def info(self, sample_id: int) -> dict[str, Any]:
        """The JSON member of a sample; errors as `describe`."""
        return self.describe(sample_id)[1]

    def describe(self, sample_id: int) -> tuple[str, dict[str, Any]]:
        """The key of a sample and its JSON member, from its shard.

        Raises:
            ValueError: the id does not exist, or the shard is missing or broken.
        """
        (shard_index,), (start,) = self._locate(np.array([sample_id], np.int64))
        shard = self._shard(shard_index)
        text_start = start + self._json_offset
        header = bytearray(TAR_BLOCK)
        shard.read([header], TAR_BLOCK, text_start - TAR_BLOCK)
        try:
            member = tarfile.TarInfo.frombuf(bytes(header), "utf-8", "strict")
            text = bytearray(member.size)
            shard.read([text], len(text), text_start)
            table: dict[str, Any] = json.loads(text)
        except (tarfile.HeaderError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"shard {shard.path} holds no JSON member for the sample at byte {start}: {error}"
            ) from None
        shard.check_unchanged()
        return member.name.removesuffix(".json"), table

    def keys(self) -> list[str]:
        """The key of each sample, in the order of their ids.

        Raises:
            ValueError: as `column`.
        """
        return self.column("key")

    def labels(self, label_set: str) -> list[list[str]]:
        """The class names of each sample, in the order of their ids.

        Raises:
            ValueError: the dataset has no such label set, a sample has no labels in it, the
                shards are not in the places that `samples.parquet` gives them, or as `column`.
        """
        if label_set not in self.manifest.label_sets:
            raise ValueError(
                f"{self.dataset} has no label set {label_set!r}; "
                f"it has {list(self.manifest.label_sets)}"
            )
        labels = self.column(label_column(label_set))
        unlabelled = sum(names is None for names in labels)
        if unlabelled:
            raise ValueError(
                f"{unlabelled} of {self.num_samples} samples of split {self.split!r} "
                f"have no {label_set} labels"
            )
        self.check_keys()
        return labels

    def column(self, name: str) -> list[Any]:
        """A column of `samples.parquet`, in the order of the sample ids.

        Without pyarrow it is gathered from the samples' JSON members and kept: a read a sample,
        30 us in a hot cache. Of a mirror, whose shards are elsewhere, it is not.

        Raises:
            ValueError: the table is missing, broken or without it; without pyarrow a shard is, or
                the dataset is a mirror.
        """
        if has_pyarrow() or self.mirror:
            return read_column(self.dataset, self.split, self.num_samples, name)
        if name not in self._gathered:
            warnings.warn(
                f"pyarrow is not installed, so {name} is gathered from the {self.num_samples:,} "
                f"samples themselves and not from {SAMPLES_NAME}: pip install pyarrow",
                stacklevel=2,
            )
            ids = range(self.num_samples)
            self._gathered[name] = [self._told(sample_id, name) for sample_id in ids]
        return self._gathered[name]

    def column_names(self) -> list[str]:
        """The columns of `samples.parquet`, without pyarrow those that `column` gathers.

        Raises:
            ValueError: as `column`.
        """
        return column_names(self.dataset) if has_pyarrow() or self.mirror else list(self._row(0))

    def _told(self, sample_id: int, name: str) -> Any:
        row = self._row(sample_id)
        if name not in row:
            raise ValueError(
                f"sample {row['key']!r} of {self.dataset} has no field {name!r}; it has {list(row)}"
            )
        return row[name]

    def _row(self, sample_id: int) -> dict[str, Any]:
        """What a sample's shard tells of it, by the names of the table's columns."""
        key, told = self.describe(sample_id)
        labels = told.pop("labels", {})
        sets = {label_column(name): labels.get(name) for name in self.manifest.label_sets}
        times = {name: datetime.fromisoformat(told[name]) for name in _TIMES if name in told}
        return {"key": key, **sets, **told, **times}

    def check_keys(self) -> None:
        """Look at one sample of each shard: what is known by row is of another sample if shards
        were exchanged. Those of a mirror were checked when they came.

        Raises:
            ValueError: a shard holds another sample than `samples.parquet` has in its place; or
                as `column` and `describe`.
        """
        if self.mirror or not has_pyarrow():  # then what is known is of the shards themselves
            return
        keys = self.keys()
        for end, size in zip(self._ends.tolist(), self.shard_sizes, strict=True):
            if size:
                self.check_key(self.describe(end - size)[0], keys[end - size])

    def check_key(self, found: str, key: str) -> None:
        """Raises ValueError if a shard has another key than `samples.parquet`."""
        if found != key:
            raise ValueError(
                f"the shards of {self.dataset} hold {found!r} where {SAMPLES_NAME} has {key!r}: "
                "check the dataset with fusmae-ingest verify"
            )

    def close(self) -> None:
        """Close the shards; they are opened again if something is read after all."""
        self._close_shards()
