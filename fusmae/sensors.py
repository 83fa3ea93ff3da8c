"""The sensors, their bands and the arrays in which a dataset stores them.

The only place where bands are named. `ingest` writes arrays in this order, the
manifest repeats it, and everything after that selects bands by name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Band:
    """One band: its name, ground sampling distance in metres and centre wavelength in nm.

    Radar bands and class maps have no `wavelength_nm`.
    """

    name: str
    gsd_m: int
    wavelength_nm: float | None = None


@dataclass(frozen=True)
class ArraySpec:
    """One array of a sample: bands of one sensor that share a grid and a dtype.

    `shape` is (bands, size_px, size_px), `dtype` a little-endian numpy dtype string.
    """

    name: str
    sensor: str
    bands: tuple[Band, ...]
    size_px: int
    dtype: str
    unit: str
    long_name: str

    @property
    def shape(self) -> tuple[int, int, int]:
        return (len(self.bands), self.size_px, self.size_px)

    @property
    def gsd_m(self) -> int:
        return self.bands[0].gsd_m

    @property
    def is_measured(self) -> bool:
        """Whether it holds measurements, and not class codes."""
        return self.sensor in ("s1", "s2")

    @property
    def band_names(self) -> tuple[str, ...]:
        return tuple(band.name for band in self.bands)


# Centre wavelengths of Sentinel-2A MSI: ESA, Sentinel-2 spectral response functions v3.2.
_S2_WAVELENGTH_NM = {
    "B01": 442.7,
    "B02": 492.7,
    "B03": 559.8,
    "B04": 664.6,
    "B05": 704.1,
    "B06": 740.5,
    "B07": 782.8,
    "B08": 832.8,
    "B8A": 864.7,
    "B09": 945.1,
    "B10": 1373.5,
    "B11": 1613.7,
    "B12": 2202.4,
}


def _s2(gsd_m: int, *names: str) -> tuple[Band, ...]:
    return tuple(Band(name, gsd_m, _S2_WAVELENGTH_NM[name]) for name in names)


# A sample covers 1,200 m x 1,200 m in both versions of BigEarthNet-MM.
BIGEARTHNET_EXTENT_M = 1200

S1 = ArraySpec(
    "s1",
    "s1",
    (Band("VV", 10), Band("VH", 10)),
    120,
    "<f4",
    "dB",
    "Sentinel-1 GRD backscatter",
)
S2_10M = ArraySpec(
    "s2_10m",
    "s2",
    _s2(10, "B02", "B03", "B04", "B08"),
    120,
    "<u2",
    "reflectance * 10000",
    "Sentinel-2 L2A surface reflectance, 10 m bands",
)
S2_20M = ArraySpec(
    "s2_20m",
    "s2",
    _s2(20, "B05", "B06", "B07", "B8A", "B11", "B12"),
    60,
    "<u2",
    "reflectance * 10000",
    "Sentinel-2 L2A surface reflectance, 20 m bands",
)
S2_60M = ArraySpec(
    "s2_60m",
    "s2",
    _s2(60, "B01", "B09"),
    20,
    "<u2",
    "reflectance * 10000",
    "Sentinel-2 L2A surface reflectance, 60 m bands",
)
CLC_MAP = ArraySpec(
    "map",
    "map",
    (Band("CLC", 10),),
    120,
    "<u2",
    "CORINE Land Cover 2018 class code",
    "CORINE reference map",
)

BIGEARTHNET_ARRAYS = (S1, S2_10M, S2_20M, S2_60M)

# SEN12MS publishes every band on one grid of 10 m: what was coarser is resampled already. The
# GSD here is that of the stored pixels.
SEN12MS_S1 = ArraySpec(
    "s1",
    "s1",
    (Band("VV", 10), Band("VH", 10)),
    256,
    "<f4",
    "dB",
    "Sentinel-1 GRD backscatter (sigma nought)",
)
SEN12MS_S2 = ArraySpec(
    "s2",
    "s2",
    _s2(10, *sorted(_S2_WAVELENGTH_NM, key=lambda name: _S2_WAVELENGTH_NM[name])),
    256,
    "<u2",
    "reflectance * 10000",
    "Sentinel-2 L1C top-of-atmosphere reflectance, all bands on the 10 m grid",
)
SEN12MS_LC = ArraySpec(
    "lc",
    "lc",
    (Band("IGBP", 10), Band("LCCS_LC", 10), Band("LCCS_LU", 10), Band("LCCS_HYDROLOGY", 10)),
    256,
    "|u1",
    "MCD12Q1 class code",
    "MODIS land cover MCD12Q1 (IGBP; FAO LCCS land cover, land use, surface hydrology)",
)

# The reflectance of a pixel is its stored integer times this.
REFLECTANCE_SCALE = 1e-4

# The codes of bands that hold classes, not measurements. A pixel's class is the place of its
# code here; any other code (255 of MCD12Q1: unclassified) is no class. IGBP: MCD12Q1 Type 1;
# CLC: CORINE Land Cover, level 3.
CLASS_CODES: dict[str, tuple[int, ...]] = {
    "IGBP": tuple(range(1, 18)),
    "CLC": (
        *(111, 112, 121, 122, 123, 124, 131, 132, 133, 141, 142),
        *(211, 212, 213, 221, 222, 223, 231, 241, 242, 243, 244),
        *(311, 312, 313, 321, 322, 323, 324, 331, 332, 333, 334, 335),
        *(411, 412, 421, 422, 423, 511, 512, 521, 522, 523),
    ),
}


def dataset_sensor(name: str) -> str:
    """The dataset's sensor behind a recipe's: `s2_20m`, a group of its bands, is `s2`'s."""
    return name.partition("_")[0]


def check_bands(bands: Mapping[str, Sequence[str]]) -> None:
    """Raises ValueError unless this maps sensors to band names, at least one each."""
    example = "such as {'s1': ['VV', 'VH'], 's2': ['B04']}"
    if not isinstance(bands, Mapping):
        raise ValueError(f"bands = {bands!r} must map a sensor to its band names, {example}")
    for sensor, names in bands.items():
        if isinstance(names, str) or not isinstance(names, Sequence):
            raise ValueError(f"bands[{sensor!r}] = {names!r} must be a list of names, {example}")
        if not names:
            raise ValueError(f"bands[{sensor!r}] names no band: leave {sensor!r} out")
    if not bands:
        raise ValueError(f"bands = {{}} names no band: it must, {example}")
