"""The linear probe: one linear layer on standardised frozen features, rate chosen on val.

The protocol of Fus-MAE (IGARSS 2024, sec. 4): BigEarthNet with MultiLabelSoftMarginLoss, AdamW,
20 epochs, batch 128; SEN12MS with timm's LabelSmoothingCrossEntropy, 10 epochs, batch 256. Rate,
decay, standardisation and start are OUR choices; the paper prints none.
Works on tensors alone, and never sees test data.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fusmae.evaluation.recipes import ProbeRecipe
from fusmae.evaluation.tasks import Task

# N samples, D feature width, C classes.

# As in MAE's linear probe (BatchNorm1d without affine, eps 1e-6): He et al. 2022,
# arXiv:2111.06377, appendix A.1, and `main_linprobe.py`.
_VARIANCE_EPS = 1e-6


@dataclass(frozen=True)
class LabelledFeatures:
    """Features (N, D) float32 with their labels, as their task has them."""

    features: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Standardiser:
    """Shift and scale of each feature, taken from the labelled training samples."""

    mean: Tensor  # (D,)
    std: Tensor  # (D,)

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.std


@dataclass(frozen=True)
class LinearProbe:
    """A trained probe; `__call__` gives class scores (N, C) for raw features (N, D)."""

    standardise: Standardiser
    layer: nn.Linear

    @torch.no_grad()
    def __call__(self, features: Tensor) -> Tensor:
        return self.layer(self.standardise(features))


@dataclass(frozen=True)
class FittedProbe:
    """The probe of the best rate, and the val score of every rate tried."""

    probe: LinearProbe
    lr: float
    val_scores: dict[float, float]


def fit_standardiser(features: Tensor) -> Standardiser:
    """Mean and standard deviation of each column of (N, D), computed in float64.

    Raises:
        ValueError: a feature is not finite.
    """
    if not torch.isfinite(features).all():
        raise ValueError("some features are not finite: the encoder's weights may be damaged")
    precise = features.double()
    variance = precise.var(dim=0, unbiased=False)
    return Standardiser(precise.mean(dim=0).float(), (variance + _VARIANCE_EPS).sqrt().float())


def epoch_batches(num_samples: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Index tensors of one shuffled epoch; the last, smaller one is used too."""
    order = torch.randperm(num_samples, generator=generator)
    for start in range(0, num_samples, batch):
        yield order[start : start + batch]


def train_linear(train: LabelledFeatures, lr: float, task: Task, recipe: ProbeRecipe) -> nn.Linear:
    """A linear layer trained on standardised features (N, D), a pure function of its arguments.

    Starts from zero: the loss is convex, and no draw of weights enters the result.
    """
    device = train.features.device
    layer = nn.Linear(train.features.shape[1], len(task.classes), device=device)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimiser = torch.optim.AdamW(
        layer.parameters(), lr=lr, weight_decay=recipe.weight_decay, fused=True
    )
    generator = torch.Generator().manual_seed(recipe.seed)
    for _ in range(recipe.epochs):
        for rows in epoch_batches(len(train.features), recipe.batch, generator):
            rows = rows.to(device)
            loss = task.loss(layer(train.features[rows]), train.labels[rows])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return layer


def fit_linear_probe(
    train: LabelledFeatures, val: LabelledFeatures, task: Task, recipe: ProbeRecipe
) -> FittedProbe:
    """The probe whose rate of `recipe.lrs` has the best score `task.chosen_by` on `val`.

    Of equal rates the one named first wins.

    Raises:
        ValueError: a feature is not finite, or `val` has no positive label.
    """
    standardise = fit_standardiser(train.features)
    inputs = LabelledFeatures(standardise(train.features), train.labels)
    probes: dict[float, LinearProbe] = {}
    val_scores: dict[float, float] = {}
    for lr in recipe.lrs:
        probe = LinearProbe(standardise, train_linear(inputs, lr, task, recipe))
        probes[lr] = probe
        val_scores[lr] = task.measure(probe(val.features), val.labels, half=0.0)[task.chosen_by]
    best = max(val_scores, key=lambda lr: val_scores[lr])
    return FittedProbe(probes[best], best, val_scores)
