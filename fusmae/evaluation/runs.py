"""One probe run: a dataset, frozen features and a label fraction in, `OUT/metrics.json` out."""

import hashlib
import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusmae.config import DataConfig, ProbeRecipe, as_table, build
from fusmae.data import EvalLoader, Preprocess, SplitReader
from fusmae.evaluation.features import (
    Extractor,
    FeatureKind,
    band_statistics,
    encoder_features,
    extract_features,
    random_encoder,
    select_bands,
    with_encoder_statistics,
)
from fusmae.evaluation.fractions import choose_labelled
from fusmae.evaluation.metrics import average_precision
from fusmae.evaluation.protocols import LabelledFeatures, fit_linear_probe
from fusmae.labels import multi_hot
from fusmae.manifest import MANIFEST_NAME, Manifest, read_manifest
from fusmae.model import EncoderCard, FusMAEEncoder, load_encoder
from fusmae.training.durable import replace_file

RESULT_NAME = "metrics.json"
LABELS_NAME = "labels_used.txt"
RESULT_FORMAT = "fusmae-probe"
# The pooling whose score stands for a kind of features in tables; others stand beside it.
_HEADLINES: dict[FeatureKind, str] = {
    "pretrained": "mean_tokens",
    "random": "mean_tokens",
    "band-statistics": "band_statistics",
}


@dataclass(frozen=True)
class ProbeOptions:
    """What a probe is run on. `fraction` of the train split's labels is used, in (0, 1].

    `encoder` is an exported folder. With `features = "random"` only its architecture is
    used, its weights drawn anew from the recipe's seed; with "band-statistics" only its
    choice of bands.
    """

    dataset: Path
    encoder: Path
    sensors: tuple[str, ...]
    fraction: float
    features: FeatureKind
    recipe: ProbeRecipe


@dataclass(frozen=True)
class _Split:
    """Samples of one split that the probe uses: ids ascending, labels (N, C) float32."""

    reader: SplitReader
    ids: Tensor
    labels: Tensor


def run_probe(options: ProbeOptions, out: Path) -> tuple[dict[str, Any], bool]:
    """The content of `OUT/metrics.json`, and whether this call computed it.

    A result of the same options that is already there is returned as it is. Beside it,
    `OUT/labels_used.txt` lists the keys of the labelled training samples.

    Raises:
        ValueError: a path, sensor, split, label set or fraction is wrong, or `out` holds the
            result of other options.
    """
    manifest = read_manifest(options.dataset)
    encoder, card = load_encoder(options.encoder)
    bands = select_bands(card, options.sensors)
    described = _describe(options, list(bands))
    earlier = _earlier_result(out / RESULT_NAME, described)
    if earlier is not None:
        return earlier, False
    started = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = build(DataConfig, {"bands": bands, "resample": card.resample})
    splits = _read_splits(options, manifest)
    extractor = _make_extractor(options, manifest, encoder, card, data, device)
    features = [_split_features(options, data, split, extractor, device) for split in splits]
    classes = manifest.label_sets[options.recipe.label_set]
    scores: dict[str, Any] = {}
    for pooling in features[0]:
        train, val, test = (
            LabelledFeatures(part[pooling].to(device), split.labels.to(device))
            for part, split in zip(features, splits, strict=True)
        )
        scores[pooling] = _probe(train, val, test, classes, options.recipe)
    labelled, _, tested = splits
    result = {
        "format": RESULT_FORMAT,
        "options": described,
        "headline": _HEADLINES[options.features],
        "results": scores,
        "num_labels": len(labelled.ids),
        "fraction": len(labelled.ids) / labelled.reader.num_samples,
        "num_test": len(tested.ids),
        **_provenance(options, manifest, device),
        "wall_s": round(time.perf_counter() - started, 2),
    }
    _write(out, result, labelled)
    return result, True


def _make_extractor(
    options: ProbeOptions,
    manifest: Manifest,
    encoder: FusMAEEncoder,
    card: EncoderCard,
    data: DataConfig,
    device: torch.device,
) -> Extractor:
    if options.features == "band-statistics":
        return band_statistics(manifest, data.bands)
    if options.features == "random":
        encoder = random_encoder(card, options.recipe.seed)
    statistics = with_encoder_statistics(manifest, card)
    sizes_px = card.model.sizes_px(data.bands)
    preprocess = Preprocess(statistics, data.bands, sizes_px, data.resample)
    return encoder_features(encoder, preprocess, device)


def _provenance(options: ProbeOptions, manifest: Manifest, device: torch.device) -> dict[str, Any]:
    """Where a result comes from, for its readers."""
    packages = ("fusmae", "torch", "torchmetrics", "numpy")
    return {
        "dataset": manifest.name,
        "simulated": manifest.simulated,
        "split_rule": manifest.options.get("plan", {}).get("split"),
        "encoder": str(options.encoder),
        "versions": {name: version(name) for name in packages}
        | {"python": platform.python_version()},
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
    }


