"""A simulated scene: a land-cover map and the Sentinel-2 and Sentinel-1 pixels over it.

Pure numpy, a random generator in and arrays out. Everything is made on the 10 m grid;
coarser bands are averages of it. `simulated_classes` says how each class looks.

Shape letters: P side of the grid in 10 m pixels, B bands, C classes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from fusmae.sensors import S2_10M, S2_20M, S2_60M, ArraySpec

from .simulated_classes import APPEARANCES, FAMILIES, S2_BANDS, TEXTURE_PX, Texture

Floats = npt.NDArray[np.float32]
Condition = Literal["clear", "snow", "cloud"]

SIZE_PX = S2_10M.size_px
# A class is a label where it covers at least this part of the patch.
MIN_COVER = 0.05

_NUM_CLASSES = len(APPEARANCES)
_NUM_BANDS = len(S2_BANDS)
# Number of classes in a patch, 1 to 5; the mean is 3.0, BigEarthNet's 2.95.
_NUM_REGIONS_P = (0.12, 0.24, 0.28, 0.24, 0.12)

# Strength of what varies from patch to patch (standard deviations, natural log or dB).
_GAIN_LOG = 0.15  # illumination and atmosphere, one for all bands
_BAND_GAIN_LOG = 0.05  # calibration and water vapour, each band by itself
_CLASS_LOG = 0.22  # plants and soils of this place, smooth over the spectrum
_HAZE = 150.0  # scale of the path radiance in B01, reflectance x 10,000
_SHADING = 0.10  # topography
_OPTICAL_CONTRAST = 0.45  # amplitude of the texture, relative to the reflectance
_RADAR_CONTRAST_DB = 3.5
_CONTRAST_LOG = 0.25  # of both, by region: how strong a texture is says little of its class
_RADAR_OFFSET_DB = 1.5  # moisture, incidence angle
_RADAR_CLASS_DB = 1.5  # this place's crops and soils
_RADAR_BAND_DB = 0.5  # the same, VV and VH each by itself
_INCIDENCE_DB = 0.5  # from the patch's west to its east
_ENL = 4.4  # equivalent number of looks of an IW GRDH product (Sentinel-1 product specification)
_SENSOR_NOISE = 25.0  # reflectance x 10,000
_WANDER_PX = 0.5  # how far rows and waves leave their straight line


@dataclass(frozen=True)
class Scene:
    """One patch: class indices (P, P) uint8, S2 (B, size, size) uint16 by array, S1 dB float32."""

    cover: npt.NDArray[np.uint8]
    arrays: dict[str, npt.NDArray[np.uint16]]
    s1: Floats


def _smoothing_matrix(num_knots: int) -> Floats:
    """(P, num_knots): cosine interpolation from `num_knots` knots over the patch to its pixels."""
    position = np.linspace(0, num_knots - 1, SIZE_PX)
    left = np.minimum(position.astype(int), num_knots - 2)
    blend = (1 - np.cos(np.pi * (position - left))) / 2
    matrix = np.zeros((SIZE_PX, num_knots), np.float32)
    matrix[np.arange(SIZE_PX), left] = 1 - blend
    matrix[np.arange(SIZE_PX), left + 1] = blend
    return matrix


_SMOOTH = {knots: _smoothing_matrix(knots) for knots in (3, 4, 6, 9, 41)}
_Y, _X = np.mgrid[:SIZE_PX, :SIZE_PX].astype(np.float32)


def smooth_field(rng: np.random.Generator, count: int, num_knots: int) -> Floats:
    """(count, P, P) smooth random fields, about zero mean and unit deviation at the knots."""
    knots = rng.standard_normal((count, num_knots, num_knots), np.float32)
    field = _SMOOTH[num_knots] @ knots @ _SMOOTH[num_knots].T
    return field.astype(np.float32, copy=False)


_WEIGHTS = np.array([look.weight for look in APPEARANCES])
_WEIGHTS /= _WEIGHTS.sum()


def draw_land_cover(rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """(P, P) uint8 indices into BIGEARTHNET_19; each class present covers MIN_COVER or more."""
    num_regions = rng.choice(len(_NUM_REGIONS_P), p=_NUM_REGIONS_P) + 1
    classes = rng.choice(_NUM_CLASSES, num_regions, replace=False, p=_WEIGHTS)
    height: Floats = smooth_field(rng, num_regions, 4) + 0.25 * smooth_field(rng, num_regions, 9)
    height += rng.normal(0, 0.25, (num_regions, 1, 1)).astype(np.float32)
    region = height.argmax(0)
    while True:
        area = np.bincount(region.ravel(), minlength=num_regions)
        small = (area > 0) & (area < MIN_COVER * region.size)
        if not small.any():
            return classes[region].astype(np.uint8)
        height[np.where(small, area, region.size).argmin()] = -np.inf
        region = height.argmax(0)


def _waves(textures: Iterable[Texture]) -> Floats:
    """(C, 2) radians per pixel along x and y."""
    cycles = np.array([(texture.cycles_x, texture.cycles_y) for texture in textures])
    return (2 * np.pi / TEXTURE_PX * cycles).astype(np.float32)


_OPTICAL_WAVES = _waves(look.optical for look in APPEARANCES)
_RADAR_WAVES = _waves(look.radar for look in APPEARANCES)


def _texture(rng: np.random.Generator, cover: npt.NDArray[np.uint8], waves: Floats) -> Floats:
    """(P, P) the classes' textures about zero; phase and amplitude differ from class to class."""
    along_x, along_y = waves.T
    phase = rng.uniform(0, 2 * np.pi, _NUM_CLASSES).astype(np.float32)
    amplitude = np.exp(rng.normal(0, _CONTRAST_LOG, _NUM_CLASSES)).astype(np.float32)
    wander_x, wander_y = _WANDER_PX * smooth_field(rng, 2, 4)
    wave = along_x[cover] * (_X + wander_x) + along_y[cover] * (_Y + wander_y) + phase[cover]
    texture: Floats = amplitude[cover] * np.sin(wave)
    return texture


