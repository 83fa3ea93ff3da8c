"""Pixels for the benchmarks: the real sample pairs, and copies of them that share no bytes.

A codec or a disk that met the same bytes twice would flatter itself. A copy is the real scene
turned, mirrored, rolled and shifted in value: texture and entropy of a real patch, but no row
of it equals a row of another copy. Nor does a copy lie where another does.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fusmae.sensors import BIGEARTHNET_ARRAYS
from fusmae_ingest.geotiff import Grid, decode_raster
from fusmae_ingest.geotiff_write import write_geotiff

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
REAL_V1 = DATA / "bigearthnet-v1"
_SEN12MS = DATA / "sen12ms" / "ROIs1158_spring"

_PATCH_M = 1200
S2_ROOT, S1_ROOT = "BigEarthNet-v1.0", "BigEarthNet-S1-v1.0"

Pixels = npt.NDArray[Any]


@dataclass(frozen=True)
class Pair:
    """One v1 pair: both names, both JSON files, its bands by array name, and where it lies."""

    s2_name: str
    s1_name: str
    s2_json: dict[str, Any]
    s1_json: dict[str, Any]
    arrays: dict[str, Pixels]
    epsg: int
    left: float
    top: float


def read_pairs(archive: Path) -> Iterator[Pair]:
    """Every pair of an archive in the v1 layout, in order of the S2 names."""
    partner = {}
    for path in (archive / S1_ROOT).glob("*/*.json"):
        table = json.loads(path.read_text())
        partner[table["corresponding_s2_patch"]] = (path.parent, table)
    for s2 in sorted((archive / S2_ROOT).glob("S[12]*")):
        s1, s1_json = partner[s2.name]
        arrays = {}
        for spec in BIGEARTHNET_ARRAYS:
            folder = s1 if spec.sensor == "s1" else s2
            bands = [_read(folder / f"{folder.name}_{band}.tif") for band in spec.band_names]
            arrays[spec.name] = np.concatenate([pixels for pixels, _ in bands])
            grid = bands[0][1]
        s2_json = json.loads((s2 / f"{s2.name}_labels_metadata.json").read_text())
        left, top = grid.transform[2], grid.transform[5]
        yield Pair(s2.name, s1.name, s2_json, s1_json, arrays, grid.epsg, left, top)


def _read(path: Path) -> tuple[Pixels, Grid]:
    return decode_raster(path.read_bytes(), str(path))


def varied(pixels: Pixels, copy: int) -> Pixels:
    """Copy number `copy` of one scene, shape (bands, size, size); number 0 is the scene."""
    turned = np.rot90(pixels, copy % 4, axes=(1, 2))
    mirrored = turned[:, :, ::-1] if copy // 4 % 2 else turned
    rolled = np.roll(mirrored, 17 * copy, axis=2)
    if rolled.dtype.kind == "u":
        # Up to 4,000 pairs are 667 copies: 0.0667 of reflectance, far from the end of the scale.
        return np.ascontiguousarray(rolled + rolled.dtype.type(copy))
    # 0.0137 dB is no round number in binary: the low bits of the mantissa change.
    return np.ascontiguousarray(rolled + rolled.dtype.type(0.0137 * copy))


def stack_of(scenes: list[Pixels], num_samples: int) -> Pixels:
    """Samples that go round the scenes, a new copy of them each time round."""
    return np.stack([varied(scenes[i % len(scenes)], i // len(scenes)) for i in range(num_samples)])


def sen12ms_windows() -> dict[str, list[Pixels]]:
    """Real SEN12MS scenes as windows of 120 px: S1, and the four 10 m bands of S2 (L1C)."""
    windows: dict[str, list[Pixels]] = {"s1": [], "s2_10m": []}
    for s1 in sorted(_SEN12MS.glob("s1_101/*.tif")):
        s2 = _SEN12MS / "s2_101" / s1.name.replace("_s1_", "_s2_")
        # B2, B3, B4 and B8 of the 13 bands.
        images = {"s1": _read(s1)[0], "s2_10m": _read(s2)[0][[1, 2, 3, 7]]}
        for name, image in images.items():
            for row in (0, 120):
                windows[name] += [image[:, row : row + 120, at : at + 120] for at in (0, 120)]
    return windows


def names_of(pair: Pair, index: int) -> tuple[str, str]:
    """S2 and S1 name of pair number `index` of an archive, a copy of the given one."""
    # Names stay of the genuine form: the last two numbers count tiles of the product.
    suffix = f"_{index % 90}_{index // 90}"
    return pair.s2_name.rsplit("_", 2)[0] + suffix, pair.s1_name.rsplit("_", 2)[0] + suffix


def write_archive(root: Path, pairs: list[Pair], num_pairs: int) -> None:
    """An archive of `num_pairs` pairs in the genuine v1 layout, copies of the given ones."""
    for index in range(num_pairs):
        pair, copy = pairs[index % len(pairs)], index // len(pairs)
        s2_name, s1_name = names_of(pair, index)
        left, top = pair.left + index % 90 * _PATCH_M, pair.top - index // 90 * _PATCH_M
        s2, s1 = root / S2_ROOT / s2_name, root / S1_ROOT / s1_name
        s2.mkdir(parents=True)
        s1.mkdir(parents=True)
        s1_json = pair.s1_json | {"corresponding_s2_patch": s2_name}
        (s2 / f"{s2_name}_labels_metadata.json").write_text(json.dumps(pair.s2_json))
        (s1 / f"{s1_name}_labels_metadata.json").write_text(json.dumps(s1_json))
        for spec in BIGEARTHNET_ARRAYS:
            folder = s1 if spec.sensor == "s1" else s2
            bands = varied(pair.arrays[spec.name], copy)
            for band, pixels in zip(spec.band_names, bands, strict=True):
                path = folder / f"{folder.name}_{band}.tif"
                write_geotiff(path, pixels, pair.epsg, left, top, spec.gsd_m)
