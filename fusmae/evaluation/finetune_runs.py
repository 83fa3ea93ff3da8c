"""One fine-tuning run: a dataset, an encoder and labels in, `OUT/metrics.json` and weights out."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch

from fusmae.config import as_table
from fusmae.evaluation.backbones import Backbone, open_backbone
from fusmae.evaluation.backbones.opening import BACKBONE_NAME
from fusmae.evaluation.cost import encoder_cost
from fusmae.evaluation.features import select_bands
from fusmae.evaluation.finetuning import Finetuned, Finetuning, finetune, predict
from fusmae.evaluation.labelled import LabelChoice
from fusmae.evaluation.recipes import FinetuneRecipe
from fusmae.evaluation.reliance import exchangeable, reliance
from fusmae.evaluation.results import (
    FINETUNE_FORMAT,
    RESULT_NAME,
    as_json,
    describe_inputs,
    earlier_result,
    write_result,
)
from fusmae.evaluation.setting import Setting, open_setting
from fusmae.manifest import manifest_sha256
from fusmae.model import FusMAEEncoder, save_encoder
from fusmae.model.classifier import FusMAEClassifier
from fusmae.model.interface import ImageEncoder
from fusmae.training.durable import replace_file

ENCODER_NAME = "encoder"
HEAD_NAME = "head.safetensors"

Init = Literal["pretrained", "random"]


@dataclass(frozen=True)
class FinetuneOptions:
    """What is fine-tuned on what; `labels`, a file of sample keys, replaces `fraction`.

    With `init = "random"` only the encoder's architecture is used: what pretraining has to beat.
    """

    dataset: Path
    encoder: str
    sensors: tuple[str, ...]
    fraction: float
    init: Init
    recipe: FinetuneRecipe
    labels: Path | None = None
    pretraining_data: tuple[Path, ...] = ()


def run_finetune(options: FinetuneOptions, out: Path) -> tuple[dict[str, Any], bool]:
    """The content of `OUT/metrics.json`, and whether this call computed it.

    A result of the same options that is already there is returned as it is. Beside it lie the
    fine-tuned encoder, its head and the keys of the labelled samples. All of it is written after
    the test split has been scored, `metrics.json` last: an interrupted run leaves no result.

    Raises:
        ValueError: a path, sensor, split, label set or fraction is wrong, or `out` holds the
            result of other options.
    """
    backbone = open_backbone(options.encoder)
    options = replace(options, recipe=backbone.fit(options.recipe))
    backbone.check_pooling(options.recipe.pooling)
    bands = select_bands(backbone.card, options.sensors)
    choice = LabelChoice(options.fraction, options.recipe.seed, options.labels)
    described = _describe(options, backbone, list(bands), choice)
    earlier = earlier_result(out / RESULT_NAME, described)
    if earlier is not None:
        return earlier, False
    started = time.perf_counter()
    setting = open_setting(
        options.dataset, backbone.card, bands, options.recipe, choice, options.pretraining_data
    )
    run = Finetuning(setting, options.recipe)
    tuned = finetune(run, _start(options, setting, backbone))
    row, score = _score(run, tuned)
    result = {
        "format": FINETUNE_FORMAT,
        "protocol": f"fine-tuning of the whole network from {options.init} weights",
        "options": described,
        "headline": row,
        "results": {row: score},
        "backbone": backbone.describe() | encoder_cost(backbone, setting.preprocess.size_px),
        **setting.describe(options.encoder),
        "precision": "bfloat16 autocast" if setting.device.type == "cuda" else "float32",
        "wall_s": round(time.perf_counter() - started, 2),
    }
    _save(backbone, tuned.model.encoder, _tuned_on(options, setting), out)
    replace_file(out / HEAD_NAME, safetensors.torch.save(tuned.model.head_weights()))
    write_result(out, result, setting.splits[0].keys())
    return result, True


def _tuned_on(options: FinetuneOptions, setting: Setting) -> str:
    labelled = f"{len(setting.splits[0].ids):,} samples with labels ({options.recipe.label_set})"
    sensors = "+".join(setting.data.bands)
    return f"{labelled} of {setting.manifest.name}, {sensors}, from {options.init} weights"


def _save(backbone: Backbone, encoder: ImageEncoder, tuned_on: str, out: Path) -> None:
    """Ours as a folder to load again; of another's the state dict alone."""
    if isinstance(encoder, FusMAEEncoder):
        save_encoder(encoder, replace(backbone.card, tuned_on=tuned_on), out / ENCODER_NAME)
        return
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu() for name, tensor in encoder.state_dict().items()}
    data = safetensors.torch.save(weights, metadata={"backbone": backbone.name})
    replace_file(out / BACKBONE_NAME, data)


def _start(options: FinetuneOptions, setting: Setting, backbone: Backbone) -> FusMAEClassifier:
    """The model before the first step: a pure function of weights, recipe and card."""
    recipe = options.recipe
    encoder = backbone.random(recipe.seed) if options.init == "random" else backbone.pretrained
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        return FusMAEClassifier(encoder, len(setting.task.classes), recipe.pooling)


def _score(run: Finetuning, tuned: Finetuned) -> tuple[str, dict[str, Any]]:
    """The row that a score belongs to, and the test scores of the chosen rate alone."""
    recipe, task, test = run.recipe, run.setting.task, run.setting.splits[2]
    row = recipe.pooling if recipe.absent == "skipped" else f"zero_filled_{recipe.pooling}"

    def measure(exchanged: str | None = None) -> dict[str, Any]:
        scores = predict(run, tuned.model, test, exchanged)
        return task.measure(scores, test.labels, half=0.0)

    whole = measure()
    sensors = exchangeable(run.setting.data) if recipe.reliance else []
    lost = reliance(whole, {sensor: measure(sensor) for sensor in sensors}, task.chosen_by)
    return row, {
        **whole,
        **({"reliance": lost} if lost else {}),
        "lr": tuned.lr,
        f"val_{task.chosen_by}": {str(lr): value for lr, value in tuned.val_scores.items()},
    }


def _describe(
    options: FinetuneOptions, backbone: Backbone, sensors: Sequence[str], choice: LabelChoice
) -> dict[str, Any]:
    """Everything that decides a result; two runs with equal descriptions are the same run."""
    return as_json(
        {
            "init": options.init,
            "sensors": sensors,
            **choice.describe(),
            **backbone.options,
            **describe_inputs(options.dataset, backbone.files),
            "pretraining_data": [manifest_sha256(path) for path in options.pretraining_data],
            "recipe": as_table(options.recipe),
        }
    )
