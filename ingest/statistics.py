"""Per-band statistics: histograms and sums of a block, merged in block order.

Integers are counted exactly, a bin a value, and all their statistics follow from the counts.
SAR (float32, dB) is counted in bins of 0.01 dB, so its percentiles are exact to half a bin;
its sums run in float64 over a fixed order, so they depend on the data and on nothing else.
"""

import io
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fusmae.manifest import BandStatistics
from fusmae.sensors import ArraySpec

# One array's partial: `histogram` int64 (bands, bins), without the empty bins above the last filled
# one; for floats also `sum`, `square`, `min` and `max`, float64 (bands,).
Partial = dict[str, npt.NDArray[Any]]
Partials = dict[str, Partial]

# Backscatter below -100 or above +50 dB is no measurement; it is counted in the outer bins.
SAR_FIRST_DB, SAR_BINS, SAR_BINS_PER_DB = -100, 15_000, 100
_SAR_SCALE = np.float32(SAR_BINS_PER_DB), np.float32(SAR_FIRST_DB * SAR_BINS_PER_DB)

# Of a band in one stack: what a bin can count.
_MAX_PIXELS = np.iinfo(np.uint32).max

PERCENTILES = (1, 2, 5, 25, 50, 75, 95, 98, 99)


def bin_edges(dtype: str, num_bins: int) -> npt.NDArray[np.float64]:
    """The left edge of each bin, in stored units."""
    bins = np.arange(num_bins, dtype=np.float64)
    db = (bins + SAR_FIRST_DB * SAR_BINS_PER_DB) / SAR_BINS_PER_DB
    return db if np.dtype(dtype).kind == "f" else bins


def bin_width(dtype: str) -> float:
    """The width of a bin, in stored units."""
    return 1 / SAR_BINS_PER_DB if np.dtype(dtype).kind == "f" else 1.0


def _num_bins(dtype: str) -> int:
    kind = np.dtype(dtype)
    return SAR_BINS if kind.kind == "f" else 1 << (8 * kind.itemsize)


class Counter:
    """Counts samples in stacks, shape (samples, bands, height, width) each, as they come.

    The order in which they are added changes nothing: floats are summed a sample at a time in a
    fixed order, see `counting.count_floats`, then sample after sample in the order of the stack.

    Raises:
        ValueError: the pixels are neither uint8, uint16 nor float32, or too many for a stack.
    """

    def __init__(self, stacks: Mapping[str, npt.NDArray[Any]]) -> None:
        for stack in stacks.values():
            assert stack.flags.c_contiguous and stack[:1].size
            if stack.dtype.str not in ("|u1", "<u2", "<f4"):
                raise ValueError(
                    f"statistics of {stack.dtype} pixels: expected uint8, uint16 or float32"
                )
            if stack[:, 0].size > _MAX_PIXELS:
                raise ValueError(
                    f"statistics of {stack[:, 0].size:,} pixels a band in one shard: expected "
                    "fewer than 2**32, so give fewer --samples-per-shard"
                )
        self._arrays = {name: stack.reshape(*stack.shape[:2], -1) for name, stack in stacks.items()}
        self._partials = {name: _empty(flat) for name, flat in self._arrays.items()}

    def add(self, row: int) -> None:
        """Count this row of every stack; each row once, while its pixels lie in the cache.

        Raises:
            ValueError: a pixel is not a finite number.
        """
        # numba takes half a second to load, which all other commands can do without.
        from .counting import count_floats, count_integers

        for name, flat in self._arrays.items():
            partial = self._partials[name]
            if flat.dtype.kind != "f":
                count_integers(flat[row], partial["histogram"])
                continue
            sums = (partial[key][row] for key in ("sum", "square"))
            ends = (partial[key] for key in ("min", "max"))
            if not count_floats(flat[row], *_SAR_SCALE, partial["histogram"], *sums, *ends):
                raise ValueError("statistics of float32 pixels: some are not finite")

    def partials(self) -> Partials:
        """What was counted; to be called once, when every row was added."""
        done: Partials = {}
        for name, partial in self._partials.items():
            histogram = partial["histogram"]
            last = np.flatnonzero(histogram.any(axis=0))[-1]
            # Python's sum runs in the order of the rows.
            sums = {key: np.array(sum(partial[key])) for key in ("sum", "square") if key in partial}
            done[name] = partial | sums | {"histogram": histogram[:, : last + 1].astype(np.int64)}
        return done


def measure(pixels: npt.NDArray[Any]) -> Partial:
    """The partial of a whole stack of one array, shape (samples, bands, height, width).

    Raises:
        ValueError: as `Counter`.
    """
    counter = Counter({"pixels": np.ascontiguousarray(pixels)})
    for row in range(len(pixels)):
        counter.add(row)
    return counter.partials()["pixels"]


