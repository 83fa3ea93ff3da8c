"""histograms.parquet: how often each band takes each value, for pandas, DuckDB and plots.

Made from the merged partials of `statistics`, one row a band's bin that is not empty.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from fusmae.sensors import ArraySpec

from .statistics import Partials, bin_edges, bin_width

HISTOGRAMS_NAME = "histograms.parquet"

_TYPES = {"left": pa.float64(), "width": pa.float64(), "count": pa.int64()}


def encode_histograms(
    partials_by_split: Mapping[str, Partials], arrays: Sequence[ArraySpec]
) -> bytes:
    """The file's bytes; rows in the order of splits, arrays, bands and bins.

    Columns: `split`, `array`, `band`; `left` and `width` of the bin in stored units, which
    holds left <= value < left + width; `count` of pixels, int64. An integer's bin holds that
    integer alone. SAR's outermost bins hold all that lies beyond them too.
    """
    names: dict[str, list[str]] = {"split": [], "array": [], "band": []}
    lengths: list[int] = []
    numbers: dict[str, list[npt.NDArray[Any]]] = {"left": [], "width": [], "count": []}
    for split, partials in partials_by_split.items():
        for spec in arrays:
            histogram = partials[spec.name]["histogram"]
            left = bin_edges(spec.dtype, histogram.shape[1])
            for band, counts in zip(spec.band_names, histogram, strict=True):
                filled = np.flatnonzero(counts)
                lengths.append(len(filled))
                for column, value in zip(names, (split, spec.name, band), strict=True):
                    names[column].append(value)
                numbers["left"].append(left[filled])
                numbers["width"].append(np.full(len(filled), bin_width(spec.dtype)))
                numbers["count"].append(counts[filled].astype(np.int64))
    which = np.repeat(np.arange(len(lengths)), lengths)
    columns = {name: pa.array(values, pa.string()).take(which) for name, values in names.items()}
    columns |= {
        name: pa.array(np.concatenate(values or [np.empty(0)]), _TYPES[name])
        for name, values in numbers.items()
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    return buffer.getvalue()
