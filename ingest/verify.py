"""`fusmae-ingest verify`: every byte and every sample of a dataset against its manifest."""

import io
from collections.abc import Callable, Iterator, Mapping

import click
import numpy as np
import pyarrow.parquet as pq

from fusmae.manifest import (
    MANIFEST_NAME,
    FileRecord,
    Manifest,
    ShardRecord,
    all_files,
)
from fusmae.sample import decode

from .layout import store_path
from .progress import LongWork
from .storage import Store, manifest_of, open_store
from .zarr_store import open_array


@click.command(epilog="\b\nExample:\n  fusmae-ingest verify ben\n")
@click.argument("dataset")
def verify(dataset: str) -> None:
    """Re-read a whole dataset against its manifest; exit code 1 if anything differs.

    Sizes and sha256 of all files; every sample's key, shapes and place in the index; zarr
    pixels equal to the shards'.
    """
    store = open_store(dataset)
    manifest = manifest_of(store)
    with LongWork("Verifying") as progress:
        problems = list(find_problems(store, manifest, progress.update))
    for problem in problems:
        click.echo(problem, err=True)
    if problems:
        raise ValueError(f"{dataset} has {len(problems)} problem(s), listed above")
    total = sum(split.num_samples for split in manifest.splits.values())
    click.echo(f"{dataset}: {total:,} samples verified")


def find_problems(
    store: Store, manifest: Manifest, progress: Callable[[int, int], None]
) -> Iterator[str]:
    """A line for everything about the dataset that is not as its manifest says."""
    files = all_files(manifest)
    sizes = store.sizes()
    shards = sum(len(split.shards) for split in manifest.splits.values())
    total, broken = len(files) + shards, set()
    for done, file in enumerate(files, 1):
        problem = _check_file(store, file, sizes)
        if problem:
            broken.add(file.path)
            yield problem
        progress(done, total)
    known = {file.path for file in files} | {MANIFEST_NAME}
    for path in sizes:
        if path not in known:
            yield f"{store}/{path}: not in the manifest; remove it"
    if broken:
        return  # Samples of files that are not what was written would only repeat it.
    done = len(files)
    keys = pq.read_table(
        io.BytesIO(store.read("samples.parquet")), columns=["key", "split"]
    ).to_pylist()
    for split in manifest.splits:
        expected = [row["key"] for row in keys if row["split"] == split]
        for problems in _check_split(store, manifest, split, expected):
            yield from problems
            done += 1
            progress(done, total)


def _check_file(store: Store, file: FileRecord, sizes: Mapping[str, int]) -> str | None:
    if file.path not in sizes:
        return f"{store}/{file.path}: missing"
    size, sha256 = store.hash(file.path)
    if size != file.bytes:
        return f"{store}/{file.path}: {size} bytes, the manifest says {file.bytes}"
    if sha256 != file.sha256:
        return f"{store}/{file.path}: sha256 {sha256}, the manifest says {file.sha256}"
    return None


def _check_split(
    store: Store, manifest: Manifest, split: str, keys: list[str]
) -> Iterator[list[str]]:
    """For each shard of a split, what is wrong with its samples."""
    record = manifest.splits[split]
    if len(keys) != record.num_samples:
        yield [f"samples.parquet lists {len(keys)} of the {record.num_samples} in {split}"]
    if record.index is None:
        return
    index = np.load(io.BytesIO(store.read(record.index.path)))
    start = 0
    for shard in record.shards:
        rows = slice(start, start + shard.num_samples)
        yield list(_check_shard(store, manifest, split, shard, keys[rows], index[rows], start))
        start += shard.num_samples


def _check_shard(
    store: Store,
    manifest: Manifest,
    split: str,
    shard: ShardRecord,
    keys: list[str],
    index: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]",
    start: int,
) -> Iterator[str]:
    path = f"{store}/{shard.path}"
    data = store.read(shard.path)
    samples = decode(data)
    if [sample["__key__"] for sample in samples] != keys:
        yield f"{path}: its keys are not those of samples.parquet"
        return
    offsets = manifest.layout.offsets
    for spec in manifest.arrays:
        stack = np.stack([sample[spec.name] for sample in samples])
        if stack.shape[1:] != spec.shape or stack.dtype != np.dtype(spec.dtype):
            yield f"{path}: {spec.name} is {stack.dtype}{stack.shape[1:]}"
        for row, place in enumerate(index):
            first = place + offsets[spec.name]
            if data[first : first + stack[row].nbytes] != stack[row].tobytes():
                yield f"{path}: the index does not point at {keys[row]}"
                break
        if manifest.splits[split].zarr:
            location = store.zarr_location(store_path(split))
            stored = open_array(location, spec)[start : start + len(stack)]
            if stored.tobytes() != stack.tobytes():
                yield f"{location}/{spec.name}: pixels differ from {path}"
