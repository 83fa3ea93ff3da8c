"""A gathered table as Markdown, beside the paper's numbers."""

import statistics
from collections.abc import Iterable
from typing import Any

from fusmae.evaluation.experiment import Experiment, Protocol, System
from fusmae.evaluation.experiment_details_page import details_section
from fusmae.evaluation.experiment_words import (
    mean_text,
    metric_name,
    sensor_title,
    table_head,
    table_line,
)


def _means(cell: dict[str, Any], metric: str) -> list[float]:
    return [scores[metric] for scores in cell["scores"].values()]


def markdown(table: dict[str, Any], experiment: Experiment) -> str:
    """The page of a gathered table."""
    facts = list(table["facts"].values())
    simulated = any(fact.get("simulated") for fact in facts)
    lines = [f"# {table['title']}", ""]
    if simulated:
        lines += ["**Simulated data**: these numbers say nothing about real images.", ""]
    if experiment.note:
        lines += [experiment.note, ""]
    for protocol in experiment.protocols:
        lines += _section(table, experiment, protocol)
        lines += _reliance(table, protocol)
    lines += _answers(table)
    for system, told in table["given_weights"].items():
        lines += [f"{system}: weights that were given, {'; '.join(told)}.", ""]
    if table["without_weights"]:
        names = ", ".join(table["without_weights"])
        lines += [f"Without weights, so not run: {names} (docs/BACKBONES.md).", ""]
    lines += [_notes(table, experiment), ""]
    lines += details_section(table, experiment)
    lines += _times(table)
    return "\n".join(lines)


def _times(table: dict[str, Any]) -> list[str]:
    """The hours of all pretrainings, whoever ran them, and those of the table's own commands."""
    runs = [run for seeds in table["pretraining"].values() for run in seeds.values()]
    lines = []
    if runs:
        by = _by_commits(commit for run in runs for commit in run["git_commits"])
        hours = sum(run["step_hours"] for run in runs)
        lines += [f"Steps of the pretrainings: {hours:.2f} h{by}.", ""]
    if "wall_s" in table:
        by = _by_commits(table.get("commits", []))
        lines += [f"Wall time of what this table ran: {table['wall_s'] / 3600:.2f} h{by}.", ""]
    return lines


def _by_commits(commits: Iterable[str]) -> str:
    names = ", ".join(sorted(set(map(_short_commit, commits))))
    return f", by commit {names}" if names else ""


def _short_commit(commit: str) -> str:
    """Ten letters of the hash, and whether the sources had changed since."""
    name, dash, changed = commit.partition("-")
    return f"{name[:10]}{dash}{changed}"


def _notes(table: dict[str, Any], experiment: Experiment) -> str:
    seeds = table["seeds"]
    many = f"Mean ± standard deviation of seeds {', '.join(map(str, seeds))}."
    notes = [
        many
        if len(seeds) > 1
        else f"One seed, {seeds[0]}, so no spread: small differences say little."
    ]
    notes.append(
        "The learning rate of each cell was chosen on val; test was read once by this run of the "
        "table."
    )
    cells = (c for p in table["protocols"].values() for r in p["rows"].values() for c in r.values())
    if not all(cell["scores"] for cell in cells):
        notes.append("`-`: not run.")
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
        heads = [sensor_title(sensors) for sensors in experiment.sensors]
        heads += [f"paper {head}" for head in heads] if shown else []
        lines += table_head(f"{metric_name(metric)}, %", heads)
        systems = {system.name: system for system in experiment.systems}
        for row, cells in table["protocols"][protocol.name]["rows"].items():
            texts = [mean_text(_means(cells[sensors], metric)) for sensors in experiment.sensors]
            texts += _paper(systems.get(row), protocol, experiment) if shown else []
            tuned = row in systems and _was_tuned(cells)
            lines.append(table_line(row + ", tuned before" * tuned, texts))
        lines.append("")
    return lines


def _was_tuned(cells: dict[str, Any]) -> bool:
    """Whether a row's weights are other than its system's: fine-tuned before they were scored."""
    return any(one["tuned"] for cell in cells.values() for one in cell["details"].values())


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
    metric = metric_name(protocol.metrics[0])
    title = f"Points of {metric} lost with a sensor's test images exchanged between samples"
    lines = table_head(title, [sensor_title(name) for name in names])
    for (row, sensors), lost in measured.items():
        texts = [mean_text([one[name] for one in lost if name in one]) for name in names]
        lines.append(table_line(f"{row}, {sensor_title(sensors)}", texts))
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
        metric = metric_name(answer["metric"])
        spread = f" (least {min(points):+.1f}, greatest {max(points):+.1f})" if points[1:] else ""
        against = f"{mine}, {sensor_title(its)} against {other}, {sensor_title(others)}"
        lines.append(
            f"- {answer['question']} {against}: "
            f"{statistics.mean(points):+.1f} points of {metric}{spread}, {answer['protocol']}."
        )
    return [*lines, ""] if lines else []
