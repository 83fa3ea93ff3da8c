"""Fine-tuning end to end through its command: one JSON like the probe's, and nothing half done."""

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from torch import Tensor

from fusmae.evaluation import finetune_runs
from fusmae.evaluation.backbones import open_backbone
from fusmae.evaluation.finetuning import Finetuning
from fusmae.evaluation.labelled import LabelledSplit
from fusmae.model import load_encoder
from fusmae.model.classifier import FusMAEClassifier

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "train" / "finetune.py"
RECIPE = ROOT / "train" / "recipes" / "finetune.toml"
FAST = ("--set", "epochs=1", "--set", "warmup_epochs=0", "--set", "lrs=[1e-3,3e-3]")
Run = Callable[..., Result]


@pytest.fixture
def run(dataset: Path, encoder: Path, tmp_path: Path) -> Run:
    """Runs finetune.py for one epoch; options given replace the usual ones."""
    spec = importlib.util.spec_from_file_location("finetune", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def invoke(*more: str, **changes: Any) -> Result:
        options = {"recipe": RECIPE, "data": dataset, "pretrained": encoder, "sensors": "s1,s2"}
        options |= {"out": tmp_path / "out", **changes}
        given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        return CliRunner().invoke(script.main, [*given, *FAST, *more])

    return invoke


def result_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize("sensors", ["s1", "s2", "s1,s2"])
def test_a_result_has_what_a_probes_has_and_the_weights_beside_it(
    run: Run, tmp_path: Path, sensors: str
) -> None:
    done = run("--fraction", "0.5", sensors=sensors)
    assert done.exit_code == 0, done.output
    result = result_in(tmp_path / "out")
    assert list(result["results"]) == ["mean_tokens"] == [result["headline"]]
    score = result["results"]["mean_tokens"]
    assert score["val_macro_map"][str(score["lr"])] == max(score["val_macro_map"].values())
    assert len(score["per_class"]) + len(score["absent_classes"]) == 19
    assert result["num_labels"] == 20 and result["num_classes"] == 19 and result["seed"] == 0
    assert result["splits"]["test"]["num_used"] == 23 and result["overlap"] is None
    assert "unknown" in done.output and "fine-tuned on" in done.output
    assert len((tmp_path / "out" / "labels_used.txt").read_text().split()) == 20
    tuned, card = load_encoder(tmp_path / "out" / "encoder")
    used = f"20 samples with labels (bigearthnet-19) of tiny, {sensors.replace(',', '+')}"
    assert card.tuned_on == f"{used}, from pretrained weights"
    assert open_backbone(tmp_path / "out" / "encoder").tuned == card.tuned_on
    classifier = FusMAEClassifier(tuned, 19, "mean_tokens")
    head = load_file(tmp_path / "out" / "head.safetensors")
    missing, unexpected = classifier.load_state_dict(head, strict=False)
    assert unexpected == [] and all(name.startswith("encoder.") for name in missing)


def test_sen12ms_is_fine_tuned_with_smoothed_labels(
    run: Run, sen12ms: Path, tmp_path: Path
) -> None:
    choices = ("task=single-label", "label_set=sen12ms-igbp10", "statistics=dataset")
    done = run(*(part for choice in choices for part in ("--set", choice)), data=sen12ms)
    assert done.exit_code == 0, done.output
    score = result_in(tmp_path / "out")["results"]["mean_tokens"]
    assert set(score["val_top1"]) == {"0.001", "0.003"} and 0 <= score["top3"] <= 1


def test_the_test_split_is_read_once_after_the_rate_is_chosen(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[str, str | None]] = []
    batches = Finetuning.batches

    def noted(
        self: Finetuning, split: LabelledSplit, rows: Tensor, exchanged: str | None = None
    ) -> Iterator[Any]:
        read.append((split.reader.split, exchanged))
        return batches(self, split, rows, exchanged)

    monkeypatch.setattr(Finetuning, "batches", noted)
    assert run().exit_code == 0
    # Two rates of one epoch each; then test, and once more for each sensor's reliance.
    rates = 2 * [("train", None), ("val", None)]
    assert read == [*rates, ("test", None), ("test", "s1"), ("test", "s2")]


def test_each_row_of_a_table_is_a_run_of_its_own(run: Run, tmp_path: Path) -> None:
    run("--set", "absent=zero-filled", sensors="s2", out=tmp_path / "filled")
    run("--set", "pooling=global_token", sensors="s2", out=tmp_path / "global")
    run(sensors="s2", init="random", out=tmp_path / "random")
    assert result_in(tmp_path / "filled")["headline"] == "zero_filled_mean_tokens"
    assert result_in(tmp_path / "global")["headline"] == "global_token"
    assert result_in(tmp_path / "random")["options"]["init"] == "random"


def test_a_result_of_the_same_options_is_kept_and_of_others_refused(
    run: Run, tmp_path: Path
) -> None:
    run(sensors="s1")
    before = (tmp_path / "out" / "metrics.json").read_bytes()
    assert "already there" in run(sensors="s1").output
    other = run("--seed", "3", sensors="s1")
    assert other.exit_code == 1 and "recipe.seed: 0 then, 3 now" in other.output
    assert (tmp_path / "out" / "metrics.json").read_bytes() == before


@pytest.mark.parametrize("step", ["finetune", "save_encoder", "replace_file"])
def test_an_interrupted_run_leaves_no_result(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(finetune_runs, step, interrupted)
        assert run(sensors="s1").exit_code != 0
    assert not (tmp_path / "out" / "metrics.json").exists()
    assert run(sensors="s1").exit_code == 0  # and the next one starts over
    assert torch.isfinite(load_file(tmp_path / "out" / "head.safetensors")["head.bias"]).all()


@pytest.mark.parametrize(
    ("changes", "exit_code", "message"),
    [
        ({"sensors": "s3"}, 1, "each once: s1,s2"),
        ({"data": "/nowhere"}, 1, "cannot read /nowhere/dataset.json"),
        ({"labels": "/nowhere.txt"}, 1, "cannot read the list of labels /nowhere.txt"),
        ({"set": "epoch=3"}, 2, "did you mean epochs?"),
        ({"set": "batch=100"}, 2, "multiple of micro_batch"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(
    run: Run, tmp_path: Path, changes: dict[str, str], exit_code: int, message: str
) -> None:
    done = run(**changes)
    assert done.exit_code == exit_code and message in done.output
    assert "Traceback" not in done.output and not (tmp_path / "out").exists()
