"""Per-band statistics: exact partial sums of a block, merged in block order.

uint16 sums are exact integers; float32 (SAR) sums run in float64 over a fixed order, so the
result depends on the data and on nothing else.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fusmae.manifest import BandStatistics

# A partial, JSON-ready: one entry a band.
Partial = dict[str, Any]


def partial(pixels: npt.NDArray[Any]) -> Partial:
    """The sums of one sample's array, shape (bands, height, width)."""
    flat = pixels.reshape(len(pixels), -1)
    if flat.dtype.kind == "u":
        # 14,400 pixels of at most 65,535 squared stay far below 2**63.
        wide = flat.astype(np.int64)
        sums: list[Any] = [int(v) for v in wide.sum(axis=1)]
        squares: list[Any] = [int(v) for v in (wide * wide).sum(axis=1)]
    else:
        precise = flat.astype(np.float64)
        sums = precise.sum(axis=1).tolist()
        squares = (precise * precise).sum(axis=1).tolist()
    return {
        "count": flat.shape[1],
        "sum": sums,
        "square": squares,
        "min": flat.min(axis=1).tolist(),
        "max": flat.max(axis=1).tolist(),
    }


def merge(partials: Sequence[Partial]) -> Partial:
    """The partial of all pixels of these partials, added in their order."""
    first, *rest = partials
    total = {key: value if key == "count" else list(value) for key, value in first.items()}
    for item in rest:
        total["count"] += item["count"]
        for band in range(len(total["sum"])):
            total["sum"][band] += item["sum"][band]
            total["square"][band] += item["square"][band]
            total["min"][band] = min(total["min"][band], item["min"][band])
            total["max"][band] = max(total["max"][band], item["max"][band])
    return total


def finish(total: Partial) -> BandStatistics:
    """Mean, population standard deviation, min and max of each band, in stored units."""
    count = total["count"]
    mean = [s / count for s in total["sum"]]
    variance = [
        # Integers are divided last, so no precision is lost to large sums.
        (count * q - s * s) / (count * count) if isinstance(s, int) else q / count - m * m
        for s, q, m in zip(total["sum"], total["square"], mean, strict=True)
    ]
    return BandStatistics(
        count=count,
        mean=tuple(mean),
        std=tuple(max(v, 0.0) ** 0.5 for v in variance),
        min=tuple(float(v) for v in total["min"]),
        max=tuple(float(v) for v in total["max"]),
    )
