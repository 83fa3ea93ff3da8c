"""One raster file in, its pixels and its grid out, checked: the only user of rasterio here.

Stands at the head of ingest: everything after it works on numpy arrays. Files as the archives
hold them are read by `geotiff_fast`; rasterio reads the rest and has the last word on what is
broken. It is imported where it is used, since a run over sound archives can do without.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from . import geotiff_fast
from .geotiff_fast import Transform
from .patches import FileBytes, open_to_read
from .tiff_directory import Buffer

# No directory listing at every open, no sidecar files: the archives have none.
_GDAL_OPTIONS = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_PAM_ENABLED": "NO"}
# A raster beyond this is no archive's: 13 bands of 256 x 256 pixels are 0.9 million values. A
# file of some kilobytes can claim billions.
_MAX_VALUES = 1 << 24

# UTM's codes on WGS 84. Within these limits in metres, far wider than any zone, each has degrees.
_UTM = frozenset((*range(32601, 32661), *range(32701, 32761)))
_UTM_LEFT, _UTM_RIGHT, _UTM_BOTTOM, _UTM_TOP = -1e6, 2e6, -1e7, 2e7


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


def file_bytes(path: Path) -> bytes:
    """A raster file as it lies.

    Raises:
        OSError: the file is there but cannot be read.
        ValueError: the file is missing, no file or far too large.
    """
    try:
        descriptor, _ = open_to_read(str(path))
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"{path} is missing: extract it again from the publisher's archive"
        ) from None


def decode_raster(data: Buffer, where: str) -> tuple[npt.NDArray[Any], Grid]:
    """Every band of a GeoTIFF, shape (bands, height, width), native dtype, and its grid.

    Args:
        data: the whole file. The pixels may be a view of it.
        where: what errors call the file: its path, or its archive and member.

    Raises:
        ValueError: the file is truncated or not a GeoTIFF, or has no EPSG code, or its grid is
            rotated or not north-up.
    """
    decoded = geotiff_fast.decode(data)
    pixels, epsg, transform = decode_by_rasterio(bytes(data), where) if decoded is None else decoded
    grid = _grid(epsg, transform, *pixels.shape[1:])
    if grid is None:
        raise ValueError(f"{where}: expected a north-up grid of square pixels, got {transform}")
    return pixels, grid


# The bands of one size of one patch share theirs, and the very object.
@lru_cache(maxsize=64)
def _grid(epsg: int, transform: Transform, height: int, width: int) -> Grid | None:
    a, b, _, d, e, _ = transform
    return None if b or d or a <= 0 or e != -a else Grid(epsg, transform, width, height)


def decode_band(
    file: FileBytes, where: str, gsd_m: int, row: npt.NDArray[Any]
) -> tuple[Grid, float | None]:
    """Put the one band of a GeoTIFF into `row`, shape (size_px, size_px), if it is not there yet.

    Args:
        file: as it was loaded. `file.whole()` is no longer the file's bytes afterwards.
        where: what errors call the file.

    Returns its grid and, where all pixels are nodata, their value; see `nodata_value`.

    Raises:
        ValueError: as `decode_raster`, or another shape, dtype or GSD than expected.
    """
    grid = _grid_of(file, row)
    if grid is None:
        # The row holds the end of the file, and is written now.
        file = FileBytes(memoryview(file.whole()), None)
        pixels, grid = decode_raster(file.head, where)
        if pixels.shape[0] != 1 or pixels.shape[1:] != row.shape or pixels.dtype != row.dtype:
            raise ValueError(
                f"{where} holds {pixels.dtype}{pixels.shape}, expected {row.dtype}{(1, *row.shape)}"
            )
        row[...] = pixels[0]
    if grid.transform[0] != gsd_m:
        raise ValueError(f"{where} has pixels of {grid.gsd_m:g} m, expected {gsd_m} m")
    return grid, nodata_value(row, file.whole, where)


def _grid_of(file: FileBytes, row: npt.NDArray[Any]) -> Grid | None:
    """The grid, if all of a file's pixels are known to be in `row` already."""
    if file.row is not row:
        return None
    placed = geotiff_fast.placed(file.head, row)
    return None if placed is None else _grid(*placed, *row.shape)


