"""A simulated BigEarthNet archive on disk: folders, GeoTIFFs, JSON files and tables.

The layout, file names and keys are those of BigEarthNet-MM v1 (arXiv:2105.07921) and v2
(reBEN, arXiv:2407.03653). A folder of a patch appears complete or not at all.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow
import pyarrow.parquet

from fusmae.labels import BIGEARTHNET_19, BIGEARTHNET_43, BIGEARTHNET_43_TO_19
from fusmae.sensors import BIGEARTHNET_EXTENT_M, CLC_MAP, S1, S2_10M, S2_20M, S2_60M
from fusmae.splits import V2_SPLIT_NAMES, google_split

from .geotiff_write import write_geotiff
from .simulated_classes import CLC_CODES
from .simulated_names import Patch, describe_patch
from .simulated_scene import Scene, draw_land_cover, simulate_scene
from .storage import naming

# Where folders grow before they are renamed into place; swept at the start and the end.
SCRATCH = ".simulate"

_TABLE_SCHEMA = pyarrow.schema(
    [
        ("patch_id", pyarrow.string()),
        ("labels", pyarrow.list_(pyarrow.field("element", pyarrow.string()))),
        ("split", pyarrow.string()),
        ("country", pyarrow.string()),
        ("s1_name", pyarrow.string()),
        ("s2v1_name", pyarrow.string()),
        ("contains_seasonal_snow", pyarrow.bool_()),
        ("contains_cloud_or_shadow", pyarrow.bool_()),
    ]
)
CLEAR_TABLE = "metadata.parquet"
FLAGGED_TABLE = "metadata_for_patches_with_snow_cloud_or_shadow.parquet"
_SPLIT_SPELLED = {ours: theirs for theirs, ours in V2_SPLIT_NAMES.items()}


def write_patch(root: Path, version: str, seed: int, index: int) -> dict[str, Any]:
    """Write the folders of one patch that are not there yet.

    Returns:
        The patch's row of v2's metadata table.
    """
    patch = describe_patch(seed, index)
    pixels = np.random.default_rng([seed, 3, index])
    subclass = _draw_subclasses(np.random.default_rng([seed, 4, index]))
    folders = _folders_v1(patch) if version == "v1" else _folders_v2(patch)
    if all((root / folder).exists() for folder in folders):
        return _table_row(patch, draw_land_cover(pixels))
    scene = simulate_scene(pixels, patch.s2_time.timetuple().tm_yday, patch.condition)
    for kind, folder in enumerate(folders):
        growing = root / SCRATCH / str(index) / str(kind)
        growing.mkdir(parents=True)
        stem = f"{growing}/{Path(folder).name}"
        (_write_s2, _write_s1, _write_map)[kind](stem, patch, scene, subclass)
        if version == "v1":
            table = (_s2_json, _s1_json)[kind](patch, _labels_43(scene.cover, subclass))
            labels = Path(f"{stem}_labels_metadata.json")
            with naming(labels):
                labels.write_text(json.dumps(table))
        _move(growing, root / folder)
    shutil.rmtree(root / SCRATCH / str(index))
    return _table_row(patch, scene.cover)


def _folders_v1(patch: Patch) -> tuple[str, ...]:
    return (f"BigEarthNet-v1.0/{patch.v1_name}", f"BigEarthNet-S1-v1.0/{patch.s1_name}")


def _folders_v2(patch: Patch) -> tuple[str, ...]:
    return (
        f"BigEarthNet-S2/{patch.v2_tile}/{patch.v2_name}",
        f"BigEarthNet-S1/{patch.s1_scene}/{patch.s1_name}",
        f"Reference_Maps/{patch.v2_tile}/{patch.v2_name}",
    )


def _move(growing: Path, folder: Path) -> None:
    """Put a finished folder in its place, unless an earlier run already did."""
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    growing.rename(folder)


def _draw_subclasses(rng: np.random.Generator) -> tuple[str, ...]:
    """For each of the 19 classes, the one of its 43-nomenclature classes used in a patch."""
    return tuple(
        str(rng.choice([old for old in BIGEARTHNET_43 if BIGEARTHNET_43_TO_19[old] == new]))
        for new in BIGEARTHNET_19
    )


def _labels_43(cover: npt.NDArray[np.uint8], subclass: Sequence[str]) -> list[str]:
    present = {subclass[index] for index in np.unique(cover)}
    return [name for name in BIGEARTHNET_43 if name in present]


def _write_s2(stem: str, patch: Patch, scene: Scene, subclass: Sequence[str]) -> None:
    for spec in (S2_10M, S2_20M, S2_60M):
        for band, pixels in zip(spec.band_names, scene.arrays[spec.name], strict=True):
            path = Path(f"{stem}_{band}.tif")
            write_geotiff(path, pixels, patch.epsg, patch.ulx, patch.uly, spec.gsd_m)


def _write_s1(stem: str, patch: Patch, scene: Scene, subclass: Sequence[str]) -> None:
    for band, pixels in zip(S1.band_names, scene.s1, strict=True):
        path = Path(f"{stem}_{band}.tif")
        write_geotiff(path, pixels, patch.epsg, patch.ulx, patch.uly, S1.gsd_m)


def _write_map(stem: str, patch: Patch, scene: Scene, subclass: Sequence[str]) -> None:
    codes = np.array([CLC_CODES[name] for name in subclass], np.uint16)[scene.cover]
    path = Path(f"{stem}_reference_map.tif")
    write_geotiff(path, codes, patch.epsg, patch.ulx, patch.uly, CLC_MAP.gsd_m)


def _s2_json(patch: Patch, labels: list[str]) -> dict[str, Any]:
    return {
        "labels": labels,
        "coordinates": _coordinates(patch, "lry"),
        "projection": patch.projection,
        "tile_source": patch.s2_product,
        "acquisition_date": f"{patch.s2_time:%Y-%m-%d %H:%M:%S}",
    }


def _s1_json(patch: Patch, labels: list[str]) -> dict[str, Any]:
    return {
        "labels": labels,
        "coordinates": _coordinates(patch, "lly"),  # the archive's own spelling
        "projection": patch.projection,
        "corresponding_s2_patch": patch.v1_name,
        "scene_source": patch.s1_product,
        "acquisition_time": patch.s1_time.isoformat(),
    }


def _coordinates(patch: Patch, lower: str) -> dict[str, int]:
    return {
        "ulx": patch.ulx,
        "uly": patch.uly,
        "lrx": patch.ulx + BIGEARTHNET_EXTENT_M,
        lower: patch.uly - BIGEARTHNET_EXTENT_M,
    }


def _table_row(patch: Patch, cover: npt.NDArray[np.uint8]) -> dict[str, Any]:
    return {
        "patch_id": patch.v2_name,
        "labels": sorted(BIGEARTHNET_19[index] for index in np.unique(cover)),
        "split": _SPLIT_SPELLED[google_split(patch.v1_name)],
        "country": patch.tile.country,
        "s1_name": patch.s1_name,
        "s2v1_name": patch.v1_name,
        "contains_seasonal_snow": patch.condition == "snow",
        "contains_cloud_or_shadow": patch.condition == "cloud",
    }


def write_tables(root: Path, rows: Sequence[dict[str, Any]]) -> None:
    """v2's two metadata tables, patches in order of their names."""
    ordered = sorted(rows, key=lambda row: str(row["patch_id"]))
    for name, flagged in ((CLEAR_TABLE, False), (FLAGGED_TABLE, True)):
        chosen = [
            row
            for row in ordered
            if (row["contains_seasonal_snow"] or row["contains_cloud_or_shadow"]) == flagged
        ]
        growing = root / f"{SCRATCH}-{name}"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(chosen, _TABLE_SCHEMA), growing)
        growing.replace(root / name)
