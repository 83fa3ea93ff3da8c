"""A manifest's statistics and `histograms.parquet` against those of the pixels read back."""

import io
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow.parquet as pq

from fusmae.manifest import BandStatistics, Manifest

from . import statistics
from .histograms import HISTOGRAMS_NAME, encode_histograms
from .statistics import Partials
from .storage import Store

# Sums of float64 in another order, or by another numpy, differ by far less.
_RELATIVE = 1e-9


def statistics_problems(
    store: Store, manifest: Manifest, sums: Mapping[str, Partials]
) -> Iterator[str]:
    """`sums` are the partials of all pixels of every split that has samples, in split order."""
    if any(file.path == HISTOGRAMS_NAME for file in manifest.files):
        stored = pq.read_table(io.BytesIO(store.read(HISTOGRAMS_NAME)))
        counted = pq.read_table(io.BytesIO(encode_histograms(sums, manifest.arrays)))
        if not stored.equals(counted):
            yield f"{store}/{HISTOGRAMS_NAME}: its counts are not those of the pixels"
    basis = sums.get(manifest.statistics_split)
    if basis is None:
        yield f"the manifest's statistics are of {manifest.statistics_split}, which has no samples"
        return
    for name, found in statistics.finish(manifest.arrays, basis).items():
        told = manifest.statistics.get(name)
        for field in _differing(told, found) if told else ("all",):
            yield f"the manifest's statistics of {name} ({field}) are not those of its pixels"


def _differing(told: BandStatistics, found: BandStatistics) -> Iterator[str]:
    if told.count != found.count:
        yield "count"
    for field in ("mean", "std", "min", "max"):
        if not _close(getattr(told, field), getattr(found, field)):
            yield field
    for name, values in told.percentiles.items():
        if not _close(values, found.percentiles.get(name, ())):
            yield name


def _close(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return len(one) == len(other) and np.allclose(one, other, rtol=_RELATIVE, atol=_RELATIVE)