_SUMMER = np.array([FAMILIES[look.family].summer for look in APPEARANCES], np.float32)  # (C, B)
_WINTER = np.array([FAMILIES[look.family].winter for look in APPEARANCES], np.float32)
_RED_EDGE = np.array([name in ("B06", "B07", "B08", "B8A", "B09") for name in S2_BANDS])
_TEXTURE_SIGN = np.array(
    [np.where(_RED_EDGE, FAMILIES[look.family].red_edge_sign, 1) for look in APPEARANCES],
    np.float32,
)
# Path radiance falls with the wavelength about as steeply as Rayleigh and aerosol together.
_HAZE_SPECTRUM = np.array([1, 0.8, 0.55, 0.4, 0.33, 0.28, 0.25, 0.22, 0.2, 0.15, 0.05, 0.02], "f4")


def greenness(day_of_year: int) -> float:
    """0 in mid January to 1 in mid July."""
    return float(0.5 - 0.5 * np.cos(2 * np.pi * (day_of_year - 15) / 365))


def render_optical(
    rng: np.random.Generator, cover: npt.NDArray[np.uint8], day_of_year: int, condition: Condition
) -> dict[str, npt.NDArray[np.uint16]]:
    """Surface reflectance x 10,000 by array name, uint16 of the shapes in `fusmae.sensors`."""
    green = np.clip(greenness(day_of_year) + rng.normal(0, 0.15, (_NUM_CLASSES, 1)), 0, 1)
    spectrum = green * _SUMMER + (1 - green) * _WINTER  # (C, B)
    tilt = np.linspace(-1, 1, _NUM_BANDS)
    jitter = rng.normal(0, _CLASS_LOG, (3, _NUM_CLASSES, 1))
    spectrum *= np.exp(0.7 * jitter[0] + 0.5 * jitter[1] * tilt + 0.5 * jitter[2] * (tilt**2 - 0.4))
    gain = np.exp(rng.normal(0, _GAIN_LOG) + rng.normal(0, _BAND_GAIN_LOG, _NUM_BANDS))
    by_class = (spectrum * gain).astype(np.float32).T  # (B, C)

    texture = _OPTICAL_CONTRAST * _texture(rng, cover, _OPTICAL_WAVES)
    clumps = 0.10 * smooth_field(rng, 1, 41)[0]
    shading = 1 + _SHADING * smooth_field(rng, 1, 6)[0] + clumps
    reflectance = by_class[:, cover] * (shading + texture * _TEXTURE_SIGN.T[:, cover])
    haze = _HAZE * rng.gamma(1.5) * (1 + 0.3 * smooth_field(rng, 1, 3)[0])
    reflectance += _HAZE_SPECTRUM[:, None, None] * haze.astype(np.float32)
    if condition != "clear":
        _cover_up(rng, reflectance, condition)
    return {spec.name: _sample(rng, reflectance, spec) for spec in (S2_10M, S2_20M, S2_60M)}


