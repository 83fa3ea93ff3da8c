"""What a pretraining run reconstructs: its newest weights on a split, in stored units."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fusmae.config import ModelConfig, PretrainRecipe, build
from fusmae.data import Batch, EvalLoader, Preprocess, SplitReader
from fusmae.manifest import MANIFEST_NAME, read_manifest
from fusmae.model import FusMAE, draw_masks
from fusmae.training.checkpoint import find_checkpoint, read_state, read_weights
from fusmae.training.record import RUN_RECORD

# B batch, C bands of a sensor, S side of its grid in the model, N tokens of a sensor

BATCH = 16


@dataclass(frozen=True)
class Pretrained:
    """A run's newest model, in float32 and on the CPU, after `step` updates."""

    model: FusMAE
    recipe: PretrainRecipe
    step: int


@dataclass(frozen=True)
class Reconstruction:
    """Samples on the model's grid, by sensor. Pixels are float32 in stored units.

    truth, predicted: (B, C, S, S); every token is predicted, visible ones too.
    masked: (B, S, S) bool, true where the encoder did not see the sensor's pixels.
    """

    keys: tuple[str, ...]
    truth: dict[str, Tensor]
    predicted: dict[str, Tensor]
    masked: dict[str, Tensor]


@dataclass(frozen=True)
class BandError:
    """Root mean square errors over masked pixels, in stored units.

    `visible_mean` is the error of filling a sample with the mean of its visible pixels.
    """

    sensor: str
    band: str
    rmse: float
    visible_mean: float


def load_pretrained(run: Path, dataset: Path) -> Pretrained:
    """The run's newest whole checkpoint as a model.

    Raises:
        ValueError: `run` is no run, its record is damaged, it has no checkpoint yet, or was made
            from another dataset.
    """
    recipe, trained_on, expected = _read_record(run)
    digest = hashlib.sha256((dataset / MANIFEST_NAME).read_bytes()).hexdigest()
    if digest != expected:
        raise ValueError(f"{run} was trained on {trained_on}, and {dataset} is not the same")
    checkpoint = find_checkpoint(run)
    if checkpoint is None:
        raise ValueError(f"{run} has no checkpoint yet")
    model = FusMAE(recipe.model, recipe.data.channels).eval()
    model.load_state_dict(read_weights(checkpoint))
    return Pretrained(model, recipe, read_state(checkpoint)["step"])


def dataset_of(run: Path) -> Path:
    """Where the dataset lies that a run was trained on, as its record says.

    Raises:
        ValueError: as `load_pretrained` of the record, or no dataset lies there.
    """
    _, trained_on, _ = _read_record(run)
    if not (Path(trained_on) / MANIFEST_NAME).is_file():
        raise ValueError(
            f"{run} was trained on {trained_on}, which is no dataset here: give --data"
        )
    return Path(trained_on)


def _read_record(run: Path) -> tuple[PretrainRecipe, str, str]:
    """Recipe, place of the dataset and the sha256 of its manifest; errors as `load_pretrained`."""
    path = run / RUN_RECORD
    try:
        record = json.loads(path.read_text())
        trained_on, expected = (record["dataset"][key] for key in ("path", "manifest_sha256"))
        return build(PretrainRecipe, record["recipe"]), str(trained_on), expected
    except OSError as error:
        raise ValueError(
            f"cannot read {path}: {error.strerror}; is {run} a run of train/pretrain.py?"
        ) from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged, or of another release: {type(error).__name__}, {error}"
        ) from None


def reconstruct(
    pretrained: Pretrained, dataset: Path, split: str, num_samples: int
) -> Iterator[Reconstruction]:
    """Batches of the first `num_samples` samples of a split, or of all where there are fewer.

    Their masks are those of the recipe's seed at positions 0, 1, ...

    Raises:
        ValueError: the dataset has no such split, or no samples in it.
    """
    recipe = pretrained.recipe
    keys = SplitReader(dataset, split).keys()
    preprocess = preprocess_of(recipe, dataset)
    for batch, images in read_images(pretrained, dataset, split, num_samples):
        masks = draw_masks(recipe.model, list(images), recipe.seed, batch.positions)
        predicted = pretrained.model.reconstruct(images, masks)
        yield Reconstruction(
            tuple(keys[i] for i in batch.sample_ids.tolist()),
            preprocess.denormalise(images),
            preprocess.denormalise(predicted),
            {sensor: token_pixels(masks.masked[sensor], recipe.model, sensor) for sensor in images},
        )


def preprocess_of(recipe: PretrainRecipe, dataset: Path) -> Preprocess:
    """What brings a batch's arrays to the recipe's model."""
    sizes_px = recipe.model.sizes_px(recipe.data.bands)
    return Preprocess(read_manifest(dataset), recipe.data.bands, sizes_px, recipe.data.resample)


def read_images(
    pretrained: Pretrained, dataset: Path, split: str, num_samples: int
) -> Iterator[tuple[Batch, dict[str, Tensor]]]:
    """Batches of the first `num_samples` samples of a split, with the model's images by sensor.

    Raises:
        ValueError: the dataset has no such split, or no samples in it.
    """
    recipe = pretrained.recipe
    ids = np.arange(min(num_samples, SplitReader(dataset, split).num_samples))
    preprocess = preprocess_of(recipe, dataset)
    for batch in EvalLoader(dataset, split, recipe.data, BATCH, sample_ids=ids):
        yield batch, preprocess(batch.arrays)


def token_pixels(tokens: Tensor, config: ModelConfig, sensor: str) -> Tensor:
    """The pixels of a sensor's tokens numbered in (B, K): true in a (B, S, S) bool image."""
    side, patch_px = config.image_px // config.patch_px, config.patch_px_of(sensor)
    grid = torch.zeros(len(tokens), side * side, dtype=torch.bool).scatter(1, tokens, True)
    pixels = grid.view(-1, side, side).repeat_interleave(patch_px, dim=1)
    return pixels.repeat_interleave(patch_px, dim=2)


def squared_errors(part: Reconstruction) -> dict[str, Tensor]:
    """Sums over the masked pixels of a batch, (3, C) float64 by sensor; add them up over batches.

    Rows: squared error of the model, squared error of filling each sample with the mean of
    its visible pixels, and the number of masked pixels.
    """
    sums: dict[str, Tensor] = {}
    for sensor, stored in part.truth.items():
        truth, predicted = stored.double(), part.predicted[sensor].double()
        masked = part.masked[sensor][:, None]  # (B, 1, S, S)
        visible = ~masked
        fill = (truth * visible).sum((2, 3), keepdim=True) / visible.sum((2, 3), keepdim=True)
        sums[sensor] = torch.stack(
            [
                (((predicted - truth) * masked) ** 2).sum((0, 2, 3)),
                (((fill - truth) * masked) ** 2).sum((0, 2, 3)),
                masked.sum().double().expand(truth.shape[1]),
            ]
        )
    return sums


def band_errors(sums: dict[str, Tensor], bands: dict[str, tuple[str, ...]]) -> list[BandError]:
    """The error of every band from sums of `squared_errors`; `bands` names the channels."""
    errors: list[BandError] = []
    for sensor, names in bands.items():
        model, fill, count = sums[sensor]
        rmse, visible_mean = (model / count).sqrt().tolist(), (fill / count).sqrt().tolist()
        errors += [
            BandError(sensor, *values) for values in zip(names, rmse, visible_mean, strict=True)
        ]
    return errors
