"""Every sample of a dataset whose files are what was written: block after block, then together."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fusmae.manifest import Manifest, SplitRecord

from . import statistics
from .facts import Fact
from .finish import QUARANTINE_NAME
from .layout import store_path
from .patches import Archive
from .pool import run_in_order
from .samples_table import TABLE_NAME
from .statistics import Partials
from .storage import Store
from .verify_block import StoredBlock, read_back
from .verify_source import NEEDED_FACTS, NO_DIFFERENCES, set_sources
from .verify_statistics import statistics_problems
from .verify_tables import (
    block_problems,
    coordinate_problems,
    known_facts,
    order_problems,
    split_problems,
    told_by,
)

# Of files that differ from the dataset so many are named.
_NAMED = 20


@dataclass(frozen=True)
class SourceCheck:
    """Compare with these archives every sample, or `num_samples` of them, evenly spaced."""

    archives: tuple[Archive, ...]
    num_samples: int | None = None

    def places(self, total: int) -> npt.NDArray[np.int64]:
        """The samples to compare, of all the dataset's `total` in their order, ascending."""
        number = min(self.num_samples or total, total)
        return np.arange(number, dtype=np.int64) * total // max(number, 1)


def num_blocks(manifest: Manifest) -> int:
    """The number of blocks that `sample_problems` reads."""
    return sum(len(_sizes(manifest, split)) for split in manifest.splits.values())


def _sizes(manifest: Manifest, split: SplitRecord) -> list[int]:
    """The number of samples of each block of a split."""
    if split.index:
        return [shard.num_samples for shard in split.shards]
    step = manifest.samples_per_shard
    return [min(step, split.num_samples - i) for i in range(0, split.num_samples, step)]


def sample_problems(
    store: Store,
    manifest: Manifest,
    tick: Callable[[], None],
    workers: int,
    sources: SourceCheck | None,
) -> Iterator[str]:
    """A line for everything that samples, tables and the manifest do not agree on.

    `tick` is called after each block. All files but the shards are what was written.
    """
    table = pq.read_table(io.BytesIO(store.read(TABLE_NAME)))
    facts = known_facts(table)
    parts = {split: table.filter(pc.equal(table["split"], split)) for split in manifest.splits}
    has_bad = any(file.path == QUARANTINE_NAME for file in manifest.files)
    left_out = store.read(QUARANTINE_NAME) if has_bad else b""
    for split, part in parts.items():
        yield from split_problems(manifest, split, part)
        yield from order_problems(manifest, split, part, left_out)
    blocks = list(_blocks(store, manifest, parts, facts, sources))
    setup = (set_sources, (sources.archives,)) if sources else (None, ())
    sums: dict[str, Partials] = {}
    found, whole = NO_DIFFERENCES, True

    @lru_cache(maxsize=1)
    def coordinates(split: str) -> dict[str, npt.NDArray[Any]]:
        from .zarr_store import read_coordinates  # as in `verify_block`

        return read_coordinates(store.zarr_location(store_path(split)), manifest.arrays)

    contents = run_in_order(read_back, [(block,) for block in blocks], workers, *setup)
    for block, content in zip(blocks, contents, strict=True):
        tick()
        yield from content.problems
        found += content.sources
        if content.partials is None:
            whole = False
            continue
        rows = parts[block.split].slice(block.first, block.num_samples).to_pylist()
        yield from block_problems(manifest, facts, block, content, rows)
        if block.zarr:
            beside = coordinates(block.split)
            yield from coordinate_problems(manifest, facts, block, beside, rows)
        partials = statistics.decode(content.partials, manifest.arrays)
        earlier = [sums[block.split]] if block.split in sums else []
        sums[block.split] = statistics.merge([*earlier, partials])
    yield from _first(found.different, "more differences from the sources")
    if found.missing and sources:
        yield _incomplete(found.missing, len(sources.places(len(table))))
    if whole:
        yield from statistics_problems(store, manifest, sums)


def _first(lines: Sequence[str], rest: str) -> Iterator[str]:
    yield from lines[:_NAMED]
    if len(lines) > _NAMED:
        yield f"and {len(lines) - _NAMED:,} {rest}"


def _incomplete(missing: Sequence[str], num_compared: int) -> str:
    return (
        f"{len(missing):,} of the {num_compared:,} samples to compare have files that no --source "
        f"holds: give every archive that ingest was given, and whole; the first: {missing[0]}"
    )


def _blocks(
    store: Store,
    manifest: Manifest,
    parts: Mapping[str, pa.Table],
    facts: Sequence[Fact],
    sources: SourceCheck | None,
) -> Iterator[StoredBlock]:
    total = manifest.num_samples
    chosen = sources.places(total) if sources else np.empty(0, np.int64)
    begin = 0
    for name, split in manifest.splits.items():
        index = np.load(io.BytesIO(store.read(split.index.path))) if split.index else None
        first = 0
        for number, size in enumerate(_sizes(manifest, split)):
            low, high = np.searchsorted(chosen, (begin + first, begin + first + size))
            rows = [int(place) - begin - first for place in chosen[low:high]]
            part = parts[name].slice(first, size)
            yield StoredBlock(
                store,
                manifest.arrays,
                name,
                number,
                first,
                size,
                shard=None if index is None else split.shards[number],
                starts=None if index is None else index[first : first + size],
                zarr=bool(split.zarr),
                from_source={
                    row: _told(part, row, manifest, facts) if index is None else None
                    for row in rows
                },
            )
            first += size
        begin += split.num_samples


def _told(
    part: pa.Table, row: int, manifest: Manifest, facts: Sequence[Fact]
) -> tuple[str, dict[str, Any]]:
    (entry,) = part.slice(row, 1).to_pylist()
    told = told_by(entry, manifest, facts)
    return entry["key"], {name: told[name] for name in NEEDED_FACTS if name in told}
