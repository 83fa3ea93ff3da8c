"""A dataset being made: its lock, its plan, its blocks, and the files written once at the end.

The only place that knows the order of things: plan, blocks, indexes, tables, zarr groups,
card, and `dataset.json` last. Every step can be killed and run again.
"""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fusmae.manifest import (
    MANIFEST_NAME,
    FileRecord,
    Manifest,
    SplitRecord,
    all_files,
    to_json,
)
from fusmae.sample import ShardLayout
from fusmae.sensors import ArraySpec

from . import statistics
from .card import card_text
from .convert import Job, Read
from .coordinates import auxiliary_names, sample_coordinates
from .energon import energon_files
from .engine import Executor
from .facts import Fact
from .geotiff import Grid, footprints
from .histograms import encode_histograms
from .plan import Block, names_digest, plan_blocks
from .record import BlockRecord, forget_bad, read_bad, read_record, write_bad
from .samples_table import encode_table
from .storage import SCRATCH, UNNAMED, Store, manifest_of, write_file


@dataclass(frozen=True)
class Request:
    """What to make of an archive.

    Everything but `sources` and `read` changes the bytes. A source knows its `position` in the
    archive, and makes a message about it `bare` of where the archive lies on this machine.
    """

    name: str
    simulated: bool
    origin: dict[str, Any]
    arrays: tuple[ArraySpec, ...]
    label_sets: dict[str, tuple[str, ...]]
    facts: tuple[Fact, ...]
    split_of: dict[str, str]
    splits: tuple[str, ...]
    sources: dict[str, Any]
    read: Read
    formats: frozenset[str]
    samples_per_shard: int
    seed: int
    options: dict[str, Any]


@dataclass(frozen=True)
class Tolerance:
    """What to do about bad samples: end the run at the first, or leave them out by name.

    `max_bad` is the largest share of all samples, 0 to 1, that may be left out.
    """

    quarantine: bool = False
    max_bad: float = 0.001


def build(
    store: Store,
    request: Request,
    executor: Executor,
    progress: Callable[[int, int], None],
    tolerance: Tolerance,
) -> Manifest:
    """Make the dataset in `store`, or complete it, or find it complete; its manifest.

    `progress(done, total)` is called with numbers of samples.

    Raises:
        ValueError: a sample is bad, or too many are; the place holds something else or a
            dataset made with other options; another run is at work on it.
        OSError: a file cannot be written.
    """
    plan = _plan_table(request)
    if store.exists(MANIFEST_NAME):
        manifest = manifest_of(store)
        _refuse_other_plan(store, manifest.options["plan"], plan)
        _refuse_damage(store, manifest)
        store.remove_folder(SCRATCH)
        return manifest
    if store.holds_other_files():
        raise ValueError(f"--out {store} is not empty and is not a dataset: give a new folder")
    with store.locked():
        _write_or_check_plan(store, plan)
        store.remove_folder(UNNAMED)
        records, bad = _run(store, request, executor, progress, tolerance)
        manifest = _finish(store, request, records, bad, plan)
        store.remove_folder(SCRATCH)
    return manifest


def _plan_table(request: Request) -> dict[str, Any]:
    """The choices that two runs on one folder must agree on."""
    return {
        "name": request.name,
        "formats": sorted(request.formats),
        "samples_per_shard": request.samples_per_shard,
        "seed": request.seed,
        "num_samples": len(request.split_of),
        "samples": names_digest(request.split_of),
        **request.options,
    }


def _refuse_other_plan(store: Store, old: dict[str, Any], new: dict[str, Any]) -> None:
    differing = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if differing:
        changes = ", ".join(f"{k}: {old.get(k)!r} then, {new.get(k)!r} now" for k in differing)
        raise ValueError(
            f"--out {store} was begun with other options ({changes}): "
            "use the same options to go on, or a new folder"
        )


