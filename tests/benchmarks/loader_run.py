"""One system of the loader benchmark, measured in this process; the command of a single run.

    python tests/benchmarks/loader_run.py "ours" DATA --workers 2 --cores 2

The first epoch is not timed: it warms the page cache, its memory is watched, and the digest of
all its pixels is taken. The second is not timed either, so that reading ahead is in its stride on
both ends of what is: whole epochs, at least two, for at least `--seconds`. Prints JSON.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before torch and whatever else counts the cores.
if __name__ == "__main__":
    _parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    _parser.add_argument("system")
    _parser.add_argument("data", type=Path)
    _parser.add_argument("--workers", type=int, required=True)
    _parser.add_argument("--cores", type=int, required=True)
    _parser.add_argument("--seconds", type=float, default=2.0)
    _parser.add_argument(
        "--cold", action="store_true", help="one epoch, from the disk, opening included"
    )
    _parser.add_argument(
        "--evict", action="store_true", help="start with no page of the files cached"
    )
    _options = _parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: _options.cores])

from loader_data import sample_digest
from loader_disk import evict
from loader_experiments import EXPERIMENTS
from loader_systems import OURS, PEERS, SMALL, System
from process_tree import MemoryWatch, cpu_s, own_bytes
from torch import Tensor

# MiB, of this process and its workers, see `process_tree.own_bytes`: before the system was opened,
# the peak of both untimed epochs, medians of the first and the last quarter of the second one.
MEMORY = ("start_mib", "peak_mib", "first_quarter_mib", "last_quarter_mib")

SYSTEMS = {**OURS, **PEERS, **SMALL, **EXPERIMENTS}


def count(epoch: Iterator[dict[str, Tensor]]) -> int:
    return sum(len(batch["index"]) for batch in epoch)


def check(epoch: Iterator[dict[str, Tensor]]) -> tuple[int, int]:
    """Samples of an epoch, and the sum of their digests, whatever their order."""
    samples, total = 0, 0
    for batch in epoch:
        arrays = {name: tensor.numpy() for name, tensor in batch.items()}
        for row, index in enumerate(arrays["index"].tolist()):
            total += sample_digest(index, {name: array[row] for name, array in arrays.items()})
        samples += len(arrays["index"])
    return samples, total % 2**64


def hot(system: System, data: Path, workers: int, seconds: float) -> dict[str, Any]:
    start_bytes = own_bytes()
    epochs = system.epochs(data, workers)
    with MemoryWatch() as first:
        samples, digest = check(next(epochs))
    last = first
    if not system.slow:
        with MemoryWatch() as last:
            count(next(epochs))
    timed, passed = 0, 0
    start_cpu_s, start_s = cpu_s(), time.perf_counter()
    while True:
        timed += count(next(epochs))
        passed += 1
        wall_s = time.perf_counter() - start_s
        if system.slow or (passed > 1 and wall_s > seconds):
            break
    used_s = cpu_s() - start_cpu_s
    sizes = (start_bytes, max(first.peak_bytes, last.peak_bytes), *last.quarters_bytes())
    return {
        "samples": samples,
        "digest": digest,
        "samples_a_s": timed / wall_s,
        "samples_an_epoch": timed / passed,
        "cpu_us": 1e6 * used_s / timed,
        **dict(zip(MEMORY, (round(size / 2**20, 1) for size in sizes), strict=True)),
    }


def cold(system: System, data: Path, workers: int) -> dict[str, Any]:
    """The first epoch, from opening on, of files that no memory holds."""
    left = evict(data / system.stored)
    start_s = time.perf_counter()
    epochs = system.epochs(data, workers)
    samples = count(next(epochs))
    wall_s = time.perf_counter() - start_s
    return {"samples": samples, "samples_a_s": samples / wall_s, "cached_before": left}


def main() -> None:
    system = SYSTEMS[_options.system]
    load = round(os.getloadavg()[0], 2)
    if _options.cold:
        told = cold(system, _options.data, _options.workers)
    else:
        if _options.evict:
            evict(_options.data / system.stored)
        told = hot(system, _options.data, _options.workers, _options.seconds)
    print(json.dumps({"load": load, **told}), flush=True)


if __name__ == "__main__":
    main()
