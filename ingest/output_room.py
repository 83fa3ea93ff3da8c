"""The room that blocks take on the output's disk, looked at before the first of them is written."""

import shutil
from collections.abc import Sequence

from fusmae.sample import TAR_BLOCK, ShardLayout, array_bytes

from .layout import block_paths
from .plan import Block
from .request import Request
from .storage import LocalStore, Store
from .wording import counted, say

# The text of KEY.json fills one or two of tar's blocks.
_JSON_BYTES = 2 * TAR_BLOCK


def _bytes_a_sample(request: Request) -> tuple[int, int]:
    """(bytes of a sample in a shard, at most so many in the zarr arrays); 0 for what is not asked.

    Pixels in zarr are compressed, so that nobody knows how far before they are read.
    """
    specs = request.arrays
    whole = ShardLayout(specs).json_offset + _JSON_BYTES
    pixels = sum(array_bytes(spec) for spec in specs)
    return whole * ("shards" in request.formats), pixels * ("zarr" in request.formats)


def require_output_room(store: Store, request: Request, todo: Sequence[Block]) -> None:
    """Say how much these blocks will write, and look whether the disk of a folder has the room.

    Where only the compressed zarr arrays may not fit, that is a warning.

    Raises:
        ValueError: what is written for sure does not fit.
    """
    count = sum(len(block.names) for block in todo)
    shards, zarr = (count * size for size in _bytes_a_sample(request))
    parts = {f"{_mb(shards)} of shards": shards, f"at most {_mb(zarr)} of zarr": zarr}
    sizes_told = " and ".join(part for part, size in parts.items() if size)
    told = f"Converting {counted(count, 'sample')}: {sizes_told}"
    if not isinstance(store, LocalStore):
        say(told)
        return
    free = shutil.disk_usage(store.root).free
    say(f"{told}; {store} has {_mb(free)} free")
    # A file that is there is replaced by its like.
    sizes = store.sizes()
    paths = (p for block in todo for p in block_paths(request.name, request.arrays, block))
    room = free + sum(sizes.get(path, 0) for path in paths)
    if room < shards:
        raise ValueError(
            f"{store} has room for {_mb(room)}, and {counted(count, 'sample')} take "
            f"{_mb(shards)} of shards: make room there and run the same command again, or give "
            "--out on another disk"
        )
    if room < shards + zarr:
        say(
            f"warning: {store} has room for {_mb(room)}: enough only if zarr compresses its "
            f"{_mb(zarr)} to {_mb(room - shards)}"
        )


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
