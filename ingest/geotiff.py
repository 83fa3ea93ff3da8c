"""One raster file in, its pixels and its grid out, checked: the only user of rasterio here.

Stands at the head of ingest: everything after it works on numpy arrays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.errors import RasterioError
from rasterio.warp import transform as warp_transform

# (a, b, c, d, e, f): x = a * column + b * row + c, y = d * column + e * row + f.
Transform = tuple[float, float, float, float, float, float]

# No directory listing at every open, no sidecar files: the archives have none.
_GDAL_OPTIONS = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_PAM_ENABLED": "NO"}


@dataclass(frozen=True)
class Grid:
    """Where pixels lie: EPSG code, affine transform in CRS units (metres in UTM), size."""

    epsg: int
    transform: Transform
    width: int
    height: int

    @property
    def gsd_m(self) -> float:
        return self.transform[0]

    def same_extent(self, other: "Grid") -> bool:
        """Whether both grids cover the same square of the same CRS, at any two resolutions."""
        return self.epsg == other.epsg and self.bounds == other.bounds

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """(left, bottom, right, top) in CRS units."""
        a, _, c, _, e, f = self.transform
        return (c, f + e * self.height, c + a * self.width, f)

    def __str__(self) -> str:
        return f"EPSG:{self.epsg} {self.bounds} at {self.gsd_m:g} m"


@lru_cache(maxsize=4096)
def _epsg(wkt: str) -> int | None:
    # PROJ needs a millisecond for this lookup; an archive holds a few dozen systems.
    code = rasterio.crs.CRS.from_wkt(wkt).to_epsg()
    return None if code is None else int(code)


def read_raster(path: Path) -> tuple[npt.NDArray[Any], Grid]:
    """Every band of a raster, shape (bands, height, width), native dtype, and its grid.

    Raises:
        ValueError: the file is missing, truncated or not a GeoTIFF, or has no EPSG code, or
            its grid is rotated or not north-up.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing: extract it again from the publisher's archive")
    try:
        with rasterio.Env(**_GDAL_OPTIONS), rasterio.open(path, driver="GTiff") as dataset:
            pixels: npt.NDArray[Any] = dataset.read()
            wkt = dataset.crs.to_wkt() if dataset.crs else ""
            affine = tuple(float(v) for v in dataset.transform[:6])
            height, width = dataset.height, dataset.width
    except RasterioError as error:
        raise ValueError(
            f"{path} cannot be read as a GeoTIFF ({_one_line(error)}): "
            "extract it again from the publisher's archive"
        ) from None
    epsg = _epsg(wkt) if wkt else None
    if epsg is None:
        raise ValueError(f"{path} has no coordinate reference system with an EPSG code")
    a, b, c, d, e, f = affine
    if b or d or a <= 0 or e != -a:
        raise ValueError(f"{path}: expected a north-up grid of square pixels, got {affine}")
    return pixels, Grid(epsg, (a, b, c, d, e, f), width, height)


def _one_line(error: Exception) -> str:
    return " ".join(str(error.__cause__ or error).split())


def read_band(
    path: Path, size_px: int, gsd_m: int, dtype: np.dtype[Any]
) -> tuple[npt.NDArray[Any], Grid]:
    """The one band of a raster, shape (size_px, size_px), of exactly this dtype and GSD.

    Raises:
        ValueError: as `read_raster`, or another shape, dtype or GSD than expected.
    """
    pixels, grid = read_raster(path)
    expected = (1, size_px, size_px)
    if pixels.shape != expected or pixels.dtype != dtype or grid.gsd_m != gsd_m:
        raise ValueError(
            f"{path} holds {pixels.dtype}{pixels.shape} at {grid.gsd_m:g} m, "
            f"expected {dtype}{expected} at {gsd_m} m"
        )
    return pixels[0], grid


def footprints(grids: Sequence[Grid]) -> npt.NDArray[np.float64]:
    """Corners of each grid in degrees, shape (grids, 5, 2): longitude, latitude, ring closed.

    Counter-clockwise from the lower left, as GeoJSON and GeoParquet ask for.
    """
    rings = np.empty((len(grids), 5, 2))
    for epsg in sorted({grid.epsg for grid in grids}):
        rows = [i for i, grid in enumerate(grids) if grid.epsg == epsg]
        xs: list[float] = []
        ys: list[float] = []
        for row in rows:
            left, bottom, right, top = grids[row].bounds
            xs += [left, right, right, left, left]
            ys += [bottom, bottom, top, top, bottom]
        lon, lat = warp_transform(f"EPSG:{epsg}", "OGC:CRS84", xs, ys)
        rings[rows] = np.stack([lon, lat], axis=-1).reshape(len(rows), 5, 2)
    return rings
