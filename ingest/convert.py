"""One block in, one tar shard and one shard of each zarr array out: the unit of ingest.

Runs in any process: a job holds all it needs, touches no other block's files, and doing it
twice does no harm. Its record, written last, is what marks it done.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fusmae.manifest import FileRecord, ShardRecord
from fusmae.sample import TAR_END, ShardLayout, encode_parts

from . import statistics
from .geotiff import Grid, footprints
from .plan import Block
from .record import BlockRecord, statistics_path, write_bad, write_record
from .storage import AtomicFile, write_file
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
    processes find it by name. A source's `position` orders the sources as their archive does.
    """

    root: Path
    name: str
    block: Block
    sources: tuple[Any, ...]
    read: Callable[[Any], Sample]
    layout: ShardLayout
    samples_per_shard: int
    formats: frozenset[str]
    quarantine: bool

    @property
    def shard_path(self) -> str:
        return f"shards/{self.block.split}/{self.name}-{self.block.label}.tar"


def convert(job: Job, on_sample: Callable[[], None] = lambda: None) -> int:
    """Write the block's files and its record; `on_sample` is called after each sample.

    Returns the number of bad samples. Where there are any, the block's other files are not
    written; the names and the reasons are noted.

    Raises:
        ValueError: a source is bad and `job.quarantine` is off; nothing of the block is left
            looking complete.
        OSError: the disk is full or not writable.
    """
    stacks = _stacks(job.layout, len(job.sources))
    samples, bad = _read(job, stacks, on_sample)
    if bad:
        write_bad(job.root, bad)
        return len(bad)
    sums = {name: statistics.measure(stack) for name, stack in stacks.items()}
    shard, offsets = _write_shard(job, samples, stacks)
    zarr = _write_zarr(job, stacks)
    rings = footprints([sample.grid for sample in samples])
    rows = [
        {"key": sample.key, "offset": offset, "footprint": ring.tolist(), "facts": sample.facts}
        for sample, offset, ring in zip(samples, offsets, rings, strict=True)
    ]
    partials = write_file(job.root, statistics_path(job.block), statistics.encode(sums))
    record = BlockRecord(
        job.block.split, job.block.index, shard, tuple(zarr), partials, tuple(rows)
    )
    write_record(job.root, job.block, record)
    return 0


def _read(
    job: Job, stacks: Mapping[str, npt.NDArray[Any]], on_sample: Callable[[], None]
) -> tuple[list[Sample], dict[str, str]]:
    """Every sample, its pixels moved into its row of the stacks; bad names -> reasons.

    Reads go in the archive's order, so a disk or a network store sees one sweep a block.
    """
    samples: list[Any] = [None] * len(job.sources)
    bad: dict[str, str] = {}
    for row in sorted(range(len(samples)), key=lambda row: job.sources[row].position):
        try:
            sample = job.read(job.sources[row])
        except ValueError as error:
            if not job.quarantine:
                raise
            bad[job.block.names[row]] = str(error)
        else:
            for name, pixels in sample.arrays.items():
                stacks[name][row] = pixels
            samples[row] = replace(sample, arrays={})
        on_sample()
    return samples, bad


@lru_cache(maxsize=1)
def _stacks(layout: ShardLayout, count: int) -> dict[str, npt.NDArray[Any]]:
    """Room for `count` samples, kept from block to block: fresh pages cost more than reading."""
    return {spec.name: np.empty((count, *spec.shape), spec.dtype) for spec in layout.arrays}


def _write_shard(
    job: Job, samples: Sequence[Sample], stacks: Mapping[str, npt.NDArray[Any]]
) -> tuple[ShardRecord | None, list[int | None]]:
    """The tar shard's record, and the offset of each sample in it."""
    if "shards" not in job.formats:
        return None, [None] * len(samples)
    offsets: list[int | None] = []
    with AtomicFile(job.root, job.shard_path) as file:
        for row, sample in enumerate(samples):
            offsets.append(file.size)
            pixels = {name: stack[row] for name, stack in stacks.items()}
            file.write(*encode_parts(job.layout, sample.key, pixels, sample.facts))
        file.write(TAR_END)
    assert file.record is not None
    record = ShardRecord(file.record.path, file.record.bytes, file.record.sha256, len(samples))
    return record, offsets


def _write_zarr(job: Job, stacks: dict[str, npt.NDArray[Any]]) -> list[FileRecord]:
    return [
        write_file(
            job.root,
            shard_path(job.block.split, spec, job.block.index),
            encode_shard(spec, stacks[spec.name], job.samples_per_shard),
        )
        for spec in job.layout.arrays
        if "zarr" in job.formats
    ]
