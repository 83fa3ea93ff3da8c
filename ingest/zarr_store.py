"""A split's zarr v3 store: the only user of zarr here.

A block is exactly one zarr shard of each pixel array, encoded in memory and written as one
file, so no two writers ever share an object (zarr-python#3682). Coordinates, labels and the
consolidated metadata are written once, at the end.

zarr-python declares the arrays and reads them; the shards' bytes are put together here, the
same to the byte at a fraction of its cost (tests/benchmarks/zarr_codecs.py).
"""

import asyncio
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import zarr
from numcodecs import blosc  # type: ignore[import-untyped]
from zarr.codecs import BloscCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from fusmae.sensors import REFLECTANCE_SCALE, ArraySpec

# Samples in an inner chunk: the least that is read to get at one of them.
_CHUNK_SAMPLES = 16
# Of what zarr-python reads without a plugin.
_COMPRESSOR, _LEVEL = "lz4", 5

# A chunk's place in a shard's index where there is no chunk: zarr v3, sharding codec.
_NO_CHUNK = 2**64 - 1


def _create(
    store: MemoryStore, spec: ArraySpec, num_samples: int, samples_per_shard: int
) -> zarr.Array[Any]:
    attributes: dict[str, Any] = {"units": spec.unit, "long_name": spec.long_name}
    if spec.sensor == "s2":
        attributes["reflectance_scale"] = REFLECTANCE_SCALE
    return zarr.create_array(
        store,
        name=spec.name,
        shape=(num_samples, *spec.shape),
        dtype=spec.dtype,
        chunks=(_chunk_samples(samples_per_shard), *spec.shape),
        shards=(samples_per_shard, *spec.shape),
        compressors=BloscCodec(cname=_COMPRESSOR, clevel=_LEVEL, shuffle="bitshuffle"),
        fill_value=0,
        # Names are unique for each array's bands and each resolution: shared ones of
        # different lengths make xarray refuse the store.
        dimension_names=("sample", f"{spec.name}_band", f"y_{spec.gsd_m}m", f"x_{spec.gsd_m}m"),
        attributes=attributes,
        config={"write_empty_chunks": True},
    )


def _chunk_samples(samples_per_shard: int) -> int:
    return math.gcd(samples_per_shard, _CHUNK_SAMPLES)


def shard_parts(
    spec: ArraySpec, stack: npt.NDArray[Any], samples_per_shard: int
) -> Iterator[bytes]:
    """The bytes of one zarr shard that holds `stack`, shape (samples, bands, height, width).

    The chunks in their order, then the index: offset and size of each as little-endian uint64,
    and the index's crc32c (zarr v3 specification, sharding codec 1.0). The last block of a
    split has fewer samples than a shard has places: its last chunk is filled up with zeros,
    and chunks after that are absent. Compresses on one thread, as workers do the rest.
    """
    assert stack.dtype == np.dtype(spec.dtype) and 0 < len(stack) <= samples_per_shard
    # With blosc's own threads, worker processes would fight for the cores.
    blosc.set_nthreads(1)
    size = _chunk_samples(samples_per_shard)
    index = np.full((samples_per_shard // size, 2), _NO_CHUNK, "<u8")
    end = 0
    for place, first in enumerate(range(0, len(stack), size)):
        pixels = stack[first : first + size]
        if len(pixels) < size:
            pixels = np.concatenate(
                [pixels, np.zeros_like(stack, shape=(size - len(pixels), *spec.shape))]
            )
        chunk = _compress(pixels)
        index[place] = end, len(chunk)
        end += len(chunk)
        yield chunk
    table = index.tobytes()
    yield table + int(google_crc32c.value(table)).to_bytes(4, "little")


def _compress(pixels: npt.NDArray[Any]) -> bytes:
    data: bytes = blosc.compress(
        np.ascontiguousarray(pixels), _COMPRESSOR.encode(), _LEVEL, blosc.BITSHUFFLE
    )
    return data


def encode_group(
    arrays: Sequence[ArraySpec],
    samples_per_shard: int,
    coordinates: Mapping[str, tuple[tuple[str, ...], npt.NDArray[Any], dict[str, Any]]],
    attributes: dict[str, Any],
) -> dict[str, bytes]:
    """Every object of a split's store except the pixel shards: path in the store -> bytes.

    Args:
        arrays: the pixel arrays, whose shards are already written.
        samples_per_shard: samples of a block.
        coordinates: name -> (dimension names, values, attributes), one with the dimension
            `sample` at least.
        attributes: attributes of the group.
    """
    store = MemoryStore()
    group = zarr.create_group(store, attributes=attributes)
    num_samples = next(len(v) for dims, v, _ in coordinates.values() if dims[0] == "sample")
    for spec in arrays:
        _create(store, spec, num_samples, samples_per_shard)
    for name, (dimensions, values, extra) in sorted(coordinates.items()):
        dtype: Any = str if values.dtype.kind == "U" else values.dtype
        array = group.create_array(
            name,
            shape=values.shape,
            dtype=dtype,
            chunks=values.shape,
            dimension_names=dimensions,
            attributes=extra,
            fill_value="" if dtype is str else 0,
            config={"write_empty_chunks": True},
        )
        array[...] = values
    with warnings.catch_warnings():
        # zarr-python warns that the v3 specification has no consolidated metadata yet;
        # xarray reads it and readers without it lose nothing.
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        zarr.consolidate_metadata(store)
    return _contents(store)


def band_coordinates(
    arrays: Sequence[ArraySpec],
) -> dict[str, tuple[tuple[str, ...], npt.NDArray[Any], dict[str, Any]]]:
    """Band names, and centre wavelengths where a sensor has them, for each array."""
    coordinates: dict[str, tuple[tuple[str, ...], npt.NDArray[Any], dict[str, Any]]] = {}
    for spec in arrays:
        dimension = (f"{spec.name}_band",)
        names = np.array(spec.band_names, dtype=np.str_)
        coordinates[dimension[0]] = (dimension, names, {})
        wavelengths = [band.wavelength_nm for band in spec.bands]
        if None not in wavelengths:
            coordinates[f"{spec.name}_wavelength"] = (
                dimension,
                np.array(wavelengths, np.float64),
                {"units": "nm"},
            )
    return coordinates


def _contents(store: MemoryStore) -> dict[str, bytes]:
    """Every object of an in-memory store, by path, in sorted order."""

    async def collect() -> dict[str, bytes]:
        found = {}
        async for key in store.list():
            buffer = await store.get(key, default_buffer_prototype())
            assert buffer is not None
            found[key] = buffer.to_bytes()
        return dict(sorted(found.items()))

    return asyncio.run(collect())


def open_array(location: str, spec: ArraySpec) -> zarr.Array[Any]:
    """A pixel array of the store at a path or URL, for reading."""
    return zarr.open_array(location, path=spec.name, mode="r")


def read_coordinates(location: str, arrays: Sequence[ArraySpec]) -> dict[str, npt.NDArray[Any]]:
    """Every array of the store at a path or URL but the pixels, by name."""
    group = zarr.open_group(location, mode="r")
    pixels = {spec.name for spec in arrays}
    return {name: np.asarray(array[...]) for name, array in group.arrays() if name not in pixels}
