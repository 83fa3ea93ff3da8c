"""What a dataset that was finished has lost since, made again by the command that made it.

A block's files are made again alone, and must become what the manifest says. Everything else is
made from all blocks, so where such a file is lost, or `dataset.json`, all blocks are run again.
"""

import io
import json
from collections.abc import Callable

import pyarrow.parquet as pq

from fusmae.manifest import MANIFEST_NAME, Manifest, all_files

from .engine import Executor
from .finish import QUARANTINE_NAME
from .layout import block_paths
from .plan import Block
from .record import write_bad
from .request import Request
from .rounds import Tolerance, convert_blocks
from .samples_table import TABLE_NAME
from .storage import Store
from .turn import take_turn


def lost_files(store: Store, manifest: Manifest) -> list[str]:
    """The files that the manifest lists and that are missing, or of another size."""
    sizes = store.sizes()
    return [file.path for file in all_files(manifest) if sizes.get(file.path) != file.bytes]


def lost_blocks(
    store: Store, request: Request, manifest: Manifest, lost: list[str]
) -> list[Block] | None:
    """The blocks that lost files belong to; None where one belongs to no block."""
    if QUARANTINE_NAME in lost:
        return None
    any_bad = any(file.path == QUARANTINE_NAME for file in manifest.files)
    blocks = request.blocks(_left_out(store, request, any_bad))
    block_of = {
        path: block for block in blocks for path in block_paths(request.name, request.arrays, block)
    }
    if not block_of.keys() >= set(lost):
        return None
    return list(dict.fromkeys(block_of[path] for path in lost))


def mend_blocks(
    store: Store,
    request: Request,
    manifest: Manifest,
    blocks: list[Block],
    executor: Executor,
    progress: Callable[[int, int], None],
) -> None:
    """Make the files of these blocks again.

    Raises:
        ValueError: a source is bad, or a file would not be what the manifest says.
        OSError: a file cannot be written.
    """
    expected = {file.path: file.sha256 for file in all_files(manifest)}
    turn = take_turn(store)
    # A bad sample ends it: the dataset has none.
    for _ in convert_blocks(
        store, turn, request, blocks, executor, progress, Tolerance(), expected
    ):
        store.require_lock()


def prepare_rebuild(
    store: Store, request: Request, manifest: Manifest, lost: list[str]
) -> dict[str, str]:
    """The sha256 of each file, by path, that all blocks run again have to give.

    The bad names of the dataset are noted, so that the blocks are planned as they were.

    Raises:
        ValueError: a file would be replaced or removed that the manifest does not describe, or
            nothing says any more which samples were left out.
    """
    listed = {file.path: file for file in all_files(manifest)}
    sizes = store.sizes()
    for path in lost:
        if path in sizes:
            raise ValueError(
                f"{store}/{path} has {sizes[path]:,} bytes, {MANIFEST_NAME} says "
                f"{listed[path].bytes:,}: move it away and give the same command again, which "
                "makes what was written"
            )
    own = [path for path in sizes if path.startswith(("shards/", "zarr/")) and path not in listed]
    if own:
        raise ValueError(
            f"{store}/{min(own)} is none of the dataset's files, and {lost[0]} is missing: all "
            "blocks are made again, and a file at a block's path would be replaced. Move it away "
            "and give the same command again"
        )
    names = _left_out(store, request, QUARANTINE_NAME in listed)
    if names:
        write_bad(store, dict.fromkeys(names, "left out of the finished dataset"))
    return {path: file.sha256 for path, file in listed.items()}


def _left_out(store: Store, request: Request, any_bad: bool) -> set[str]:
    """The names that the finished dataset lacks, from whichever file is still there."""
    if not any_bad:
        return set()
    if store.exists(QUARANTINE_NAME):
        return {json.loads(line)["key"] for line in store.read(QUARANTINE_NAME).splitlines()}
    if not store.exists(TABLE_NAME):
        raise ValueError(
            f"{store} has lost {QUARANTINE_NAME} and {TABLE_NAME}, which say what was left "
            "out: copy one back, or make it in a new folder"
        )
    table = pq.read_table(io.BytesIO(store.read(TABLE_NAME)), columns=["key"])
    return set(request.split_of.keys() - set(table["key"].to_pylist()))


def lost_its_manifest(store: Store) -> bool:
    """Whether the place holds what may be a finished dataset without its manifest."""
    # In this order: another run may finish between any two looks.
    return (
        store.holds_other_files() and not store.exists(MANIFEST_NAME) and store.exists(TABLE_NAME)
    )


def refuse_other_dataset(store: Store, request: Request) -> None:
    """Look at a dataset that lost its manifest: it is what the request makes, as far as it shows.

    Raises:
        ValueError: its samples lie in other places, or it has a format that is not asked for.
    """
    columns = ["split", "shard", "row", "key"]
    try:
        table = pq.read_table(io.BytesIO(store.read(TABLE_NAME)), columns=columns)
    except (OSError, ValueError) as error:
        raise _other_dataset(store, f"its {TABLE_NAME} cannot be read: {error}") from None
    there = list(zip(*(table[name].to_pylist() for name in columns), strict=True))
    blocks = request.blocks(request.split_of.keys() - {key for *_, key in there})
    planned = [(b.split, b.index, row, key) for b in blocks for row, key in enumerate(b.names)]
    if there != planned:
        raise _other_dataset(
            store,
            "these archives and options make one of other samples, or in another order "
            "(--split, --exclude, --limit, --seed, --samples-per-shard)",
        )
    formats = {name for name in ("shards", "zarr") if store.sizes(name)}
    if not formats <= request.formats:
        raise _other_dataset(store, f"it has {', '.join(sorted(formats))} (--format)")


def _other_dataset(store: Store, why: str) -> ValueError:
    return ValueError(
        f"--out {store} has lost its {MANIFEST_NAME}, and {why}: copy the file back, give what the "
        "dataset was made with, or a new folder"
    )
