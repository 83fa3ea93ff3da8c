"""A small dataset of random pixels, written with the shard contract and nothing of ingest."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fusmae.labels import BIGEARTHNET_19
from fusmae.manifest import (
    MANIFEST_NAME,
    BandStatistics,
    FileRecord,
    Manifest,
    ShardRecord,
    SplitRecord,
    to_json,
)
from fusmae.sample import TAR_END, ShardLayout, encode
from fusmae.sensors import BIGEARTHNET_ARRAYS, CLC_MAP, ArraySpec

# BigEarthNet's arrays at a tenth of their size, the 60 m bands at 2 px, and a map among them
# that no band selection wants: it must be jumped over.
TINY_ARRAYS = tuple(
    replace(spec, size_px=max(2, spec.size_px // 10))
    for spec in (*BIGEARTHNET_ARRAYS[:2], CLC_MAP, *BIGEARTHNET_ARRAYS[2:])
)


def random_arrays(specs: Sequence[ArraySpec], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """One sample: dB-like floats and integers over the whole range of their dtype."""
    arrays = {}
    for spec in specs:
        if np.dtype(spec.dtype).kind == "f":
            arrays[spec.name] = rng.normal(-12, 4, spec.shape).astype(spec.dtype)
        else:
            top = np.iinfo(spec.dtype).max
            arrays[spec.name] = rng.integers(0, top, spec.shape, spec.dtype, endpoint=True)
    return arrays


def _statistics(arrays: Sequence[np.ndarray]) -> BandStatistics:
    pixels = np.stack(arrays).astype(np.float64)
    axes = (0, 2, 3)
    reduced = [getattr(pixels, name)(axes) for name in ("mean", "std", "min", "max")]
    count = pixels.size // pixels.shape[1]
    return BandStatistics(count, *(tuple(values.tolist()) for values in reduced))


def write_tiny_dataset(
    folder: Path,
    splits: Mapping[str, Sequence[int]],
    specs: tuple[ArraySpec, ...] = TINY_ARRAYS,
    seed: int = 0,
) -> Path:
    """A finished dataset in `folder`; `splits` maps a split to the sizes of its shards."""
    rng = np.random.default_rng(seed)
    layout = ShardLayout(specs)
    records, rows, pixels = {}, [], {spec.name: [] for spec in specs}
    for split, sizes in splits.items():
        shards, offsets = [], []
        for shard, size in enumerate(sizes):
            data = b""
            for row in range(size):
                key = f"{split}-{shard}-{row}"
                arrays = random_arrays(specs, rng)
                labels = [BIGEARTHNET_19[i] for i in sorted({len(rows) % 19, len(rows) % 7})]
                offsets.append(len(data))
                flags = {
                    "seasonal_snow": len(rows) % 5 == 0,
                    # Of the test split it is not known.
                    "cloud_or_shadow": None if split == "test" else len(rows) % 7 == 3,
                }
                rows.append({"key": key, "split": split, "labels_bigearthnet_19": labels, **flags})
                info = {"key": key, "place": "Öland" * (row % 3)}
                info |= {"labels": {"bigearthnet-19": labels}, **flags}
                data += encode(layout, key, arrays, info)
                for name, array in arrays.items():
                    pixels[name].append(array)
            data += TAR_END
            path = f"shards/{split}/tiny-{split}-{shard:06d}.tar"
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
            shards.append(ShardRecord(path, len(data), hashlib.sha256(data).hexdigest(), size))
        index = folder / "index" / f"{split}.npy"
        index.parent.mkdir(exist_ok=True)
        np.save(index, np.array(offsets, np.int64))
        digest = hashlib.sha256(index.read_bytes()).hexdigest()
        record = FileRecord(f"index/{split}.npy", index.stat().st_size, digest)
        records[split] = SplitRecord(len(offsets), tuple(shards), record)
    pq.write_table(pa.Table.from_pylist(rows), folder / "samples.parquet")
    manifest = Manifest(
        name="tiny",
        simulated=True,
        source={},
        seed=seed,
        samples_per_shard=max(max(sizes) for sizes in splits.values()),
        arrays=specs,
        label_sets={"bigearthnet-19": tuple(BIGEARTHNET_19)},
        splits=records,
        statistics={name: _statistics(arrays) for name, arrays in pixels.items()},
        statistics_split="train",
        options={},
    )
    (folder / MANIFEST_NAME).write_text(to_json(manifest))
    return folder
