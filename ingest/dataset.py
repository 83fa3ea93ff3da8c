"""A dataset being made: its lock, its plan, its blocks, and the files written once at the end.

The only place that knows the order of things: plan, blocks, indexes, tables, zarr groups,
card, and `dataset.json` last. Every step can be killed and run again.
"""

import fcntl
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fusmae.labels import multi_hot
from fusmae.manifest import (
    MANIFEST_NAME,
    FileRecord,
    Manifest,
    SplitRecord,
    all_files,
    read_manifest,
    to_json,
)
from fusmae.sample import ShardLayout
from fusmae.sensors import ArraySpec

from . import statistics
from .card import card_text
from .convert import BlockRecord, Job, Sample, read_record
from .engine import run_blocks
from .plan import Block, names_digest, plan_blocks
from .samples_table import encode_table
from .storage import SCRATCH, write_file
from .zarr_store import band_coordinates, encode_group, store_path


@dataclass(frozen=True)
class Request:
    """What to make of an archive. Everything here but `sources` and `read` changes the bytes."""

    name: str
    simulated: bool
    origin: dict[str, Any]
    arrays: tuple[ArraySpec, ...]
    label_sets: dict[str, tuple[str, ...]]
    split_of: dict[str, str]
    splits: tuple[str, ...]
    sources: dict[str, Any]
    read: Callable[[Any], Sample]
    formats: frozenset[str]
    samples_per_shard: int
    seed: int
    options: dict[str, Any]


def build(root: Path, request: Request, workers: int, progress: Callable[[int, int], None]) -> bool:
    """Make the dataset in `root`, or complete it; False if it was complete already.

    `progress(done, total)` is called with numbers of samples.

    Raises:
        ValueError: a sample is bad, the folder holds something else or a dataset made with
            other options, or another run is at work on it.
        OSError: a file cannot be written.
    """
    plan = _plan_table(request)
    if (root / MANIFEST_NAME).exists():
        manifest = read_manifest(root)
        _refuse_other_plan(root, manifest.options["plan"], plan)
        _refuse_damage(root, manifest)
        shutil.rmtree(root / SCRATCH, ignore_errors=True)
        return False
    if root.exists() and not (root / SCRATCH).is_dir() and any(root.iterdir()):
        raise ValueError(f"--out {root} is not empty and is not a dataset: give a new folder")
    with _locked(root):
        _write_or_check_plan(root, plan)
        shutil.rmtree(root / SCRATCH / "tmp", ignore_errors=True)
        blocks = plan_blocks(
            request.split_of, request.splits, request.samples_per_shard, request.seed
        )
        _run(root, request, blocks, workers, progress)
        _finish(root, request, [_done(root, block) for block in blocks], plan)
        shutil.rmtree(root / SCRATCH)
    return True


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


