"""The samples of the loader benchmark, once in the format of each system, made once.

Everything lies in one folder: `archive` (GeoTIFFs in the layout of BigEarthNet v1), `dataset`
(ours, from `fusmae-ingest`; webdataset reads the same shards), `many` (ours in many shards),
`mds`, `litdata`, and `truth.json`,
the digests of the pixels as they were generated, before anything had stored them. All hold
the arrays at native resolution in their own dtype, and the sample's number as its label.
"""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from real_content import (
    REAL_V1,
    S1_ROOT,
    S2_ROOT,
    Pair,
    names_of,
    read_pairs,
    varied,
    write_archive,
)

from fusmae.data import SplitReader
from fusmae.sensors import BIGEARTHNET_ARRAYS

Pixels = npt.NDArray[Any]

ARRAYS = {spec.name: spec for spec in BIGEARTHNET_ARRAYS}
SAMPLE_BYTES = sum(
    int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize for spec in ARRAYS.values()
)
# 16 shards for 4,000 samples: enough to permute, and 8 for each of 2 workers.
SAMPLES_PER_SHARD = 256
# 334 shards, of which the paper's train split of BigEarthNet has 346.
_SAMPLES_IN_MANY = 12
SPLIT = "train"
# Shards and chunks of the peers, bytes: as large as ours.
_CHUNK_BYTES = SAMPLES_PER_SHARD * SAMPLE_BYTES
# Published name lists; empty ones put all samples into one split.
_EMPTY_LISTS = ("val", "test", "patches_with_seasonal_snow", "patches_with_cloud_and_shadow")


def sample_digest(index: int, arrays: Mapping[str, Any]) -> int:
    """64 bits over a sample's number and all its pixels; sums of them ignore the order."""
    digest = hashlib.sha256(index.to_bytes(8, "little"))
    for name in ARRAYS:
        digest.update(memoryview(np.ascontiguousarray(arrays[name])).cast("B"))
    return int.from_bytes(digest.digest()[:8], "little")


def read_sample(reader: SplitReader, index: int) -> dict[str, Any]:
    """A sample of our dataset by number, as the peers' writers take it."""
    rows = {spec.name: np.empty((1, *spec.shape), np.dtype(spec.dtype)) for spec in reader.arrays}
    reader.read_into(np.array([index]), rows)
    return {"index": index, **{name: array[0] for name, array in rows.items()}}


def _simulate(out: Path) -> Path:
    command = [sys.executable, "-m", "fusmae_ingest.cli", "simulate", "bigearthnet"]
    command += ["--out", str(out), "--patches", "6", "--version", "v1"]
    subprocess.run(command, check=True, capture_output=True)
    return out


def _write_dataset(
    folder: Path, into: str = "dataset", samples_per_shard: int = SAMPLES_PER_SHARD
) -> None:
    archive, lists = folder / "archive", folder / "lists"
    lists.mkdir(exist_ok=True)
    names = [path.name for path in sorted((archive / S2_ROOT).iterdir())]
    (lists / f"{SPLIT}.csv").write_text("".join(f"{name}\n" for name in names))
    for name in _EMPTY_LISTS:
        (lists / f"{name}.csv").write_text("")
    command = [sys.executable, "-m", "fusmae_ingest.cli", "bigearthnet"]
    command += ["--s2", str(archive / S2_ROOT), "--s1", str(archive / S1_ROOT)]
    command += ["--split", "official", "--split-lists", str(lists)]
    command += ["--samples-per-shard", str(samples_per_shard), "--workers", "2"]
    subprocess.run([*command, "--out", str(folder / into)], check=True, capture_output=True)


def _write_truth(folder: Path, pairs: list[Pair], num_samples: int) -> None:
    """Digests of the generated pixels, under the numbers that our dataset gives their names."""
    number = {key: index for index, key in enumerate(SplitReader(folder / "dataset", SPLIT).keys())}
    total = 0
    for index in range(num_samples):
        pair, copy = pairs[index % len(pairs)], index // len(pairs)
        s2_name, _ = names_of(pair, index)
        arrays = {name: varied(pair.arrays[name], copy) for name in ARRAYS}
        total += sample_digest(number[s2_name], arrays)
    truth = {
        "samples": num_samples,
        "digest": total % 2**64,
        "content": f"varied copies of {len(pairs)} "
        + ("real BigEarthNet v1 pairs" if REAL_V1.is_dir() else "SIMULATED pairs"),
    }
    (folder / "truth.json").write_text(json.dumps(truth))


def _write_mds(folder: Path) -> None:
    """MosaicML Streaming, as its documentation writes numpy columns of known shape."""
    from streaming import MDSWriter

    columns = {
        spec.name: f"ndarray:{np.dtype(spec.dtype).name}:{','.join(map(str, spec.shape))}"
        for spec in ARRAYS.values()
    }
    with MDSWriter(
        out=str(folder / "mds"), columns={"index": "int", **columns}, size_limit=_CHUNK_BYTES
    ) as writer:
        reader = SplitReader(folder / "dataset", SPLIT)
        for index in range(reader.num_samples):
            writer.write(read_sample(reader, index))


_reader = cache(lambda dataset: SplitReader(Path(dataset), SPLIT))


def _read_of(dataset: str, index: int) -> dict[str, Any]:
    return read_sample(_reader(dataset), index)


def _write_litdata(folder: Path) -> None:
    """LitData, through `optimize`; one worker, so that chunks are full."""
    from litdata import optimize

    optimize(
        fn=partial(_read_of, str(folder / "dataset")),
        inputs=list(range(json.loads((folder / "truth.json").read_text())["samples"])),
        output_dir=str(folder / "litdata"),
        chunk_bytes=_CHUNK_BYTES,
        num_workers=1,
        # A spawned worker would import torchvision again, without the repair of `main`.
        start_method="fork",
        verbose=False,
    )


def _write_many(folder: Path) -> None:
    _write_dataset(folder, "many", _SAMPLES_IN_MANY)


# By the folder of the format, with a file that says that it is whole.
_WRITERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "many": (_write_many, "dataset.json"),
    "mds": (_write_mds, "index.json"),
    "litdata": (_write_litdata, "index.json"),
}


def prepare(folder: Path, num_samples: int, formats: set[str]) -> dict[str, Any]:
    """Make what is not there yet, and return the truth: samples, digest, content.

    `formats` are the folders that are wanted beside `dataset`.

    Raises:
        ValueError: the folder holds another number of samples.
    """
    folder.mkdir(parents=True, exist_ok=True)
    truth = folder / "truth.json"
    if not truth.is_file():
        real = REAL_V1.is_dir()
        pairs = list(read_pairs(REAL_V1 if real else _simulate(folder / "simulated")))
        shutil.rmtree(folder / "archive", ignore_errors=True)
        write_archive(folder / "archive", pairs, num_samples)
        _write_dataset(folder)
        _write_truth(folder, pairs, num_samples)
    told: dict[str, Any] = json.loads(truth.read_text())
    if told["samples"] != num_samples:
        raise ValueError(
            f"{folder} holds {told['samples']} samples, --samples is {num_samples}: "
            "name another folder, or delete it"
        )
    for name in formats & set(_WRITERS):
        write, whole = _WRITERS[name]
        if not (folder / name / whole).is_file():
            shutil.rmtree(folder / name, ignore_errors=True)
            (folder / name).mkdir()
            write(folder)
    return told


def disk_bytes(path: Path) -> int:
    """What a format's files take up on the disk."""
    return sum(512 * file.stat().st_blocks for file in path.rglob("*") if file.is_file())
