"""Simulated SEN12MS triplets on disk: folders, names and GeoTIFFs as published.

Land-cover regions from smooth random fields, on MODIS cells of 500 m as in the real files; a
spectrum, a backscatter level and a texture for each of the ten merged classes. Everything is
a pure function of (seed, index).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fusmae.labels import IGBP_10_CODES
from fusmae.sensors import SEN12MS_LC, SEN12MS_S1, SEN12MS_S2
from fusmae.splits import SEN12MS_HOLD_OUT

from .geotiff_write import write_geotiff
from .sen12ms_archive import Triplet
from .simulated_archive import SCRATCH

_SIZE_PX = SEN12MS_S2.size_px
_CELL_PX = 50  # MODIS: 500 m

# Every fifth scene is one that the authors hold out, so that small archives have a test split.
_HELD_OUT = [(season, scene) for season, scenes in SEN12MS_HOLD_OUT.items() for scene in scenes]
_OTHERS = [
    (season, scene)
    for scene in range(1, 150)
    for season, held_out in SEN12MS_HOLD_OUT.items()
    if scene not in held_out
]
_PER_SCENE = 4  # neighbouring patches before the next scene
_ZONES = (32637, 32652, 32733, 32633, 32719)


@dataclass(frozen=True)
class _Look:
    """A merged class: reflectance x 10,000 at 443, 665, 865 and 2202 nm, VV and VH in dB."""

    spectrum: tuple[float, float, float, float]
    vv_db: float
    vh_db: float


# Typical values, rounded; top-of-atmosphere, so blue is bright over everything.
_LOOKS = {
    "Forest": _Look((1150, 480, 2600, 600), -9.0, -14.5),
    "Shrubland": _Look((1350, 1150, 2300, 1900), -12.0, -19.0),
    "Savanna": _Look((1250, 850, 2500, 1500), -10.5, -16.5),
    "Grassland": _Look((1250, 800, 2900, 1600), -13.0, -20.0),
    "Wetlands": _Look((1200, 600, 1700, 700), -14.0, -20.5),
    "Croplands": _Look((1300, 900, 3200, 1700), -11.0, -18.0),
    "Urban/Built-up": _Look((1700, 1600, 2200, 2100), -5.5, -12.5),
    "Snow/Ice": _Look((7500, 7300, 6500, 800), -12.5, -18.5),
    "Barren": _Look((1800, 2500, 3200, 3600), -14.5, -23.5),
    "Water": _Look((1150, 350, 200, 80), -19.0, -26.0),
}
_KNOTS_NM = (443, 665, 865, 2202)

# LCCS land cover, land use and surface hydrology that go with an IGBP code, 1 to 17, as far as
# one code says (MCD12Q1 collection 6 user guide, tables 3 and 8-10).
_LCCS = np.array(
    [
        (0, 0, 0),
        (11, 10, 10), (12, 10, 10), (13, 10, 10), (14, 10, 10), (15, 10, 10),
        (41, 40, 40), (43, 40, 40), (21, 20, 20), (22, 20, 20), (31, 30, 30),
        (31, 30, 50), (31, 36, 30), (1, 9, 1), (31, 35, 30), (2, 2, 2), (1, 1, 1), (3, 3, 3),
    ],
    np.uint8,
)  # fmt: skip
_GROUP = np.zeros(18, int)  # of an IGBP code
for _index, _codes in enumerate(IGBP_10_CODES.values()):
    _GROUP[list(_codes)] = _index


def write_triplet(root: Path, seed: int, index: int) -> str:
    """Write the files of one triplet that are not there yet; its name."""
    triplet = _describe(root, index)
    specs = (SEN12MS_S1, SEN12MS_S2, SEN12MS_LC)
    if all(triplet.path(spec.name).exists() for spec in specs):
        return triplet.name
    rng = np.random.default_rng([seed, index])
    codes = _draw_codes(rng)
    cover = _GROUP[codes]
    lc = np.concatenate([codes[None], np.moveaxis(_LCCS[codes], -1, 0)])
    # Origins as odd as the published ones, which are cut from reprojected scenes.
    left = 300_000.339 + 2560 * (index % _PER_SCENE)
    top = 5_000_000.836 - 10_000 * (index // _PER_SCENE % 100)
    epsg = _ZONES[index // _PER_SCENE % len(_ZONES)]
    s1, s2 = _render_radar(rng, cover), _render_optical(rng, cover)
    pixels: dict[str, npt.NDArray[Any]] = {"s1": s1, "s2": s2, "lc": lc}
    for spec in specs:
        path = triplet.path(spec.name)
        growing = root / SCRATCH / path.name
        growing.parent.mkdir(exist_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_geotiff(growing, pixels[spec.name], epsg, left, top, spec.gsd_m)
        growing.rename(path)
    return triplet.name


def _describe(root: Path, index: int) -> Triplet:
    """The triplet of this index; no two share a name."""
    place, within = divmod(index, _PER_SCENE)
    row, place = divmod(place, 5 * len(_HELD_OUT))
    turn, rest = divmod(place, 5)
    # Seasons take turns among the held-out scenes too: 7 has no factor in common with 26.
    season, scene = _HELD_OUT[7 * turn % len(_HELD_OUT)] if rest == 4 else _OTHERS[4 * turn + rest]
    return Triplet(root, season, scene, within + _PER_SCENE * row, index)


def _smooth(rng: np.random.Generator, count: int, knots: int) -> npt.NDArray[np.float32]:
    """(count, size, size) smooth random fields, linear between `knots` normal numbers a side."""
    values = rng.standard_normal((count, knots, knots), np.float32)
    place = np.linspace(0, knots - 1, _SIZE_PX, dtype=np.float32)
    weights = np.maximum(0, 1 - np.abs(place[:, None] - np.arange(knots, dtype=np.float32)))
    field: npt.NDArray[np.float32] = weights @ values @ weights.T
    return field


def _draw_codes(rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """(size, size) uint8 IGBP codes, 1 to 5 of them, constant on each MODIS cell."""
    chosen = rng.choice(np.arange(1, 18), rng.integers(1, 6), replace=False)
    cell = np.minimum(np.arange(_SIZE_PX) // _CELL_PX * _CELL_PX + _CELL_PX // 2, _SIZE_PX - 1)
    region = _smooth(rng, len(chosen), 4)[:, cell[:, None], cell].argmax(0)
    codes: npt.NDArray[np.uint8] = chosen[region].astype(np.uint8)
    return codes


def _render_optical(
    rng: np.random.Generator, cover: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint16]:
    """(13, size, size) top-of-atmosphere reflectance x 10,000."""
    wavelengths = [band.wavelength_nm or 0 for band in SEN12MS_S2.bands]
    spectra = np.array(
        [np.interp(wavelengths, _KNOTS_NM, look.spectrum) for look in _LOOKS.values()]
    )
    # At 1374 nm water vapour lets next to nothing through.
    spectra[:, SEN12MS_S2.band_names.index("B10")] = 12
    spectra *= np.exp(rng.normal(0, 0.15, (len(_LOOKS), 1)))
    shading = 1 + 0.12 * _smooth(rng, 1, 9)[0] + 0.08 * _smooth(rng, 1, 65)[0]
    reflectance = spectra.T.astype(np.float32)[:, cover] * shading
    reflectance += 4 * rng.standard_normal(reflectance.shape, np.float32)
    return np.clip(np.rint(reflectance), 1, 16_000).astype(np.uint16)


def _render_radar(
    rng: np.random.Generator, cover: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """(2, size, size) backscatter in dB with multi-look gamma speckle."""
    level = np.array([(look.vv_db, look.vh_db) for look in _LOOKS.values()], np.float32).T
    level += rng.normal(0, 1, level.shape).astype(np.float32)
    looks = np.float32(4.4)  # equivalent number of looks of an IW GRDH product
    speckle = rng.standard_gamma(looks, (2, _SIZE_PX, _SIZE_PX), np.float32) / looks
    decibels: npt.NDArray[np.float32] = level[:, cover] + 10 * np.log10(speckle)
    return decibels
