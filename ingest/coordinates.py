"""What lies beside the pixels along the sample axis of a split's zarr store.

Names, grids and labels of the samples, and the facts that their archive knows; the store
itself is `zarr_store`'s.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fusmae.labels import multi_hot

from .facts import Fact

# Dimension names, values, attributes: as `zarr_store.encode_group` takes them.
Coordinate = tuple[tuple[str, ...], npt.NDArray[Any], dict[str, Any]]


def auxiliary_names(facts: Sequence[Fact]) -> set[str]:
    """What xarray shows as coordinates rather than as data, by the CF attribute of that name."""
    return {"sample_id", "crs", "transform", *(f.coordinate for f in facts if f.coordinate)}


def sample_coordinates(
    rows: Sequence[dict[str, Any]],
    facts: Sequence[Fact],
    label_sets: Mapping[str, tuple[str, ...]],
) -> dict[str, Coordinate]:
    """Coordinates and labels of these samples (rows of block records), by name.

    Labels are multi-hot, shape (samples, classes), uint8; times are int64 seconds since 1970.
    """
    told = [row["facts"] for row in rows]
    per_sample = ("sample",)
    coordinates: dict[str, Coordinate] = {
        "sample_id": (per_sample, np.array([row["key"] for row in rows], np.str_), {}),
        "crs": (
            per_sample,
            np.array([int(fact["crs"].removeprefix("EPSG:")) for fact in told], np.int32),
            {"long_name": "EPSG code of the sample's coordinate reference system"},
        ),
        "transform": (
            ("sample", "affine"),
            np.array([fact["transform"] for fact in told], np.float64),
            {"long_name": "affine transform of the 10 m grid: a, b, c, d, e, f"},
        ),
    }
    for fact in facts:
        if fact.coordinate:
            values = [entry[fact.name] for entry in told]
            coordinates[fact.coordinate] = _coordinate(fact, values, label_sets)
    for label_set, classes in label_sets.items():
        hot = multi_hot([entry["labels"][label_set] for entry in told], classes)
        name, dimension = f"labels_{label_set.replace('-', '_')}", _class_dimension(classes)
        coordinates[name] = (("sample", dimension), hot, {"long_name": label_set})
        coordinates[dimension] = ((dimension,), np.array(classes, np.str_), {})
    return coordinates


def _coordinate(
    fact: Fact, values: Sequence[Any], label_sets: Mapping[str, tuple[str, ...]]
) -> Coordinate:
    """One fact of every sample; an unknown string is empty, since zarr has no null."""
    if fact.kind == "time":
        seconds = np.array(values, "datetime64[s]").astype(np.int64)
        epoch = {"units": "seconds since 1970-01-01", "calendar": "proleptic_gregorian"}
        return ("sample",), seconds, epoch
    if fact.kind == "fractions":
        assert fact.label_set is not None
        dimension = _class_dimension(label_sets[fact.label_set])
        attributes = {"long_name": f"fraction of the patch, {fact.label_set}"}
        return ("sample", dimension), np.array(values, np.float64), attributes
    assert fact.kind == "string", "a flag may be unknown, which zarr cannot say"
    return ("sample",), np.array([value or "" for value in values], np.str_), {}


def _class_dimension(classes: Sequence[str]) -> str:
    return f"class_{len(classes)}"