def _cover_up(rng: np.random.Generator, reflectance: Floats, condition: Condition) -> None:
    """Lay snow or a cloud over a part of the patch, in place."""
    opacity = 1 / (1 + np.exp(-3 * (smooth_field(rng, 1, 4)[0] + 0.3)))
    bright = np.where(np.arange(_NUM_BANDS) < 10, 7000, 900 if condition == "snow" else 3500)
    reflectance += opacity * (bright.astype(np.float32)[:, None, None] - reflectance)


def _sample(
    rng: np.random.Generator, reflectance: Floats, spec: ArraySpec
) -> npt.NDArray[np.uint16]:
    """The bands of one array, averaged to its grid, with sensor noise, as uint16."""
    rows = [S2_BANDS.index(name) for name in spec.band_names]
    factor = SIZE_PX // spec.size_px
    bands = reflectance[rows].reshape(len(rows), spec.size_px, factor, spec.size_px, factor)
    mean = bands.mean((2, 4)) if factor > 1 else bands[:, :, 0, :, 0]
    noisy = mean + _SENSOR_NOISE * rng.standard_normal(mean.shape, np.float32)
    return np.clip(np.rint(noisy), 1, 16000).astype(np.uint16)


_LEVEL_DB = np.array(
    [(FAMILIES[look.family].vv_db, FAMILIES[look.family].vh_db) for look in APPEARANCES], np.float32
).T  # (2, C)


def render_radar(rng: np.random.Generator, cover: npt.NDArray[np.uint8]) -> Floats:
    """(2, P, P) float32 backscatter of VV and VH in dB, with multi-look gamma speckle."""
    offset = rng.normal(0, _RADAR_OFFSET_DB, (2, 1))
    by_class = rng.normal(0, _RADAR_CLASS_DB, (1, _NUM_CLASSES))
    by_class_and_band = rng.normal(0, _RADAR_BAND_DB, (2, _NUM_CLASSES))
    level = _LEVEL_DB + offset + by_class + by_class_and_band  # (2, C)
    incidence = rng.normal(0, _INCIDENCE_DB) * (_X / SIZE_PX - 0.5)
    texture = _RADAR_CONTRAST_DB * _texture(rng, cover, _RADAR_WAVES)
    speckle = rng.standard_gamma(_ENL, (2, SIZE_PX, SIZE_PX), np.float32) / np.float32(_ENL)
    backscatter = level.astype(np.float32)[:, cover] + texture + incidence
    return (backscatter + 10 * np.log10(speckle)).astype(np.float32)


def simulate_scene(rng: np.random.Generator, day_of_year: int, condition: Condition) -> Scene:
    """One patch acquired on this day of the year; a pure function of the generator's state."""
    cover = draw_land_cover(rng)
    return Scene(
        cover, render_optical(rng, cover, day_of_year, condition), render_radar(rng, cover)
    )