def _empty(flat: npt.NDArray[Any]) -> Partial:
    """A partial that has counted nothing; `sum` and `square` have a row a sample."""
    num_samples, num_bands, _ = flat.shape
    # Half of int64 is twice as much of it in the cache.
    partial = {"histogram": np.zeros((num_bands, _num_bins(flat.dtype.str)), np.uint32)}
    if flat.dtype.kind != "f":
        return partial
    return partial | {
        "sum": np.zeros((num_samples, num_bands)),
        "square": np.zeros((num_samples, num_bands)),
        "min": np.full(num_bands, np.inf),
        "max": np.full(num_bands, -np.inf),
    }


def merge(partials: Iterable[Partials]) -> Partials:
    """The partials of all pixels of these blocks, added up in their order."""
    blocks = iter(partials)
    total = {name: dict(partial) for name, partial in next(blocks).items()}
    for block in blocks:
        for name, partial in block.items():
            for key, values in partial.items():
                total[name][key] = _JOIN[key](total[name][key], values)
    return total


def _add_counts(one: npt.NDArray[np.int64], other: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    narrow, wide = sorted((one, other), key=lambda counts: counts.shape[1])
    added = wide.copy()
    added[:, : narrow.shape[1]] += narrow
    return added


_JOIN: dict[str, Callable[..., npt.NDArray[Any]]] = {
    "histogram": _add_counts,
    "sum": np.add,
    "square": np.add,
    "min": np.minimum,
    "max": np.maximum,
}


def finish(arrays: Sequence[ArraySpec], total: Partials) -> dict[str, BandStatistics]:
    """Mean, population standard deviation, min, max and percentiles, in stored units."""
    return {spec.name: _finish(spec, total[spec.name]) for spec in arrays}


def _finish(spec: ArraySpec, partial: Partial) -> BandStatistics:
    histogram = partial["histogram"]
    count = int(histogram[0].sum())
    if "sum" in partial:
        mean = partial["sum"] / count
        variance = np.maximum(partial["square"] / count - mean * mean, 0.0)
        low, high = partial["min"], partial["max"]
        # A bin stands for its middle, but no percentile lies outside of what was seen.
        values = bin_edges(spec.dtype, histogram.shape[1]) + 0.5 / SAR_BINS_PER_DB
    else:
        exact = [_integer_moments(row) for row in histogram]
        mean, variance, low, high = (np.array(column) for column in zip(*exact, strict=True))
        values = bin_edges(spec.dtype, histogram.shape[1])
    percentiles = {
        f"p{percent}": tuple(
            float(np.clip(values[_rank(row, percent)], low[band], high[band]))
            for band, row in enumerate(histogram)
        )
        for percent in PERCENTILES
    }
    return BandStatistics(
        count,
        tuple(map(float, mean)),
        tuple(map(float, np.sqrt(variance))),
        tuple(map(float, low)),
        tuple(map(float, high)),
        percentiles,
    )


def _integer_moments(histogram: npt.NDArray[np.int64]) -> tuple[float, float, int, int]:
    """Mean, variance, min and max of counted integers, rounded once each."""
    filled = np.flatnonzero(histogram)
    values, times = filled.astype(np.int64), histogram[filled]
    count, total = int(times.sum()), int((values * times).sum())
    # A square has up to 32 bits; its halves times 2**47 pixels do not overflow int64.
    squares = values * values
    high, low = int(((squares >> 16) * times).sum()), int(((squares & 0xFFFF) * times).sum())
    square = (high << 16) + low
    # Python's integers do not overflow, and are divided last.
    variance = (count * square - total * total) / (count * count)
    return total / count, variance, int(filled[0]), int(filled[-1])


def _rank(histogram: npt.NDArray[np.int64], percent: int) -> int:
    """The bin of the nearest-rank percentile: the least that `percent` % do not exceed."""
    cumulative = np.cumsum(histogram)
    rank = -(-percent * int(cumulative[-1]) // 100)
    return int(np.searchsorted(cumulative, rank))


def encode(partials: Mapping[str, Partial]) -> bytes:
    """A block's partials as `.npz`.

    Counts take the smallest type that holds them. Compressed they would be a fifth as large, but
    that took a quarter as long as counting, and they are gone when the dataset is finished.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, partial in partials.items():
            for key, values in partial.items():
                if key == "histogram":
                    values = values.astype(np.min_scalar_type(int(values.max())))
                array = io.BytesIO()
                np.lib.format.write_array(array, values, allow_pickle=False)
                # A ZipInfo made by hand has the time 1980-01-01: equal input, equal bytes.
                member = zipfile.ZipInfo(f"{name}.{key}.npy")
                file.writestr(member, array.getvalue())
    return buffer.getvalue()


def decode(data: bytes, arrays: Sequence[ArraySpec]) -> Partials:
    """What `encode` was given."""
    partials: Partials = {}
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        for spec in arrays:
            keys = [key for key in file if key.startswith(f"{spec.name}.")]
            partial = {key.removeprefix(f"{spec.name}."): file[key] for key in keys}
            partials[spec.name] = partial | {"histogram": partial["histogram"].astype(np.int64)}
    return partials
