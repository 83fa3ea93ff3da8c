"""The recipes of the downstream protocols: everything that changes a score but paths and sensors.

Read by `fusmae.config.load_recipe`; the TOML files stand in `train/recipes/`.
"""

from dataclasses import dataclass
from typing import Literal

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
    `image_px` is the side to which images are resampled, 0 for the encoder's own.
    """

    seed: int = 0
    task: TaskName = "multi-label"
    label_set: str = "bigearthnet-19"
    train_split: str = "train"
    val_split: str = "val"
    test_split: str = "test"
    epochs: int = 20
    batch: int = 128
    lrs: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
    weight_decay: float = 0.0
    smoothing: float = 0.1
    k: int = 20
    temperature: float = 0.07
    statistics: StatisticsOf = "encoder"
    image_px: int = 0
    zero_filled: bool = True
    feature_batch: int = 64

    def __post_init__(self) -> None:
        _check(self, self.lrs, self.smoothing, ("epochs", "batch", "k", "feature_batch"))
        if not self.temperature > 0:
            raise ValueError(f"temperature = {self.temperature} must be more than 0")


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
