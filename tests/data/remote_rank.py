"""One rank as a process: `remote_rank.py DATASET CACHE RANK WORLD STEPS`.

Prints a JSON line with the sha256 of each batch.
"""

import hashlib
import json
import sys
from pathlib import Path

from fusmae.config import DataConfig
from fusmae.data import Batch, TrainLoader, locate_dataset


def digest(batch: Batch) -> str:
    """A sha256 of all tensors of a batch."""
    sha256 = hashlib.sha256()
    for tensor in batch.tensors():
        sha256.update(tensor.numpy().tobytes())
    return sha256.hexdigest()


def main() -> None:
    location, cache = sys.argv[1], Path(sys.argv[2])
    rank, world_size, steps = map(int, sys.argv[3:6])
    dataset = locate_dataset(location, cache)
    share = 8 // world_size
    with TrainLoader(dataset, DataConfig(window=2), 5, 8, rank, world_size, share) as loader:
        print(json.dumps([digest(next(loader)) for _ in range(steps)]))


if __name__ == "__main__":
    main()
