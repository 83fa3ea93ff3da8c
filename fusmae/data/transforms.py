"""Arithmetic on images, on their device: what `Preprocess` does and more, a function each.

Nothing is random (flips and crops: `augment`), and nothing needs an open dataset.
"""

# B batch, C bands, H and W an array's own pixels
from collections.abc import Sequence
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from fusmae.config import Resample
from fusmae.data.bands import check_manifest
from fusmae.data.whole import whole
from fusmae.manifest import Manifest

# Of each band, or one for all of them.
Numbers = float | Sequence[float] | Tensor


def resample(images: Tensor, size_px: int, method: Resample = "bilinear") -> Tensor:
    """Images (B, C, H, W) on a grid of size_px x size_px over the same ground; integers become
    float32.

    Brings 20 m and 60 m bands to 10 m as it resizes to any other grid.

    Pixel areas, not pixel centres, share their edges (`align_corners=False`): every native
    grid of a sample covers the same square of ground.

    Raises:
        ValueError: the images have another number of dimensions, or there is no such size or
            method.
    """
    _check_images(images)
    whole("size_px", size_px)
    check_method("method", method)
    if not images.is_floating_point():
        images = images.to(torch.float32)
    if images.shape[-2:] == (size_px, size_px):
        return images
    corners = None if method == "nearest" else False
    return F.interpolate(images, (size_px, size_px), mode=method, align_corners=corners)


def check_method(name: str, method: str) -> None:
    """Raises ValueError, which calls it `name`, unless this is a way to resample."""
    if method not in (known := get_args(Resample)):
        raise ValueError(f"{name} = {method!r} must be one of {', '.join(known)}")


def normalise(images: Tensor, mean: Numbers, std: Numbers) -> Tensor:
    """Images (B, C, H, W) or (C, H, W) with mean 0 and deviation 1, float32.

    Args:
        images: of any dtype.
        mean: of each band, or one number for all of them.
        std: likewise.

    Raises:
        ValueError: no such images, not C numbers, or a deviation that is not above 0.
    """
    _check_images(images, 3, 4)
    means, deviations = _column("mean", mean, images), _column("std", std, images)
    if not (deviations > 0).all():
        raise ValueError(f"every standard deviation must be above 0, got {std}")
    return (images.to(torch.float32) - means.to(images.device)) / deviations.to(images.device)


def clip_percentiles(images: Tensor, low: Numbers, high: Numbers) -> Tensor:
    """Images (B, C, H, W) or (C, H, W) as float32 from 0 at `low` or less to 1 at `high` or more.

    Args:
        images: of any dtype.
        low: of each band, or one number for all of them.
        high: likewise.

    Raises:
        ValueError: no such images, not C numbers, or a `low` that is not below its `high`.
    """
    _check_images(images, 3, 4)
    bottom, top = _column("low", low, images), _column("high", high, images)
    if not (bottom < top).all():
        raise ValueError(f"low = {low} must be below high = {high} for every band")
    bottom, top = bottom.to(images.device), top.to(images.device)
    return ((images.to(torch.float32) - bottom) / (top - bottom)).clamp(0, 1)


def percentile_limits(manifest: Manifest, array: str, name: str) -> tuple[float, ...]:
    """A percentile such as `p2` of each band of an array, in stored units.

    Raises:
        ValueError: the dataset has no statistics of that array, or not this percentile, or
            `manifest` is none.
    """
    check_manifest(manifest)
    if array not in list(manifest.statistics):
        sensors = {spec.name for spec in manifest.arrays if spec.sensor == array}
        told = f"; {array!r} is a sensor, whose arrays are {sorted(sensors)}" if sensors else ""
        raise ValueError(
            f"the dataset has no percentile {name!r} of array {array!r}; it has statistics of "
            f"{list(manifest.statistics)}{told}"
        )
    known = manifest.statistics[array].percentiles
    if name not in known:
        raise ValueError(
            f"the dataset has no percentile {name!r} of array {array!r}; it has {list(known)}"
        )
    return known[name]


def _check_images(images: object, *ndims: int) -> None:
    """Raises ValueError unless this is a tensor of images, of one of these numbers of dimensions,
    4 by default."""
    if not isinstance(images, Tensor):
        raise ValueError(
            f"images must be a tensor (B, C, H, W), got {type(images).__name__}: give those of one "
            "array, batch[NAME], or torch.from_numpy(ARRAY)"
        )
    if images.ndim not in (ndims or (4,)):
        raise ValueError(f"images must be (B, C, H, W), got {tuple(images.shape)}")


def _column(name: str, values: Numbers, images: Tensor) -> Tensor:
    """One number a band, (C, 1, 1), for images (..., C, H, W); on the CPU if no tensor is given."""
    num_bands = images.shape[-3]
    try:
        numbers = torch.as_tensor(values, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name} = {values!r} must be numbers, one for each band") from None
    if numbers.ndim == 0:
        numbers = numbers.expand(num_bands)
    if numbers.shape != (num_bands,):
        given = " x ".join(map(str, numbers.shape))
        raise ValueError(f"{name}: {given} numbers are given for {num_bands} bands")
    return numbers.view(-1, 1, 1)
