"""Pictures of a sample for the preview page: its bands, stretched, as PNG.

All samples of a dataset share the stretch, so their brightness can be compared.
"""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fusmae.manifest import Manifest
from fusmae.sensors import REFLECTANCE_SCALE, ArraySpec

from .landcover_colours import PALETTES, land_cover_class

Arrays = Mapping[str, npt.NDArray[Any]]

_PERCENTILES = ("p2", "p98")
# VV - VH of water, fields and forest, and of bare or built-up ground at its upper end. The
# manifest has no percentiles of a difference of bands.
_RATIO_DB = (0.0, 12.0)
# How bright an optical picture's median pixel is at least. Where clouds and snow push p98 far up,
# everything else would be black.
_MEDIAN_BRIGHTNESS = 1 / 3
# A band without contrast has no width to divide by.
_LEAST_WIDTH = 1e-6


@dataclass(frozen=True)
class Unit:
    """How an array's numbers are shown: stored units times `scale` are `name`s."""

    name: str
    scale: float
    digits: int

    def text(self, stored: float) -> str:
        """A number in stored units as it is shown, without the unit."""
        return f"{stored * self.scale:.{self.digits}f}".replace("-", "\N{MINUS SIGN}")


def unit_of(spec: ArraySpec) -> Unit:
    """Reflectance for Sentinel-2, dB for Sentinel-1."""
    optical = spec.sensor == "s2"
    return Unit("reflectance", REFLECTANCE_SCALE, 4) if optical else Unit("dB", 1.0, 1)


@dataclass(frozen=True)
class Channel:
    """One band of an array, less the band `minus` where given.

    `low` is drawn black and `high` at full brightness, both in stored units.
    """

    array: str
    band: int
    low: float
    high: float
    minus: int | None = None


@dataclass(frozen=True)
class View:
    """One picture of a sample: three channels as red, green and blue, or one as grey.

    Brightness is the place of a value in its channel's stretch, 0 to 1, to the power `gamma`.
    """

    title: str
    caption: str
    channels: tuple[Channel, ...]
    gamma: float = 1.0


def views(manifest: Manifest) -> list[View]:
    """What is drawn of each sample, with the dataset's stretch in it."""
    (vv, vv_text), (vh, vh_text) = (_channel(manifest, "s1", band) for band in ("VV", "VH"))
    low, high = _RATIO_DB
    ratio = Channel(vv.array, vv.band, low, high, minus=vh.band)
    colour = "; ".join((vv_text, vh_text, f"VV\N{MINUS SIGN}VH {low:g} to {high:g} dB"))
    return [
        _true_colour(manifest),
        _false_colour(manifest),
        View("VV", vv_text, (vv,)),
        View("VH", vh_text, (vh,)),
        View("VV, VH, VV/VH", f"as red, green, blue: {colour}", (vv, vh, ratio)),
    ]


def _true_colour(manifest: Manifest) -> View:
    """Red, green and blue under one stretch, the widest of theirs, which keeps their balance."""
    bands = ("B04", "B03", "B02")
    channels = [_channel(manifest, "s2", band)[0] for band in bands]
    low, high = min(c.low for c in channels), max(c.high for c in channels)
    unit = unit_of(manifest.find_band("s2", bands[0])[0])
    caption = f"B04, B03, B02, {unit.text(low)} to {unit.text(high)} {unit.name}"
    return _brightened(
        manifest, "True colour", caption, [replace(c, low=low, high=high) for c in channels]
    )


def _false_colour(manifest: Manifest) -> View:
    """Each band under a stretch of its own, since near infrared outshines the rest."""
    found = [_channel(manifest, "s2", band) for band in ("B08", "B04", "B03")]
    caption = "; ".join(text for _, text in found)
    return _brightened(manifest, "False colour", caption, [channel for channel, _ in found])


def _brightened(manifest: Manifest, title: str, caption: str, channels: Sequence[Channel]) -> View:
    """A view whose dataset's median pixel is no darker than _MEDIAN_BRIGHTNESS.

    One gamma for all channels and all samples.
    """
    medians = []
    for channel in channels:
        stats = manifest.statistics[channel.array]
        median = stats.percentiles.get("p50", stats.mean)[channel.band]
        medians.append((median - channel.low) / max(channel.high - channel.low, _LEAST_WIDTH))
    median = float(np.clip(np.mean(medians), 0.01, 0.99))
    gamma = round(min(1.0, math.log(_MEDIAN_BRIGHTNESS) / math.log(median)), 2)
    told = f", gamma {gamma:g}" if gamma < 1 else ""
    return View(title, caption + told, tuple(channels), gamma)


def _channel(manifest: Manifest, sensor: str, band: str) -> tuple[Channel, str]:
    """A band between its dataset's percentiles, and that in words."""
    spec, index = manifest.find_band(sensor, band)
    low, high = stretch(manifest, spec, index)
    unit = unit_of(spec)
    text = f"{band} {unit.text(low)} to {unit.text(high)} {unit.name}"
    return Channel(spec.name, index, low, high), text


def stretch(manifest: Manifest, spec: ArraySpec, band: int) -> tuple[float, float]:
    """What is drawn black and what at full brightness, in stored units.

    The 2nd and 98th percentile of the band; two standard deviations about the mean where the
    manifest, of format 1.0, has no percentiles.
    """
    stats = manifest.statistics[spec.name]
    if stats.percentiles:
        low, high = (stats.percentiles[name][band] for name in _PERCENTILES)
        return low, high
    return stats.mean[band] - 2 * stats.std[band], stats.mean[band] + 2 * stats.std[band]


def stretch_in_words(manifest: Manifest) -> str:
    """Where the stretch comes from."""
    measured = bool(manifest.statistics[manifest.arrays[0].name].percentiles)
    told = (
        "2nd to 98th percentile" if measured else "mean \N{PLUS-MINUS SIGN} 2 standard deviations"
    )
    return f"{told} of the {manifest.statistics_split} split"


def draw(view: View, arrays: Arrays) -> npt.NDArray[np.uint8]:
    """A sample as `view` shows it: uint8, (height, width, 3) or, of one channel, (height, width).

    Values outside of a channel's stretch are drawn as its ends.
    """
    planes = []
    for channel in view.channels:
        pixels = arrays[channel.array]
        values = pixels[channel.band].astype(np.float32)
        if channel.minus is not None:
            values -= pixels[channel.minus]
        width = max(channel.high - channel.low, _LEAST_WIDTH)
        share = np.clip((values - channel.low) / width, 0, 1) ** view.gamma
        planes.append(np.rint(255 * share).astype(np.uint8))
    return planes[0] if len(planes) == 1 else np.stack(planes, axis=-1)


def class_bands(manifest: Manifest) -> Iterator[tuple[ArraySpec, int]]:
    """The bands of class codes whose colours are known."""
    for spec in manifest.arrays:
        for index, name in enumerate(spec.band_names):
            if name in PALETTES:
                yield spec, index


def draw_classes(band: str, codes: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """A map of class codes, (height, width), in its legend's colours: uint8 (height, width, 3)."""
    found, places = np.unique(codes, return_inverse=True)
    colours = [bytes.fromhex(land_cover_class(band, int(code)).colour[1:]) for code in found]
    table = np.array([list(colour) for colour in colours], np.uint8)  # (codes, 3)
    return table[places.reshape(codes.shape)]


def png(image: npt.NDArray[np.uint8]) -> bytes:
    """A grey or RGB image as PNG, which keeps every pixel."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()
