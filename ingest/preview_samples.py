"""What the preview page reads of a dataset: its table, and the pixels of the samples shown.

One read a sample from its shard, or one chunk an array from the zarr store; nothing else of
the pixels is touched.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fusmae.manifest import Manifest

from .layout import store_path
from .zarr_store import open_array

# A WKB polygon of one ring of five points, as `samples_table` writes it: byte order, type, number
# of rings and of points, then longitude and latitude of each point.
_FOOTPRINT = np.dtype([("head", "V13"), ("ring", "<f8", (5, 2))])


@dataclass(frozen=True)
class ShownSample:
    """A sample of the contact sheet: its row of samples.parquet, and its arrays by name."""

    row: dict[str, Any]
    arrays: dict[str, npt.NDArray[Any]]


def read_table(root: Path) -> pa.Table:
    """samples.parquet of a dataset.

    Raises:
        ValueError: it is missing or not readable.
    """
    path = root / "samples.parquet"
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"cannot read {path}: {error}; see fusmae-ingest verify {root}") from None


def centres(table: pa.Table) -> npt.NDArray[np.float64]:
    """Longitude and latitude in degrees of each footprint's middle, shape (samples, 2)."""
    joined = b"".join(table["footprint"].to_pylist())
    assert len(joined) == len(table) * _FOOTPRINT.itemsize, "footprints are four corners, closed"
    rings = np.frombuffer(joined, _FOOTPRINT)["ring"]
    middles: npt.NDArray[np.float64] = rings[:, :4].mean(axis=1)
    return middles


def centre(footprint: bytes) -> tuple[float, float]:
    """Longitude and latitude in degrees of one footprint's middle."""
    lon, lat = np.frombuffer(footprint, _FOOTPRINT)["ring"][0, :4].mean(axis=0)
    return float(lon), float(lat)


def spread(total: int, count: int) -> list[int]:
    """`count` places, or all there are, evenly over 0 to total - 1.

    A split stands in a random order already, so these are a uniform draw, and always the same.
    """
    count = min(total, count)
    return [place * total // count for place in range(count)]


def read_samples(
    root: Path, manifest: Manifest, table: pa.Table, split: str, count: int
) -> Iterator[ShownSample]:
    """`count` samples of a split, or all that it has, evenly over its order.

    Raises:
        ValueError: a shard or the zarr store is not as the manifest and the table say.
    """
    rows = table.filter(pc.equal(table["split"], split))
    for place in spread(len(rows), count):
        row = rows.slice(place, 1).to_pylist()[0]
        stored_in_shards = bool(manifest.splits[split].shards)
        read = _from_shard if stored_in_shards else _from_zarr
        yield ShownSample(row, read(root, manifest, split, place, row))


def _from_shard(
    root: Path, manifest: Manifest, split: str, place: int, row: dict[str, Any]
) -> dict[str, npt.NDArray[Any]]:
    """A sample's arrays by its place in the index, without reading the tar around it."""
    record = manifest.splits[split]
    assert record.index is not None
    index, path = root / record.index.path, root / record.shards[row["shard"]].path
    offsets = manifest.layout.offsets
    size = manifest.layout.json_offset
    try:
        start = int(np.load(index, mmap_mode="r")[place])
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(size)
    except (OSError, ValueError, IndexError) as error:
        raise ValueError(
            f"cannot read {row['key']} from {path} by {index}: {error}; see fusmae-ingest verify "
            f"{root}"
        ) from None
    # The first tar header begins with the name of the sample's first array.
    if len(data) < size or not data.startswith(f"{row['key']}.".encode()):
        raise ValueError(
            f"{path} does not hold {row['key']} at byte {start:,}: see fusmae-ingest verify {root}"
        )
    return {
        spec.name: np.frombuffer(
            data, spec.dtype, int(np.prod(spec.shape)), offsets[spec.name]
        ).reshape(spec.shape)
        for spec in manifest.arrays
    }


def _from_zarr(
    root: Path, manifest: Manifest, split: str, place: int, row: dict[str, Any]
) -> dict[str, npt.NDArray[Any]]:
    store = root / store_path(split)
    try:
        return {
            spec.name: np.asarray(open_array(str(store), spec)[place]) for spec in manifest.arrays
        }
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"cannot read {row['key']} from {store}: {error}; see fusmae-ingest verify {root}"
        ) from None
