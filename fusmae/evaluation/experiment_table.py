"""What the runs of an experiment left, gathered into one JSON table."""

from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from fusmae.evaluation.experiment import (
    BASELINES,
    Experiment,
    Protocol,
    Question,
    result_folder,
    weights_key,
)
from fusmae.evaluation.experiment_details import cell_details, pretraining_details
from fusmae.evaluation.results import FINETUNE_FORMAT, RESULT_NAME, read_result

# What of a recipe has to be the same for all rows; grid, splits and statistics stand apart, and the
# rest is of the seed, of the row or without effect on the headline.
_RECIPE = (
    "task",
    "label_set",
    "epochs",
    "batch",
    "warmup_epochs",
    "weight_decay",
    "layer_decay",
    "clip_norm",
    "smoothing",
    "sensor_dropout",
    "image_px",
    "absent",
)
# Percent by metric, or nothing where a run is still to come.
Scores = dict[str, float]


def gather(
    experiment: Experiment, out: Path, seeds: Sequence[int], given: Container[str] = ()
) -> dict[str, Any]:
    """The table as JSON: per protocol, row and sensors the scores of each seed.

    `given` are the systems' weights that are there, as `weights_key` calls them: a system without
    a result may still come.

    Raises:
        ValueError: a result is damaged, or results of one protocol are of different test splits.
    """
    facts: dict[str, Any] = {}
    protocols = {}
    foreign = {system.name for system in experiment.systems if system.weights}
    for protocol in experiment.protocols:
        shared: dict[str, Any] = {}
        rows = {
            row: {
                sensors: _cell(protocol, out, row, sensors, seeds, shared, row in foreign)
                for sensors in experiment.sensors
            }
            for row in row_names(experiment, protocol)
        }
        protocols[protocol.name] = {"metrics": list(protocol.metrics), "rows": rows}
        facts[protocol.name] = shared
    pretraining = pretraining_details(experiment, out, seeds)
    weights = _weights(experiment, protocols)
    return {
        "title": experiment.title,
        "seeds": list(seeds),
        "sensors": list(experiment.sensors),
        "facts": facts,
        "protocols": protocols,
        "paper": {system.name: system.paper for system in experiment.systems if system.paper},
        "given_weights": {row: told for row, told in weights.items() if row not in pretraining},
        "without_weights": [
            system.name
            for system in experiment.systems
            if system.weights and system.name not in weights and weights_key(system) not in given
        ],
        "pretraining": pretraining,
        "answers": [_answer(question, protocols) for question in experiment.questions],
    }


def _weights(experiment: Experiment, protocols: dict[str, Any]) -> dict[str, list[str]]:
    """By system that has a result, the weights that were scored, each once."""
    found: dict[str, list[str]] = {}
    for system in experiment.systems:
        cells = (cell for p in protocols.values() for cell in p["rows"][system.name].values())
        told = dict.fromkeys(one["weights"] for cell in cells for one in cell["details"].values())
        if told:
            found[system.name] = list(told)
    return found


def row_names(experiment: Experiment, protocol: Protocol) -> list[str]:
    """The rows of one protocol's table, baselines last."""
    baselines = [
        name
        for kind, name in BASELINES.items()
        if not (protocol.script == "finetune" and kind == "band-statistics")
    ]
    return [*(system.name for system in experiment.systems), *baselines]


def _cell(
    protocol: Protocol,
    out: Path,
    row: str,
    sensors: str,
    seeds: Sequence[int],
    shared: dict[str, Any],
    foreign: bool,
) -> dict[str, Any]:
    """By seed: the scores, the points lost with each sensor exchanged, both in percent, and what
    `cell_details` says."""
    scores: dict[str, Scores] = {}
    details: dict[str, dict[str, Any]] = {}
    reliance: dict[str, Scores] = {}
    for seed in seeds:
        path = result_folder(out, protocol, row, sensors, seed) / RESULT_NAME
        if not path.exists():
            continue
        result = read_result(path)
        # Weights of others come with statistics of their own, or with none.
        statistics = f"statistics of {row}" if foreign else "statistics"
        for key, value in _comparable(result, statistics).items():
            if shared.setdefault(key, value) != value:
                raise ValueError(
                    f"{path}: its {key} is {value}, the others' is {shared[key]}: "
                    "give another --out"
                )
        row_of_results = result["results"][result["headline"]]
        scores[str(seed)] = {metric: 100 * row_of_results[metric] for metric in protocol.metrics}
        if "reliance" in row_of_results:
            reliance[str(seed)] = {s: 100 * v for s, v in row_of_results["reliance"].items()}
        details[str(seed)] = cell_details(result, protocol)
    return {"scores": scores, "reliance": reliance, "details": details}


def _comparable(result: dict[str, Any], statistics: str) -> dict[str, Any]:
    """What has to be the same for all results of a protocol, as far as the result tells it."""
    recipe = result["options"]["recipe"]
    return {
        **{name: recipe[name] for name in _RECIPE if name in recipe},
        **({statistics: recipe["statistics"]} if "statistics" in recipe else {}),
        "dataset": result["dataset"],
        "manifest_sha256": result["options"]["manifest_sha256"],
        "simulated": result["simulated"],
        "test split": recipe["test_split"],
        "test samples": result["num_test"],
        "classes": result["num_classes"],
        "labels": result["num_labels"],
        "kind": "fine-tuning" if result["format"] == FINETUNE_FORMAT else "probe",
        # One grid for all: what else is chosen is not comparable.
        "learning rates": recipe.get("lrs", []),
        "split rule": result.get("split_rule"),
        "averaging": result.get("averaging", {}),
        # Datasets of before it was told have none.
        "simulator_sha256": (result.get("simulation") or {}).get("simulator_sha256"),
    }


def _answer(question: Question, protocols: dict[str, Any]) -> dict[str, Any]:
    """The difference in percentage points, seed by seed, of the protocol's first metric."""
    table = protocols[question.protocol]
    metric = table["metrics"][0]
    mine, theirs = (
        table["rows"][row][sensors]["scores"] for row, sensors in (question.row, question.other)
    )
    both = [seed for seed in mine if seed in theirs]
    return {
        "question": question.text,
        "protocol": question.protocol,
        "metric": metric,
        "row": list(question.row),
        "other": list(question.other),
        "differences": {seed: mine[seed][metric] - theirs[seed][metric] for seed in both},
    }
