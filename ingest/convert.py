"""One block in, one tar shard and one shard of each zarr array out: the unit of ingest.

Runs in any process: a job holds all it needs, touches no other block's files, and doing it
twice does no harm. Its record, written last, is what marks it done.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fusmae.manifest import FileRecord, ShardRecord
from fusmae.sample import TAR_END, ShardLayout, encode_parts

from . import statistics
from .layout import tar_path, zarr_shard_path
from .new_file import NewFile
from .plan import Block
from .record import BlockRecord, statistics_path, write_bad, write_record
from .statistics import Counter
from .storage import Store, write_file
from .turn import require_turn
from .wording import LEAVE_OUT

Stacks = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Sample:
    """One sample as read from its source: its key and the facts for KEY.json.

    Among the facts are `crs` and `transform`, the grid of its first array.
    """

    key: str
    facts: dict[str, Any]


# Fills the rows, arrays of the layout's shapes by name, with a source's pixels.
Read = Callable[[Any, Stacks], Sample]


@dataclass(frozen=True)
class Job:
    """A block, its sources in the block's order, and where and how to write it.

    `read` turns a source into a sample; it must be a module-level function, so that worker
    processes find it by name. A source's `position` orders the sources as their archive does.
    `places` are the paths that `read` needs to see; `turn` is that of the block, see `turn.py`.
    `expected` is the sha256, by path, of files that a finished dataset lists; empty for a new one.
    """

    store: Store
    turn: str
    name: str
    block: Block
    sources: tuple[Any, ...]
    places: tuple[str, ...]
    read: Read
    layout: ShardLayout
    samples_per_shard: int
    formats: frozenset[str]
    quarantine: bool
    expected: Mapping[str, str]


def convert(job: Job, on_sample: Callable[[], None] = lambda: None) -> int:
    """Write the block's files and its record; `on_sample` is called after each sample.

    Returns the number of bad samples. Where there are any, the block's other files are not
    written; the names and the reasons are noted.

    Raises:
        ValueError: a source is bad and `job.quarantine` is off, it is no longer the job's turn
            to write, or a file is another than expected; nothing of the block is left looking
            complete.
        OSError: the disk is full or not writable.
    """
    stacks = _stacks(job.layout, len(job.sources))
    counter = Counter(stacks)
    samples, bad = _read(job, stacks, counter, on_sample)
    if bad:
        require_turn(job.store, job.turn)
        write_bad(job.store, bad)
        return len(bad)
    shard, offsets = _write_shard(job, samples, stacks)
    zarr = _write_zarr(job, stacks) if "zarr" in job.formats else []
    rows = [
        {"key": sample.key, "offset": offset, "facts": sample.facts}
        for sample, offset in zip(samples, offsets, strict=True)
    ]
    sums = statistics.encode(counter.partials())
    require_turn(job.store, job.turn)
    partials = write_file(job.store, statistics_path(job.block), sums)
    record = BlockRecord(
        job.block.split, job.block.index, shard, tuple(zarr), partials, tuple(rows)
    )
    require_turn(job.store, job.turn)
    write_record(job.store, job.block, record)
    return 0


def _read(
    job: Job, stacks: Stacks, counter: Counter, on_sample: Callable[[], None]
) -> tuple[list[Sample], dict[str, str]]:
    """Every sample, its pixels in its row of the stacks and counted; bad names -> reasons.

    Reads go in the archive's order, so a disk or a network store sees one sweep a block.
    """
    samples: list[Any] = [None] * len(job.sources)
    bad: dict[str, str] = {}
    for row in sorted(range(len(samples)), key=lambda row: job.sources[row].position):
        try:
            samples[row] = job.read(job.sources[row], {n: s[row] for n, s in stacks.items()})
        except ValueError as error:
            if not job.quarantine:
                # Of a finished dataset no sample can be left out any more.
                if not job.expected:
                    error.add_note(LEAVE_OUT)
                raise
            bad[job.block.names[row]] = str(error)
        else:
            counter.add(row)
        on_sample()
    return samples, bad


_room = threading.local()


def _stacks(layout: ShardLayout, count: int) -> dict[str, npt.NDArray[Any]]:
    """Room for `count` samples, kept from block to block: fresh pages cost more than reading.

    A cluster's worker may run several blocks at once, each on a thread of its own.
    """
    if getattr(_room, "layout", None) != layout or len(next(iter(_room.stacks.values()))) < count:
        _room.layout, _room.stacks = layout, {}
        _room.stacks = {
            spec.name: np.empty((count, *spec.shape), spec.dtype) for spec in layout.arrays
        }
    return {name: stack[:count] for name, stack in _room.stacks.items()}


def _write_shard(
    job: Job, samples: Sequence[Sample], stacks: Stacks
) -> tuple[ShardRecord | None, list[int | None]]:
    """The tar shard's record, and the offset of each sample in it."""
    if "shards" not in job.formats:
        return None, [None] * len(samples)
    offsets: list[int | None] = []
    with _create(job, tar_path(job.name, job.block)) as file:
        for row, sample in enumerate(samples):
            offsets.append(file.size)
            pixels = {name: stack[row] for name, stack in stacks.items()}
            file.write(*encode_parts(job.layout, sample.key, pixels, sample.facts))
        file.write(TAR_END)
    assert file.record is not None
    record = ShardRecord(file.record.path, file.record.bytes, file.record.sha256, len(samples))
    return record, offsets


def _create(job: Job, path: str) -> NewFile:
    """A file that gets its name only if it is the job's turn then, and it is as expected."""
    file = job.store.create(path)

    def check() -> None:
        require_turn(job.store, job.turn)
        expected = job.expected.get(path, file.sha256)
        if file.sha256 != expected:
            raise ValueError(
                f"{job.store}/{path} would have the sha256 {file.sha256}, the dataset's manifest "
                f"says {expected}, so nothing was replaced: give the archives that the dataset was "
                "made from, and the versions of packages, or copy the file back"
            )

    file.before_naming = check
    return file


def _write_zarr(job: Job, stacks: Stacks) -> list[FileRecord]:
    # zarr takes half a second to import, which a run for shards alone can do without.
    from .zarr_store import shard_parts

    records = []
    for spec in job.layout.arrays:
        path = zarr_shard_path(job.block.split, spec, job.block.index)
        with _create(job, path) as file:
            for part in shard_parts(spec, stacks[spec.name], job.samples_per_shard):
                file.write(part)
        assert file.record is not None
        records.append(file.record)
    return records
