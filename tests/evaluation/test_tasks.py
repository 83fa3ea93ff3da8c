"""Labels by name to tensors, and the losses of the paper."""

import math

import pytest
import torch
from torch.nn import functional

from fusmae.evaluation.tasks import MultiLabel, SingleLabel, summary

CLASSES = ("a", "b", "c")


def test_label_smoothing_equals_torchs_and_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(7, 3, generator=generator)
    target = torch.tensor([0, 1, 2, 0, 1, 2, 2])
    loss = SingleLabel(CLASSES, smoothing=0.1).loss(scores, target)
    expected = functional.cross_entropy(scores, target, label_smoothing=0.1)
    torch.testing.assert_close(loss, expected)
    # All scores equal: log 3, however much is smoothed.
    flat = SingleLabel(CLASSES, smoothing=0.3).loss(torch.zeros(2, 3), target[:2])
    assert flat.item() == pytest.approx(math.log(3))


def test_class_names_become_columns_and_votes() -> None:
    single, multi = SingleLabel(CLASSES), MultiLabel(CLASSES)
    assert single.encode(["c", "a"]).tolist() == [2, 0]
    assert single.votes(single.encode(["c", "a"])).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert multi.votes(multi.encode([["c", "a"], []])).tolist() == [[1, 0, 1], [0, 0, 0]]
    with pytest.raises(ValueError, match="label 'd' is not one of the 3 classes"):
        single.encode(["a", "d"])


def test_a_probability_of_half_is_the_threshold_of_f1() -> None:
    labels = torch.tensor([[1.0, 0, 1], [0, 1, 1]])
    probability = torch.tensor([[0.6, 0.4, 0.51], [0.3, 0.9, 0.2]])
    logits = torch.logit(probability)
    scores = MultiLabel(CLASSES).measure(logits, labels, half=0.0)
    assert scores == MultiLabel(CLASSES).measure(probability, labels, half=0.5)
    assert scores["per_class_f1"] == pytest.approx({"a": 1, "b": 1, "c": 2 / 3})
    assert summary(scores).endswith("macro F1 88.9 %, micro F1 85.7 %")
