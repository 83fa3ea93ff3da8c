"""The recipes of the downstream protocols: everything that changes a score but paths and sensors.

Read by `fusmae.config.load_recipe`; the TOML files stand in `train/recipes/`.
"""

from dataclasses import dataclass
from typing import Literal

from fusmae.model.classifier import Pooling

TaskName = Literal["multi-label", "single-label"]
# Whose means and deviations normalise the images: those that the encoder was trained with, or
# the dataset's own, for data of another processing level.
StatisticsOf = Literal["encoder", "dataset"]


@dataclass(frozen=True)
class ProbeRecipe:
    """Probes of frozen features; the defaults are the paper's linear probe of BigEarthNet.

    20 epochs, batch 128, MultiLabelSoftMarginLoss, AdamW (Fus-MAE, sec. 4); a single-label
    task has a cross entropy with label `smoothing` instead. `lrs` is the common grid; the rate
    is chosen on the val split for each row. `k` and `temperature` are of `--head knn`.
    `reliance` scores test once more for each of several sensors, with that sensor's images
    exchanged between samples. `image_px` is the side to which images are resampled, 0 for the
    encoder's own.
    """

    seed: int = 0
    task: TaskName = "multi-label"
    label_set: str = "bigearthnet-19"
    train_split: str = "train"
    val_split: str = "val"
    test_split: str = "test"
    epochs: int = 20
    batch: int = 128
    lrs: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
    weight_decay: float = 0.0
    smoothing: float = 0.1
    k: int = 20
    temperature: float = 0.07
    statistics: StatisticsOf = "encoder"
    image_px: int = 0
    zero_filled: bool = True
    reliance: bool = True
    feature_batch: int = 64

    def __post_init__(self) -> None:
        _check(self, self.lrs, self.smoothing, ("epochs", "batch", "k", "feature_batch"))
        if not self.temperature > 0:
            raise ValueError(f"temperature = {self.temperature} must be more than 0")


@dataclass(frozen=True)
class FinetuneRecipe:
    """Fine-tuning of the whole network; 10 epochs are the paper's (Fus-MAE, sec. 4).

    `lrs` are peak rates, each tried in full and one chosen on val, after a linear warm-up and
    followed by half a cosine to 0. `layer_decay` below 1 lowers the rate from layer to layer
    towards the pixels. `batch` samples make a step, `micro_batch` of them go through the network
    at once, which changes memory only. `pooling` and `absent` choose the row: mean of the sensor
    tokens or the global token; an absent sensor skipped or filled with zeros. `sensor_dropout` is
    the share of steps in which one of several sensors is absent; nothing is absent when scored.
    `reliance` as of a probe.
    """

    seed: int = 0
    task: TaskName = "multi-label"
    label_set: str = "bigearthnet-19"
    train_split: str = "train"
    val_split: str = "val"
    test_split: str = "test"
    epochs: int = 10
    batch: int = 128
    micro_batch: int = 32
    lrs: tuple[float, ...] = (3e-5, 1e-4, 3e-4, 1e-3)
    warmup_epochs: float = 1.0
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    clip_norm: float = 0.0
    sensor_dropout: float = 0.0
    smoothing: float = 0.1
    pooling: Pooling = "mean_tokens"
    absent: Literal["skipped", "zero-filled"] = "skipped"
    reliance: bool = True
    statistics: StatisticsOf = "encoder"
    image_px: int = 0

    def __post_init__(self) -> None:
        _check(self, self.lrs, self.smoothing, ("epochs", "batch", "micro_batch"))
        if self.batch % self.micro_batch:
            raise ValueError(
                f"batch = {self.batch} must be a multiple of micro_batch = {self.micro_batch}"
            )
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(
                f"warmup_epochs = {self.warmup_epochs} must be at least 0 and less than "
                f"epochs = {self.epochs}"
            )
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay = {self.layer_decay} must be above 0 and at most 1")
        if not 0 <= self.sensor_dropout < 1:
            raise ValueError(
                f"sensor_dropout = {self.sensor_dropout} must be at least 0 and below 1"
            )
        if self.clip_norm < 0 or self.weight_decay < 0:
            raise ValueError("clip_norm and weight_decay must not be negative")


def _check(
    recipe: object, lrs: tuple[float, ...], smoothing: float, positive: tuple[str, ...]
) -> None:
    for name in positive:
        if getattr(recipe, name) < 1:
            raise ValueError(f"{name} = {getattr(recipe, name)} must be 1 or more")
    if not lrs or len(set(lrs)) < len(lrs):
        raise ValueError(f"lrs = {list(lrs)} must be one or more learning rates, each once")
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing = {smoothing} must be at least 0 and below 1")
