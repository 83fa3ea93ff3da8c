"""Scores of a whole split: average precision and F1 of multi-label, accuracies of single-label.

Never averaged over batches: the mean of per-batch average precisions is another, larger number.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fusmae.torchvision_repair import repair_torchvision

# Classes that a sample's class must be among for `top3` to count it.
_TOP = 3


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


@dataclass(frozen=True)
class F1:
    """F1 in [0, 1]: `macro` the mean over classes, `micro` over all (sample, class) pairs.

    As in `AveragePrecision`, classes without a positive sample are left out of `macro` and
    `per_class`; `micro` counts what is wrongly predicted of them.
    """

    macro: float
    micro: float
    per_class: dict[str, float]


@dataclass(frozen=True)
class Accuracy:
    """Scores in [0, 1] of samples that have one class each.

    `weighted_*` are the means over classes weighted by their number of samples; the precision
    of a class that is never predicted is 0. `weighted_recall` equals `top1`, as it must.
    """

    top1: float
    top3: float
    weighted_precision: float
    weighted_recall: float
    weighted_f1: float


def average_precision(scores: Tensor, labels: Tensor, classes: Sequence[str]) -> AveragePrecision:
    """Average precision of `scores`, equal to scikit-learn's `average_precision_score`.

    Args:
        scores: (samples, classes), any real numbers; only their order counts.
        labels: (samples, classes), 0 or 1.
        classes: the columns' names.

    Raises:
        ValueError: the shapes differ, a score is not finite, or no label is positive.
    """
    _check_shapes(scores, labels, classes)
    _check_finite(scores)
    present = _present(labels)
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
        per_class=_by_class(classes, each, present),
        absent_classes=tuple(
            name for name, known in zip(classes, present, strict=True) if not known
        ),
    )


def f1(predicted: Tensor, labels: Tensor, classes: Sequence[str]) -> F1:
    """F1 of multi-label predictions, equal to scikit-learn's `f1_score` with zero_division 0.

    Args:
        predicted: (samples, classes) bool; which scores count as yes is the caller's threshold.
        labels: (samples, classes), 0 or 1.
        classes: the columns' names.

    Raises:
        ValueError: the shapes differ, or no label is positive.
    """
    _check_shapes(predicted, labels, classes)
    present = _present(labels)
    # Whole numbers pass torchmetrics' own sigmoid and threshold by.
    yes, target = predicted.long(), labels.long()
    repair_torchvision()
    from torchmetrics.functional.classification import multilabel_f1_score

    each = multilabel_f1_score(yes, target, len(classes), average=None)
    return F1(
        macro=float(each[present].mean()),
        micro=float(multilabel_f1_score(yes, target, len(classes), average="micro")),
        per_class=_by_class(classes, each, present),
    )


def accuracy(scores: Tensor, target: Tensor, classes: Sequence[str]) -> Accuracy:
    """Top-1, top-3 and weighted scores, equal to scikit-learn's with zero_division 0.

    Of equal scores the class named later ranks first, as in its `top_k_accuracy_score`.

    Args:
        scores: (samples, classes), any real numbers; only their order counts.
        target: (samples,) int64, the column of each sample's class.
        classes: the columns' names.

    Raises:
        ValueError: the shapes differ, or a score is not finite.
    """
    if scores.shape != (len(target), len(classes)):
        raise ValueError(
            f"scores {tuple(scores.shape)}, {len(target)} samples and {len(classes)} classes "
            "do not fit together"
        )
    _check_finite(scores)
    ranked = scores.argsort(dim=1, stable=True).flip(1)  # (samples, classes), best first
    hit = ranked == target[:, None]
    repair_torchvision()
    from torchmetrics.functional import classification

    measures = (
        classification.multiclass_precision,
        classification.multiclass_recall,
        classification.multiclass_f1_score,
    )
    weighted = [
        float(measure(ranked[:, 0], target, len(classes), average="weighted"))
        for measure in measures
    ]
    return Accuracy(
        float(hit[:, 0].double().mean()),
        float(hit[:, :_TOP].any(dim=1).double().mean()),
        *weighted,
    )


def _check_shapes(scores: Tensor, labels: Tensor, classes: Sequence[str]) -> None:
    if scores.shape != labels.shape or scores.shape[1] != len(classes):
        raise ValueError(
            f"scores {tuple(scores.shape)}, labels {tuple(labels.shape)} and "
            f"{len(classes)} classes do not fit together"
        )


def _check_finite(scores: Tensor) -> None:
    if not torch.isfinite(scores).all():
        raise ValueError("some scores are not finite: lower the learning rates, `lrs`")


def _present(labels: Tensor) -> Tensor:
    """(classes,) bool: which classes have a positive sample."""
    present = labels.any(dim=0)
    if not present.any():
        raise ValueError("no sample has a positive label: is this the right label set?")
    return present


def _by_class(classes: Sequence[str], values: Tensor, present: Tensor) -> dict[str, float]:
    return {
        name: float(value)
        for name, value, known in zip(classes, values, present, strict=True)
        if known
    }
