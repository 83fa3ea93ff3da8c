"""The files that are written once, when all blocks are done; `dataset.json` is the last.

Made from block records alone, so a run that was killed here does it all again in a moment.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fusmae.manifest import MANIFEST_NAME, FileRecord, Manifest, SplitRecord, to_json

from . import statistics
from .card import card_text
from .class_counts import class_counts
from .coordinates import auxiliary_names, sample_coordinates
from .coverage import coverage_of
from .croissant import CROISSANT_NAME, croissant_json
from .energon import energon_files
from .geotiff import Grid, footprints
from .histograms import HISTOGRAMS_NAME, encode_histograms
from .layout import block_paths, store_path
from .record import BlockRecord
from .request import Request
from .samples_table import TABLE_NAME, encode_table
from .storage import Store, write_file

QUARANTINE_NAME = "quarantine.jsonl"


def finish(
    store: Store,
    request: Request,
    records: list[BlockRecord],
    bad: dict[str, str],
    plan: dict[str, Any],
) -> Manifest:
    """Write everything that is not a block, `dataset.json` last.

    Raises:
        ValueError: the dataset's lock was lost.
    """
    store.require_lock()
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
            statistics.decode(store.read(record.statistics.path), request.arrays)
            for record in records
            if record.split == split
        )
        for split in request.splits
        if splits[split].num_samples
    }
    table = write_file(
        store, TABLE_NAME, encode_table(records, list(request.label_sets), request.facts)
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
    histograms = write_file(store, HISTOGRAMS_NAME, encode_histograms(sums, request.arrays))
    left_out = [write_file(store, QUARANTINE_NAME, _quarantine(request, bad))] if bad else []
    energon = [write_file(store, p, data) for p, data in energon_files(manifest, records).items()]
    manifest = replace(manifest, files=(table, histograms, *left_out, *energon))
    croissant = write_file(
        store,
        CROISSANT_NAME,
        croissant_json(manifest, coverage_of(records, request.facts), request.facts).encode(),
    )
    card = write_file(store, "README.md", card_text(manifest, request.facts).encode())
    manifest = replace(manifest, files=(*manifest.files, croissant, card))
    store.require_lock()
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
    # Nothing else: what a user has put there is no block.
    paths = {
        path
        for block in request.blocks()
        for path in block_paths(request.name, request.arrays, block)
    }
    for path in paths & store.sizes().keys() - kept:
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
        from .zarr_store import band_coordinates, encode_group

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
        class_counts(rows, request.label_sets, request.facts),
    )
