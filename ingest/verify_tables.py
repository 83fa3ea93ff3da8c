"""What a dataset says of its samples in several places, compared: tables, KEY.json, zarr."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fusmae.labels import label_column
from fusmae.manifest import Manifest

from .coordinates import sample_coordinates
from .facts import ALL_FACTS, Fact
from .layout import store_path
from .plan import fill, shuffle
from .samples_table import TABLE_NAME
from .verify_block import BlockContent, StoredBlock

Row = dict[str, Any]


def known_facts(table: pa.Table) -> tuple[Fact, ...]:
    """The facts that are columns of `samples.parquet`."""
    return tuple(fact for fact in ALL_FACTS if fact.name in table.column_names)


def told_by(row: Row, manifest: Manifest, facts: Sequence[Fact]) -> dict[str, Any]:
    """What KEY.json says of a sample, from its row of `samples.parquet`."""
    told = {"crs": row["crs"], "transform": row["transform"]}
    told["labels"] = {name: row[label_column(name)] for name in manifest.label_sets}
    for fact in facts:
        value = row[fact.name]
        told[fact.name] = value.isoformat() if fact.kind == "time" else value
    return told


def split_problems(manifest: Manifest, split: str, table: pa.Table) -> Iterator[str]:
    """The manifest's numbers of one split against that split's rows of `samples.parquet`."""
    record = manifest.splits[split]
    if table.num_rows != record.num_samples:
        yield f"{TABLE_NAME} lists {table.num_rows} of the {record.num_samples} in {split}"
    if record.index and sum(shard.num_samples for shard in record.shards) != record.num_samples:
        yield f"the shards of {split} have not its {record.num_samples} samples together"
    for name, counts in record.class_counts.items():
        label_set, _, fact = name.partition("/")
        column = table.column(fact or label_column(label_set)).to_pylist()
        held = Counter(
            label for value in column for label in {*((value,) if fact else value or ())}
        )
        if counts != tuple(held[label] for label in manifest.label_sets[label_set]):
            yield f"the manifest's class counts of {name} in {split} are not those of {TABLE_NAME}"


def order_problems(
    manifest: Manifest, split: str, table: pa.Table, left_out: bytes
) -> Iterator[str]:
    """A split's keys against the order of its seed; `left_out` is `quarantine.jsonl`."""
    keys = table.column("key").to_pylist()
    lines = [json.loads(line) for line in left_out.splitlines()]
    bad = {line["key"] for line in lines if line["split"] == split}
    if fill(shuffle([*keys, *bad], manifest.seed, split), bad) != keys:
        yield f"the samples of {split} do not stand in the order of seed {manifest.seed}"


def block_problems(
    manifest: Manifest,
    facts: Sequence[Fact],
    block: StoredBlock,
    content: BlockContent,
    rows: Sequence[Row],
) -> Iterator[str]:
    """`samples.parquet` against the shard's keys, KEY.json and index."""
    starts = [None] * len(rows) if block.starts is None else block.starts.tolist()
    for place, (row, start) in enumerate(zip(rows, starts, strict=False)):
        if (row["shard"], row["row"], row["offset"]) != (block.number, place, start):
            yield f"{TABLE_NAME}: the shard, row or offset of {row['key']} is not its place"
    if not block.shard:
        return
    if [*content.keys] != [row["key"] for row in rows]:
        yield f"{block.where}: its keys are not those of {TABLE_NAME}"
        return
    for row, info in zip(rows, content.infos, strict=True):
        told = told_by(row, manifest, facts)
        names = sorted(
            name for name in told.keys() | info.keys() if told.get(name) != info.get(name)
        )
        for name in names:
            yield (
                f"{block.where}: {row['key']}.json says {name} {info.get(name)!r}, "
                f"{TABLE_NAME} {told.get(name)!r}"
            )


def coordinate_problems(
    manifest: Manifest,
    facts: Sequence[Fact],
    block: StoredBlock,
    stored: dict[str, npt.NDArray[Any]],
    rows: Sequence[Row],
) -> Iterator[str]:
    """What lies beside the pixels in the zarr store against `samples.parquet`."""
    from .zarr_store import band_coordinates  # as in `verify_block`

    told = [{"key": row["key"], "facts": told_by(row, manifest, facts)} for row in rows]
    expected = sample_coordinates(told, facts, manifest.label_sets)
    expected |= band_coordinates(manifest.arrays)
    location = block.store.zarr_location(store_path(block.split))
    for name, (dimensions, values, _) in expected.items():
        if name not in stored:
            yield f"{location}/{name}: missing"
            continue
        part = stored[name]
        if dimensions[0] == "sample":
            part = part[block.first : block.first + len(rows)]
        if part.tolist() != np.asarray(values).tolist():
            yield f"{location}/{name}: differs from {TABLE_NAME} at samples from {block.first}"
