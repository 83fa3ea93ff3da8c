"""One BigEarthNet pair from its files: pixels, facts and grid, every band checked."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fusmae.labels import BIGEARTHNET_19, labels_43_to_19
from fusmae.sensors import CLC_MAP, S1, S2_10M, S2_20M, S2_60M, ArraySpec

from .bigearthnet_archive import Pair, label_file, map_file, parse_json
from .convert import Sample
from .geotiff import Grid, decode_band, refuse_off_earth
from .patches import Patch

Rows = Mapping[str, npt.NDArray[Any]]

# A sensor's bands in the order in which they are read: array, place in it, name.
_S1_BANDS = tuple((S1, i, band) for i, band in enumerate(S1.band_names))
_S2_BANDS = tuple(
    (spec, i, band) for spec in (S2_10M, S2_20M, S2_60M) for i, band in enumerate(spec.band_names)
)


class _Anchor(NamedTuple):
    """The pair's first band, whose ground all others must cover."""

    file: str
    grid: Grid


def read_pair(pair: Pair, rows: Rows) -> Sample:
    """Put the pair's pixels into `rows` and return what is known of it.

    Args:
        pair: where it lies.
        rows: for each array of the layout a row to fill, of the array's shape.

    Raises:
        ValueError: a file is missing or broken, a band has another shape, dtype or grid than
            its sensor or lies outside of its projection, S1 holds a non-finite pixel, a
            sensor or a band of S1 is nodata all over, or a label or time is not readable; the
            message names the file.
    """
    _, anchor = _read_patch(pair.s1, _S1_BANDS, rows, None)
    _check_values(pair, rows)  # while S1's pixels lie in the cache
    labels = label_file(pair.name) if pair.version == "v1" else None
    told, _ = _read_patch(pair.s2, _S2_BANDS, rows, anchor, labels)
    if pair.map:
        name = map_file(pair.map.name)
        row = rows[CLC_MAP.name][0]
        (file,) = pair.map.load([name], [row])
        where = pair.map.where(name)
        _same_ground(decode_band(file, where, CLC_MAP.gsd_m, row)[0], where, anchor)
    return Sample(pair.name, _facts(pair, anchor.grid, told))


def _read_patch(
    patch: Patch,
    bands: tuple[tuple[ArraySpec, int, str], ...],
    rows: Rows,
    anchor: _Anchor | None,
    labels: str | None = None,
) -> tuple[dict[str, object], _Anchor]:
    """What its JSON file `labels` says, and the anchor: its first band's without one."""
    folder = patch.name
    files = [f"{folder}_{band}.tif" for _, _, band in bands]
    targets = [rows[spec.name][place] for spec, place, _ in bands]
    if labels:
        files.append(labels)
    loaded = patch.load(files, targets)
    last = None
    nodata = []
    for (spec, _, _), row, name, file in zip(bands, targets, files, loaded, strict=False):
        grid, value = decode_band(file, patch.where(name), spec.gsd_m, row)
        nodata.append(value)
        if anchor is None:
            refuse_off_earth(grid, patch.where(name))
            anchor = _Anchor(name, grid)
        # Bands of one size have one grid object.
        if grid is not last:
            _same_ground(grid, patch.where(name), anchor)
        last = grid
    assert anchor is not None
    _refuse_nodata(patch, bands, nodata)
    told = parse_json(loaded[-1].head, patch.where(labels)) if labels else {}
    return told, anchor


def _same_ground(grid: Grid, where: str, anchor: _Anchor) -> None:
    if not grid.same_extent(anchor.grid):
        raise ValueError(
            f"{where} lies at {grid}, but {anchor.file} at {anchor.grid}: "
            "the bands of a pair must cover the same ground"
        )


def _check_values(pair: Pair, rows: Rows) -> None:
    s1 = rows[S1.name]
    # No sum with such a pixel is finite, and looking at each takes four times as long.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(s1.sum()):
            return
    for row, band in zip(s1, S1.band_names, strict=True):
        if not np.isfinite(row).all():
            where = pair.s1.where(f"{pair.s1.name}_{band}.tif")
            raise ValueError(f"{where} holds pixels that are not finite numbers")


def _refuse_nodata(
    patch: Patch,
    bands: tuple[tuple[ArraySpec, int, str], ...],
    values: Sequence[float | None],
) -> None:
    """Raises ValueError: all bands, or one that cannot be so by itself, are nodata all over."""
    pairs = zip(bands, values, strict=True)
    found = {band: value for (_, _, band), value in pairs if value is not None}
    if len(found) == len(bands):
        told = ", ".join(f"{value:g}" for value in sorted(set(found.values())))
        raise ValueError(f"{patch.where('')}: every pixel of every band is nodata ({told})")
    for band, value in found.items():
        # Over dark water some versions of Sen2Cor write 0 in single bands of S2.
        if value or bands is _S1_BANDS:
            where = patch.where(f"{patch.name}_{band}.tif")
            raise ValueError(f"{where}: every pixel is nodata ({value:g})")


def _facts(pair: Pair, grid: Grid, told: dict[str, object]) -> dict[str, Any]:
    """What KEY.json holds: docs/FORMAT.md, "KEY.json"."""
    if pair.version == "v1":
        labels = _v1_labels(pair, told)
        # Names may have lost digits of the time, so v1's times come from JSON.
        time_s2 = _time(str(told.get("acquisition_date")), " ", pair.s2)
        time_s1 = _time(pair.time_s1 or "", "T", pair.s1)
    else:
        labels = _v2_labels(pair)
        time_s2 = datetime.fromisoformat(pair.name.split("_")[2]).isoformat()
        time_s1 = datetime.fromisoformat(pair.s1.name.split("_")[4]).isoformat()
    return {
        "crs": f"EPSG:{grid.epsg}",
        "transform": list(grid.transform),
        "labels": labels,
        "time_s1": time_s1,
        "time_s2": time_s2,
        "s1_name": pair.s1.name,
        "s2_name": pair.name,
        "s2v1_name": pair.s2v1_name,
        "country": pair.country,
        "split_google": pair.split_google,
        "split_official": pair.split_official,
        "split_v2": pair.split_v2,
        "seasonal_snow": pair.seasonal_snow,
        "cloud_or_shadow": pair.cloud_or_shadow,
    }


def _v1_labels(pair: Pair, told: dict[str, object]) -> dict[str, list[str]]:
    where = pair.s2.where(label_file(pair.s2.name))
    labels = told.get("labels")
    if not isinstance(labels, list):
        raise ValueError(f"{where} has no list of labels")
    try:
        return {"bigearthnet-43": labels, "bigearthnet-19": labels_43_to_19(labels)}
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _v2_labels(pair: Pair) -> dict[str, list[str]]:
    labels = pair.labels_19 or ()
    unknown = sorted(set(labels) - set(BIGEARTHNET_19))
    if unknown:
        raise ValueError(f"{pair.name}: label {unknown[0]!r} is not one of the 19 classes")
    return {"bigearthnet-19": [name for name in BIGEARTHNET_19 if name in labels]}


def _time(text: str, between: str, patch: Patch) -> str:
    """ISO 8601 of a time such as `2017-06-13 10:10:31`, `between` standing in its middle."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or len(text) != 19 or text[10] != between:
        raise ValueError(
            f"{patch.where(label_file(patch.name))}: {text!r} is not a time of the form "
            f"YYYY-MM-DD{between}HH:MM:SS"
        )
    return time.isoformat()
