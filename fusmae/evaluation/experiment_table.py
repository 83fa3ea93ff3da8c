"""What the runs of an experiment left, as JSON and as Markdown beside the paper's numbers."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusmae.evaluation.experiment import (
    BASELINES,
    Experiment,
    Protocol,
    Question,
    System,
    result_folder,
)
from fusmae.evaluation.results import FINETUNE_FORMAT, RESULT_NAME, read_result

# Percent by metric, or nothing where a run is still to come.
Scores = dict[str, float]

METRIC_NAMES = {
    "macro_map": "macro mAP",
    "micro_map": "micro mAP",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "top1": "top-1",
    "top3": "top-3",
    "weighted_precision": "weighted precision",
    "weighted_recall": "weighted recall",
    "weighted_f1": "weighted F1",
}


def gather(
    experiment: Experiment, out: Path, seeds: Sequence[int], weights: Mapping[str, str]
) -> dict[str, Any]:
    """The table as JSON: per protocol, row and sensors the scores of each seed.

    Raises:
        ValueError: a result is damaged, or results of one protocol are of different test splits.
    """
    facts: dict[str, Any] = {}
    protocols = {}
    for protocol in experiment.protocols:
        shared: dict[str, Any] = {}
        rows = {
            row: {
                sensors: _cell(protocol, out, row, sensors, seeds, shared)
                for sensors in experiment.sensors
            }
            for row in row_names(experiment, protocol)
        }
        protocols[protocol.name] = {"metrics": list(protocol.metrics), "rows": rows}
        facts[protocol.name] = shared
    return {
        "title": experiment.title,
        "seeds": list(seeds),
        "sensors": list(experiment.sensors),
        "facts": facts,
        "protocols": protocols,
        "paper": {system.name: system.paper for system in experiment.systems if system.paper},
        "without_weights": [
            system.name
            for system in experiment.systems
            if system.weights and system.weights not in weights
        ],
        "answers": [_answer(question, protocols) for question in experiment.questions],
    }


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
) -> dict[str, Any]:
    """By seed, all in percent: the scores, and the points lost with each sensor exchanged."""
    scores: dict[str, Scores] = {}
    reliance: dict[str, Scores] = {}
    for seed in seeds:
        path = result_folder(out, protocol, row, sensors, seed) / RESULT_NAME
        if not path.exists():
            continue
        result = read_result(path)
        for key, value in _comparable(result).items():
            if shared.setdefault(key, value) != value:
                raise ValueError(
                    f"{path}: its {key} is {value}, the others' is {shared[key]}: "
                    "give another --out"
                )
        row_of_results = result["results"][result["headline"]]
        scores[str(seed)] = {metric: 100 * row_of_results[metric] for metric in protocol.metrics}
        if "reliance" in row_of_results:
            reliance[str(seed)] = {s: 100 * v for s, v in row_of_results["reliance"].items()}
    return {"scores": scores, "reliance": reliance}


def _comparable(result: dict[str, Any]) -> dict[str, Any]:
    recipe = result["options"]["recipe"]
    return {
        "dataset": result["dataset"],
        "manifest_sha256": result["options"]["manifest_sha256"],
        "simulated": result["simulated"],
        "test split": recipe["test_split"],
        "test samples": result["num_test"],
        "classes": result["num_classes"],
        "labels": result["num_labels"],
        "kind": "fine-tuning" if result["format"] == FINETUNE_FORMAT else "probe",
    }


def _means(cell: dict[str, Any], metric: str) -> list[float]:
    return [scores[metric] for scores in cell["scores"].values()]


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


def markdown(table: dict[str, Any], experiment: Experiment) -> str:
    """The page of a gathered table."""
    facts = list(table["facts"].values())
    simulated = any(fact.get("simulated") for fact in facts)
    lines = [f"# {table['title']}", ""]
    if simulated:
        lines += ["**Simulated data**: these numbers say nothing about real images.", ""]
    for protocol in experiment.protocols:
        lines += _section(table, experiment, protocol)
        lines += _reliance(table, protocol)
    lines += _answers(table)
    if table["without_weights"]:
        names = ", ".join(table["without_weights"])
        lines += [f"Without weights, so not run: {names} (docs/BACKBONES.md).", ""]
    lines.append(_notes(table, experiment))
    if "wall_s" in table:
        lines += ["", f"Wall time of all runs: {table['wall_s'] / 3600:.1f} h."]
    return "\n".join(lines) + "\n"


def _notes(table: dict[str, Any], experiment: Experiment) -> str:
    seeds = table["seeds"]
    many = f"Mean ± standard deviation of seeds {', '.join(map(str, seeds))}."
    notes = [
        many
        if len(seeds) > 1
        else f"One seed, {seeds[0]}, so no spread: small differences say little."
    ]
    notes.append("The learning rate of each cell was chosen on val and test was read once.")
    if any(system.paper for system in experiment.systems):
        notes.append(
            "`paper`: Chan-To-Hing and Veeravalli, IGARSS 2024, whose split, classes and averaging "
            "are not printed."
        )
    return " ".join(notes)


def _section(table: dict[str, Any], experiment: Experiment, protocol: Protocol) -> list[str]:
    fact = table["facts"][protocol.name]
    lines = [f"## {protocol.name}", ""]
    if fact:
        lines += [
            f"{fact['kind']} on {fact['dataset']}, {fact['labels']:,} labels, {fact['classes']} "
            f"classes; {fact['test samples']:,} samples of the {fact['test split']} split.",
            "",
        ]
    papers = any(protocol.name in system.paper for system in experiment.systems)
    for place, metric in enumerate(protocol.metrics):
        shown = papers and place == 0
        heads = [_upper(sensors) for sensors in experiment.sensors]
        heads += [f"paper {head}" for head in heads] if shown else []
        lines += [
            f"| {METRIC_NAMES.get(metric, metric)}, % | {' | '.join(heads)} |",
            "|---|" + "---|" * len(heads),
        ]
        systems = {system.name: system for system in experiment.systems}
        for row, cells in table["protocols"][protocol.name]["rows"].items():
            texts = [_text(_means(cells[sensors], metric)) for sensors in experiment.sensors]
            texts += _paper(systems.get(row), protocol, experiment) if shown else []
            lines.append(f"| {row} | {' | '.join(texts)} |")
        lines.append("")
    return lines


def _reliance(table: dict[str, Any], protocol: Protocol) -> list[str]:
    """What each row of several sensors loses when one sensor's test images change places."""
    measured = {
        (row, sensors): list(cell["reliance"].values())
        for row, cells in table["protocols"][protocol.name]["rows"].items()
        for sensors, cell in cells.items()
        if cell["reliance"]
    }
    if not measured:
        return []
    names = list(dict.fromkeys(name for lost in measured.values() for name in lost[0]))
    lines = [
        f"| Points lost with a sensor's images exchanged | {' | '.join(map(_upper, names))} |",
        "|---" * (len(names) + 1) + "|",
    ]
    for (row, sensors), lost in measured.items():
        texts = [_text([one[name] for one in lost if name in one]) for name in names]
        lines.append(f"| {row}, {_upper(sensors)} | {' | '.join(texts)} |")
    return [*lines, ""]


def _paper(system: System | None, protocol: Protocol, experiment: Experiment) -> list[str]:
    if system is None or protocol.name not in system.paper:
        return ["" for _ in experiment.sensors]
    return [f"{score:.1f}" for score in system.paper[protocol.name]]


def _answers(table: dict[str, Any]) -> list[str]:
    lines = []
    for answer in table["answers"]:
        points = list(answer["differences"].values())
        if not points:
            continue
        (mine, its), (other, others) = answer["row"], answer["other"]
        metric = METRIC_NAMES.get(answer["metric"], answer["metric"])
        spread = f" (least {min(points):+.1f}, greatest {max(points):+.1f})" if points[1:] else ""
        lines.append(
            f"- {answer['question']} {mine}, {_upper(its)} against {other}, {_upper(others)}: "
            f"{statistics.mean(points):+.1f} points of {metric}{spread}, {answer['protocol']}."
        )
    return [*lines, ""] if lines else []


def _upper(sensors: str) -> str:
    return sensors.upper().replace(",", "+")


def _text(values: Sequence[float]) -> str:
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"
