"""Results of probes and fine-tuning as one table: scores by sensor, and what they have to beat.

python -m fusmae.evaluation.tables PROBES
python -m fusmae.evaluation.tables xae_xad=PROBES/a xad=PROBES/b
"""

import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from fusmae.evaluation.results import FINETUNE_FORMAT, RESULT_NAME, read_result
from fusmae.evaluation.row_names import encoder_label, rival_name, row_name, row_order

_COMPARABLE = ("dataset", "test split", "label set", "task")
# The two scores of a cell, by task.
_SHOWN = {
    "multi-label": ("macro_map", "micro_map", "test mAP in %: macro / micro"),
    "single-label": ("top1", "weighted_f1", "test scores in %: top-1 / weighted F1"),
}

# The first of them, by which rates are chosen.
_CHOSEN_BY = {"multi-label": "macro mAP", "single-label": "top-1"}


@dataclass(frozen=True)
class Score:
    """A test result's two scores of `_SHOWN`, in percent, and what they belong to.

    `rival` is the row of the same from random weights, "" where none is what it has to beat.
    """

    row: str
    sensors: tuple[str, ...]
    num_labels: int
    fraction: float
    seed: int
    first: float
    second: float
    # Of the first score: what is lost with a sensor's images exchanged between samples.
    reliance: dict[str, float] = field(default_factory=dict)
    rival: str = ""


def read_scores(sources: Iterable[str]) -> tuple[list[Score], dict[str, str]]:
    """The scores of every `metrics.json` under the sources, and what all of them share.

    Args:
        sources: PATH or NAME=PATH, a `metrics.json` or a folder of them. NAME is the
            row's name; without it the row is called after the protocol and its features, and,
            where there are several, after the fusion of the encoder.

    Raises:
        ValueError: nothing is found, a file is not a probe's result, the results are of
            different datasets, test splits, label sets or tasks: no table can hold them; or two
            runs are of one row, sensors, labels and seed.
    """
    results: list[tuple[str, Path, dict[str, Any]]] = []
    shared: dict[str, str] = {}
    seen: set[tuple[str, Path]] = set()
    for source in sources:
        name, _, place = source.rpartition("=")
        if not place:
            raise ValueError(f"{source!r} names no path: give PATH or NAME=PATH")
        path = Path(place)
        files = sorted(path.rglob(RESULT_NAME)) if path.is_dir() else [path]
        if not files:
            raise ValueError(f"there is no {RESULT_NAME} under {path}")
        for file in files:
            if (name, file.resolve()) in seen:  # as under `demo demo/seed-0`
                continue
            seen.add((name, file.resolve()))
            result = read_result(file)
            facts = _facts(result)
            for key in _COMPARABLE:
                if shared.setdefault(key, facts[key]) != facts[key]:
                    raise ValueError(
                        f"{file}: its {key} is {facts[key]}, the others' is {shared[key]}: "
                        "they cannot be compared; make one table for each"
                    )
            results.append((name, file, result))
    encoders = {encoder_label(result) for name, _, result in results if not name}
    several = len(encoders - {""}) > 1
    scores: list[Score] = []
    runs: dict[tuple[object, ...], Path] = {}
    for name, file, result in results:
        rival = "" if name else rival_name(result, several)
        for score in _scores(result, name or row_name(result, several), rival):
            cell = score.row, score.sensors, score.num_labels, score.fraction, score.seed
            if runs.setdefault(cell, file) != file:
                raise ValueError(
                    f"{runs[cell]} and {file} are both {score.row!r} of "
                    f"{'+'.join(score.sensors)}, seed {score.seed}, {score.num_labels:,} labels, "
                    "and no mean of seeds: name them, NAME=PATH, or give one of them"
                )
            scores.append(score)
    return scores, shared


def _facts(result: dict[str, Any]) -> dict[str, str]:
    recipe = result["options"]["recipe"]
    rule = f", {result['split_rule']} rule" if result["split_rule"] else ""
    simulated = ", SIMULATED" if result["simulated"] else ""
    digest = result["options"]["manifest_sha256"][:8]
    return {
        "dataset": f"{result['dataset']} ({digest}{simulated})",
        "test split": f"{recipe['test_split']} ({result['num_test']:,} samples{rule})",
        "label set": recipe["label_set"],
        "task": _task(result),
    }


def _task(result: dict[str, Any]) -> str:
    """Results of before there were tasks are multi-label."""
    return result.get("task", "multi-label")


def _scores(result: dict[str, Any], row: str, rival: str) -> list[Score]:
    """The score of each pooling, the headline's first."""
    # A fine-tuning run has one pooling, which may be another than tables are about.
    finetuned = result["format"] == FINETUNE_FORMAT
    headline = "mean_tokens" if finetuned else result["headline"]
    poolings = sorted(result["results"], key=lambda pooling: pooling != headline)
    options = result["options"]
    first, second, _ = _SHOWN[_task(result)]
    return [
        Score(
            row if pooling == headline else f"{row}, {pooling.replace('_', ' ')}",
            tuple(options["sensors"]),
            result["num_labels"],
            result["fraction"],
            options["recipe"]["seed"],
            100 * result["results"][pooling][first],
            100 * result["results"][pooling][second],
            {s: 100 * v for s, v in result["results"][pooling].get("reliance", {}).items()},
            rival if pooling == headline else "",
        )
        for pooling in poolings
    ]


