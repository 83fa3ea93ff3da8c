"""One SEN12MS triplet from its files: arrays, facts and grid, every file checked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fusmae.labels import igbp_fractions, igbp_labels, igbp_single_label
from fusmae.sensors import SEN12MS_LC, SEN12MS_S1, SEN12MS_S2, ArraySpec

from .convert import Sample
from .geotiff import Grid, decode_raster, file_bytes, nodata_value, refuse_off_earth
from .sen12ms_archive import Triplet

# Origins are not whole metres; files of a triplet share them to far less than this.
_SAME_GROUND_M = 0.01


def read_triplet(triplet: Triplet, rows: Mapping[str, npt.NDArray[Any]]) -> Sample:
    """Put the triplet's pixels into `rows`, one for each of its arrays; what is known of it.

    Raises:
        ValueError: a file is missing or broken, has another shape, dtype or grid than
            published, S1 holds a pixel that is no finite number, or a sensor or a band of S1 is
            nodata all over; the message names the file.
    """
    anchor: tuple[Path, Grid] | None = None
    for spec in (SEN12MS_S1, SEN12MS_S2, *((SEN12MS_LC,) if triplet.lc else ())):
        path = triplet.path(spec.name)
        pixels, grid = _read(path, spec)
        if anchor is None:
            refuse_off_earth(grid, str(path))
            anchor = (path, grid)
        if not _same_ground(grid, anchor[1]):
            raise ValueError(
                f"{path} lies at {grid}, but {anchor[0].name} at {anchor[1]}: "
                "the files of a triplet must cover the same ground"
            )
        if spec is SEN12MS_S1 and not np.isfinite(pixels).all():
            raise ValueError(f"{path} holds pixels that are not finite numbers")
        rows[spec.name][...] = pixels
    assert anchor is not None
    return Sample(triplet.name, _facts(triplet, rows, anchor[1]))


def _read(path: Path, spec: ArraySpec) -> tuple[npt.NDArray[Any], Grid]:
    data = file_bytes(path)
    pixels, grid = decode_raster(data, str(path))
    dtype = np.dtype(spec.dtype)
    if pixels.shape != spec.shape or pixels.dtype != dtype or grid.gsd_m != spec.gsd_m:
        raise ValueError(
            f"{path} holds {pixels.dtype}{pixels.shape} at {grid.gsd_m:g} m, "
            f"expected {dtype}{spec.shape} at {spec.gsd_m} m"
        )
    _refuse_nodata(path, spec, pixels, data)
    return pixels, grid


def _refuse_nodata(path: Path, spec: ArraySpec, pixels: npt.NDArray[Any], data: bytes) -> None:
    """Raises ValueError: all bands, or one that cannot be so by itself, are nodata all over."""
    values = [nodata_value(band, lambda: data, str(path)) for band in pixels]
    found = {value for value in values if value is not None}
    if None not in values:
        told = ", ".join(f"{value:g}" for value in sorted(found))
        raise ValueError(f"{path}: every pixel of every band is nodata ({told})")
    # Bands of S2 and of land cover may be 0 where others are not.
    bad = found if spec is SEN12MS_S1 else found - {0}
    if bad:
        band = spec.band_names[values.index(min(bad))]
        raise ValueError(f"{path}: every pixel of {band} is nodata ({min(bad):g})")


def _same_ground(one: Grid, other: Grid) -> bool:
    apart = np.abs(np.subtract(one.bounds, other.bounds))
    return one.epsg == other.epsg and bool((apart <= _SAME_GROUND_M).all())


def _facts(triplet: Triplet, rows: Mapping[str, npt.NDArray[Any]], grid: Grid) -> dict[str, Any]:
    """What KEY.json holds: docs/FORMAT.md, "KEY.json"."""
    facts: dict[str, Any] = {
        "crs": f"EPSG:{grid.epsg}",
        "transform": list(grid.transform),
        "labels": {},
        "season": triplet.season,
        "scene": f"{triplet.season}_{triplet.scene}",
    }
    if triplet.lc:
        fractions = igbp_fractions(rows["lc"][0])
        facts["labels"] = {"sen12ms-igbp10": igbp_labels(fractions)}
        facts["label_single"] = igbp_single_label(fractions)
        facts["fractions"] = fractions.tolist()
    return facts
