"""How a recipe treats single sensors: their own token size, and class maps among them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fusmae.sensors import CLASS_CODES, dataset_sensor


@dataclass(frozen=True)
class SensorConfig:
    """One sensor of the model, where it differs from the others.

    `patch_px` is the side of a token in this sensor's own pixels, 0 for the model's. Its image
    has as many tokens a side as the others', so tokens cover the same ground: 4 for bands of
    20 m beside 8 for bands of 10 m. With `loss = "cross_entropy"` its one band holds the class
    of each pixel, one of `num_classes`, and classes are what the model predicts.
    """

    patch_px: int = 0
    loss: Literal["mse", "cross_entropy"] = "mse"
    num_classes: int = 0

    def __post_init__(self) -> None:
        if self.patch_px < 0:
            raise ValueError(f"a sensor's patch_px = {self.patch_px} must not be negative")
        if (self.loss == "cross_entropy") != (self.num_classes > 1):
            raise ValueError(
                f"a sensor's loss = {self.loss!r} does not go with num_classes = "
                f"{self.num_classes}: cross_entropy needs 2 or more, mse none"
            )


def check_sensors(
    sensors: Mapping[str, SensorConfig], bands: Mapping[str, tuple[str, ...]]
) -> None:
    """Compare `model.sensors` with `data.bands`.

    Raises:
        ValueError: a sensor without bands, a band in two groups, where it would show what is
            masked in the other, or a class map that is not treated as one.
    """
    for sensor in sensors:
        if sensor not in bands:
            raise ValueError(f"model.sensors.{sensor}: data.bands has only {', '.join(bands)}")
    owner: dict[tuple[str, str], str] = {}
    for sensor, names in bands.items():
        for name in names:
            first = owner.setdefault((dataset_sensor(sensor), name), sensor)
            if first != sensor:
                raise ValueError(f"data.bands has {name} in {first} and in {sensor}; keep one")
        _check_classes(sensor, names, sensors.get(sensor, SensorConfig()))


def _check_classes(sensor: str, names: tuple[str, ...], config: SensorConfig) -> None:
    maps = [name for name in names if name in CLASS_CODES]
    if not maps and config.loss == "mse":
        return
    if not maps or len(names) > 1:
        raise ValueError(
            f"data.bands.{sensor} = {', '.join(names)}: a sensor of classes has one band, "
            f"of {', '.join(CLASS_CODES)}, and no other sensor has such a band"
        )
    count = len(CLASS_CODES[maps[0]])
    if config.num_classes != count:
        raise ValueError(
            f"band {maps[0]} of {sensor} holds {count} classes: set model.sensors.{sensor} to "
            f'loss = "cross_entropy" and num_classes = {count}'
        )
