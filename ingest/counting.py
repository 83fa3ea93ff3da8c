"""A pass over a sample's pixels, compiled by numba, for `statistics` (the only numba import).

Counting is a load, an addition and a store a pixel, which numpy cannot say in one pass: it takes
six times as long (docs/LOG.md). What was compiled is kept beside this file or in the user's
folder of caches, so a machine compiles once; where neither can be written, each process does.
"""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
from numba import types

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_Kernel = Callable[_Arguments, _Result]

# Floats are summed in this many lanes, an order that any processor's vectors can follow: another
# number gives other last digits. With 16 the compiler takes nearly twice as long a pass.
LANES = 32
# A lane stays in registers for so many pixels, which takes half as long as writing it back after
# each; only with 2, 4, 8 or 16 does the compiler vectorise.
_STEPS = 8

# A lane's sum, sum of squares, least and greatest pixel.
_Lane = tuple[np.float64, np.float64, np.float32, np.float32]


def _pixels(kind: Any) -> Any:
    return types.Array(kind, 2, "C", readonly=True)


_COUNTS, _NUMBERS = types.uint32[:, ::1], types.float64[::1]


def _compiled(
    *signatures: Any,
) -> Callable[[_Kernel[_Arguments, _Result]], _Kernel[_Arguments, _Result]]:
    """Compiles at once, so that a cache that cannot be written shows here and nowhere else."""

    def compiled(kernel: _Kernel[_Arguments, _Result]) -> _Kernel[_Arguments, _Result]:
        # What a kernel is to know of other files it has to be given: numba looks for changes in
        # this file alone before it takes what it has compiled.
        try:
            done = numba.njit(list(signatures), cache=True, nogil=True)(kernel)
        except (RuntimeError, OSError):  # there is no folder for the cache, or its disk is full
            done = numba.njit(list(signatures), nogil=True)(kernel)
        return cast(_Kernel[_Arguments, _Result], done)

    return compiled


@_compiled(*(types.void(_pixels(kind), _COUNTS) for kind in (types.uint8, types.uint16)))
def count_integers(pixels: npt.NDArray[np.integer[Any]], histogram: npt.NDArray[np.uint32]) -> None:
    """Add each pixel (bands, pixels) to its band's bin (bands, bins), a bin a value."""
    for band in range(pixels.shape[0]):
        counts = histogram[band]
        for value in pixels[band]:
            counts[value] += 1


def _kernel_part(kernel: _Kernel[_Arguments, _Result]) -> _Kernel[_Arguments, _Result]:
    # numba's own decorator hides the types from mypy.
    return cast(_Kernel[_Arguments, _Result], numba.njit(kernel))


@_kernel_part
def _added(value: np.float32, lane: _Lane) -> _Lane:
    total, square, least, most = lane
    wide = np.float64(value)
    total, square = total + wide, square + wide * wide
    return total, square, value if value < least else least, value if value > most else most


@_compiled(
    types.boolean(
        *(_pixels(types.float32), types.float32, types.float32),
        *(_COUNTS, _NUMBERS, _NUMBERS, _NUMBERS, _NUMBERS),
    )
)
def count_floats(
    pixels: npt.NDArray[np.float32],
    bins_per_unit: np.float32,
    first_bin: np.float32,
    histogram: npt.NDArray[np.uint32],
    sums: npt.NDArray[np.float64],
    squares: npt.NDArray[np.float64],
    low: npt.NDArray[np.float64],
    high: npt.NDArray[np.float64],
) -> bool:
    """Add pixels (bands, pixels) to their bins (bands, bins); whether all of them are finite.

    `sums` and `squares`, sums of squares, are overwritten, `low` and `high` widened, each (bands,).
    A pixel's bin is pixel * bins_per_unit - first_bin in float32, rounded down; the first and the
    last hold what lies beyond them too. Pixel i is added in float64 to lane i % LANES, then the
    lanes to each other in their order. Where a pixel is not finite, nothing that was written means
    anything.
    """
    finite = True
    bins = np.empty(pixels.shape[1], np.int32)
    last = histogram.shape[1] - 1
    for band in range(pixels.shape[0]):
        values = pixels[band]
        total, square = np.zeros(LANES), np.zeros(LANES)
        least, most = np.full(LANES, values[0]), np.full(LANES, values[0])
        whole = values.size // (_STEPS * LANES) * (_STEPS * LANES)
        for start in range(0, whole, _STEPS * LANES):
            for lane in range(LANES):
                kept = total[lane], square[lane], least[lane], most[lane]
                for step in range(_STEPS):
                    kept = _added(values[start + step * LANES + lane], kept)
                total[lane], square[lane], least[lane], most[lane] = kept
        for place in range(whole, values.size):
            lane = place % LANES
            kept = total[lane], square[lane], least[lane], most[lane]
            total[lane], square[lane], least[lane], most[lane] = _added(values[place], kept)
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
        low[band] = min(low[band], least.min())
        high[band] = max(high[band], most.max())
        # A sum of float32 numbers does not leave float64.
        finite &= np.isfinite(sums[band])
    return finite
