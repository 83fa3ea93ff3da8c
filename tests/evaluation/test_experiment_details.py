"""The "Details" of a table: how its numbers were made, and what stands beside them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from fusmae.evaluation.experiment import (
    Experiment,
    Pretraining,
    Protocol,
    System,
    pretraining_folder,
    result_folder,
)
from fusmae.evaluation.experiment_details import change_since
from fusmae.evaluation.experiment_page import markdown
from fusmae.evaluation.experiment_table import gather
from fusmae.evaluation.results import FINETUNE_FORMAT, PROBE_FORMAT

PROBE = Protocol("LP", "linear_probe", "r", ("macro_map",), "ben")
TUNED = Protocol("FT", "finetune", "r", ("macro_map",), "ben")
OURS, THEIRS = System("XAD"), System("DINO-MM", weights="dino-mm")
EXPERIMENT = Experiment(
    "T", ("s1", "s1,s2"), Pretraining("r", "c", "ben"), (THEIRS, OURS), (PROBE, TUNED)
)


def write(out: Path, protocol: Protocol, row: str, sensors: str, **changes: Any) -> None:
    pooling = changes.pop("pooling", "mean_tokens")
    beside = changes.pop("beside", {})
    result = {
        "format": FINETUNE_FORMAT if protocol == TUNED else PROBE_FORMAT,
        "options": {
            "recipe": {
                "test_split": "test",
                "lrs": changes.pop("lrs", [0.001, 0.01, 0.1]),
                **changes.pop("recipe", {}),
            },
            "manifest_sha256": "ab",
        },
        "dataset": "ben",
        "simulated": True,
        "num_test": 100,
        "num_classes": 19,
        "num_labels": 7,
        "split_rule": "google",
        "averaging": {"over": "the whole split at once", "macro": "mean over classes"},
        "device": "a GPU",
        "overlap": None,
        "backbone": {"parameters": 86_000_000, "forward_flops": 2_500_000_000},
        "simulation": {"simulator_sha256": "c0ffee"},
        "headline": pooling,
        "results": {
            pooling: {"macro_map": 0.5, "lr": changes.pop("lr", 0.01)},
            **{name: {"macro_map": score} for name, score in beside.items()},
        },
        **changes,
    }
    folder = result_folder(out, protocol, row, sensors, 0)
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(result))


def page(out: Path) -> str:
    text = markdown(gather(EXPERIMENT, out, (0,)), EXPERIMENT)
    assert text.endswith("\n") and not text.endswith("\n\n")
    return text.partition("## Details")[2]


def test_details_tell_splits_averaging_poolings_rates_overlap_costs_and_device(
    tmp_path: Path,
) -> None:
    seen = {"shared_with": {"this run's test split": {"shared": 3, "of": 100}, "v2 split": None}}
    beside = {"global_token": 0.4, "zero_filled_mean_tokens": 0.45}
    write(tmp_path, PROBE, "XAD", "s1", overlap=seen, beside=beside)
    write(tmp_path, PROBE, "XAD", "s1,s2", overlap=seen, lr=0.1, few_labels="7 for 19 classes")
    write(tmp_path, PROBE, "random weights", "s1", lr=0.001)
    write(tmp_path, PROBE, "DINO-MM", "s1", pooling="global_token")
    write(tmp_path, TUNED, "XAD", "s1")
    probe, _, tuned = page(tmp_path).partition("### FT")
    for line in (
        "- Recipe: `r`; 100 % of the train split's labels.",
        "- Split: google rule.",
        "- Few labels: 7 for 19 classes.",
        "- Averaging over the whole split at once; macro: mean over classes.",
        "- Headline: global token (DINO-MM); mean tokens (all others).",
        "this run's test split 3 of 100, v2 split unknown",
        "test splits unknown",
        "- Device: a GPU.",
        "chosen on val out of 0.001, 0.01, 0.1; * is an end of the grid",
        "| Learning rate | S1 | S1+S2 |",
        "| XAD | 0.01 | 0.1* |",
        "| random weights | 0.001* | - |",
        "| XAD, global token | 40.0 | - |",
        "| XAD, zero filled mean tokens | 45.0 | - |",
    ):
        assert line in probe, line
    assert "random weights unknown" not in probe and "DINO-MM, global token" not in probe
    assert "training of its own" in tuned and "training of its own" not in probe
    assert "| XAD | 86 | 2.5 | 2.5 |" in tuned and "| DINO-MM | 86 | 2.5 | - |" in tuned
    assert "Simulator, sha256 of its files: `c0ffee`." in tuned


def test_rates_of_another_grid_are_not_compared(tmp_path: Path) -> None:
    write(tmp_path, PROBE, "XAD", "s1")
    write(tmp_path, PROBE, "XAD", "s1,s2", lrs=[0.01])
    with pytest.raises(ValueError, match="its learning rates is"):
        gather(EXPERIMENT, tmp_path, (0,))


@pytest.mark.parametrize(
    ("name", "mine", "others"),
    [("epochs", 1, 20), ("statistics", "dataset", "encoder"), ("image_px", 120, 0)],
)
def test_other_epochs_statistics_or_sizes_are_not_compared(
    tmp_path: Path, name: str, mine: object, others: object
) -> None:
    write(tmp_path, PROBE, "XAD", "s1", recipe={name: others, "seed": 0})
    write(tmp_path, PROBE, "XAD", "s1,s2", recipe={name: mine, "seed": 1})
    with pytest.raises(ValueError, match=f"its {name} is {mine}, the others' is {others}: give"):
        gather(EXPERIMENT, tmp_path, (0,))


def test_statistics_of_weights_of_others_are_their_own(tmp_path: Path) -> None:
    write(tmp_path, PROBE, "XAD", "s1", recipe={"statistics": "encoder"})
    write(tmp_path, PROBE, "DINO-MM", "s1", recipe={"statistics": "dataset"})
    assert "### LP" in page(tmp_path)
    write(tmp_path, PROBE, "DINO-MM", "s1,s2", recipe={"statistics": "encoder"})
    with pytest.raises(ValueError, match="its statistics of DINO-MM is encoder, the others'"):
        gather(EXPERIMENT, tmp_path, (0,))


def test_results_of_before_the_details_are_read(tmp_path: Path) -> None:
    write(tmp_path, PROBE, "XAD", "s1")
    path = result_folder(tmp_path, PROBE, "XAD", "s1", 0) / "metrics.json"
    result = json.loads(path.read_text())
    for key in ("split_rule", "averaging", "device", "overlap", "backbone", "simulation"):
        del result[key]
    path.write_text(json.dumps(result))
    assert "not told by the dataset" in page(tmp_path)


def test_pretrainings_tell_how_their_loss_fell_and_their_attention(tmp_path: Path) -> None:
    run = pretraining_folder(tmp_path, OURS, 0)
    run.mkdir(parents=True)
    lines: list[dict[str, Any]] = [
        {"step": 50, "samples": 500, "step_s": 36.0},
        {"step": 50, "val": {"loss": 3.8}},
        {"step": 90, "val": {"loss": 2.0}},
        {"step": 100, "samples": 1000, "step_s": 36.0},
        {"step": 100, "val": {"loss": 1.9}},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "metrics.jsonl").write_text(text + '{"step": 11')  # a kill cut it short
    start = {"device": "cpu", "git_commit": "abc"}
    (run / "run.json").write_text(json.dumps({"starts": [start, start]}))
    block = {"block": 2, "others": {"s1": 0.25}, "uniform": {"s1": 0.5}}
    (run / "attention.json").write_text(json.dumps({"blocks": [block]}))
    write(tmp_path, PROBE, "XAD", "s1")
    told = page(tmp_path)
    assert "| XAD | 1,000 | 1.9000 | -50.00 | -5.00 | 1.00 | cpu |" in told
    assert "The last tenth is flat because the learning rate ends there" in told
    assert "Steps of the pretrainings: 1.00 h, by commit abc." in told
    assert "| XAD, S1 | 25.0 (50.0) |" in told and "Pretrained by `r`." in told
    changed = dataclasses.replace(OURS, set=("model.fusion=xad", "model.depth=2"))
    other = dataclasses.replace(EXPERIMENT, systems=(THEIRS, changed))
    assert "Pretrained by `r`: XAD with `model.fusion=xad`, `model.depth=2`." in markdown(
        gather(other, tmp_path, (0,)), other
    )
    table = gather(EXPERIMENT, tmp_path, (0,))
    assert table["pretraining"]["XAD"]["0"]["git_commits"] == ["abc"]


def test_a_change_starts_at_or_before_its_share_of_the_steps() -> None:
    losses = [(50, 8.0), (80, 4.0), (90, 2.0), (91, 9.0), (100, 1.0)]
    assert change_since(0.9, losses) == -0.5 and change_since(0.5, losses) == -0.875
    assert change_since(0.9, [(80, 4.0), (91, 9.0), (100, 1.0)]) == -0.75
    assert change_since(0.5, [(80, 4.0), (100, 1.0)]) is None
    assert change_since(0.9, [(100, 1.0)]) is None and change_since(0.9, []) is None
