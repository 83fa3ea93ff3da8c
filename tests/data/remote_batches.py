"""The dataset in the store, the batches that training reads of it, and what that fetches."""

from contextlib import suppress

from fusmae.config import DataConfig
from fusmae.data import TrainLoader
from fusmae.manifest import read_manifest

from .remote_rank import digest

URL = "s3://datasets/many"
SEED = 5
DATA = DataConfig(window=2)


def digests(dataset, steps, world_size=1, data=DATA, **options):
    """By rank: the digest of each of the next batches; ranks take turns, step by step."""
    share = 8 // world_size
    loaders = [
        TrainLoader(dataset, data, SEED, 8, rank, world_size, share, **options)
        for rank in range(world_size)
    ]
    try:
        return [
            list(by_rank)
            for by_rank in zip(
                *([digest(next(loader)) for loader in loaders] for _ in range(steps)), strict=True
            )
        ]
    finally:
        for loader in loaders:
            loader.close()


def shard_gets(store):
    return {path: count for path, count in store.gets.items() if path.endswith(".tar")}


def train_shards(dataset):
    return read_manifest(dataset).split("train").shards


def limit_of(dataset, num_shards):
    """`cache_gb` with room for so many shards."""
    return num_shards * max(s.bytes for s in train_shards(dataset)) / 1e9


def used_bytes(cache):
    total = 0
    for path in cache.glob("*/shards/**/*"):
        with suppress(FileNotFoundError):  # renamed or evicted meanwhile
            total += path.stat().st_size if path.is_file() else 0
    return total
