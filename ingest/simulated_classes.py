"""How each of the 19 classes looks to the simulated Sentinel-2 and Sentinel-1.

The spectra and backscatter levels are typical published values, rounded; the textures are a
device of the simulator. Classes come in families that share a spectrum, a backscatter level
and a texture contrast, so first-order statistics name the family at best. Within a family a
class is the pair of its optical and its radar texture: some pairs of classes differ in the
optical one only, some in the radar one only, some are known by both together.

Every texture repeats itself each 12 pixels (120 m) along both axes: a model with tokens of
12 pixels, trained for minutes, can carry it on from the tokens it sees. Real fields are not
so kind.
"""

from dataclasses import dataclass

from fusmae.labels import BIGEARTHNET_19, BIGEARTHNET_43

# All twelve bands by wavelength; the columns of `Family.summer` and `Family.winter`.
S2_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")


@dataclass(frozen=True)
class Family:
    """What a family's classes share: reflectance x 10,000 in summer and winter, dB, contrast.

    `red_edge_sign` is the sign of the texture in B06-B09 against the other bands: -1 for
    plants over brighter soil, +1 for light and shade.
    """

    summer: tuple[float, ...]
    winter: tuple[float, ...]
    vv_db: float
    vh_db: float
    red_edge_sign: int


# The side in 10 m pixels of the square that every texture repeats.
TEXTURE_PX = 12


@dataclass(frozen=True)
class Texture:
    """Parallel bands: their cycles in TEXTURE_PX eastwards and southwards."""

    cycles_x: int
    cycles_y: int


@dataclass(frozen=True)
class Appearance:
    """One class: its family, its two textures and how often it is drawn (relative)."""

    family: str
    optical: Texture
    radar: Texture
    weight: float


# fmt: off
FAMILIES = {
    "forest": Family(
        (250, 290, 460, 330, 720, 1900, 2300, 2450, 2600, 2600, 1450, 720),
        (260, 300, 420, 400, 680, 1300, 1550, 1650, 1750, 1800, 1250, 680),
        -9.5, -15.5, 1),
    "field": Family(
        (430, 530, 820, 680, 1180, 2350, 2800, 2950, 3100, 3100, 2100, 1250),
        (500, 620, 830, 950, 1250, 1750, 1950, 2050, 2200, 2250, 2350, 1650),
        -11.5, -18.0, -1),
    "open": Family(
        (380, 460, 690, 640, 1000, 1750, 2050, 2150, 2300, 2300, 1750, 1050),
        (400, 480, 680, 740, 1020, 1400, 1600, 1700, 1800, 1850, 1750, 1150),
        -12.5, -19.5, -1),
    "water": Family(
        (420, 390, 380, 260, 240, 210, 200, 180, 170, 160, 100, 70),
        (440, 410, 390, 280, 250, 220, 210, 190, 180, 170, 110, 80),
        -17.5, -24.5, 1),
    "bare": Family(
        (850, 1020, 1270, 1400, 1600, 1900, 2050, 2150, 2250, 2250, 2400, 2050),
        (830, 1000, 1230, 1380, 1560, 1780, 1900, 2000, 2080, 2080, 2300, 2000),
        -7.5, -14.5, 1),
}
# fmt: on

_ACROSS = Texture(1, 0)
_DOWN = Texture(0, 1)
_RISING = Texture(1, 1)
_FALLING = Texture(-1, 1)
_FINE_ACROSS = Texture(2, 0)
_FINE_DOWN = Texture(0, 2)

# In the order of BIGEARTHNET_19.
APPEARANCES = (
    Appearance("bare", _ACROSS, _ACROSS, 0.8),  # Urban fabric
    Appearance("bare", _ACROSS, _DOWN, 0.5),  # Industrial: only radar tells it from urban
    Appearance("field", _ACROSS, _DOWN, 1.5),  # Arable land
    Appearance("field", _DOWN, _DOWN, 0.7),  # Permanent crops: only optics, from arable
    Appearance("field", _ACROSS, _RISING, 1.1),  # Pastures: only radar, from arable
    Appearance("field", _DOWN, _RISING, 1.0),  # Complex cultivation
    Appearance("field", _FALLING, _FALLING, 1.1),  # Agriculture with natural vegetation
    Appearance("forest", _FINE_ACROSS, _FALLING, 0.6),  # Agro-forestry
    Appearance("forest", _RISING, _ACROSS, 1.2),  # Broad-leaved forest
    Appearance("forest", _FALLING, _ACROSS, 1.3),  # Coniferous: only optics, from broad-leaved
    Appearance("forest", _RISING, _DOWN, 1.3),  # Mixed forest: only radar, from broad-leaved
    Appearance("open", _FINE_DOWN, _RISING, 0.5),  # Natural grassland
    Appearance("open", _RISING, _RISING, 0.5),  # Moors, heathland
    Appearance("forest", _FALLING, _DOWN, 1.2),  # Transitional woodland
    Appearance("bare", _FINE_DOWN, _FINE_DOWN, 0.35),  # Beaches, dunes
    Appearance("open", _RISING, _FINE_ACROSS, 0.6),  # Inland wetlands
    Appearance("open", _FINE_DOWN, _FINE_ACROSS, 0.35),  # Coastal wetlands
    Appearance("water", _ACROSS, _FINE_ACROSS, 0.9),  # Inland waters
    Appearance("water", _ACROSS, _FALLING, 0.8),  # Marine waters: swell, seen by radar only
)
assert len(APPEARANCES) == len(BIGEARTHNET_19)

# CORINE Land Cover codes in the order of BIGEARTHNET_43 (335, glaciers, is not among them).
# fmt: off
CLC_CODES = dict(
    zip(
        BIGEARTHNET_43,
        (
            111, 112, 121, 122, 123, 124, 131, 132, 133, 141, 142,
            211, 212, 213, 221, 222, 223, 231, 241, 242, 243, 244,
            311, 312, 313, 321, 322, 323, 324, 331, 332, 333, 334,
            411, 412, 421, 422, 423, 511, 512, 521, 522, 523,
        ),
        strict=True,
    )
)
# fmt: on
