"""A pass over a sample's pixels, compiled by numba, for `statistics` (the only numba import).

Counting is a load, an addition and a store a pixel, which numpy cannot say in one pass: it takes
six times as long (docs/LOG.md). What was compiled is kept beside this file or in the user's
folder of caches, so a machine compiles once; where neither can be written, each process does.
"""

from collections.abc import Callable
from typing import Any, ParamSpec, cast

import numba
import numpy as np
import numpy.typing as npt

_Arguments = ParamSpec("_Arguments")

# Floats are summed in this many lanes: an order that any processor's vectors can follow.
LANES = 32


def _compiled(kernel: Callable[_Arguments, None]) -> Callable[_Arguments, None]:
    # What a kernel is to know of other files it has to be given: numba looks for changes in this
    # file alone before it takes what it has compiled.
    try:
        compiled = numba.njit(cache=True, nogil=True)(kernel)
    except RuntimeError:  # there is no folder for the cache
        compiled = numba.njit(nogil=True)(kernel)
    return cast(Callable[_Arguments, None], compiled)


@_compiled
def count_integers(pixels: npt.NDArray[np.integer[Any]], histogram: npt.NDArray[np.int64]) -> None:
    """Add each pixel (bands, pixels) to its band's bin (bands, bins), a bin a value."""
    for band in range(pixels.shape[0]):
        counts = histogram[band]
        for value in pixels[band]:
            counts[value] += 1


@_compiled
def _add(value: np.float32, lane: int, total: Any, square: Any, least: Any, most: Any) -> None:
    wide = np.float64(value)
    total[lane] += wide
    square[lane] += wide * wide
    least[lane] = value if value < least[lane] else least[lane]
    most[lane] = value if value > most[lane] else most[lane]


@_compiled
def count_floats(
    pixels: npt.NDArray[np.float32],
    bins_per_unit: np.float32,
    first_bin: np.float32,
    histogram: npt.NDArray[np.int64],
    sums: npt.NDArray[np.float64],
    squares: npt.NDArray[np.float64],
    low: npt.NDArray[np.float32],
    high: npt.NDArray[np.float32],
) -> None:
    """Add pixels (bands, pixels) to bins, and write sums, their squares', min and max (bands,).

    A pixel's bin is pixel * bins_per_unit - first_bin in float32, rounded down; the first and the
    last hold what lies beyond them too. Pixel i is added in float64 to lane i % LANES, then the
    lanes to each other in their order. Where a pixel is not finite, its band's sum is not either,
    and the band's other figures mean nothing.
    """
    bins = np.empty(pixels.shape[1], np.int32)
    last = histogram.shape[1] - 1
    for band in range(pixels.shape[0]):
        values = pixels[band]
        total, square = np.zeros(LANES), np.zeros(LANES)
        least, most = np.full(LANES, values[0]), np.full(LANES, values[0])
        whole = values.size // LANES * LANES
        for start in range(0, whole, LANES):
            for lane in range(LANES):
                _add(values[start + lane], lane, total, square, least, most)
        for lane in range(values.size - whole):
            _add(values[whole + lane], lane, total, square, least, most)
        # In loops of their own, of which the first is done in vectors.
        for place in range(values.size):
            scaled = values[place] * bins_per_unit - first_bin
            scaled = scaled if scaled > np.float32(0) else np.float32(0)
            bins[place] = np.int32(scaled if scaled < np.float32(last) else np.float32(last))
        counts = histogram[band]
        for index in bins:
            counts[index] += 1
        sums[band] = squares[band] = 0.0
        for lane in range(LANES):
            sums[band] += total[lane]
            squares[band] += square[lane]
        low[band], high[band] = least.min(), most.max()
