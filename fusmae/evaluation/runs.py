"""One probe run: a dataset, frozen features and a label fraction in, `OUT/metrics.json` out."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fusmae.config import DataConfig, as_table
from fusmae.data import Batch, EvalLoader
from fusmae.evaluation.backbones import Backbone, open_backbone
from fusmae.evaluation.cost import encoder_cost
from fusmae.evaluation.features import (
    Extractor,
    FeatureKind,
    band_statistics,
    encoder_features,
    extract_features,
    select_bands,
)
from fusmae.evaluation.knn import knn_scores
from fusmae.evaluation.labelled import LabelChoice, LabelledSplit
from fusmae.evaluation.protocols import LabelledFeatures, fit_linear_probe, fit_standardiser
from fusmae.evaluation.recipes import ProbeRecipe
from fusmae.evaluation.reliance import exchangeable, exchanged_batches, reliance
from fusmae.evaluation.results import (
    PROBE_FORMAT,
    RESULT_NAME,
    as_json,
    describe_inputs,
    earlier_result,
    write_result,
)
from fusmae.evaluation.setting import Setting, open_setting
from fusmae.evaluation.tasks import Task
from fusmae.manifest import manifest_sha256

Head = Literal["linear", "knn"]


class Classifier(NamedTuple):
    """Features (N, D) to class scores (N, C), the score that means a probability of 0.5, and
    what a result says of how it was made."""

    scores: Callable[[Tensor], Tensor]
    half: float
    facts: dict[str, Any]


@dataclass(frozen=True)
class ProbeOptions:
    """What a probe is run on. `fraction` of the train split's labels is used, in (0, 1].

    `encoder` is an exported folder or what else `open_backbone` takes. With
    `features = "random"` only its architecture is used, its weights drawn anew from the recipe's
    seed; with "band-statistics" only its choice of bands. `labels`, a file of sample keys, takes
    the place of `fraction`.
    """

    dataset: Path
    encoder: str
    sensors: tuple[str, ...]
    fraction: float
    features: FeatureKind
    recipe: ProbeRecipe
    head: Head = "linear"
    labels: Path | None = None
    pretraining_data: tuple[Path, ...] = ()


def run_probe(options: ProbeOptions, out: Path) -> tuple[dict[str, Any], bool]:
    """The content of `OUT/metrics.json`, and whether this call computed it.

    A result of the same options that is already there is returned as it is. Beside it,
    `OUT/labels_used.txt` lists the keys of the labelled training samples.

    Raises:
        ValueError: a path, sensor, split, label set or fraction is wrong, or `out` holds the
            result of other options.
    """
    backbone = open_backbone(options.encoder)
    options = replace(options, recipe=backbone.fit(options.recipe))
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
    # The score that stands for these features in tables; those of other poolings stand beside it.
    of_bands = options.features == "band-statistics"
    result = {
        "format": PROBE_FORMAT,
        "protocol": f"{options.head} probe of frozen features",
        "options": described,
        "headline": "band_statistics" if of_bands else backbone.poolings[0],
        "results": _score(options, setting, backbone),
        "backbone": backbone.describe() | encoder_cost(backbone, setting.preprocess.size_px),
        **setting.describe(options.encoder),
        "wall_s": round(time.perf_counter() - started, 2),
    }
    write_result(out, result, setting.splits[0].keys())
    return result, True


def _describe(
    options: ProbeOptions, backbone: Backbone, sensors: Sequence[str], choice: LabelChoice
) -> dict[str, Any]:
    """Everything that decides a result; two runs with equal descriptions are the same run."""
    return as_json(
        {
            "features": options.features,
            "head": options.head,
            "sensors": sensors,
            **choice.describe(),
            **backbone.options,
            **describe_inputs(options.dataset, backbone.files),
            "pretraining_data": [manifest_sha256(path) for path in options.pretraining_data],
            "recipe": as_table(options.recipe),
        }
    )


def _score(options: ProbeOptions, setting: Setting, backbone: Backbone) -> dict[str, Any]:
    """The test scores of each pooling of the features."""
    extractor = _make_extractor(options, setting, backbone)
    features = [_split_features(options, setting, split, extractor) for split in setting.splits]
    probe = _linear if options.head == "linear" else _nearest
    test = setting.splits[2]
    exchanged = {
        sensor: _split_features(options, setting, test, extractor, sensor)
        for sensor in (exchangeable(setting.data) if options.recipe.reliance else [])
    }
    scores: dict[str, Any] = {}
    for pooling in features[0]:
        train, val = (
            LabelledFeatures(part[pooling].to(setting.device), split.labels.to(setting.device))
            for part, split in zip(features[:2], setting.splits[:2], strict=True)
        )
        classifier = probe(train, val, setting.task, options.recipe)
        tested = {sensor: part[pooling] for sensor, part in exchanged.items()}
        scores[pooling] = _measure(classifier, setting, features[2][pooling], tested)
    return scores


def _measure(
    classifier: Classifier, setting: Setting, features: Tensor, exchanged: Mapping[str, Tensor]
) -> dict[str, Any]:
    """The scores of test features (N, D), and by sensor what is lost with its images exchanged."""
    labels = setting.splits[2].labels.to(setting.device)

    def measure(given: Tensor) -> dict[str, Any]:
        scores = classifier.scores(given.to(setting.device))
        return setting.task.measure(scores, labels, half=classifier.half)

    whole = measure(features)
    lost = reliance(
        whole, {s: measure(part) for s, part in exchanged.items()}, setting.task.chosen_by
    )
    facts = {**classifier.facts, "num_features": features.shape[1]}
    return {**whole, **facts, **({"reliance": lost} if lost else {})}


def _make_extractor(options: ProbeOptions, setting: Setting, backbone: Backbone) -> Extractor:
    bands, known = setting.data.bands, setting.card.bands
    if options.features == "band-statistics":
        return band_statistics(setting.manifest, bands)
    encoder = (
        backbone.random(options.recipe.seed)
        if options.features == "random"
        else backbone.pretrained
    )
    zero_filled = options.recipe.zero_filled and len(bands) < len(known)
    return encoder_features(encoder, setting.preprocess, setting.device, zero_filled)


def _split_features(
    options: ProbeOptions,
    setting: Setting,
    split: LabelledSplit,
    extractor: Extractor,
    exchanged: str | None = None,
) -> dict[str, Tensor]:
    """Features (N, D) by pooling, rows in the order of `split.ids`.

    `exchanged` is a sensor whose images are other samples'.
    """
    name, batch = split.reader.split, options.recipe.feature_batch

    def open_loader(ids: Tensor, data: DataConfig) -> EvalLoader:
        return EvalLoader(
            setting.dataset, name, data, batch, sample_ids=ids.numpy(), device=setting.device
        )

    batches: Iterable[Batch]
    title = f"{options.features} features, {'+'.join(setting.data.bands)}, {name}"
    if exchanged is None:
        batches = open_loader(split.ids, setting.data)
    else:
        seed = options.recipe.seed
        batches = exchanged_batches(open_loader, split.ids, setting.data, exchanged, seed)
        title += f", {exchanged} exchanged"
    num_batches = -(-len(split.ids) // batch)
    features, ids = extract_features(batches, extractor, num_batches, title)
    order = ids.argsort()
    assert torch.equal(ids[order], split.ids)
    return {pooling: values[order] for pooling, values in features.items()}


def _linear(
    train: LabelledFeatures, val: LabelledFeatures, task: Task, recipe: ProbeRecipe
) -> Classifier:
    """The probe of the rate that is best on val."""
    fitted = fit_linear_probe(train, val, task, recipe)
    val_scores = {str(lr): value for lr, value in fitted.val_scores.items()}
    facts = {"lr": fitted.lr, f"val_{task.chosen_by}": val_scores}
    return Classifier(fitted.probe, 0.0, facts)


def _nearest(
    train: LabelledFeatures, val: LabelledFeatures, task: Task, recipe: ProbeRecipe
) -> Classifier:
    """The votes of the nearest neighbours; nothing is chosen, so val has no say."""
    standardise = fit_standardiser(train.features)
    known, votes = standardise(train.features), task.votes(train.labels)

    def scores(features: Tensor) -> Tensor:
        return knn_scores(known, votes, standardise(features), recipe.k, recipe.temperature)

    return Classifier(scores, 0.5, {"k": recipe.k, "temperature": recipe.temperature})
