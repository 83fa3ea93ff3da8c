"""Probe results as one table: mAP by sensor, pretrained against what it has to beat.

python -m fusmae.evaluation.tables PROBES
python -m fusmae.evaluation.tables xae_xad=PROBES/a xad=PROBES/b
"""

import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from fusmae.evaluation.results import RESULT_NAME, read_result

# Rows of a folder given without a name, in the order of the table.
_ROW_NAMES = {
    "pretrained": "pretrained",
    "random": "random weights",
    "band-statistics": "band statistics",
}
_COMPARABLE = ("dataset", "test split", "label set")


@dataclass(frozen=True)
class Score:
    """One test score, mAP in percent, and what it belongs to."""

    row: str
    sensors: tuple[str, ...]
    num_labels: int
    fraction: float
    seed: int
    macro: float
    micro: float


def read_scores(sources: Iterable[str]) -> tuple[list[Score], dict[str, str]]:
    """The scores of every `metrics.json` under the sources, and what all of them share.

    Args:
        sources: PATH or NAME=PATH, a `metrics.json` or a folder of them. NAME is the
            row's name; without it the row is called after the kind of features.

    Raises:
        ValueError: nothing is found, a file is not a probe's result, or the results are of
            different datasets, test splits or label sets and so cannot stand in one table.
    """
    scores: list[Score] = []
    shared: dict[str, str] = {}
    for source in sources:
        name, _, place = source.rpartition("=")
        path = Path(place)
        files = sorted(path.rglob(RESULT_NAME)) if path.is_dir() else [path]
        if not files:
            raise ValueError(f"there is no {RESULT_NAME} under {path}")
        for file in files:
            result = read_result(file)
            facts = _facts(result)
            for key in _COMPARABLE:
                if shared.setdefault(key, facts[key]) != facts[key]:
                    raise ValueError(
                        f"{file}: its {key} is {facts[key]}, the others' is {shared[key]}: "
                        "they cannot be compared; make one table for each"
                    )
            scores += _scores(result, name or _ROW_NAMES[result["options"]["features"]])
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
    }


def _scores(result: dict[str, Any], row: str) -> list[Score]:
    """The score of each pooling, the headline's first."""
    poolings = sorted(result["results"], key=lambda pooling: pooling != result["headline"])
    options = result["options"]
    return [
        Score(
            row if pooling == result["headline"] else f"{row}, {pooling.replace('_', ' ')}",
            tuple(options["sensors"]),
            result["num_labels"],
            result["fraction"],
            options["recipe"]["seed"],
            100 * result["results"][pooling]["macro_map"],
            100 * result["results"][pooling]["micro_map"],
        )
        for pooling in poolings
    ]


def _order(row: str) -> tuple[int, str]:
    names = list(_ROW_NAMES.values())
    kind = row.partition(",")[0]
    return (names.index(kind) if kind in names else -1), row


def _cell(scores: Sequence[Score]) -> str:
    """Macro / micro mAP; over several runs the mean and, of macro, the standard deviation."""
    if not scores:
        return "-"
    macro = [score.macro for score in scores]
    spread = f" ± {statistics.stdev(macro):.1f}" if len(macro) > 1 else ""
    return f"{statistics.mean(macro):.1f}{spread} / {statistics.mean(s.micro for s in scores):.1f}"


def gains(scores: Sequence[Score], num_labels: int) -> dict[tuple[str, ...], list[float]]:
    """Macro mAP of `pretrained` less that of `random weights`, in points.

    By sensors, a number for each seed that both rows have exactly once with this number of
    labels.
    """
    macro: dict[tuple[tuple[str, ...], int, str], list[float]] = {}
    for score in scores:
        if score.num_labels == num_labels:
            macro.setdefault((score.sensors, score.seed, score.row), []).append(score.macro)
    found: dict[tuple[str, ...], list[float]] = {}
    for (sensors, seed, row), values in macro.items():
        other = macro.get((sensors, seed, "random weights"), [])
        if row == "pretrained" and len(values) == len(other) == 1:
            found.setdefault(sensors, []).append(values[0] - other[0])
    return found


def make_table(scores: Sequence[Score], shared: dict[str, str]) -> Table:
    """Rows by features and number of labels, a column for each set of sensors."""
    columns = sorted({score.sensors for score in scores}, key=lambda s: (len(s), s))
    table = Table(
        title="Linear probe, test mAP in %: macro / micro",
        caption="\n".join(f"{key}: {value}" for key, value in shared.items()),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("frozen features")
    table.add_column("labelled samples", justify="right")
    for sensors in columns:
        table.add_column("+".join(sensors).upper(), justify="right")
    amounts = sorted({(score.num_labels, score.fraction) for score in scores})
    for num_labels, fraction in amounts:
        here = [score for score in scores if score.num_labels == num_labels]
        for row in sorted({score.row for score in here}, key=_order):
            cells = [[s for s in here if s.row == row and s.sensors == c] for c in columns]
            labels = f"{num_labels:,} ({100 * fraction:.3g} %)"
            table.add_row(row, labels, *(_cell(cell) for cell in cells))
        gained = gains(here, num_labels)
        if gained:
            texts = (_gain(gained.get(sensors, [])) for sensors in columns)
            table.add_row("gain over random weights", "", *texts, style="bold")
        table.add_section()
    return table


def _gain(points: Sequence[float]) -> str:
    if not points:
        return "-"
    least = f" (least {min(points):+.1f})" if len(points) > 1 else ""
    return f"{statistics.mean(points):+.1f}{least}"


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="[NAME=]PATH...")
def main(sources: tuple[str, ...]) -> None:
    """Print the probe results in the given files or folders as one table.

    Several results of one row, such as those of several seeds, are averaged; ± is their
    standard deviation.
    """
    try:
        scores, shared = read_scores(sources)
    except ValueError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    Console().print(make_table(scores, shared))


if __name__ == "__main__":
    main()