def _refuse_damage(store: Store, manifest: Manifest) -> None:
    """A finished dataset is not mended in place: what damaged it may have done more."""
    sizes = store.sizes()
    for file in all_files(manifest):
        if sizes.get(file.path) != file.bytes:
            raise ValueError(
                f"{store}/{file.path} is missing or not {file.bytes:,} bytes long: see "
                "fusmae-ingest verify, then copy it back, or remove the dataset and make it again"
            )


def _write_or_check_plan(store: Store, plan: dict[str, Any]) -> None:
    path = f"{SCRATCH}/plan.json"
    if store.exists(path):
        _refuse_other_plan(store, json.loads(store.read(path)), plan)
    else:
        write_file(store, path, json.dumps(plan).encode())


def _run(
    store: Store,
    request: Request,
    executor: Executor,
    progress: Callable[[int, int], None],
    tolerance: Tolerance,
) -> tuple[list[BlockRecord], dict[str, str]]:
    """The records of all blocks, and the bad names with their reasons.

    A block with bad samples says which, and is planned again without them; so are the
    blocks that lend samples to it. That ends, since bad samples only become more.
    """
    bad = _still_bad(store, request) if tolerance.quarantine else {}
    while True:
        blocks = plan_blocks(
            request.split_of, request.splits, request.samples_per_shard, request.seed, bad.keys()
        )
        sizes = store.sizes()
        records = [read_record(store, block, sizes) for block in blocks]
        todo = [block for block, record in zip(blocks, records, strict=True) if record is None]
        if not todo:
            if not records:
                raise ValueError(f"every sample is bad; the first: {min(bad.items())}")
            return [record for record in records if record], bad
        num_bad = len(bad)
        for found in _convert(store, request, todo, executor, progress, tolerance):
            num_bad += found
            _refuse_too_many(store, num_bad, len(request.split_of), tolerance)
        bad |= read_bad(store)


def _still_bad(store: Store, request: Request) -> dict[str, str]:
    """What an earlier run found bad and is bad still: files may have been mended since."""
    noted = read_bad(store)
    forget_bad(store)
    bad: dict[str, str] = {}
    rows = {spec.name: np.empty(spec.shape, spec.dtype) for spec in request.arrays}
    for name in noted:
        try:
            request.read(request.sources[name], rows)
        except ValueError as error:
            bad[name] = str(error)
    if bad:
        write_bad(store, bad)
    return bad


def _refuse_too_many(store: Store, num_bad: int, total: int, tolerance: Tolerance) -> None:
    if num_bad > tolerance.max_bad * total:
        name, reason = min(read_bad(store).items())
        raise ValueError(
            f"{num_bad:,} of {total:,} samples are bad, more than --max-bad "
            f"{tolerance.max_bad:g} allows; the first: {name}: {reason}"
        )


