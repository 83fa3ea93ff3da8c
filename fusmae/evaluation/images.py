"""The images that a protocol shows an encoder: bands by name, whose statistics, which size."""

from dataclasses import replace
from typing import Any

from fusmae.config import DataConfig
from fusmae.data import Preprocess
from fusmae.evaluation.recipes import StatisticsOf
from fusmae.manifest import BandStatistics, Manifest
from fusmae.model import EncoderCard
from fusmae.sensors import dataset_sensor

# B batch, C channels, S the side of the model's grid


def with_encoder_statistics(manifest: Manifest, card: EncoderCard) -> Manifest:
    """The manifest with the encoder's means and deviations in place of the dataset's own.

    Features of another dataset are normalised the way the encoder was trained.

    Raises:
        ValueError: the dataset lacks one of the encoder's bands.
    """
    mean = {name: list(entry.mean) for name, entry in manifest.statistics.items()}
    std = {name: list(entry.std) for name, entry in manifest.statistics.items()}
    for sensor, bands in card.bands.items():
        for channel, band in enumerate(bands):
            spec, index = manifest.find_band(sensor, band)
            mean[spec.name][index] = card.mean[sensor][channel]
            std[spec.name][index] = card.std[sensor][channel]
    statistics: dict[str, BandStatistics] = {
        name: replace(entry, mean=tuple(mean[name]), std=tuple(std[name]))
        for name, entry in manifest.statistics.items()
    }
    return replace(manifest, statistics=statistics)


def make_preprocess(
    manifest: Manifest,
    card: EncoderCard,
    data: DataConfig,
    statistics: StatisticsOf,
    image_px: int,
) -> Preprocess:
    """A batch's arrays to the encoder's images; `image_px` is their side, 0 for the encoder's own.

    Bands are looked up by name: one that the encoder does not know, such as B10 of SEN12MS, is
    left out, wherever it lies in the array.

    Raises:
        ValueError: the dataset lacks a band, or `image_px` is no multiple of the patch.
    """
    model = card.model
    if image_px % model.patch_px or image_px < 0:
        raise ValueError(
            f"image_px = {image_px} must be a multiple of the encoder's patch of "
            f"{model.patch_px} px, or 0 for its own {model.image_px} px"
        )
    sizes_px = replace(model, image_px=image_px or model.image_px).sizes_px(data.bands)
    source = with_encoder_statistics(manifest, card) if statistics == "encoder" else manifest
    return Preprocess(source, data.bands, sizes_px, data.resample)


def describe_images(
    manifest: Manifest, card: EncoderCard, preprocess: Preprocess, statistics: StatisticsOf
) -> dict[str, Any]:
    """What the encoder was shown, for the readers of a result."""
    bands = preprocess.bands
    seen = {(dataset_sensor(sensor), band) for sensor in bands for band in bands[sensor]}
    sensors = dict.fromkeys(sensor for sensor, _ in seen)
    used = [spec for spec in manifest.arrays if spec.sensor in sensors]
    whose = f"the dataset's {manifest.statistics_split} split, {manifest.name}"
    return {
        "bands": bands,
        "bands_left_out": {
            sensor: [
                name
                for spec in used
                if spec.sensor == sensor
                for name in spec.band_names
                if (sensor, name) not in seen
            ]
            for sensor in sorted(sensors)
        },
        "native_px": {spec.name: spec.size_px for spec in used},
        "size_px": preprocess.size_px,
        "resample": preprocess.resample,
        "statistics": f"the encoder's, {card.dataset}" if statistics == "encoder" else whose,
        "mean": preprocess.mean,
        "std": preprocess.std,
        "masked": "nothing",
    }