def nodata_value(pixels: npt.NDArray[Any], whole: Callable[[], Buffer], where: str) -> float | None:
    """The value of all pixels where that is 0 or what their file declares as nodata.

    None where they differ, or have another value. `pixels` are those of one band, `whole` gives
    the bytes of its file, which errors call `where`.

    Raises:
        ValueError: GDAL cannot open the file.
    """
    first = pixels[0, 0]
    # The last pixel nearly always answers.
    if pixels[-1, -1] != first or (pixels != first).any():
        return None
    if first == 0:
        return 0.0
    return float(first) if first == _declared_nodata(whole(), where) else None


def _declared_nodata(data: Buffer, where: str) -> float | None:
    if not geotiff_fast.may_declare_nodata(data):
        return None
    import rasterio
    from rasterio.errors import RasterioError

    with (
        rasterio.Env(**_GDAL_OPTIONS),
        rasterio.MemoryFile(bytes(data), filename="raster") as memory,
    ):
        try:
            with memory.open(driver="GTiff") as dataset:
                nodata: float | None = dataset.nodata
                return nodata
        except RasterioError as error:
            raise ValueError(_unreadable(where, _cause(error, memory.name, where))) from None


def decode_by_rasterio(data: bytes, where: str) -> tuple[npt.NDArray[Any], int, Transform]:
    """Every band, shape (bands, height, width), EPSG code and transform, as rasterio has them.

    Raises:
        ValueError: the file is truncated or not a GeoTIFF, is far too large, or has no EPSG code.
    """
    import rasterio
    from rasterio.errors import RasterioError

    if not data:  # rasterio would take it for a file to be written
        raise ValueError(_unreadable(where, "it is empty"))
    with rasterio.Env(**_GDAL_OPTIONS), rasterio.MemoryFile(data, filename="raster") as memory:
        try:
            with memory.open(driver="GTiff") as dataset:
                shape = dataset.count, dataset.height, dataset.width
                if math.prod(shape) > _MAX_VALUES:
                    raise ValueError(_unreadable(where, f"it claims to hold {shape} pixels"))
                pixels: npt.NDArray[Any] = dataset.read()
                wkt = dataset.crs.to_wkt() if dataset.crs else ""
                a, b, c, d, e, f = (float(value) for value in dataset.transform[:6])
        except RasterioError as error:
            raise ValueError(_unreadable(where, _cause(error, memory.name, where))) from None
    epsg = _epsg(wkt) if wkt else None
    if epsg is None:
        raise ValueError(f"{where} has no coordinate reference system with an EPSG code")
    return pixels, epsg, (a, b, c, d, e, f)


def _cause(error: Exception, name: str, where: str) -> str:
    """What GDAL says, in one line, with the file called `where` and not by its name in memory."""
    return " ".join(str(error.__cause__ or error).split()).replace(name, where)


def _unreadable(where: str, cause: str) -> str:
    return (
        f"{where} cannot be read as a GeoTIFF ({cause}): "
        "extract it again from the publisher's archive"
    )


@lru_cache(maxsize=4096)
def _epsg(wkt: str) -> int | None:
    from rasterio.crs import CRS

    # PROJ needs a millisecond for this lookup; an archive holds a few dozen systems.
    code = CRS.from_wkt(wkt).to_epsg()
    return None if code is None else int(code)


def refuse_off_earth(grid: Grid, where: str) -> None:
    """Raises ValueError: the grid, of the file `where`, has a corner without longitude, latitude.

    `footprints` of all samples are made at a dataset's end, where one such would stop them all.
    """
    if grid.epsg in _UTM:
        left, bottom, right, top = grid.bounds
        inside = _UTM_LEFT <= left < right <= _UTM_RIGHT
        if inside and _UTM_BOTTOM <= bottom < top <= _UTM_TOP:
            return
    from rasterio._err import CPLE_BaseError
    from rasterio.errors import CRSError

    try:
        degrees = np.abs(footprints([grid]))
    except (CPLE_BaseError, CRSError):
        degrees = np.full((1, 5, 2), np.inf)
    if not (degrees <= (180, 90)).all():
        raise ValueError(
            f"{where} lies at {grid}, which is outside of its projection: "
            "extract it again from the publisher's archive"
        )


def footprints(grids: Sequence[Grid]) -> npt.NDArray[np.float64]:
    """Corners of each grid in degrees, shape (grids, 5, 2): longitude, latitude, ring closed.

    Counter-clockwise from the lower left, as GeoJSON and GeoParquet ask for.
    """
    from rasterio.warp import transform as warp_transform

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