def _convert(
    store: Store,
    request: Request,
    todo: Sequence[Block],
    executor: Executor,
    progress: Callable[[int, int], None],
    tolerance: Tolerance,
) -> Iterator[int]:
    """Run these blocks; yields the number of bad samples of each."""
    total = len(request.split_of)
    done = total - sum(len(block.names) for block in todo)
    progress(done, total)

    def on_sample(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    jobs = [
        Job(
            store,
            request.name,
            block,
            tuple(request.sources[name] for name in block.names),
            request.read,
            ShardLayout(request.arrays),
            request.samples_per_shard,
            request.formats,
            tolerance.quarantine,
        )
        for block in todo
    ]
    yield from executor(jobs, on_sample)


def _finish(
    store: Store,
    request: Request,
    records: list[BlockRecord],
    bad: dict[str, str],
    plan: dict[str, Any],
) -> Manifest:
    """Write everything that is not a block, `dataset.json` last."""
    _sweep(store, request, records)
    records = _with_footprints(request, records)
    splits = {
        split: _finish_split(store, request, split, [r for r in records if r.split == split])
        for split in request.splits
    }
    # Normalisation must not look at test images: statistics are the first split's.
    basis = next(split for split in request.splits if splits[split].num_samples)
    sums = {
        split: statistics.merge(
            [
                statistics.decode(store.read(record.statistics.path), request.arrays)
                for record in records
                if record.split == split
            ]
        )
        for split in request.splits
        if splits[split].num_samples
    }
    table = write_file(
        store, "samples.parquet", encode_table(records, list(request.label_sets), request.facts)
    )
    manifest = Manifest(
        name=request.name,
        simulated=request.simulated,
        source=request.origin,
        seed=request.seed,
        samples_per_shard=request.samples_per_shard,
        arrays=request.arrays,
        label_sets=request.label_sets,
        splits=splits,
        statistics=statistics.finish(request.arrays, sums[basis]),
        statistics_split=basis,
        options={"plan": plan},
        files=(table,),
    )
    histograms = write_file(store, "histograms.parquet", encode_histograms(sums, request.arrays))
    left_out = [write_file(store, "quarantine.jsonl", _quarantine(request, bad))] if bad else []
    energon = [write_file(store, p, data) for p, data in energon_files(manifest, records).items()]
    card = write_file(store, "README.md", card_text(manifest).encode())
    manifest = replace(manifest, files=(table, histograms, *left_out, *energon, card))
    write_file(store, MANIFEST_NAME, to_json(manifest).encode())
    return manifest


def _quarantine(request: Request, bad: dict[str, str]) -> bytes:
    """A line of JSON a bad sample, by split and name: key, split, reason."""
    lines = []
    for split in request.splits:
        for name in sorted(name for name in bad if request.split_of[name] == split):
            # Where the archive lies on this machine is no fact about the dataset.
            reason = request.sources[name].bare(bad[name])
            entry = {"key": name, "split": split, "reason": reason}
            lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
    return "".join(lines).encode()


def _sweep(store: Store, request: Request, records: Sequence[BlockRecord]) -> None:
    """Remove blocks that were written before their names turned out to be needed elsewhere."""
    kept = {file.path for record in records for file in record.files}
    for folder in ("shards", "zarr"):
        for path in store.sizes(folder):
            if path not in kept:
                store.remove(path)


def _with_footprints(request: Request, records: Sequence[BlockRecord]) -> list[BlockRecord]:
    """The records, each row with its `footprint`: a ring of longitude and latitude."""
    size = request.arrays[0].size_px
    facts = [row["facts"] for record in records for row in record.rows]
    grids = [
        Grid(int(told["crs"].removeprefix("EPSG:")), tuple(told["transform"]), size, size)
        for told in facts
    ]
    rings = iter(footprints(grids).tolist())
    return [
        replace(record, rows=tuple({**row, "footprint": next(rings)} for row in record.rows))
        for record in records
    ]


def _finish_split(
    store: Store, request: Request, split: str, records: list[BlockRecord]
) -> SplitRecord:
    rows = [row for record in records for row in record.rows]
    index: FileRecord | None = None
    if "shards" in request.formats and rows:
        buffer = io.BytesIO()
        np.save(buffer, np.array([row["offset"] for row in rows], np.int64))
        index = write_file(store, f"index/{split}.npy", buffer.getvalue())
    zarr = [file for record in records for file in record.zarr]
    if "zarr" in request.formats and rows:
        # zarr takes half a second to import, which a run for shards alone can do without.
        from .zarr_store import band_coordinates, encode_group, store_path

        bands = band_coordinates(request.arrays)
        auxiliary = sorted(
            {*auxiliary_names(request.facts), *(n for n in bands if n.endswith("_wavelength"))}
        )
        objects = encode_group(
            request.arrays,
            request.samples_per_shard,
            {**bands, **sample_coordinates(rows, request.facts, request.label_sets)},
            {
                "title": f"{request.name}, {split} split",
                "simulated": request.simulated,
                "coordinates": " ".join(auxiliary),
            },
        )
        zarr += [write_file(store, f"{store_path(split)}/{k}", v) for k, v in objects.items()]
    return SplitRecord(
        len(rows),
        tuple(record.shard for record in records if record.shard),
        index,
        tuple(sorted(zarr, key=lambda file: file.path)),
    )
