"""What a table's scores were made by: splits, rates, poolings, costs and pretrainings, as JSON.

`experiment_table` puts it under `details` and `pretraining`; `experiment_details_page` writes it.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from fusmae.evaluation.attention import RESULT_NAME as ATTENTION_NAME
from fusmae.evaluation.backbones import open_backbone
from fusmae.evaluation.cost import encoder_cost
from fusmae.evaluation.experiment import Experiment, Protocol, pretraining_folder
from fusmae.training.metrics import METRICS, read_metrics
from fusmae.training.record import RUN_RECORD


def cell_details(result: dict[str, Any], protocol: Protocol) -> dict[str, Any]:
    """Of one result: how its headline was made, and the scores, in percent, that stand beside it.

    `parameters` and `forward_flops` of the encoder are None where the result is of no encoder.
    """
    headline, recipe = result["headline"], result["options"]["recipe"]
    lr = result["results"][headline].get("lr")
    return {
        "pooling": headline,
        "lr": lr,
        # A grid of one rate has no inside; nothing is chosen there.
        "lr_at_edge": len(recipe.get("lrs", ())) > 1
        and lr in (min(recipe["lrs"]), max(recipe["lrs"])),
        "beside": {
            pooling: {metric: 100 * score[metric] for metric in protocol.metrics}
            for pooling, score in result["results"].items()
            if pooling != headline
        },
        "weights": _weights(result),
        "tuned": result.get("backbone", {}).get("tuned", ""),
        "few_labels": result.get("few_labels", ""),
        "device": result.get("device"),
        "seen_of_test": _seen(result),
        **_cost(result),
    }


def _weights(result: dict[str, Any]) -> str:
    """What an encoder was loaded from, and what it says of itself; as far as the result tells."""
    told: dict[str, Any] = result.get("backbone", {})
    facts = [told["label"]] if "label" in told else []
    if "patch_px" in told:
        facts.append(f"{told['image_px']} px in tokens of {told['patch_px']} px")
    if told.get("simulated"):
        facts.append("trained on simulated data")
    if told.get("tuned"):
        facts.append(f"fine-tuned since: {told['tuned']}")
    return result.get("encoder", "unknown") + (f" ({', '.join(facts)})" if facts else "")


def _seen(result: dict[str, Any]) -> dict[str, Any] | None:
    """How many samples of each test split pretraining has seen; None where that is unknown."""
    overlap = result.get("overlap")
    return None if overlap is None else dict(overlap["shared_with"])


def _cost(result: dict[str, Any]) -> dict[str, int | None]:
    names = ("parameters", "forward_flops")
    told: dict[str, Any] = result.get("backbone", {})
    if result["options"].get("features") == "band-statistics":
        told = {}
    elif "parameters" not in told and "images" in result:
        # Results of before they told it, as long as their encoder is still there.
        told = _cost_of(result["encoder"], tuple(result["images"]["size_px"].items()))
    return {name: told.get(name) for name in names}


@lru_cache
def _cost_of(encoder: str, size_px: tuple[tuple[str, int], ...]) -> dict[str, int]:
    try:
        return encoder_cost(open_backbone(encoder), dict(size_px))
    except ValueError:
        return {}


def pretraining_details(
    experiment: Experiment, out: Path, seeds: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """By system and seed, what the pretrainings below `out` say of themselves."""
    found: dict[str, dict[str, Any]] = {}
    for system in experiment.systems:
        for seed in seeds:
            run = pretraining_folder(out, system, seed)
            if not system.weights and (run / METRICS).exists():
                found.setdefault(system.name, {})[str(seed)] = _pretraining(run)
    return found


def _pretraining(run: Path) -> dict[str, Any]:
    lines = read_metrics(run / METRICS)
    steps = [line for line in lines if "val" not in line]
    val = [(line["step"], line["val"]["loss"]) for line in lines if "val" in line]
    seconds, last = 0.0, 0
    for line in steps:
        seconds += (line["step"] - last) * line.get("step_s", 0.0)
        last = line["step"]
    record = run / RUN_RECORD
    starts = json.loads(record.read_text())["starts"] if record.exists() else []
    attention = run / ATTENTION_NAME
    return {
        "samples": steps[-1]["samples"] if steps else 0,
        "val_loss": val[-1][1] if val else None,
        "second_half": change_since(0.5, val),
        "last_tenth": change_since(0.9, val),
        # Of the steps that count; what a kill undid is in the wall time alone.
        "step_hours": seconds / 3600,
        "devices": list(dict.fromkeys(start["device"] for start in starts)),
        "git_commits": list(dict.fromkeys(start["git_commit"] or "unknown" for start in starts)),
        "attention": json.loads(attention.read_text())["blocks"] if attention.exists() else [],
    }


def change_since(share: float, val: Sequence[tuple[int, float]]) -> float | None:
    """The relative change of a loss since a share of its steps: -0.01 is 1 % lower.

    From the last value at or before that share of the steps to the last one; None where there is
    none so early.
    """
    if not val:
        return None
    end, loss = val[-1]
    before = [value for step, value in val if step <= share * end]
    return loss / before[-1] - 1 if before else None
