"""Where the files of a dataset lie: docs/FORMAT.md, at its head. Paths are relative to it."""

from collections.abc import Sequence

from fusmae.sensors import ArraySpec

from .plan import Block

# What a run needs and a finished dataset does not; the manifest lists none of it.
SCRATCH = ".ingest"
# Local files that have not got their name yet.
UNNAMED = f"{SCRATCH}/unnamed"
LOCK = f"{SCRATCH}/lock"


def tar_path(dataset: str, block: Block) -> str:
    """The tar shard of a block."""
    return f"shards/{block.split}/{dataset}-{block.label}.tar"


def store_path(split: str) -> str:
    """The zarr store of a split."""
    return f"zarr/{split}.zarr"


def zarr_shard_path(split: str, spec: ArraySpec, index: int) -> str:
    """Where zarr looks for shard `index` along the sample axis of an array."""
    return f"{store_path(split)}/{spec.name}/c/{index}/0/0/0"


def block_paths(dataset: str, arrays: Sequence[ArraySpec], block: Block) -> list[str]:
    """Every file that a block makes, in whatever format."""
    zarr = [zarr_shard_path(block.split, spec, block.index) for spec in arrays]
    return [tar_path(dataset, block), *zarr]
