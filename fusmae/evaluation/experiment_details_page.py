"""The "Details" of a table's page: how its numbers were made, and those that stand beside them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fusmae.evaluation.experiment import BASELINES, Experiment, Protocol
from fusmae.evaluation.experiment_words import (
    mean_text,
    metric_name,
    sensor_title,
    table_head,
    table_line,
)


def details_section(table: dict[str, Any], experiment: Experiment) -> list[str]:
    """The lines of the section; none where no run has ended yet."""
    lines = []
    for protocol in experiment.protocols:
        if table["facts"][protocol.name]:
            lines += _protocol(table, protocol)
    if not lines:
        return []
    return [
        "## Details",
        "",
        *lines,
        *_costs(table, experiment),
        *_pretraining(table, experiment),
        *_attention(table),
        *_simulator(table),
    ]


def _protocol(table: dict[str, Any], protocol: Protocol) -> list[str]:
    fact = table["facts"][protocol.name]
    rows = _rows(table, protocol)
    heads = [sensor_title(sensors) for sensors in table["sensors"]]
    lines = [f"### {protocol.name}", "", _recipe(protocol)]
    if fact["split rule"]:
        lines.append(f"- Split: {fact['split rule']} rule.")
    if fact["averaging"]:
        told = "; ".join(
            what if name == "over" else f"{name}: {what}"
            for name, what in fact["averaging"].items()
        )
        lines.append(f"- Averaging over {told}.")
    few = dict.fromkeys(one["few_labels"] for _, one in _each(rows) if one["few_labels"])
    lines += [f"- Few labels: {text}." for text in few]
    lines += _poolings(rows, fact["kind"])
    lines += _seen(rows)
    devices = dict.fromkeys(str(one["device"]) for _, one in _each(rows) if one["device"])
    if devices:
        lines.append(f"- Device: {', '.join(devices)}.")
    if fact["learning rates"]:
        rates = ", ".join(f"{lr:g}" for lr in fact["learning rates"])
        lines.append(
            f"- Learning rate: chosen on val out of {rates}; * is an end of the grid, beyond "
            "which a better one may lie."
        )
        lines += ["", *_rates(rows, heads)]
    lines += _beside(rows, heads, protocol.metrics[0])
    return [*lines, ""]


def _recipe(protocol: Protocol) -> str:
    changes = "".join(f", `{change}`" for change in protocol.set)
    return (
        f"- Recipe: `{Path(protocol.recipe).name}`{changes}; {100 * protocol.fraction:g} % of the "
        "train split's labels."
    )


# By row and sensors, the details of each seed.
Rows = dict[str, dict[str, list[dict[str, Any]]]]


def _rows(table: dict[str, Any], protocol: Protocol) -> Rows:
    """The rows that have a result."""
    rows = {
        row: {sensors: list(cell["details"].values()) for sensors, cell in cells.items()}
        for row, cells in table["protocols"][protocol.name]["rows"].items()
    }
    return {row: cells for row, cells in rows.items() if any(cells.values())}


def _each(rows: Rows) -> Iterable[tuple[str, dict[str, Any]]]:
    return ((row, one) for row, cells in rows.items() for cell in cells.values() for one in cell)


def _poolings(rows: Rows, kind: str) -> list[str]:
    """Which features the headline is of, which is not the same for all systems."""
    told = _told({row: one["pooling"].replace("_", " ") for row, one in _each(rows)})
    other = ""
    if kind == "fine-tuning":
        other = " Another pooling takes training of its own (`pooling` of the recipe)."
    return [f"- Headline: {told}.{other}"]


def _seen(rows: Rows) -> list[str]:
    """The test samples that pretraining has seen; of rows that had none nothing is said."""
    told = {}
    for row, one in _each(rows):
        if row not in BASELINES.values():
            found = one["seen_of_test"] or {"test splits": None}
            told[row] = ", ".join(
                f"{name} unknown"
                if seen is None
                else f"{name} {seen['shared']:,} of {seen['of']:,}"
                for name, seen in found.items()
            )
    return [f"- Samples that pretraining has seen too: {_told(told)}."] if told else []


def _told(by_row: Mapping[str, str]) -> str:
    """What is true of each row, the commonest of all others."""
    rows: dict[str, list[str]] = {}
    for row, text in by_row.items():
        rows.setdefault(text, []).append(row)
    *few, most = sorted(rows, key=lambda text: len(rows[text]))
    parts = [f"{text} ({'; '.join(rows[text])})" for text in few]
    return "; ".join([*parts, f"{most} (all others)" if parts else most])


def _rates(rows: Rows, heads: list[str]) -> list[str]:
    """The rates that were chosen, of the rows that have any."""
    lines = table_head("Learning rate", heads)
    for row, cells in rows.items():
        texts = [_rate_text(cell) for cell in cells.values()]
        if set(texts) != {"-"}:
            lines.append(table_line(row, texts))
    return lines


def _rate_text(cell: list[dict[str, Any]]) -> str:
    rates = {one["lr"]: one["lr_at_edge"] for one in cell if one["lr"] is not None}
    return " / ".join(f"{lr:g}{'*' * edge}" for lr, edge in sorted(rates.items())) or "-"


def _beside(rows: Rows, heads: list[str], metric: str) -> list[str]:
    """The scores of other poolings than the headline's, a line for each row that has one."""
    beside = dict.fromkeys(name for _, one in _each(rows) for name in one["beside"])
    if not beside:
        return []
    lines = ["", *table_head(f"Beside the headline: {metric_name(metric)}, %", heads)]
    for row, cells in rows.items():
        for pooling in beside:
            scores = [
                [one["beside"][pooling][metric] for one in cell if pooling in one["beside"]]
                for cell in cells.values()
            ]
            if any(scores):
                name = f"{row}, {pooling.replace('_', ' ')}"
                lines.append(table_line(name, map(mean_text, scores)))
    return lines