def _write(out: Path, result: dict[str, Any], labelled: _Split) -> None:
    """The keys used, then the result, whose presence says that the run is complete."""
    out.mkdir(parents=True, exist_ok=True)
    keys = labelled.reader.keys()
    used = "".join(f"{keys[index]}\n" for index in labelled.ids.tolist())
    replace_file(out / LABELS_NAME, used.encode())
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    replace_file(out / RESULT_NAME, text.encode())


def _describe(options: ProbeOptions, sensors: Sequence[str]) -> dict[str, Any]:
    """Everything that decides a result; two runs with equal descriptions are the same run."""
    digest = hashlib.sha256((options.dataset / MANIFEST_NAME).read_bytes()).hexdigest()
    described = {
        "features": options.features,
        "sensors": list(sensors),
        "fraction": options.fraction,
        "encoder_sha256": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(options.encoder.iterdir())
            if path.is_file()
        },
        "manifest_sha256": digest,
        "recipe": as_table(options.recipe),
    }
    plain: dict[str, Any] = json.loads(json.dumps(described))
    return plain


def _earlier_result(path: Path, described: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result in `path` if its options are these; None where there is no file.

    Raises:
        ValueError: the file holds something else; the first difference is named.
    """
    if not path.exists():
        return None
    earlier = read_result(path)
    for key, now in described.items():
        then = earlier["options"].get(key)
        if then != now and isinstance(now, dict) and isinstance(then, dict):
            key, then, now = next(
                (f"{key}.{name}", then.get(name), now.get(name))
                for name in now | then
                if then.get(name) != now.get(name)
            )
        if then != now:
            raise ValueError(
                f"{path} holds the result of other options ({key}: {then!r} then, {now!r} now): "
                "give another --out, or delete it"
            )
    return earlier


def read_result(path: Path) -> dict[str, Any]:
    """The content of a probe's `metrics.json`.

    Raises:
        ValueError: the file is missing, not JSON or not a probe's result.
    """
    try:
        table = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(table, dict) or table.get("format") != RESULT_FORMAT:
        raise ValueError(f"{path} is not the result of train/linear_probe.py")
    return table


def _read_splits(options: ProbeOptions, manifest: Manifest) -> list[_Split]:
    """The labelled part of the train split, and all of val and test.

    Raises:
        ValueError: as `run_probe`.
    """
    recipe = options.recipe
    names = (recipe.train_split, recipe.val_split, recipe.test_split)
    if len(set(names)) < len(names):
        raise ValueError(f"the train, val and test splits must be three, got {', '.join(names)}")
    splits: list[_Split] = []
    for name in names:
        reader = SplitReader(options.dataset, name)
        ids = torch.arange(reader.num_samples)
        if name == recipe.train_split:
            row = {key: index for index, key in enumerate(reader.keys())}
            chosen = choose_labelled(list(row), options.fraction, recipe.seed)
            ids = torch.tensor(sorted(row[key] for key in chosen))
        labels = reader.labels(recipe.label_set)
        hot = multi_hot((labels[i] for i in ids), manifest.label_sets[recipe.label_set])
        splits.append(_Split(reader, ids, torch.from_numpy(hot).float()))
    return splits


def _split_features(
    options: ProbeOptions,
    data: DataConfig,
    split: _Split,
    extractor: Extractor,
    device: torch.device,
) -> dict[str, Tensor]:
    """Features (N, D) by pooling, rows in the order of `split.ids`."""
    name = split.reader.split
    batch = options.recipe.feature_batch
    loader = EvalLoader(
        options.dataset, name, data, batch, sample_ids=split.ids.numpy(), device=device
    )
    title = f"{options.features} features, {'+'.join(data.bands)}, {name}"
    features, ids = extract_features(loader, extractor, len(loader), title)
    order = ids.argsort()
    assert torch.equal(ids[order], split.ids)
    return {pooling: values[order] for pooling, values in features.items()}


def _probe(
    train: LabelledFeatures,
    val: LabelledFeatures,
    test: LabelledFeatures,
    classes: Sequence[str],
    recipe: ProbeRecipe,
) -> dict[str, Any]:
    """The chosen rate, the val score of each, and the test scores of the chosen one alone."""
    fitted = fit_linear_probe(train, val, classes, recipe)
    score = average_precision(fitted.probe(test.features), test.labels, classes)
    return {
        "macro_map": score.macro,
        "micro_map": score.micro,
        "per_class": score.per_class,
        "absent_classes": list(score.absent_classes),
        "lr": fitted.lr,
        "val_macro_map": {str(lr): value for lr, value in fitted.val_macro.items()},
        "num_features": train.features.shape[1],
    }
