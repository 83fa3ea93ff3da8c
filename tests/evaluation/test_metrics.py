"""The metric is scikit-learn's, over the whole split, whatever the scores look like."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from fusmae.evaluation.metrics import accuracy, average_precision, f1

CLASSES = ("water", "forest", "urban", "snow")


def _draw(seed: int, num_samples: int, decimals: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (N, 4) far outside [0, 1], rounded to make ties, and labels; no class is empty."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (num_samples, 4))
    labels[:4] = np.eye(4)
    scores = np.round(rng.normal(0, 50, (num_samples, 4)), decimals)
    return torch.tensor(scores, dtype=torch.float32), torch.tensor(labels)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_samples=st.integers(4, 60),
    decimals=st.sampled_from([-2, -1, 0, 6]),
)
def test_macro_and_micro_equal_scikit_learn_with_ties_and_large_logits(
    seed: int, num_samples: int, decimals: int
) -> None:
    scores, labels = _draw(seed, num_samples, decimals)
    got = average_precision(scores, labels, CLASSES)
    expected = average_precision_score(labels, scores, average=None)
    # float32 sums of at most 240 terms in [0, 1]: error below 240 * 6e-8.
    assert list(got.per_class.values()) == pytest.approx(list(expected), abs=2e-5)
    assert got.macro == pytest.approx(expected.mean(), abs=2e-5)
    assert got.micro == pytest.approx(
        average_precision_score(labels, scores, average="micro"), abs=2e-5
    )
    assert got.absent_classes == ()


def test_a_class_without_a_positive_is_named_and_left_out_of_macro_only() -> None:
    scores, labels = _draw(0, 50, 1)
    labels[:, 1] = 0
    got = average_precision(scores, labels, CLASSES)
    kept = [0, 2, 3]
    expected = average_precision_score(labels[:, kept], scores[:, kept], average="macro")
    assert got.absent_classes == ("forest",)
    assert list(got.per_class) == ["water", "urban", "snow"]
    assert got.macro == pytest.approx(expected, abs=2e-5)
    assert got.micro == pytest.approx(
        average_precision_score(labels, scores, average="micro"), abs=2e-5
    )


def test_an_increasing_map_of_the_scores_changes_nothing() -> None:
    scores, labels = _draw(3, 80, 0)
    assert average_precision(scores, labels, CLASSES) == average_precision(
        scores.double() / 7 - 1e3, labels, CLASSES
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    scores, labels = _draw(0, 10, 1)
    scores[4, 2] = bad
    with pytest.raises(ValueError, match="not finite"):
        average_precision(scores, labels, CLASSES)


def test_labels_without_any_positive_are_refused() -> None:
    scores, labels = _draw(0, 10, 1)
    with pytest.raises(ValueError, match="no sample has a positive label"):
        average_precision(scores, torch.zeros_like(labels), CLASSES)


def test_scores_and_labels_of_other_shapes_are_refused() -> None:
    scores, labels = _draw(0, 10, 1)
    with pytest.raises(ValueError, match="do not fit together"):
        average_precision(scores, labels[:, :3], CLASSES)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), num_samples=st.integers(4, 60))
def test_f1_equals_scikit_learn_macro_and_micro(seed: int, num_samples: int) -> None:
    scores, labels = _draw(seed, num_samples, 0)
    got = f1(scores > 0, labels, CLASSES)
    expected = f1_score(labels, scores > 0, average=None, zero_division=0)
    # One float32 division each.
    assert list(got.per_class.values()) == pytest.approx(list(expected), abs=1e-6)
    assert got.macro == pytest.approx(expected.mean(), abs=1e-6)
    micro = f1_score(labels, scores > 0, average="micro", zero_division=0)
    assert got.micro == pytest.approx(micro, abs=1e-6)


def test_a_class_without_a_positive_is_left_out_of_macro_f1_and_spoils_micro() -> None:
    _, labels = _draw(0, 50, 1)
    labels[:, 1] = 0
    predicted = labels.bool().clone()
    predicted[:10, 1] = True
    got = f1(predicted, labels, CLASSES)
    assert got.macro == 1 and list(got.per_class) == ["water", "urban", "snow"]
    assert got.micro == pytest.approx(f1_score(labels, predicted, average="micro"), abs=1e-6)
    assert got.micro < 1


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_samples=st.integers(4, 60),
    decimals=st.sampled_from([-2, 6]),
    num_seen=st.sampled_from([2, 5]),
)
def test_accuracies_equal_scikit_learn_with_ties_and_classes_that_do_not_occur(
    seed: int, num_samples: int, decimals: int, num_seen: int
) -> None:
    rng = np.random.default_rng(seed)
    scores = np.round(rng.normal(0, 50, (num_samples, 5)), decimals)
    target = rng.integers(0, num_seen, num_samples)
    got = accuracy(torch.tensor(scores), torch.tensor(target), tuple("abcde"))
    tops = [top_k_accuracy_score(target, scores, k=k, labels=range(5)) for k in (1, 3)]
    assert [got.top1, got.top3] == pytest.approx(tops, abs=1e-12)
    first = scores.shape[1] - 1 - scores[:, ::-1].argmax(axis=1)  # of equal ones the last
    weighted = precision_recall_fscore_support(target, first, average="weighted", zero_division=0)
    measured = [got.weighted_precision, got.weighted_recall, got.weighted_f1]
    assert measured == pytest.approx(list(weighted[:3]), abs=1e-6)
    assert got.weighted_recall == pytest.approx(accuracy_score(target, first), abs=1e-6)


def test_accuracies_of_scores_that_do_not_fit_or_are_not_finite_are_refused() -> None:
    scores = torch.zeros(3, 4)
    with pytest.raises(ValueError, match="do not fit together"):
        accuracy(scores, torch.zeros(2, dtype=torch.long), CLASSES)
    scores[1, 1] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        accuracy(scores, torch.zeros(3, dtype=torch.long), CLASSES)
