"""One epoch from a store of limited rate, opening included; as a program, a single run.

    python tests/benchmarks/loader_remote.py ours DATA URL --workers 2

The store is `tests/data/object_store.py` on loopback, on the same cores as its readers. MosaicML
and LitData know no HTTP: to them it is an S3 endpoint, whose buckets are the folders of formats.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import machine
import torch
from loader_data import SAMPLE_BYTES, SPLIT
from loader_run import check
from loader_systems import (
    BATCH,
    PEERS,
    SEED,
    WDS_BUFFER,
    Epochs,
    cut_epochs,
    litdata_at,
    mosaicml_at,
    webdataset_of,
)

from fusmae.config import DataConfig
from fusmae.data import SplitReader, TrainLoader, locate_dataset
from fusmae.torchvision_repair import repair_torchvision

STORE = Path(__file__).parents[1] / "data" / "object_store.py"
# MB/s of the store; 0 for as fast as it can.
RATES = (0, 200, 50)
_READ_BYTES = 1 << 20
_S3_USER = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def ours(data: Path, url: str, workers: int, window: int) -> Epochs:
    """Through an empty cache, each shard checked; with a window, the cache holds two of them."""
    with tempfile.TemporaryDirectory() as cache:
        dataset = locate_dataset(f"{url}/dataset", Path(cache))
        largest = max(shard.bytes for shard in SplitReader(data / "dataset", SPLIT).record.shards)
        config = DataConfig(split=SPLIT, window=window)
        if window:
            config = DataConfig(split=SPLIT, window=window, cache_gb=2.1 * window * largest / 1e9)
        pin = torch.cuda.is_available()
        with TrainLoader(
            dataset, config, SEED, BATCH, 0, 1, BATCH, num_threads=workers, pin=pin
        ) as loader:
            yield from cut_epochs(loader, loader.num_samples)


def webdataset(data: Path, url: str, workers: int) -> Epochs:
    """`pipe:curl`, as webdataset reads URLs of http; nothing is checked and nothing kept."""
    reader = SplitReader(data / "dataset", SPLIT)
    urls = [f"{url}/dataset/{shard.path}" for shard in reader.record.shards]
    return webdataset_of(reader, urls, workers, WDS_BUFFER)


def mosaicml(data: Path, url: str, workers: int) -> Epochs:
    """Into an empty folder, which keeps everything; nothing is checked."""
    os.environ |= {**_S3_USER, "S3_ENDPOINT_URL": url}
    with tempfile.TemporaryDirectory() as cache:
        yield from mosaicml_at({"remote": "s3://mds", "local": cache}, workers)


def litdata(data: Path, url: str, workers: int) -> Epochs:
    """Into an empty folder without a limit, decoded in its faster way; nothing is checked."""
    os.environ |= {**_S3_USER, "LITDATA_BATCH_DECODE": "0"}
    with tempfile.TemporaryDirectory() as cache:
        options = {"cache_dir": cache, "storage_options": {"endpoint_url": url}}
        yield from litdata_at("s3://litdata", workers, **options)


SYSTEMS: dict[str, Callable[[Path, str, int], Epochs]] = {
    "ours": partial(ours, window=0),
    "ours, window of 2 shards": partial(ours, window=2),
    "webdataset": webdataset,
    "mosaicml": mosaicml,
    "litdata": litdata,
}


def present(data: Path) -> list[str]:
    """The systems whose package is installed and whose format was written."""
    return [
        name
        for name in SYSTEMS
        if name not in PEERS
        or (find_spec(PEERS[name].package) and (data / PEERS[name].stored).is_dir())
    ]


@contextmanager
def _store(folder: Path, mb_a_s: int) -> Iterator[str]:
    command = [sys.executable, str(STORE), str(folder), str(mb_a_s * 1e6)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as serving:
        try:
            assert serving.stdout is not None
            yield serving.stdout.readline().strip()
        finally:
            serving.kill()


def _bare(data: Path, url: str) -> float:
    """MB/s of reading the same shards one after another and throwing them away."""
    shards = SplitReader(data / "dataset", SPLIT).record.shards
    total, start_s = 0, time.perf_counter()
    for shard in shards:
        with urlopen(f"{url}/dataset/{shard.path}") as answer:
            while piece := answer.read(_READ_BYTES):
                total += len(piece)
    return total / 1e6 / (time.perf_counter() - start_s)


def compare(data: Path, systems: list[str], rounds: int, digest: int) -> dict[str, Any]:
    """The systems at each of the store's rates; pixels are hashed in runs of their own."""
    table: dict[str, Any] = {}
    for rate in RATES:
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in systems}
        bare = []
        for _ in range(rounds):
            with _store(data, rate) as url:
                bare.append(_bare(data, url))
                for name in systems:
                    runs[name].append(_run(name, data, url))
        label = f"{rate} MB/s" if rate else "no limit"
        table[label] = {"one reader, shards thrown away, mb_a_s": machine.spread(bare, 1)}
        for name, results in runs.items():
            table[label][name] = {
                figure: machine.spread([result[figure] for result in results], 1)
                for figure in ("mb_a_s", "first_batch_s")
            }
    with _store(data, 0) as url:
        for name in systems:
            whole = _run(name, data, url, "--check")["digest"] == digest
            table.setdefault("pixels", {})[name] = "all" if whole else "NOT all"
    return table


def _run(name: str, data: Path, url: str, *more: str) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", __file__, name, str(data), url, *more]
    done = subprocess.run([*command, "--workers", "2"], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} ended with {done.returncode}: {done.stderr[-2000:]}")
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{name}, {url}: {told}", file=sys.stderr)
    return told


def _timed(system: str, data: Path, url: str, workers: int) -> dict[str, Any]:
    if system in PEERS:
        # Some import torchvision, which takes seconds.
        repair_torchvision()
        import_module(PEERS[system].package)
    start_s = time.perf_counter()
    samples, first_batch_s = 0, 0.0
    epochs = SYSTEMS[system](data, url, workers)
    for batch in next(epochs):
        first_batch_s = first_batch_s or time.perf_counter() - start_s
        samples += len(batch["index"])
    wall_s = time.perf_counter() - start_s
    return {"mb_a_s": samples * SAMPLE_BYTES / 1e6 / wall_s, "first_batch_s": first_batch_s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("data", type=Path)
    parser.add_argument("url")
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--check", action="store_true", help="the digest instead of the time")
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    if options.check:
        epochs = SYSTEMS[options.system](options.data, options.url, options.workers)
        told: dict[str, Any] = dict(zip(("samples", "digest"), check(next(epochs)), strict=True))
    else:
        told = _timed(options.system, options.data, options.url, options.workers)
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
