"""What a block leaves in the scratch folder: its record when it is done, or its bad samples.

The record is written after the block's other files, so its presence means that they are
there; the finishing step makes indexes, tables and the manifest from records alone.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from fusmae.manifest import FileRecord, ShardRecord

from .layout import SCRATCH
from .plan import Block
from .storage import Store, write_file

_BAD, _BLOCKS = f"{SCRATCH}/bad", f"{SCRATCH}/blocks"


@dataclass(frozen=True)
class BlockRecord:
    """A block that is done.

    `statistics` is the file of its partial statistics. `rows` has an entry a sample: key,
    offset in the shard, footprint ring and facts.
    """

    split: str
    index: int
    shard: ShardRecord | None
    zarr: tuple[FileRecord, ...]
    statistics: FileRecord
    rows: tuple[dict[str, Any], ...]

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """Every file of the block."""
        shard = self.shard
        tar = (FileRecord(shard.path, shard.bytes, shard.sha256),) if shard else ()
        return (*tar, *self.zarr, self.statistics)


def _path(block: Block) -> str:
    return f"{_BLOCKS}/{block.label}.json"


def statistics_path(block: Block) -> str:
    return f"{SCRATCH}/statistics/{block.label}.npz"


def write_record(store: Store, block: Block, record: BlockRecord) -> None:
    table = {
        "shard": asdict(record.shard) if record.shard else None,
        "zarr": [asdict(file) for file in record.zarr],
        "statistics": asdict(record.statistics),
        "rows": record.rows,
    }
    store.require_lock()
    write_file(store, _path(block), json.dumps(table).encode())


def read_record(store: Store, block: Block, sizes: Mapping[str, int]) -> BlockRecord | None:
    """The record of a block that is done with just these samples, or None.

    None too where the record is cut short, or a file of the block is missing or has another
    size; `sizes` are the store's.
    """
    if _path(block) not in sizes:
        return None
    try:
        table = json.loads(store.read(_path(block)))
        if tuple(row["key"] for row in table["rows"]) != block.names:
            return None
        record = BlockRecord(
            block.split,
            block.index,
            ShardRecord(**table["shard"]) if table["shard"] else None,
            tuple(FileRecord(**item) for item in table["zarr"]),
            FileRecord(**table["statistics"]),
            tuple(table["rows"]),
        )
    except (ValueError, KeyError, TypeError):
        return None
    whole = all(sizes.get(file.path) == file.bytes for file in record.files)
    return record if whole else None


def write_bad(store: Store, bad: dict[str, str]) -> None:
    """Note bad samples: name -> reason. Notes add up; the same names replace their note."""
    store.require_lock()
    names = hashlib.sha256("\n".join(sorted(bad)).encode()).hexdigest()[:16]
    write_file(store, f"{_BAD}/{names}.json", json.dumps(bad).encode())


def read_bad(store: Store) -> dict[str, str]:
    """Every bad sample noted so far: name -> reason. A note that is cut short counts as none."""
    bad: dict[str, str] = {}
    for path in store.sizes(_BAD):
        with suppress(ValueError, TypeError):
            bad |= json.loads(store.read(path))
    return bad


def forget_records(store: Store) -> None:
    """Drop all records of blocks: every block is made again."""
    store.remove_folder(_BLOCKS)


def forget_bad(store: Store) -> None:
    """Drop the notes of bad samples: they are read again, since files may have been mended."""
    store.remove_folder(_BAD)
