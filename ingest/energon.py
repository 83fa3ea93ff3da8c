"""What Energon (NVIDIA's loader of WebDatasets) wants beside the shards, without calling it.

The layout is that of `energon prepare` of megatron-energon 7.4.1. Everything follows from the
manifest and the block records, so no shard is read again.
"""

import json
import sqlite3
import struct
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from fusmae.manifest import Manifest, ShardRecord
from fusmae.sample import TAR_END, ShardLayout, array_bytes, encode_info, npy_header

from .card_reading import brace_url
from .record import BlockRecord

_FOLDER = ".nv-meta"

# Samples as dicts of everything they have. Energon's typed samples hold one image.
_DATASET = "__module__: megatron.energon\n__class__: CrudeWebdataset\n"

# Energon's tables and columns. Its writer keeps four more indexes; kept in the order of their
# primary keys, the tables serve the same queries from half the bytes (docs/LOG.md).
_PAGE = 4096
_TABLES = f"""
PRAGMA page_size = {_PAGE};
PRAGMA auto_vacuum = NONE;
PRAGMA encoding = 'UTF-8';
PRAGMA secure_delete = ON;
CREATE TABLE samples (
    tar_file_id INTEGER NOT NULL,
    sample_key TEXT NOT NULL,
    sample_index INTEGER NOT NULL,
    byte_offset INTEGER,
    byte_size INTEGER,
    PRIMARY KEY (tar_file_id, sample_index)
) WITHOUT ROWID;
CREATE TABLE sample_parts (
    tar_file_id INTEGER,
    sample_index INTEGER,
    part_name TEXT,
    content_byte_offset INTEGER,
    content_byte_size INTEGER,
    PRIMARY KEY (tar_file_id, sample_index, content_byte_offset)
) WITHOUT ROWID;
"""


def energon_files(manifest: Manifest, records: Sequence[BlockRecord]) -> dict[str, bytes]:
    """The files by their paths in the dataset; none where the dataset has no shards.

    Args:
        manifest: the dataset's; its shards are those of the records.
        records: every block, in the order of splits and shards.
    """
    blocks = [(record.shard, record.rows) for record in records if record.shard]
    if not blocks:
        return {}
    shards = [shard for shard, _ in blocks]
    places = [_places(manifest.layout, shard, rows) for shard, rows in blocks]
    files = {
        f"{_FOLDER}/.info.json": _info(shards),
        f"{_FOLDER}/dataset.yaml": _DATASET.encode(),
        f"{_FOLDER}/index.sqlite": _index(manifest.layout, [rows for _, rows in blocks], places),
        f"{_FOLDER}/index.uuid": _identity(shards).encode(),
        f"{_FOLDER}/split.yaml": _split_table(manifest).encode(),
    }
    for shard, starts in zip(shards, places, strict=True):
        files[f"{shard.path}.idx"] = struct.pack(f"<{len(starts)}Q", *starts)
    return files


def _places(layout: ShardLayout, shard: ShardRecord, rows: Sequence[dict[str, Any]]) -> list[int]:
    """The byte at which each sample of a shard starts, then the one at which the last ends."""
    return [*(row["offset"] for row in rows), shard.bytes - len(TAR_END)]


def _info(shards: Sequence[ShardRecord]) -> bytes:
    counts = {shard.path: shard.num_samples for shard in shards}
    return (json.dumps({"shard_counts": counts}, indent=2) + "\n").encode()


def _identity(shards: Sequence[ShardRecord]) -> str:
    """A UUID that follows from the shards' content: caches of Energon are named by it."""
    content = "\n".join(shard.sha256 for shard in shards)
    return str(uuid.uuid5(uuid.NAMESPACE_OID, content))


def _split_table(manifest: Manifest) -> str:
    """split.yaml: the shards of each split that has any, by one brace expression."""
    lines = ["split_parts:"]
    for name, split in manifest.splits.items():
        if split.shards:
            lines += [f"  {name}:", f'  - "{brace_url(split)}"']
    return "\n".join([*lines, "exclude: []"]) + "\n"


def _members(layout: ShardLayout) -> list[tuple[str, int, int]]:
    """(name, offset, bytes) of each array's file in a sample."""
    members = []
    for spec in layout.arrays:
        header = len(npy_header(spec))
        start, size = layout.offsets[spec.name] - header, header + array_bytes(spec)
        members.append((f"{spec.name}.npy", start, size))
    return members


def _index(
    layout: ShardLayout,
    shards: Sequence[Sequence[dict[str, Any]]],
    places: Sequence[Sequence[int]],
) -> bytes:
    """index.sqlite: where each sample and each of its files lies, by key.

    Made in memory: there SQLite writes neither its version nor a count of changes.
    """
    db = sqlite3.connect(":memory:")
    try:
        db.executescript(_TABLES)
        db.executemany("INSERT INTO samples VALUES (?, ?, ?, ?, ?)", _sample_rows(shards, places))
        db.executemany(
            "INSERT INTO sample_parts VALUES (?, ?, ?, ?, ?)", _part_rows(layout, shards)
        )
        db.execute("CREATE UNIQUE INDEX idx_samples_sample_key ON samples(sample_key)")
        db.commit()
        db.execute("VACUUM")  # A tenth smaller: every page is filled.
        return _without_remnants(db.serialize())
    finally:
        db.close()


def _without_remnants(database: bytes) -> bytes:
    """The database with zeros in the room between a page's list of cells and its cells.

    What SQLite left there is never read, but differs from version to version of its library.
    Every page is one of a B-tree: nothing was deleted and no row is longer than a page.
    Source: https://www.sqlite.org/fileformat2.html, sec. 1.6.
    """
    image = bytearray(database)
    for page in range(0, len(image), _PAGE):
        header = page + (100 if page == 0 else 0)
        kind = image[header]
        assert kind in (2, 5, 10, 13), f"page at {page} is of kind {kind}"
        num_cells = int.from_bytes(image[header + 3 : header + 5], "big")
        cells = page + int.from_bytes(image[header + 5 : header + 7], "big")
        room = header + (12 if kind in (2, 5) else 8) + 2 * num_cells
        image[room:cells] = bytes(cells - room)
    return bytes(image)


def _sample_rows(
    shards: Sequence[Sequence[dict[str, Any]]], places: Sequence[Sequence[int]]
) -> Iterator[tuple[int, str, int, int, int]]:
    for shard, (rows, starts) in enumerate(zip(shards, places, strict=True)):
        for index, row in enumerate(rows):
            yield shard, row["key"], index, starts[index], starts[index + 1] - starts[index]


def _part_rows(
    layout: ShardLayout, shards: Sequence[Sequence[dict[str, Any]]]
) -> Iterator[tuple[int, int, str, int, int]]:
    members, json_start = _members(layout), layout.json_offset
    for shard, rows in enumerate(shards):
        for index, row in enumerate(rows):
            offset = row["offset"]
            for name, start, size in members:
                yield shard, index, name, offset + start, size
            yield shard, index, "json", offset + json_start, len(encode_info(row["facts"]))
