"""What a sample's label is, what a wrong one costs, and how a whole split is scored.

A multi-label sample has any number of classes, labels (N, C) float32 of 0 and 1; a
single-label one has exactly one, labels (N,) int64.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from fusmae.evaluation.metrics import accuracy, average_precision, f1
from fusmae.evaluation.recipes import TaskName
from fusmae.labels import multi_hot
from fusmae.torchvision_repair import repair_torchvision

# N samples, C classes.


@dataclass(frozen=True)
class MultiLabel:
    """MultiLabelSoftMarginLoss; the learning rate is chosen by macro mAP."""

    classes: tuple[str, ...]

    name: ClassVar[TaskName] = "multi-label"
    chosen_by: ClassVar[str] = "macro_map"
    averaging: ClassVar[dict[str, str]] = {
        "over": "the whole split at once",
        "macro": "mean over the classes with a positive sample in the split",
        "micro": "all (sample, class) pairs together",
        "f1": "a class is predicted where its probability is above 0.5",
    }

    def encode(self, labels: Sequence[Sequence[str]]) -> Tensor:
        """(N, C) float32 of the class names of each sample."""
        return torch.from_numpy(multi_hot(labels, self.classes)).float()

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        return functional.multilabel_soft_margin_loss(scores, labels)

    def votes(self, labels: Tensor) -> Tensor:
        """(N, C) float32: what each sample as a neighbour speaks for."""
        return labels

    def measure(self, scores: Tensor, labels: Tensor, half: float) -> dict[str, Any]:
        """Every metric of a split; `half` is the score that means a probability of 0.5.

        Raises:
            ValueError: as `average_precision`.
        """
        precision = average_precision(scores, labels, self.classes)
        decided = f1(scores > half, labels, self.classes)
        return {
            "macro_map": precision.macro,
            "micro_map": precision.micro,
            "macro_f1": decided.macro,
            "micro_f1": decided.micro,
            "per_class": precision.per_class,
            "per_class_f1": decided.per_class,
            "absent_classes": list(precision.absent_classes),
        }


@dataclass(frozen=True)
class SingleLabel:
    """timm's LabelSmoothingCrossEntropy; the learning rate is chosen by top-1."""

    classes: tuple[str, ...]
    smoothing: float = 0.1

    name: ClassVar[TaskName] = "single-label"
    chosen_by: ClassVar[str] = "top1"
    averaging: ClassVar[dict[str, str]] = {
        "over": "the whole split at once",
        "weighted": "mean over classes, weighted by their number of samples in the split",
    }

    def encode(self, labels: Sequence[str]) -> Tensor:
        """(N,) int64 of the class name of each sample.

        Raises:
            ValueError: a name is not one of the classes.
        """
        place = {name: index for index, name in enumerate(self.classes)}
        unknown = [name for name in labels if name not in place]
        if unknown:
            raise ValueError(
                f"label {unknown[0]!r} is not one of the {len(place)} classes {list(place)}"
            )
        return torch.tensor([place[name] for name in labels], dtype=torch.int64)

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        repair_torchvision()
        from timm.loss import LabelSmoothingCrossEntropy

        loss: Tensor = LabelSmoothingCrossEntropy(self.smoothing)(scores, labels)
        return loss

    def votes(self, labels: Tensor) -> Tensor:
        """(N, C) float32: what each sample as a neighbour speaks for."""
        return functional.one_hot(labels, len(self.classes)).float()

    def measure(self, scores: Tensor, labels: Tensor, half: float) -> dict[str, Any]:
        """Every metric of a split; `half` has no say.

        Raises:
            ValueError: as `accuracy`.
        """
        return asdict(accuracy(scores, labels, self.classes))


def summary(score: dict[str, Any]) -> str:
    """The scores of a task that a person asks for first, in percent."""
    names = {
        "macro_map": "macro mAP",
        "micro_map": "micro mAP",
        "top1": "top-1",
        "top3": "top-3",
        "macro_f1": "macro F1",
        "micro_f1": "micro F1",
        "weighted_f1": "weighted F1",
    }
    return ", ".join(f"{names[key]} {100 * score[key]:.1f} %" for key in names if key in score)


Task = MultiLabel | SingleLabel


def make_task(name: TaskName, classes: tuple[str, ...], smoothing: float) -> Task:
    return MultiLabel(classes) if name == "multi-label" else SingleLabel(classes, smoothing)