def _cell(scores: Sequence[Score]) -> str:
    """The two scores; over several runs their means and, of the first, the standard deviation."""
    if not scores:
        return "-"
    first = _mean([score.first for score in scores])
    return f"{first} / {statistics.mean(score.second for score in scores):.1f}"


# By row, by sensors, a number of points for each seed.
Gains = dict[str, dict[tuple[str, ...], list[float]]]


def gains(scores: Sequence[Score], num_labels: int) -> Gains:
    """The first score of each row less that of its rival, in points.

    A number for each seed that both rows have with this number of labels.
    """
    here = [score for score in scores if score.num_labels == num_labels]
    by_run = {(s.row, s.sensors, s.seed): s.first for s in here}
    found: Gains = {}
    for score in here:
        other = by_run.get((score.rival, score.sensors, score.seed))
        if other is not None:
            by_sensors = found.setdefault(score.row, {})
            by_sensors.setdefault(score.sensors, []).append(score.first - other)
    return found


def make_table(scores: Sequence[Score], shared: dict[str, str]) -> Table:
    """Rows by features and number of labels, a column for each set of sensors."""
    columns = sorted({score.sensors for score in scores}, key=lambda s: (len(s), s))
    table = Table(
        title=_SHOWN[shared["task"]][2],
        caption="\n".join(f"{key}: {value}" for key, value in shared.items()),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("features, or network")
    table.add_column("labelled samples", justify="right")
    for sensors in columns:
        table.add_column("+".join(sensors).upper(), justify="right")
    amounts = sorted({(score.num_labels, score.fraction) for score in scores})
    for num_labels, fraction in amounts:
        here = [score for score in scores if score.num_labels == num_labels]
        for row in sorted({score.row for score in here}, key=row_order):
            cells = [[s for s in here if s.row == row and s.sensors == c] for c in columns]
            labels = f"{num_labels:,} ({100 * fraction:.3g} %)"
            table.add_row(row, labels, *(_cell(cell) for cell in cells))
        gained = gains(here, num_labels)
        for row, by_sensors in sorted(gained.items(), key=lambda item: row_order(item[0])):
            whose = "" if list(gained) == ["pretrained"] else f"{row}: "
            texts = (_gain(by_sensors.get(sensors, [])) for sensors in columns)
            table.add_row(f"{whose}gain over random weights", "", *texts, style="bold")
        table.add_section()
    return table


def make_reliance_table(scores: Sequence[Score], shared: dict[str, str]) -> Table | None:
    """What each sensor is worth to fused rows; None where no result has it.

    The row's score is beside it: a weak score has little to lose.
    """
    measured = [score for score in scores if score.reliance]
    if not measured:
        return None
    columns = sorted({sensor for score in measured for sensor in score.reliance})
    name = _CHOSEN_BY[shared["task"]]
    table = Table(
        title=f"reliance: change of {name}, in points, with a sensor's images exchanged",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("features, or network")
    # A narrow terminal breaks names, and cuts no number.
    table.add_column("labels", justify="right", no_wrap=True)
    table.add_column("sensors", no_wrap=True)
    table.add_column(name, justify="right", no_wrap=True)
    for sensor in columns:
        table.add_column(sensor.upper(), justify="right", no_wrap=True)
    groups = sorted({(s.num_labels, s.sensors, s.row) for s in measured}, key=_by_row)
    for num_labels, sensors, row in groups:
        here = [
            s for s in measured if (s.num_labels, s.sensors, s.row) == (num_labels, sensors, row)
        ]
        losses = ([s.reliance[c] for s in here if c in s.reliance] for c in columns)
        table.add_row(
            row,
            f"{num_labels:,}",
            "+".join(sensors).upper(),
            _mean([score.first for score in here]),
            *(_mean([-loss for loss in lost], "+") if lost else "-" for lost in losses),
        )
    return table


def _by_row(group: tuple[int, tuple[str, ...], str]) -> tuple[object, ...]:
    num_labels, sensors, row = group
    return num_labels, len(sensors), sensors, row_order(row)


def _mean(values: Sequence[float], sign: str = "") -> str:
    """The mean over several runs and their standard deviation."""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.1f}{spread}"


def _gain(points: Sequence[float]) -> str:
    if not points:
        return "-"
    least = f" (least {min(points):+.1f})" if len(points) > 1 else ""
    return f"{statistics.mean(points):+.1f}{least}"


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="[NAME=]PATH...")
def main(sources: tuple[str, ...]) -> None:
    """Print the results in the given files or folders as one table.

    Results of several seeds are averaged; ± is their standard deviation. Two results of one row
    and seed are refused.
    """
    try:
        scores, shared = read_scores(sources)
    except ValueError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    console = Console()
    console.print(make_table(scores, shared))
    reliance = make_reliance_table(scores, shared)
    if reliance is not None:
        console.print(reliance)


if __name__ == "__main__":
    main()
