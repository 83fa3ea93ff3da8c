"""`Preprocess`: a batch's stored arrays to the model's images, on the device."""

# B batch, C bands of a sensor, H and W an array's own pixels, S the model's grid
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from fusmae.config import Resample
from fusmae.data.bands import check_manifest
from fusmae.data.transforms import check_method, resample
from fusmae.data.whole import whole
from fusmae.manifest import Manifest
from fusmae.sensors import CLASS_CODES, ArraySpec, check_bands


class _ArrayBlock(nn.Module):
    """The wanted bands of one array: normalised, then resampled together.

    In this order because the native grid has fewer pixels. It changes nothing else: the
    weights of each method add up to 1, so resampling and an affine map commute.
    """

    source: Tensor
    channels: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        spec: ArraySpec,
        source: Sequence[int],
        channels: Sequence[int],
        statistics: Sequence[tuple[float, float]],
    ) -> None:
        """`source` are places in the array, `channels` places in the sensor's image."""
        super().__init__()
        self.name = spec.name
        self.whole = list(source) == list(range(len(spec.bands)))
        mean, std = (
            torch.tensor(column).view(-1, 1, 1) for column in zip(*statistics, strict=True)
        )
        # Not part of a state dict: the manifest, and what a model is exported with, own them.
        self.register_buffer("source", torch.tensor(source), persistent=False)
        self.register_buffer("channels", torch.tensor(channels), persistent=False)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, array: Tensor, size_px: int, method: Resample) -> Tensor:
        """Stored pixels (B, C, H, W) to normalised float32 (B, len(source), S, S)."""
        images = array.to(torch.float32)
        if not self.whole:
            images = images.index_select(1, self.source)
        return resample((images - self.mean) / self.std, size_px, method)


class _ClassBlock(nn.Module):
    """One band of class codes as class numbers, resampled to the nearest: -1 for no class."""

    numbers: Tensor
    channels: Tensor

    def __init__(self, spec: ArraySpec, source: int, channel: int) -> None:
        """`source` is its place in the array, `channel` in the sensor's image."""
        super().__init__()
        self.name = spec.name
        self.source = source
        codes = CLASS_CODES[spec.band_names[source]]
        # By code; the last one stands for every larger code.
        numbers = torch.full((max(codes) + 2,), -1.0)
        numbers[list(codes)] = torch.arange(len(codes), dtype=torch.float32)
        self.register_buffer("numbers", numbers, persistent=False)
        self.register_buffer("channels", torch.tensor([channel]), persistent=False)

    def forward(self, array: Tensor, size_px: int, method: Resample) -> Tensor:
        """Stored codes (B, C, H, W) to float32 (B, 1, S, S); `method` is for measurements."""
        codes = array.to(torch.int64)[:, self.source : self.source + 1]
        return resample(self.numbers[codes.clamp(0, len(self.numbers) - 1)], size_px, "nearest")


