"""One block of a dataset read back: what its samples are, and whether they agree with each other.

Runs in any process. What only the whole dataset can say is compared in `verify_tables` and
`verify_statistics`, from what `read_back` returns.
"""

import hashlib
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fusmae.manifest import FileRecord, ShardRecord
from fusmae.sample import ShardLayout, samples_in
from fusmae.sensors import ArraySpec

from . import statistics
from .layout import store_path
from .statistics import Partials
from .storage import Store
from .verify_source import NO_DIFFERENCES, SourceDifferences, compare_with_sources

# Samples held and counted at once: 35 MB of pixels. zarr's inner chunks are a fraction of it.
_TOGETHER = 128


@dataclass(frozen=True)
class StoredBlock:
    """Samples `first` and following of a split, its block `number`, and where they lie.

    `shard` and its part of the split's index, `starts`, are None in a dataset without shards.
    `from_source` are the samples to compare with their sources, by row in the block: key and
    facts of each, None where the shard holds them.
    """

    store: Store
    arrays: tuple[ArraySpec, ...]
    split: str
    number: int
    first: int
    num_samples: int
    shard: ShardRecord | None
    starts: npt.NDArray[np.int64] | None
    zarr: bool
    from_source: Mapping[int, tuple[str, dict[str, Any]] | None]

    @property
    def where(self) -> str:
        """What messages call it."""
        if self.shard:
            return f"{self.store}/{self.shard.path}"
        return self.store.zarr_location(store_path(self.split))


@dataclass(frozen=True)
class BlockContent:
    """What `read_back` found: `problems`, a line each, and what the block holds.

    `keys` and `infos` (KEY.json of each sample) are empty without shards. `partials` are those
    of `statistics`, encoded; None where the block could not be read to its end.
    """

    problems: tuple[str, ...]
    keys: tuple[str, ...] = ()
    infos: tuple[dict[str, Any], ...] = ()
    partials: bytes | None = None
    sources: SourceDifferences = NO_DIFFERENCES


@dataclass(frozen=True)
class _Run:
    """Some samples in a row; `first` is the place of the first in the block."""

    first: int
    stacks: dict[str, npt.NDArray[Any]]
    keys: tuple[str, ...] = ()
    infos: tuple[dict[str, Any], ...] = ()


def check_file(store: Store, file: FileRecord) -> str | None:
    """What is wrong with one file, compared with its record; None also where it is missing."""
    try:
        size, sha256 = store.hash(file.path)
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{store}/{file.path}: cannot be read ({error.strerror or error})"
    return _difference(f"{store}/{file.path}", size, sha256, file)


def _difference(where: str, size: int, sha256: str, record: FileRecord | ShardRecord) -> str | None:
    if size != record.bytes:
        return f"{where}: {size} bytes, the manifest says {record.bytes}"
    if sha256 != record.sha256:
        return f"{where}: sha256 {sha256}, the manifest says {record.sha256}"
    return None


def read_back(block: StoredBlock) -> BlockContent:
    """Read every sample of a block: shapes, index, zarr against shards, sources if asked for."""
    data = b""
    if block.shard:
        try:
            data = block.store.read(block.shard.path)
        except OSError as error:
            return BlockContent((f"{block.where}: cannot be read ({error.strerror or error})",))
        sha256 = hashlib.sha256(data).hexdigest()
        changed = _difference(block.where, len(data), sha256, block.shard)
        if changed:
            return BlockContent((changed,))
    try:
        return _read_back(block, data)
    # What the file holds is what was written, so these are mistakes of whoever wrote it.
    except (ValueError, KeyError, RuntimeError, OSError, tarfile.TarError) as error:
        return BlockContent((f"{block.where}: cannot be read as what it is ({error})",))


