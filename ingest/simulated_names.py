"""What a simulated patch is called and where and when it lies: names, CRS, dates, scenes.

Everything is a pure function of (seed, index). Tiles are real Sentinel-2 tiles in five UTM
zones; a scene is a tile on a day, and its patches lie on BigEarthNet's grid of 91 x 91
squares of 1,200 m.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from fusmae.sensors import BIGEARTHNET_EXTENT_M

from .simulated_scene import Condition


@dataclass(frozen=True)
class Tile:
    """A Sentinel-2 tile: its upper left corner in metres, orbit and usual time of passage."""

    name: str
    ulx: int
    uly: int
    country: str
    orbit: int
    hour: int
    minute: int

    @property
    def zone(self) -> int:
        return int(self.name[:2])


_TILES = (
    Tile("29SND", 499980, 4400040, "Portugal", 37, 11, 21),
    Tile("33UUP", 300000, 5400000, "Austria", 22, 10, 10),
    Tile("35VPK", 600000, 7000020, "Finland", 36, 9, 41),
    Tile("29UPU", 600000, 5900040, "Ireland", 80, 11, 33),
    Tile("34TEP", 499980, 4900020, "Serbia", 36, 9, 40),
    Tile("31UER", 499980, 5600040, "Belgium", 51, 10, 50),
    Tile("35VLC", 300000, 6300000, "Lithuania", 79, 9, 50),
    Tile("34VDM", 399960, 6800040, "Finland", 79, 9, 55),
)
_NUM_SCENES = 5 * len(_TILES)
_FIRST_DAY = datetime(2017, 6, 1)  # BigEarthNet: June 2017 to May 2018
_DAY_STRIDE = 9  # 40 scenes on 40 days of the year, all different
_GRID = 91
_CELLS = _GRID * _GRID
_CELL_STRIDE = 4001  # has no factor in common with 91, so every cell comes once
MAX_PATCHES = _NUM_SCENES * _CELLS

# How often a clear sky is missing; snow from November to March only.
_SNOW_P, _SNOW_MONTHS = 0.08, (11, 12, 1, 2, 3)
_CLOUD_P = 0.03

# GDAL's text for a UTM zone, as it stands in BigEarthNet's JSON files.
_WKT = (
    'PROJCS["WGS 84 / UTM zone {zone}N",GEOGCS["WGS 84",DATUM["WGS_1984",'
    'SPHEROID["WGS 84",6378137,298.257223563,AUTHORITY["EPSG","7030"]],'
    'AUTHORITY["EPSG","6326"]],PRIMEM["Greenwich",0,AUTHORITY["EPSG","8901"]],'
    'UNIT["degree",0.0174532925199433,AUTHORITY["EPSG","9122"]],AXIS["Latitude",NORTH],'
    'AXIS["Longitude",EAST],AUTHORITY["EPSG","4326"]],PROJECTION["Transverse_Mercator"],'
    'PARAMETER["latitude_of_origin",0],PARAMETER["central_meridian",{meridian}],'
    'PARAMETER["scale_factor",0.9996],PARAMETER["false_easting",500000],'
    'PARAMETER["false_northing",0],UNIT["metre",1,AUTHORITY["EPSG","9001"]],'
    'AXIS["Easting",EAST],AXIS["Northing",NORTH],AUTHORITY["EPSG","{epsg}"]]'
)


@dataclass(frozen=True)
class Patch:
    """One patch: tile, grid cell (h east, v south), both acquisitions, weather."""

    tile: Tile
    h: int
    v: int
    s2_unit: str
    s2_time: datetime
    s1_unit: str
    s1_time: datetime
    condition: Condition

    @property
    def epsg(self) -> int:
        return 32600 + self.tile.zone

    @property
    def ulx(self) -> int:
        return self.tile.ulx + self.h * BIGEARTHNET_EXTENT_M

    @property
    def uly(self) -> int:
        return self.tile.uly - self.v * BIGEARTHNET_EXTENT_M

    @property
    def projection(self) -> str:
        """The CRS as the archive's JSON files spell it."""
        zone = self.tile.zone
        return _WKT.format(zone=zone, meridian=6 * zone - 183, epsg=self.epsg)

    @property
    def v1_name(self) -> str:
        """The S2 patch in v1; its time of day has no leading zero, as in the archive."""
        time = int(self.s2_time.strftime("%H%M%S"))
        return f"{self.s2_unit}_MSIL2A_{self.s2_time:%Y%m%d}T{time}_{self.h}_{self.v}"

    @property
    def v2_tile(self) -> str:
        """The folder of the patch's tile in v2."""
        tile = self.tile
        return (
            f"{self.s2_unit}_MSIL2A_{self.s2_time:%Y%m%dT%H%M%S}_N9999"
            f"_R{tile.orbit:03}_T{tile.name}"
        )

    @property
    def v2_name(self) -> str:
        return f"{self.v2_tile}_{self.h:02}_{self.v:02}"

    @property
    def s1_scene(self) -> str:
        """The folder of the S1 scene in v2."""
        return f"{self.s1_unit}_IW_GRDH_1SDV_{self.s1_time:%Y%m%dT%H%M%S}"

    @property
    def s1_name(self) -> str:
        return f"{self.s1_scene}_{self.tile.name}_{self.h}_{self.v}"

    @property
    def s2_product(self) -> str:
        """The Level-1C product from which the patch would have been cut."""
        made = self.s2_time + timedelta(minutes=5)
        return (
            f"{self.s2_unit}_MSIL1C_{self.s2_time:%Y%m%dT%H%M%S}_N0205"
            f"_R{self.tile.orbit:03}_T{self.tile.name}_{made:%Y%m%dT%H%M%S}.SAFE"
        )

    @property
    def s1_product(self) -> str:
        """The GRD product from which the patch would have been cut; a slice lasts 25 s."""
        end = self.s1_time + timedelta(seconds=25)
        return f"{self.s1_scene}_{end:%Y%m%dT%H%M%S}_017018_01C579_0000"


def describe_patch(seed: int, index: int) -> Patch:
    """The patch of this index, 0 <= index < MAX_PATCHES; no two share a name.

    Raises:
        ValueError: the index is out of range.
    """
    if not 0 <= index < MAX_PATCHES:
        raise ValueError(f"patch {index} does not exist: there are {MAX_PATCHES:,} patches")
    row, scene = divmod(index, _NUM_SCENES)
    first_day, first_cell = np.random.default_rng([seed, 1]).integers(0, (365, _CELLS))
    tile = _TILES[scene % len(_TILES)]
    day = _FIRST_DAY + timedelta(int(first_day + scene * _DAY_STRIDE) % 365)
    v, h = divmod((int(first_cell) + row * _CELL_STRIDE) % _CELLS, _GRID)
    s1_hour = 6 if scene % 2 else 16
    return Patch(
        tile=tile,
        h=h,
        v=v,
        s2_unit="S2A" if scene % 3 else "S2B",
        s2_time=day.replace(hour=tile.hour, minute=tile.minute, second=scene),
        s1_unit="S1A" if scene % 5 else "S1B",
        s1_time=day.replace(hour=s1_hour, minute=40, second=scene) + timedelta(scene % 5 - 2),
        condition=_draw_condition(np.random.default_rng([seed, 2, index]), day.month),
    )


def _draw_condition(rng: np.random.Generator, month: int) -> Condition:
    chance = rng.random()
    if chance < _CLOUD_P:
        return "cloud"
    return "snow" if month in _SNOW_MONTHS and chance < _CLOUD_P + _SNOW_P else "clear"
