"""The linear probe on plain tensors: it learns, repeats itself and uses every sample."""

import dataclasses

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional

from fusmae.evaluation.metrics import average_precision
from fusmae.evaluation.protocols import (
    LabelledFeatures,
    epoch_batches,
    fit_linear_probe,
    fit_standardiser,
    train_linear,
)
from fusmae.evaluation.recipes import ProbeRecipe
from fusmae.evaluation.tasks import MultiLabel, SingleLabel

CLASSES = ("a", "b", "c")
TASK = MultiLabel(CLASSES)
RECIPE = ProbeRecipe(epochs=20, batch=32)


def _separable(num_samples: int, seed: int) -> LabelledFeatures:
    """Features (N, 8) of very unlike scales whose labels are the signs of three of them."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_samples, 8, generator=generator)
    labels = (hidden[:, :3] > 0).float()
    return LabelledFeatures(hidden * torch.logspace(-2, 4, 8) + 500, labels)


def test_the_probe_learns_linearly_separable_classes() -> None:
    fitted = fit_linear_probe(_separable(200, 0), _separable(100, 1), TASK, RECIPE)
    test = _separable(300, 2)
    assert average_precision(fitted.probe(test.features), test.labels, CLASSES).macro > 0.98


def test_the_same_seed_gives_the_same_probe_and_another_seed_another() -> None:
    train, val = _separable(70, 0), _separable(40, 1)

    def weight(seed: int) -> Tensor:
        recipe = dataclasses.replace(RECIPE, seed=seed)
        torch.manual_seed(seed + 100)  # torch's global state must not matter
        return fit_linear_probe(train, val, TASK, recipe).probe.layer.weight.detach()

    assert torch.equal(weight(0), weight(0))
    assert not torch.equal(weight(0), weight(1))


def test_long_training_reaches_the_optimum_that_scikit_learn_finds() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 3, generator=generator)
    noisy = features[:, :1] + torch.randn(60, 1, generator=generator)
    labels = (noisy > 0).float()
    recipe = ProbeRecipe(epochs=2000, batch=60)  # full batches: AdamW without noise
    layer = train_linear(LabelledFeatures(features, labels), 1e-2, MultiLabel(("a",)), recipe)
    oracle = LogisticRegression(C=1e12, tol=1e-10).fit(features, labels[:, 0])
    # AdamW at a constant rate of 1e-2 settles well within that of the optimum.
    assert layer.weight.detach()[0].tolist() == pytest.approx(list(oracle.coef_[0]), abs=1e-2)
    assert layer.bias.detach().item() == pytest.approx(oracle.intercept_[0], abs=1e-2)


def test_the_last_smaller_batch_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    genuine = functional.multilabel_soft_margin_loss

    def counting(scores: Tensor, labels: Tensor) -> Tensor:
        seen.append(len(scores))
        return genuine(scores, labels)

    monkeypatch.setattr(functional, "multilabel_soft_margin_loss", counting)
    train_linear(_separable(70, 0), 1e-3, TASK, ProbeRecipe(epochs=3, batch=32))
    assert seen == [32, 32, 6] * 3


def test_an_epoch_visits_every_sample_once_and_each_epoch_in_another_order() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.cat(list(epoch_batches(45, 8, generator))) for _ in range(2))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(45))
    assert first.tolist() != second.tolist()


def test_the_rate_with_the_best_val_score_is_chosen() -> None:
    train, val = _separable(200, 0), _separable(100, 1)
    # A rate of 0 leaves the zero layer where it is: all scores tie.
    recipe = dataclasses.replace(RECIPE, epochs=1, lrs=(0.0, 3e-2))
    fitted = fit_linear_probe(train, val, TASK, recipe)
    assert fitted.lr == 3e-2
    assert list(fitted.val_scores) == [0.0, 3e-2]
    score = average_precision(fitted.probe(val.features), val.labels, CLASSES).macro
    assert fitted.val_scores[3e-2] == score > fitted.val_scores[0.0]


def test_statistics_come_from_the_training_features_alone() -> None:
    train = _separable(50, 0)
    standardise = fit_standardiser(train.features)
    inside = standardise(train.features)
    assert inside.mean(dim=0).abs().max() < 1e-2  # float32 at an offset of 500 and a std of 0.01
    assert inside.std(dim=0, unbiased=False) == pytest.approx(torch.ones(8), abs=1e-2)
    fitted = [
        fit_linear_probe(train, LabelledFeatures(val.features * factor, val.labels), TASK, RECIPE)
        for val in [_separable(40, 1)]
        for factor in (1.0, 100.0)
    ]
    assert torch.equal(fitted[0].probe.standardise.mean, fitted[1].probe.standardise.mean)
    assert torch.equal(fitted[0].probe.standardise.std, fitted[1].probe.standardise.std)


def test_a_constant_feature_is_harmless() -> None:
    train = _separable(50, 0)
    train.features[:, 4] = 3.0
    standardised = fit_standardiser(train.features)(train.features)
    assert torch.isfinite(standardised).all()
    assert (standardised[:, 4] == 0).all()


def test_features_that_are_not_finite_are_refused() -> None:
    train = _separable(50, 0)
    train.features[3, 3] = float("nan")
    with pytest.raises(ValueError, match="features are not finite"):
        fit_linear_probe(train, _separable(40, 1), TASK, RECIPE)


def test_single_label_classes_are_learned_and_their_rate_chosen_by_top1() -> None:
    def largest_of_three(num_samples: int, seed: int) -> LabelledFeatures:
        features = torch.randn(num_samples, 8, generator=torch.Generator().manual_seed(seed))
        return LabelledFeatures(features, features[:, :3].argmax(dim=1))

    task = SingleLabel(CLASSES)
    recipe = dataclasses.replace(RECIPE, lrs=(0.0, 3e-2))
    fitted = fit_linear_probe(largest_of_three(300, 0), largest_of_three(100, 1), task, recipe)
    assert fitted.lr == 3e-2
    test = largest_of_three(300, 2)
    scores = task.measure(fitted.probe(test.features), test.labels, half=0.0)
    assert scores["top1"] > 0.9 and scores["top3"] == 1