def _read_back(block: StoredBlock, data: bytes) -> BlockContent:
    problems: list[str] = []
    keys: list[str] = []
    infos: list[dict[str, Any]] = []
    sources = NO_DIFFERENCES
    partials: Partials | None = None
    for run in _runs_of_shard(block, data) if block.shard else _runs_of_zarr(block):
        count = len(next(iter(run.stacks.values())))
        counted = {name: statistics.measure(stack) for name, stack in run.stacks.items()}
        partials = statistics.merge([partials, counted]) if partials else counted
        keys += run.keys
        infos += run.infos
        if block.shard:
            problems += _index_problems(block, data, run)
        if block.shard and block.zarr:
            problems += _zarr_problems(block, run)
        for row in range(count):
            if run.first + row in block.from_source:
                told = block.from_source[run.first + row] or (run.keys[row], run.infos[row])
                pixels = {name: stack[row] for name, stack in run.stacks.items()}
                sources += compare_with_sources(block.arrays, *told, pixels)
    encoded = statistics.encode(partials) if partials else None
    return BlockContent(tuple(problems), tuple(keys), tuple(infos), encoded, sources)


def _runs_of_shard(block: StoredBlock, data: bytes) -> Iterator[_Run]:
    waiting: list[dict[str, Any]] = []
    first = 0
    for sample in samples_in(data):
        for spec in block.arrays:
            array = sample[spec.name]
            if array.shape != spec.shape or array.dtype != np.dtype(spec.dtype):
                raise ValueError(f"{sample['__key__']}: {spec.name} is {array.dtype}{array.shape}")
        waiting.append(sample)
        if len(waiting) == _TOGETHER:
            yield _run(block.arrays, first, waiting)
            first += len(waiting)
            waiting = []
    if waiting:
        yield _run(block.arrays, first, waiting)


def _run(arrays: Sequence[ArraySpec], first: int, samples: Sequence[dict[str, Any]]) -> _Run:
    return _Run(
        first,
        {spec.name: np.stack([sample[spec.name] for sample in samples]) for spec in arrays},
        tuple(sample["__key__"] for sample in samples),
        tuple(sample["json"] for sample in samples),
    )


def _runs_of_zarr(block: StoredBlock) -> Iterator[_Run]:
    for first in range(0, block.num_samples, _TOGETHER):
        count = min(_TOGETHER, block.num_samples - first)
        stacks = {}
        for spec in block.arrays:
            stacks[spec.name] = stack = _zarr_rows(block, spec, first, count)
            if stack.shape != (count, *spec.shape) or stack.dtype != np.dtype(spec.dtype):
                raise ValueError(f"{spec.name} is {stack.dtype}{stack.shape[1:]}")
        yield _Run(first, stacks)


def _zarr_rows(block: StoredBlock, spec: ArraySpec, first: int, count: int) -> npt.NDArray[Any]:
    # zarr takes half a second to import, which a dataset of shards alone can do without.
    from .zarr_store import open_array

    array = open_array(block.store.zarr_location(store_path(block.split)), spec)
    begin = block.first + first
    return np.asarray(array[begin : begin + count])


def _index_problems(block: StoredBlock, data: bytes, run: _Run) -> Iterator[str]:
    assert block.starts is not None
    offsets = ShardLayout(block.arrays).offsets
    for row, key in enumerate(run.keys):
        # More samples than the manifest says are named where keys are compared.
        for start in block.starts[run.first + row : run.first + row + 1]:
            for spec in block.arrays:
                pixels = run.stacks[spec.name][row].tobytes()
                begin = int(start) + offsets[spec.name]
                if data[begin : begin + len(pixels)] != pixels:
                    yield f"{block.where}: the index does not point at {spec.name} of {key}"
                    break


def _zarr_problems(block: StoredBlock, run: _Run) -> Iterator[str]:
    for spec in block.arrays:
        stack = run.stacks[spec.name]
        if _zarr_rows(block, spec, run.first, len(stack)).tobytes() != stack.tobytes():
            location = block.store.zarr_location(store_path(block.split))
            yield f"{location}/{spec.name}: pixels differ from {block.where}"