def _refuse_other_plan(root: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    differing = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if differing:
        changes = ", ".join(f"{k}: {old.get(k)!r} then, {new.get(k)!r} now" for k in differing)
        raise ValueError(
            f"--out {root} was begun with other options ({changes}): "
            "use the same options to go on, or a new folder"
        )


def _refuse_damage(root: Path, manifest: Manifest) -> None:
    """A finished dataset is not mended in place: what damaged it may have done more."""
    for file in all_files(manifest):
        path = root / file.path
        if not path.is_file() or path.stat().st_size != file.bytes:
            raise ValueError(
                f"{path} is missing or not {file.bytes:,} bytes long: see fusmae-ingest verify, "
                "then copy it back, or remove the dataset and make it again"
            )


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Hold the dataset's lock; the operating system lets go of it even after SIGKILL."""
    path = root / SCRATCH / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another run is writing {root}: wait for it, or stop it") from None
        if not path.exists() or os.fstat(file.fileno()).st_ino != path.stat().st_ino:
            raise ValueError(f"another run has just finished {root}: run again to see it")
        yield


def _write_or_check_plan(root: Path, plan: dict[str, Any]) -> None:
    path = root / SCRATCH / "plan.json"
    if path.exists():
        _refuse_other_plan(root, json.loads(path.read_text()), plan)
    else:
        write_file(root, f"{SCRATCH}/plan.json", json.dumps(plan).encode())


def _run(
    root: Path,
    request: Request,
    blocks: Sequence[Block],
    workers: int,
    progress: Callable[[int, int], None],
) -> None:
    total = sum(len(block.names) for block in blocks)
    todo = [block for block in blocks if not _complete(root, block)]
    done = total - sum(len(block.names) for block in todo)
    progress(done, total)

    def on_sample(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    jobs = [
        Job(
            root,
            request.name,
            block,
            tuple(request.sources[name] for name in block.names),
            request.read,
            ShardLayout(request.arrays),
            request.samples_per_shard,
            request.formats,
        )
        for block in todo
    ]
    if jobs:
        run_blocks(jobs, workers, on_sample)


def _complete(root: Path, block: Block) -> bool:
    """Whether the block has its record, and its files the recorded sizes."""
    record = read_record(root, block)
    if record is None:
        return False
    expected = {file.path: file.bytes for file in record.zarr}
    if record.shard:
        expected[record.shard.path] = record.shard.bytes
    return all(
        (root / path).is_file() and (root / path).stat().st_size == size
        for path, size in expected.items()
    )


def _done(root: Path, block: Block) -> BlockRecord:
    record = read_record(root, block)
    assert record is not None
    return record


def _finish(root: Path, request: Request, records: list[BlockRecord], plan: dict[str, Any]) -> None:
    """Write everything that is not a block, `dataset.json` last."""
    splits = {
        split: _finish_split(root, request, split, [r for r in records if r.split == split])
        for split in request.splits
    }
    # Normalisation must not look at test images: statistics are the first split's.
    basis = next(split for split in request.splits if splits[split].num_samples)
    chosen = [record.statistics for record in records if record.split == basis]
    table = write_file(root, "samples.parquet", encode_table(records, list(request.label_sets)))
    manifest = Manifest(
        name=request.name,
        simulated=request.simulated,
        source=request.origin,
        seed=request.seed,
        samples_per_shard=request.samples_per_shard,
        arrays=request.arrays,
        label_sets=request.label_sets,
        splits=splits,
        statistics={
            spec.name: statistics.finish(statistics.merge([p[spec.name] for p in chosen]))
            for spec in request.arrays
        },
        statistics_split=basis,
        options={"plan": plan},
        files=(table,),
    )
    card = write_file(root, "README.md", card_text(manifest).encode())
    manifest = replace(manifest, files=(table, card))
    write_file(root, MANIFEST_NAME, to_json(manifest).encode())


def _finish_split(
    root: Path, request: Request, split: str, records: list[BlockRecord]
) -> SplitRecord:
    rows = [row for record in records for row in record.rows]
    index: FileRecord | None = None
    if "shards" in request.formats and rows:
        buffer = io.BytesIO()
        np.save(buffer, np.array([row["offset"] for row in rows], np.int64))
        index = write_file(root, f"index/{split}.npy", buffer.getvalue())
    zarr = [file for record in records for file in record.zarr]
    if "zarr" in request.formats and rows:
        bands = band_coordinates(request.arrays)
        auxiliary = sorted({*_COORDINATES, *(n for n in bands if n.endswith("_wavelength"))})
        objects = encode_group(
            request.arrays,
            request.samples_per_shard,
            {**bands, **_sample_coordinates(request, rows)},
            {
                "title": f"{request.name}, {split} split",
                "simulated": request.simulated,
                "coordinates": " ".join(auxiliary),
            },
        )
        zarr += [write_file(root, f"{store_path(split)}/{k}", v) for k, v in objects.items()]
    return SplitRecord(
        len(rows),
        tuple(record.shard for record in records if record.shard),
        index,
        tuple(sorted(zarr, key=lambda file: file.path)),
    )


# What xarray shows as coordinates rather than as data, by the CF attribute of that name.
_COORDINATES = ("sample_id", "time", "time_s1", "crs", "transform")


def _sample_coordinates(request: Request, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Coordinates and labels along the sample axis, as `encode_group` takes them."""
    facts = [row["facts"] for row in rows]
    per_sample = ("sample",)
    epoch = {"units": "seconds since 1970-01-01", "calendar": "proleptic_gregorian"}
    coordinates: dict[str, Any] = {
        "sample_id": (per_sample, np.array([row["key"] for row in rows], np.str_), {}),
        "crs": (
            per_sample,
            np.array([int(fact["crs"].removeprefix("EPSG:")) for fact in facts], np.int32),
            {"long_name": "EPSG code of the sample's coordinate reference system"},
        ),
        "transform": (
            ("sample", "affine"),
            np.array([fact["transform"] for fact in facts], np.float64),
            {"long_name": "affine transform of the 10 m grid: a, b, c, d, e, f"},
        ),
    }
    for name, sensor in (("time", "time_s2"), ("time_s1", "time_s1")):
        seconds = np.array([fact[sensor] for fact in facts], "datetime64[s]").astype(np.int64)
        coordinates[name] = (per_sample, seconds, epoch)
    for label_set, classes in request.label_sets.items():
        hot = multi_hot([fact["labels"][label_set] for fact in facts], classes)
        name, dimension = f"labels_{label_set.replace('-', '_')}", f"class_{len(classes)}"
        coordinates[name] = (("sample", dimension), hot, {"long_name": label_set})
        coordinates[dimension] = ((dimension,), np.array(classes, np.str_), {})
    return coordinates
