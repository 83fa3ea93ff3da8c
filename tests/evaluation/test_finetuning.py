"""Fine-tuning on a tiny dataset: it trains the whole network, repeats itself, chooses on val."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fusmae.config import Fusion
from fusmae.evaluation import finetuning
from fusmae.evaluation.features import random_encoder
from fusmae.evaluation.finetuning import Finetuning, finetune, predict, train_classifier
from fusmae.evaluation.labelled import LabelChoice
from fusmae.evaluation.recipes import FinetuneRecipe
from fusmae.evaluation.setting import open_setting
from fusmae.model import EncoderCard, draw_sensors, load_encoder
from fusmae.model.classifier import FusMAEClassifier

RECIPE = FinetuneRecipe(epochs=2, batch=16, micro_batch=8, lrs=(1e-3,), warmup_epochs=0.5)
Open = Callable[..., tuple[Finetuning, FusMAEClassifier]]


@pytest.fixture
def opened(dataset: Path, encoder: Path) -> Open:
    """A run on these sensors with changes to the recipe, and the model that it starts from."""

    def make(
        *sensors: str, fraction: float = 1.0, **changes: object
    ) -> tuple[Finetuning, FusMAEClassifier]:
        recipe = dataclasses.replace(RECIPE, **changes)  # type: ignore[arg-type]
        weights, card = load_encoder(encoder)
        bands = {sensor: card.bands[sensor] for sensor in sensors}
        setting = open_setting(dataset, card, bands, recipe, LabelChoice(fraction, 0), ())
        torch.manual_seed(0)
        model = FusMAEClassifier(weights, 19, recipe.pooling)
        return Finetuning(setting, recipe), model

    return make


def trained(run: Finetuning, model: FusMAEClassifier, lr: float = 1e-3) -> dict[str, torch.Tensor]:
    train_classifier(run, model, run.setting.splits[0], lr)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_micro_batches_change_memory_and_not_the_steps(opened: Open) -> None:
    # 40 samples in batches of 16: two whole steps and one of 8, an epoch.
    states = [trained(*opened("s1", "s2", micro_batch=micro)) for micro in (16, 8, 4)]
    for name, tensor in states[0].items():
        for other in states[1:]:
            # Adam divides by the root of squared gradients, which magnifies the rounding of sums.
            torch.testing.assert_close(tensor, other[name], rtol=1e-3, atol=2e-5)


def test_the_same_seed_gives_the_same_weights_and_every_layer_learns(opened: Open) -> None:
    run, model = opened("s1", "s2")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, second = trained(run, model), trained(*opened("s1", "s2"))
    other = trained(*opened("s1", "s2", seed=1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])
    assert [name for name in before if torch.equal(before[name], first[name])] == []


def test_layer_decay_moves_the_embeddings_less_than_the_head(opened: Open) -> None:
    def moved(layer_decay: float) -> dict[str, float]:
        run, model = opened("s1", "s2", layer_decay=layer_decay)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        after = trained(run, model)
        return {name: (after[name] - before[name]).abs().max().item() for name in before}

    even, decayed = moved(1.0), moved(0.1)
    embedding = "encoder.patch_embed.s2.weight"
    # Two blocks and the head lie above the embeddings: a rate of 1/1000.
    assert decayed[embedding] < 0.01 * even[embedding]
    assert decayed["head.weight"] == pytest.approx(even["head.weight"], rel=0.2)


def test_an_absent_sensors_weights_are_left_alone_unless_it_is_filled_with_zeros(
    opened: Open,
) -> None:
    bias = "encoder.patch_embed.s2.bias"
    run, model = opened("s1")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    after = trained(run, model)
    absent = [name for name in before if ".s2." in name]
    assert absent and all(torch.equal(before[name], after[name]) for name in absent)
    filled = trained(*opened("s1", absent="zero-filled"))
    assert not torch.equal(before[bias], filled[bias])


def test_sensor_dropout_draws_by_the_step_whatever_the_micro_batch(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    honest = finetuning.FusMAEClassifier.forward

    def forward(model: FusMAEClassifier, images: dict[str, torch.Tensor]) -> torch.Tensor:
        asked.append(list(images))
        return honest(model, images)

    monkeypatch.setattr(finetuning.FusMAEClassifier, "forward", forward)
    states = {}
    for micro in (16, 8):
        asked.clear()
        states[micro] = trained(*opened("s1", "s2", micro_batch=micro, sensor_dropout=0.7))
        # 40 samples in batches of 16, two epochs: of 2 + 2 + 1 micro-batches of 8 each.
        steps = range(6) if micro == 16 else [0, 0, 1, 1, 2, 3, 3, 4, 4, 5]
        assert asked == [draw_sensors(["s1", "s2"], 0.7, RECIPE.seed, step) for step in steps]
    assert ["s1"] in asked and ["s2"] in asked
    for name, tensor in states[16].items():
        torch.testing.assert_close(tensor, states[8][name], rtol=1e-3, atol=2e-5)
    run, model = opened("s1", "s2", sensor_dropout=0.7)
    asked.clear()
    predict(run, model, run.setting.splits[2])
    assert all(sensors == ["s1", "s2"] for sensors in asked)


@pytest.mark.parametrize("fusion", ["stack", "late"])
def test_other_fusions_are_fine_tuned_on_one_sensor(
    dataset: Path, card: EncoderCard, fusion: Fusion
) -> None:
    card = dataclasses.replace(card, model=dataclasses.replace(card.model, fusion=fusion))
    bands = {"s1": card.bands["s1"]}
    setting = open_setting(dataset, card, bands, RECIPE, LabelChoice(1.0, 0), ())
    run = Finetuning(setting, RECIPE)
    model = FusMAEClassifier(random_encoder(card, 0), 19, "mean_tokens")
    weights = trained(run, model)
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    assert predict(run, model, setting.splits[2]).shape == (23, 19)


def test_each_image_is_trained_with_its_own_labels(opened: Open) -> None:
    run, model = opened("s1", "s2", epochs=150, fraction=0.2)
    train = run.setting.splits[0]
    trained(run, model, lr=1e-2)
    score = run.setting.task.measure(predict(run, model, train), train.labels, half=0.0)
    # 8 images of noise and their labels can only be learned by heart.
    assert len(train.ids) == 8 and score["macro_map"] > 0.95


def test_the_rate_with_the_best_val_score_is_chosen_and_a_diverged_one_passed_over(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, start = opened("s1", lrs=(1e-9, 1e-3, 1.0))
    before = start.head.weight.detach().clone()
    honest = finetuning.predict

    def predicted(
        run: Finetuning, model: FusMAEClassifier, split: finetuning.LabelledSplit
    ) -> torch.Tensor:
        """The last rate's scores as if it had diverged, the middle one's as if it were perfect."""
        moved = (model.head.weight.detach().cpu() - before).abs().max()
        scores = honest(run, model, split)
        if moved > 0.1:
            return scores * float("nan")
        return split.labels if moved > 1e-6 else scores

    monkeypatch.setattr(finetuning, "predict", predicted)
    tuned = finetune(run, start)
    assert tuned.lr == 1e-3 and tuned.val_scores[1e-3] == 1 and tuned.val_scores[1.0] is None
    assert torch.equal(start.head.weight, before)
    run, start = opened("s1", lrs=(1.0,))
    with pytest.raises(ValueError, match=r"not finite with any rate of \[1\.0\]"):
        finetune(run, start)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 10}, "multiple of micro_batch = 8"),
        ({"warmup_epochs": 2.0}, "less than epochs = 2"),
        ({"layer_decay": 0.0}, "layer_decay = 0.0 must be above 0"),
        ({"lrs": (1e-3, 1e-3)}, "each once"),
        ({"sensor_dropout": 1.0}, "sensor_dropout = 1.0"),
        ({"smoothing": 1.0}, "smoothing = 1.0"),
        ({"weight_decay": -1.0}, "must not be negative"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RECIPE, **changes)  # type: ignore[arg-type]


def test_a_log_has_a_line_an_epoch_and_no_empty_ones(
    opened: Open, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(*opened("s1"))
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("  loss ")[0] for line in lines] == [
        "rate 0.001  epoch 1/2",
        "rate 0.001  epoch 2/2",
    ]
    first, second = (float(line.partition("  loss ")[2]) for line in lines)
    assert first > second > 0
