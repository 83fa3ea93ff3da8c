"""Average precision of multi-label scores over a whole split, macro and micro.

Never averaged over batches: the mean of per-batch average precisions is another, larger number.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fusmae.torchvision_repair import repair_torchvision


@dataclass(frozen=True)
class AveragePrecision:
    """Average precisions in [0, 1].

    `macro` is the mean of `per_class`; `micro` ranks all (sample, class) pairs together.
    `absent_classes` have no positive sample in the split, so no average precision: they are
    left out of `macro` and `per_class`, while `micro` counts their pairs as negatives.
    """

    macro: float
    micro: float
    per_class: dict[str, float]
    absent_classes: tuple[str, ...]


def average_precision(scores: Tensor, labels: Tensor, classes: Sequence[str]) -> AveragePrecision:
    """Average precision of `scores`, equal to scikit-learn's `average_precision_score`.

    Args:
        scores: (samples, classes), any real numbers; only their order counts.
        labels: (samples, classes), 0 or 1.
        classes: the columns' names.

    Raises:
        ValueError: the shapes differ, a score is not finite, or no label is positive.
    """
    if scores.shape != labels.shape or scores.shape[1] != len(classes):
        raise ValueError(
            f"scores {tuple(scores.shape)}, labels {tuple(labels.shape)} and "
            f"{len(classes)} classes do not fit together"
        )
    if not torch.isfinite(scores).all():
        raise ValueError("some scores are not finite: lower the learning rates of the probe")
    present = labels.any(dim=0)
    if not present.any():
        raise ValueError("no sample has a positive label: is this the right label set?")
    # torchmetrics sends scores outside [0, 1] through a float32 sigmoid, whose saturation
    # makes ties (0.427 instead of 0.433 on a test case); ranks keep the order exactly.
    _, ranks = torch.unique(scores, return_inverse=True)
    unit = ranks.double() / max(int(ranks.max()), 1)
    target = labels.long()
    repair_torchvision()
    from torchmetrics.functional.classification import multilabel_average_precision

    with warnings.catch_warnings():
        # Classes without a positive are dealt with here, by name.
        warnings.filterwarnings("ignore", message="No positive samples found")
        each = multilabel_average_precision(unit, target, len(classes), average=None)
        micro = multilabel_average_precision(unit, target, len(classes), average="micro")
    return AveragePrecision(
        macro=float(each[present].mean()),
        micro=float(micro),
        per_class={
            name: float(value)
            for name, value, known in zip(classes, each, present, strict=True)
            if known
        },
        absent_classes=tuple(
            name for name, known in zip(classes, present, strict=True) if not known
        ),
    )
