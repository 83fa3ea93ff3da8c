"""What a reader does when a shard is cut short while it is open: an error, or death.

    python tests/benchmarks/loader_truncated.py preadv|mmap DATASET

Cuts a shard of the dataset to half, so give it a copy.
"""

import os
import sys
from pathlib import Path

import numpy as np
from loader_data import SPLIT
from loader_experiments import MmapReader

from fusmae.data import SplitReader


def main() -> None:
    dataset = Path(sys.argv[2])
    reader = (MmapReader if sys.argv[1] == "mmap" else SplitReader)(dataset, SPLIT)
    last = np.array([reader.shard_sizes[0] - 1])
    out = {spec.name: np.empty((1, *spec.shape), spec.dtype) for spec in reader.arrays}
    reader.read_into(last, out)
    shard = dataset / reader.record.shards[0].path
    os.truncate(shard, shard.stat().st_size // 2)
    try:
        reader.read_into(last, out)
    except ValueError as error:
        print(f"ValueError: {str(error).replace(str(dataset), 'DATASET')}")
    else:
        print("no error")


if __name__ == "__main__":
    main()
