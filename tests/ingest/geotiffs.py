"""GeoTIFFs as GDAL writes them, over all that archives could hold, for tests of what reads them."""

from typing import Any

import numpy as np
import rasterio
from hypothesis import strategies as st
from rasterio.transform import Affine

UTM, DEGREES, LAEA = 32633, 4326, 3035
DTYPES = ["uint8", "uint16", "int16", "uint32", "int32", "float32", "float64"]


def geotiff(
    pixels: np.ndarray[Any, Any],
    *,
    epsg: int = UTM,
    point: bool = False,
    origin: tuple[float, float] = (404_400.5, 5_342_400.25),
    **options: Any,
) -> bytes:
    """A GeoTIFF of `pixels` (bands, height, width) as GDAL writes it."""
    bands, height, width = pixels.shape
    affine = Affine(10.0, 0.0, origin[0], 0.0, -10.0, origin[1])
    if epsg == DEGREES:
        affine = Affine(0.125, 0.0, 14.5, 0.0, -0.125, 48.0)
    with rasterio.MemoryFile() as memory:
        with memory.open(
            driver="GTiff",
            count=bands,
            height=height,
            width=width,
            dtype=pixels.dtype,
            crs=f"EPSG:{epsg}",
            transform=affine,
            **options,
        ) as dataset:
            if point:
                dataset.update_tags(AREA_OR_POINT="Point")
            dataset.write(pixels)
        return bytes(memory.read())


def noise(dtype: str, *shape: int) -> np.ndarray[Any, Any]:
    """Random bits of a dtype: NaN, infinities and negative zeros among the floats."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    return data.view(dtype).reshape(shape)


@st.composite
def rasters(draw: st.DrawFn, **fixed: Any) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
    """Pixels and the options of their file, over all that archives could hold."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.tuples(st.integers(1, 13), st.integers(1, 70), st.integers(1, 70)))
    options: dict[str, Any] = {
        "epsg": draw(st.sampled_from([UTM, DEGREES, LAEA, 32737])),
        "point": draw(st.booleans()),
        "endianness": draw(st.sampled_from(["LITTLE", "BIG"])),
        "interleave": draw(st.sampled_from(["pixel", "band"])),
        "bigtiff": draw(st.sampled_from(["YES", "NO"])),
        "compress": draw(st.sampled_from(["none", "deflate", "lzw", "zstd", "packbits"])),
        "tiled": draw(st.booleans()),
        "nodata": draw(st.sampled_from([None, 0])),
    } | fixed
    if options["tiled"]:
        options |= {"blockxsize": 16 * draw(st.integers(1, 3)), "blockysize": 16}
    else:
        options |= {"blockysize": draw(st.integers(1, shape[1]))}
    if options["compress"] in ("deflate", "lzw", "zstd"):
        options["predictor"] = draw(st.sampled_from([1, 2, 3] if dtype[0] == "f" else [1, 2]))
    return noise(dtype, *shape), options