def _costs(table: dict[str, Any], experiment: Experiment) -> list[str]:
    """Of each system, from the first protocol that has it."""
    known: Rows = {}
    for protocol in experiment.protocols:
        for row, cells in _rows(table, protocol).items():
            if any(one["parameters"] for cell in cells.values() for one in cell):
                known.setdefault(row, cells)
    if not known:
        return []
    heads = ["parameters, M", *(f"GFLOPs {sensor_title(sensors)}" for sensors in table["sensors"])]
    lines = table_head("Encoder, nothing masked", heads)
    for row, cells in known.items():
        ones = [one for cell in cells.values() for one in cell]
        parameters = next(one["parameters"] for one in ones if one["parameters"])
        flops = [next((one["forward_flops"] for one in cell), None) for cell in cells.values()]
        texts = [f"{count / 1e9:.3g}" if count else "-" for count in flops]
        lines.append(table_line(row, [f"{parameters / 1e6:.3g}", *texts]))
    return [*lines, ""]


def _pretraining(table: dict[str, Any], experiment: Experiment) -> list[str]:
    if not table["pretraining"]:
        return []
    by_name = {system.name: system for system in experiment.systems}
    recipe = Path(experiment.pretrain.recipe).name
    changes = [
        f"{name} with {', '.join(f'`{change}`' for change in by_name[name].set)}"
        for name in table["pretraining"]
        if by_name[name].set
    ]
    heads = ["samples", "val loss", "its change over the second half, %", "over the last tenth, %"]
    heads += ["hours", "device"]
    lines = [f"Pretrained by `{recipe}`{': ' * bool(changes)}{'; '.join(changes)}.", ""]
    lines += table_head("Pretraining", heads)
    for system, seeds in table["pretraining"].items():
        for seed, run in seeds.items():
            name = f"{system}, seed {seed}" if len(table["seeds"]) > 1 else system
            loss = run["val_loss"]
            falls = (run["second_half"], run["last_tenth"])
            texts = [
                f"{run['samples']:,}",
                "-" if loss is None else f"{loss:.4f}",
                *("-" if change is None else f"{100 * change:+.2f}" for change in falls),
                f"{run['step_hours']:.2f}",
                ", ".join(run["devices"]) or "-",
            ]
            lines.append(table_line(name, texts))
    flat = (
        "The last tenth is flat because the learning rate ends there; whether more steps would "
        "help, it does not say. A loss that still falls over the second half says that they may."
    )
    return [*lines, "", flat, ""]


def _attention(table: dict[str, Any]) -> list[str]:
    """Shares of attention to other sensors, block by block; of the first seed that has them."""
    found: dict[str, list[dict[str, Any]]] = {
        system: next((run["attention"] for run in seeds.values() if run["attention"]), [])
        for system, seeds in table["pretraining"].items()
    }
    found = {system: blocks for system, blocks in found.items() if blocks}
    if not found:
        return []
    numbers = sorted({block["block"] for blocks in found.values() for block in blocks})
    heads = [f"block {number}" for number in numbers]
    lines = table_head("Attention to other sensors, % (if uniform), of the tokens of", heads)
    for system, blocks in found.items():
        by_number = {block["block"]: block for block in blocks}
        for sensor in blocks[0]["others"]:
            texts = [
                f"{100 * by_number[n]['others'][sensor]:.1f} "
                f"({100 * by_number[n]['uniform'][sensor]:.1f})"
                if n in by_number
                else "-"
                for n in numbers
            ]
            lines.append(table_line(f"{system}, {sensor_title(sensor)}", texts))
    return [*lines, ""]


def _simulator(table: dict[str, Any]) -> list[str]:
    facts = [fact for fact in table["facts"].values() if fact.get("simulated")]
    hashes = dict.fromkeys(fact["simulator_sha256"] for fact in facts)
    told = ", ".join(f"`{one}`" if one else "not told by the dataset" for one in hashes)
    return [f"Simulator, sha256 of its files: {told}.", ""] if hashes else []
