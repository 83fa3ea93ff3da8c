"""One BigEarthNet pair from its files: arrays, facts and grid, every band checked."""

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fusmae.labels import BIGEARTHNET_19, labels_43_to_19
from fusmae.sensors import BIGEARTHNET_ARRAYS, CLC_MAP, ArraySpec

from .bigearthnet_archive import Pair, read_json
from .convert import Sample
from .geotiff import Grid, read_band


def read_pair(pair: Pair) -> Sample:
    """The sample of one pair.

    Raises:
        ValueError: a file is missing or broken, a band has another shape, dtype or grid than
            its sensor, S1 holds a non-finite pixel, or a label or time is not readable; the
            message names the file.
    """
    arrays: dict[str, npt.NDArray[Any]] = {}
    anchor: tuple[Path, Grid] | None = None
    for spec in (*BIGEARTHNET_ARRAYS, *((CLC_MAP,) if pair.map else ())):
        bands = np.empty(spec.shape, spec.dtype)
        for row, path in enumerate(band_files(pair, spec)):
            bands[row], grid = read_band(path, spec.size_px, spec.gsd_m, bands.dtype)
            anchor = anchor or (path, grid)
            if not grid.same_extent(anchor[1]):
                raise ValueError(
                    f"{path} lies at {grid}, but {anchor[0].name} at {anchor[1]}: "
                    "the bands of a pair must cover the same ground"
                )
            if spec.sensor == "s1" and not np.isfinite(bands[row]).all():
                raise ValueError(f"{path} holds pixels that are not finite numbers")
        arrays[spec.name] = bands
    assert anchor is not None
    return Sample(pair.name, arrays, _facts(pair, anchor[1]), anchor[1])


def band_files(pair: Pair, spec: ArraySpec) -> list[Path]:
    """The files of an array's bands, in the array's order."""
    if spec is CLC_MAP:
        assert pair.map is not None
        return [pair.map]
    folder = pair.s1 if spec.sensor == "s1" else pair.s2
    return [folder / f"{folder.name}_{band}.tif" for band in spec.band_names]


def _facts(pair: Pair, grid: Grid) -> dict[str, Any]:
    """What KEY.json holds: docs/FORMAT.md, "KEY.json"."""
    labels, time_s2, time_s1 = _v1_facts(pair) if pair.version == "v1" else _v2_facts(pair)
    return {
        "crs": f"EPSG:{grid.epsg}",
        "transform": list(grid.transform),
        "labels": labels,
        "time_s1": time_s1,
        "time_s2": time_s2,
        "s1_name": pair.s1_name,
        "s2_name": pair.name,
        "s2v1_name": pair.s2v1_name,
        "country": pair.country,
        "split_google": pair.split_google,
        "split_official": pair.split_official,
        "split_v2": pair.split_v2,
        "seasonal_snow": pair.seasonal_snow,
        "cloud_or_shadow": pair.cloud_or_shadow,
    }


def _v1_facts(pair: Pair) -> tuple[dict[str, list[str]], str, str]:
    s2_json = pair.s2 / f"{pair.s2.name}_labels_metadata.json"
    s1_json = pair.s1 / f"{pair.s1.name}_labels_metadata.json"
    s2, s1 = read_json(s2_json), read_json(s1_json)
    labels = s2.get("labels")
    if not isinstance(labels, list):
        raise ValueError(f"{s2_json} has no list of labels")
    try:
        sets = {"bigearthnet-43": labels, "bigearthnet-19": labels_43_to_19(labels)}
    except ValueError as error:
        raise ValueError(f"{s2_json}: {error}") from None
    # Names may have lost digits of the time, so v1's times come from JSON.
    return (
        sets,
        _time(str(s2.get("acquisition_date")), "%Y-%m-%d %H:%M:%S", s2_json),
        _time(str(s1.get("acquisition_time")), "%Y-%m-%dT%H:%M:%S", s1_json),
    )


def _v2_facts(pair: Pair) -> tuple[dict[str, list[str]], str, str]:
    labels = list(pair.labels_19 or ())
    unknown = sorted(set(labels) - set(BIGEARTHNET_19))
    if unknown:
        raise ValueError(f"{pair.s2}: label {unknown[0]!r} is not one of the 19 classes")
    s2_time, s1_time = pair.name.split("_")[2], pair.s1_name.split("_")[4]
    return (
        {"bigearthnet-19": [name for name in BIGEARTHNET_19 if name in labels]},
        _time(s2_time, "%Y%m%dT%H%M%S", pair.s2),
        _time(s1_time, "%Y%m%dT%H%M%S", pair.s1),
    )


def _time(text: str, pattern: str, path: Path) -> str:
    try:
        return datetime.strptime(text, pattern).isoformat()
    except ValueError:
        raise ValueError(f"{path}: {text!r} is not a time of the form {pattern}") from None
