"""How well training's order mixes: ours by window, and webdataset's shuffle, in one run.

    python tests/benchmarks/shuffle_quality.py --out tests/benchmarks/results/shuffle_quality.json

Orders of BigEarthNet's size are drawn, no pixel is read. Two measures:

- `correlation`: Pearson's, of a sample's position in one epoch and in the next (0 for independent
  orders, with a deviation of 1 / sqrt(samples));
- `classes`: the mean number of distinct classes in a batch, less that of a uniform draw, in units
  of that draw's deviation of the mean (`classes_z`; within 3 for a uniform shuffle).

Twice: with the classes scattered over the shards, as ingest leaves them, and sorted by class, the
worst case, in which the shuffle has to do all the mixing.
"""

import argparse
import itertools
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import machine
import numpy as np
import numpy.typing as npt

from fusmae.data.order import Order

Ids = npt.NDArray[np.int64]
# Epoch -> sample ids in the order of their visit, (samples,).
Shuffle = Callable[[int], Ids]

# That of a URL whose 346 shards of BigEarthNet, 287 MB each, are kept in `data.cache_gb` = 64 by
# default: two windows, and two shards beside them (`Mirror.window`).
REMOTE_WINDOW = 110

NUM_CLASSES = 19
# Most to least frequent of BigEarthNet's 19 classes: about 200,000 to 1,500 patches.
CLASS_SHARES = np.geomspace(1, 1.5 / 200, NUM_CLASSES)


def position_correlation(first: Ids, second: Ids) -> float:
    """Pearson's correlation of the samples' positions in two epochs, (samples,) ids each."""
    return float(np.corrcoef(np.argsort(first), np.argsort(second))[0, 1])


def distinct_classes(ids: Ids, class_of_id: Ids, batch: int) -> npt.NDArray[np.float64]:
    """Distinct classes of each whole batch of an epoch, (batches,)."""
    classes = class_of_id[ids[: len(ids) // batch * batch]].reshape(-1, batch)
    ordered = np.sort(classes, axis=1)
    return 1.0 + (np.diff(ordered, axis=1) > 0).sum(axis=1)


def classes_z(ids: Ids, class_of_id: Ids, batch: int, draws: int = 20) -> float:
    """Mean of `distinct_classes` against uniform draws, in deviations of such a mean."""
    rng = np.random.default_rng(0)
    uniform = [
        distinct_classes(rng.permutation(ids), class_of_id, batch).mean() for _ in range(draws)
    ]
    # A mean over the batches of one epoch spreads as a single batch over sqrt(batches).
    one = distinct_classes(rng.permutation(ids), class_of_id, batch)
    deviation = one.std() / np.sqrt(len(one))
    mean = distinct_classes(ids, class_of_id, batch).mean()
    return float((mean - np.mean(uniform)) / deviation)


def classes_of(num_samples: int, is_sorted: bool) -> Ids:
    """A class a sample, by `CLASS_SHARES`; scattered at random or one class after another."""
    ends = np.cumsum(CLASS_SHARES / CLASS_SHARES.sum()) * num_samples
    classes = np.searchsorted(ends, np.arange(num_samples), side="right").clip(max=NUM_CLASSES - 1)
    return classes if is_sorted else np.random.default_rng(1).permutation(classes)


def ours(shard_sizes: Sequence[int], window: int, seed: int = 0) -> Shuffle:
    order = Order(shard_sizes, seed, window)
    return lambda epoch: order.samples(epoch * order.num_samples, order.num_samples)


def webdatasets(shard_sizes: Sequence[int], buffer: int) -> Shuffle:
    """webdataset's own filter over ids: shards shuffled, then a buffer of `buffer` samples."""
    import webdataset

    shards = np.split(np.arange(sum(shard_sizes)), np.cumsum(shard_sizes)[:-1])

    def visit(epoch: int) -> Ids:
        rng = random.Random(epoch)
        chosen = rng.sample(range(len(shards)), len(shards))
        ids = itertools.chain.from_iterable(shards[shard].tolist() for shard in chosen)
        shuffled = webdataset.filters.shuffle(buffer, initial=buffer, rng=rng)(ids)
        return np.fromiter(shuffled, np.int64, sum(shard_sizes))

    return visit


def measure(shuffle: Shuffle, num_samples: int, batch: int) -> dict[str, float]:
    first, second = shuffle(0), shuffle(1)
    return {
        "correlation": round(position_correlation(first, second), 5),
        "classes_z_scattered": round(classes_z(first, classes_of(num_samples, False), batch), 2),
        "classes_z_sorted": round(classes_z(first, classes_of(num_samples, True), batch), 2),
        "classes_sorted": round(
            float(distinct_classes(first, classes_of(num_samples, True), batch).mean()), 3
        ),
    }


def report(num_samples: int, samples_per_shard: int, batch: int) -> dict[str, Any]:
    whole, rest = divmod(num_samples, samples_per_shard)
    sizes = [samples_per_shard] * whole + ([rest] if rest else [])
    systems: dict[str, Shuffle] = {"ours, all shards (default)": ours(sizes, 0)}
    for window in (REMOTE_WINDOW, 64, 16, 4, 1):
        systems[f"ours, window of {window} shards"] = ours(sizes, window)
    systems["webdataset, buffer of 1000"] = webdatasets(sizes, 1000)
    systems["webdataset, buffer of 10000"] = webdatasets(sizes, 10_000)
    systems["no shuffle"] = lambda epoch: np.arange(num_samples)
    results = {name: measure(shuffle, num_samples, batch) for name, shuffle in systems.items()}
    return {
        "benchmark": "shuffle quality",
        **machine.describe("numpy", "webdataset"),
        "config": {
            "num_samples": num_samples,
            "samples_per_shard": samples_per_shard,
            "batch": batch,
            "classes": NUM_CLASSES,
        },
        "results": results,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=354_196, help="the google train split")
    parser.add_argument("--samples-per-shard", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=400)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    table = report(options.samples, options.samples_per_shard, options.batch)
    machine.write(options.out, table)
    for name, result in table["results"].items():
        print(f"{name:32} {result}")


if __name__ == "__main__":
    main()
