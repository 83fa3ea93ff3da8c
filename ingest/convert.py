"""One block in, one tar shard and one shard of each zarr array out: the unit of ingest.

Runs in any process: a job holds all it needs, touches no other block's files, and doing it
twice does no harm. Its record, written last, is what marks it done.
"""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fusmae.manifest import FileRecord, ShardRecord
from fusmae.sample import TAR_END, ShardLayout, encode

from . import statistics
from .geotiff import Grid, footprints
from .plan import Block
from .storage import SCRATCH, AtomicFile, write_file
from .zarr_store import encode_shard, shard_path


@dataclass(frozen=True)
class Sample:
    """One sample as read from its source: arrays by name, facts for KEY.json, its grid."""

    key: str
    arrays: dict[str, npt.NDArray[Any]]
    facts: dict[str, Any]
    grid: Grid


@dataclass(frozen=True)
class Job:
    """A block, its sources in the block's order, and where and how to write it.

    `read` turns a source into a Sample; it must be a module-level function, so that worker
    processes find it by name.
    """

    root: Path
    name: str
    block: Block
    sources: tuple[Any, ...]
    read: Callable[[Any], Sample]
    layout: ShardLayout
    samples_per_shard: int
    formats: frozenset[str]

    @property
    def shard_path(self) -> str:
        return f"shards/{self.block.split}/{self.name}-{self.block.label}.tar"


@dataclass(frozen=True)
class BlockRecord:
    """What the finishing step needs to know of a block that is done.

    `rows` has an entry a sample: key, offset in the shard, footprint ring and facts.
    """

    split: str
    index: int
    shard: ShardRecord | None
    zarr: tuple[FileRecord, ...]
    statistics: dict[str, statistics.Partial]
    rows: tuple[dict[str, Any], ...]


def record_path(block: Block) -> str:
    return f"{SCRATCH}/blocks/{block.label}.json"


def convert(job: Job, on_sample: Callable[[], None] = lambda: None) -> BlockRecord:
    """Write the block's files and its record; `on_sample` is called after each sample.

    Raises:
        ValueError: a source is bad; nothing of the block is left looking complete.
        OSError: the disk is full or not writable.
    """
    rows: list[dict[str, Any]] = []
    grids: list[Grid] = []
    partials: dict[str, list[statistics.Partial]] = {s.name: [] for s in job.layout.arrays}
    stacks = _empty_stacks(job)
    shard = AtomicFile(job.root, job.shard_path) if "shards" in job.formats else None
    with shard or nullcontext():
        for row, source in enumerate(job.sources):
            sample = job.read(source)
            rows.append(
                {"key": sample.key, "offset": shard.size if shard else None, "facts": sample.facts}
            )
            grids.append(sample.grid)
            for name, pixels in sample.arrays.items():
                partials[name].append(statistics.partial(pixels))
                if stacks:
                    stacks[name][row] = pixels
            if shard:
                shard.write(encode(job.layout, sample.key, sample.arrays, sample.facts))
            on_sample()
        if shard:
            shard.write(TAR_END)
    for entry, ring in zip(rows, footprints(grids), strict=True):
        entry["footprint"] = ring.tolist()
    record = BlockRecord(
        job.block.split,
        job.block.index,
        ShardRecord(*_fields(shard.record), num_samples=len(rows)) if shard else None,
        tuple(_write_zarr(job, stacks)),
        {name: statistics.merge(items) for name, items in partials.items()},
        tuple(rows),
    )
    write_file(job.root, record_path(job.block), json.dumps(asdict(record)).encode())
    return record


def _fields(record: FileRecord | None) -> tuple[str, int, str]:
    assert record is not None
    return record.path, record.bytes, record.sha256


def _empty_stacks(job: Job) -> dict[str, npt.NDArray[Any]]:
    if "zarr" not in job.formats:
        return {}
    count = len(job.sources)
    return {s.name: np.empty((count, *s.shape), s.dtype) for s in job.layout.arrays}


def _write_zarr(job: Job, stacks: dict[str, npt.NDArray[Any]]) -> list[FileRecord]:
    return [
        write_file(
            job.root,
            shard_path(job.block.split, spec, job.block.index),
            encode_shard(spec, stacks[spec.name], job.samples_per_shard),
        )
        for spec in job.layout.arrays
        if stacks
    ]


def read_record(root: Path, block: Block) -> BlockRecord | None:
    """The record of a block that is done, or None."""
    path = root / record_path(block)
    if not path.exists():
        return None
    table = json.loads(path.read_bytes())
    return BlockRecord(
        table["split"],
        table["index"],
        ShardRecord(**table["shard"]) if table["shard"] else None,
        tuple(FileRecord(**item) for item in table["zarr"]),
        table["statistics"],
        tuple(table["rows"]),
    )