class Preprocess(nn.Module):
    """A batch's stored arrays to one normalised image a sensor.

    `mean` and `std` hold the manifest's statistics of each sensor's bands, in stored units
    and in the order of `bands`, which is also that of the channels. A band of class codes
    becomes class numbers, 0 to K - 1 in the order of `fusmae.sensors.CLASS_CODES`, -1 for any
    other code; its mean is 0 and its std 1.
    """

    def __init__(
        self,
        manifest: Manifest,
        bands: Mapping[str, Sequence[str]],
        size_px: int | Mapping[str, int],
        resample: Resample = "bilinear",
    ) -> None:
        """Look the bands up.

        Args:
            manifest: of the dataset; it says where each band lies and what its statistics are.
            bands: sensor -> band names in the order of the model's channels.
            size_px: side of the model's square grid, or of each sensor's.
            resample: how bands come to that grid from their native ones.

        Raises:
            ValueError: the dataset has no such sensor or band, no statistics of it, the band is
                constant, `bands` is no such mapping, `manifest` none, or there is no such size
                or `resample`.
        """
        super().__init__()
        check_manifest(manifest)
        check_bands(bands)
        self.bands = {sensor: tuple(names) for sensor, names in bands.items()}
        sizes = size_px if isinstance(size_px, Mapping) else dict.fromkeys(self.bands, size_px)
        if missing := [sensor for sensor in self.bands if sensor not in sizes]:
            raise ValueError(f"size_px = {dict(sizes)} has no size for {', '.join(missing)}")
        self.size_px = {sensor: whole("size_px", side) for sensor, side in sizes.items()}
        check_method("resample", resample)
        self.resample: Resample = resample
        self.mean: dict[str, tuple[float, ...]] = {}
        self.std: dict[str, tuple[float, ...]] = {}
        self.blocks = nn.ModuleDict()
        for sensor, names in self.bands.items():
            statistics = [_statistics(manifest, sensor, name) for name in names]
            self.mean[sensor] = tuple(mean for mean, _ in statistics)
            self.std[sensor] = tuple(std for _, std in statistics)
            places = [manifest.find_band(sensor, name) for name in names]
            self.blocks[sensor] = nn.ModuleList(_blocks(manifest.arrays, places, statistics))

    def forward(self, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`Batch.arrays`, each (B, C, H, W), to images: sensor -> float32 (B, C, S, S).

        Raises:
            ValueError: `arrays` is no such mapping, or an array is missing, no tensor, or has no
                batch dimension.
        """
        if not isinstance(arrays, Mapping):
            raise ValueError(
                f"arrays must map names to tensors, got {type(arrays).__name__}: give batch.arrays "
                "of a loader, or a batch of a stream"
            )
        return {sensor: self._image(sensor, arrays) for sensor in self.bands}

    def _image(self, sensor: str, arrays: Mapping[str, Tensor]) -> Tensor:
        blocks = cast(Sequence[_ArrayBlock | _ClassBlock], self.blocks[sensor])
        for block in blocks:
            _check_batch(block.name, sensor, arrays)
        first = arrays[blocks[0].name]
        size_px = self.size_px[sensor]
        shape = (len(first), len(self.bands[sensor]), size_px, size_px)
        image = torch.empty(shape, device=first.device)
        for block in blocks:
            pixels = block(arrays[block.name], size_px, self.resample)
            image.index_copy_(1, block.channels, pixels)
        return image  # (B, C, S, S)

    def denormalise(self, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Images (B, C, S, S) of any of the sensors back in stored units, float32.

        Raises:
            ValueError: they are of another sensor.
        """
        if not isinstance(images, Mapping) or not set(images) <= set(self.bands):
            found = list(images) if isinstance(images, Mapping) else type(images).__name__
            raise ValueError(
                f"images must map sensors of {list(self.bands)} to theirs, got {found}"
            )
        stored = {}
        for sensor, image in images.items():
            mean = torch.tensor(self.mean[sensor], device=image.device).view(-1, 1, 1)
            std = torch.tensor(self.std[sensor], device=image.device).view(-1, 1, 1)
            stored[sensor] = image.to(torch.float32) * std + mean
        return stored


def _check_batch(name: str, sensor: str, arrays: Mapping[str, Tensor]) -> None:
    """Raises ValueError unless an array that a sensor's image is made of is a batch."""
    if name not in arrays:
        raise ValueError(
            f"the image of {sensor!r} wants array {name!r}, and there are {list(arrays)}: read "
            f"that one too, or leave the bands of {sensor!r} that lie in it out of Preprocess"
        )
    array = arrays[name]
    if not isinstance(array, Tensor):
        raise ValueError(f"array {name!r} must be a tensor, got {type(array).__name__}")
    if array.ndim != 4:
        raise ValueError(
            f"array {name!r} must be (B, C, H, W), got {tuple(array.shape)}; a sample alone "
            "is a batch of 1: array[None]"
        )


def _blocks(
    specs: Sequence[ArraySpec],
    places: Sequence[tuple[ArraySpec, int]],
    statistics: Sequence[tuple[float, float]],
) -> list[_ArrayBlock | _ClassBlock]:
    """What makes a sensor's image; `places` and `statistics` are of its channels, in order."""
    blocks: list[_ArrayBlock | _ClassBlock] = []
    measured: dict[str, list[int]] = {}
    for channel, (spec, source) in enumerate(places):
        if spec.band_names[source] in CLASS_CODES:
            blocks.append(_ClassBlock(spec, source, channel))
        else:
            measured.setdefault(spec.name, []).append(channel)
    for spec in specs:
        if channels := measured.get(spec.name):
            sources = [places[channel][1] for channel in channels]
            blocks.append(_ArrayBlock(spec, sources, channels, [statistics[c] for c in channels]))
    return blocks


def _statistics(manifest: Manifest, sensor: str, band: str) -> tuple[float, float]:
    array = manifest.find_band(sensor, band)[0].name
    if band in CLASS_CODES:
        return 0.0, 1.0
    if array not in manifest.statistics:
        raise ValueError(f"the dataset has no statistics of array {array!r}")
    mean, std = manifest.band_statistics(array, band)
    if not std > 0:
        raise ValueError(
            f"band {band!r} of sensor {sensor!r} has standard deviation {std} over split "
            f"{manifest.statistics_split!r}: it cannot be normalised; leave it out of data.bands"
        )
    return mean, std
