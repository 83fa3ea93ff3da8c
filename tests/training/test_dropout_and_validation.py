"""Sensor dropout and validation: the same after a stop and on any number of ranks."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fusmae.config import PretrainRecipe, RunConfig, SubsetConfig, load_recipe
from fusmae.data import Preprocess, open_dataset
from fusmae.evaluation.reconstruction import load_pretrained
from fusmae.model import draw_masks, draw_sensors
from fusmae.training.ranks import Ranks
from fusmae.training.source import read_sources
from fusmae.training.validation import Validation

from .conftest import SCRIPT, TOTAL_STEPS, InProcess, start_ranks, wait_for
from .script import alone, lines_of, wait_until_step


@pytest.fixture(scope="module")
def dropout_runs(
    recipe: Path, tiny_dataset: Path, ds_json: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A run with sensor dropout and validation that 2 ranks began and one ended, and one whole."""
    folder = tmp_path_factory.mktemp("dropout")
    options = ["--recipe", str(recipe), "--data", str(tiny_dataset)]
    options += ["--deepspeed_config", str(ds_json), "--set", "run.log_every_steps=1"]
    for change in ("model.sensor_dropout=0.7", "run.validate_every_steps=2", "run.val_split=train"):
        options += ["--set", change]
    processes = start_ranks(2, SCRIPT, *options, "--out", folder / "stopped")
    wait_until_step(folder / "stopped", 3, processes)
    processes[0].send_signal(signal.SIGTERM)
    wait_for(processes)
    for out in ("stopped", "whole"):
        result = alone(*options, "--out", str(folder / out), "--resume", "auto")
        assert result.returncode == 0, result.stderr
    return folder / "stopped", folder / "whole"


def test_sensor_dropout_is_the_same_after_a_stop_and_on_another_number_of_ranks(
    dropout_runs: tuple[Path, Path],
) -> None:
    mine, expected = ([li for li in lines_of(run) if "val" not in li] for run in dropout_runs)
    names = ("s1", "s2", "loss")
    for line, other in zip(mine, expected, strict=True):
        # As in test_pretrain, another world size sums in another order.
        values = {name: line[name] for name in names if name in line}
        assert values == pytest.approx({k: other[k] for k in names if k in other}, rel=1e-5)
    absent = [[name for name in ("s1", "s2") if name not in line] for line in expected]
    drawn = [draw_sensors(["s1", "s2"], 0.7, 3, step) for step in range(TOTAL_STEPS)]
    assert absent == [[name for name in ("s1", "s2") if name not in shown] for shown in drawn]
    assert ["s1"] in absent and ["s2"] in absent and [] in absent


def test_validation_is_the_mean_over_its_samples_on_any_number_of_ranks(
    dropout_runs: tuple[Path, Path], tiny_dataset: Path
) -> None:
    mine, expected = ([li for li in lines_of(run) if "val" in li] for run in dropout_runs)
    assert [line["step"] for line in mine] == [*range(2, TOTAL_STEPS, 2), TOTAL_STEPS]
    for line, other in zip(mine, expected, strict=True):
        assert line["val"] == pytest.approx(other["val"], rel=1e-5)
    # All 41 samples at once, nothing of the trainer.
    pretrained = load_pretrained(dropout_runs[1], tiny_dataset)
    bands = pretrained.recipe.data.bands
    ds, sizes_px = open_dataset(tiny_dataset, "train"), pretrained.recipe.model.sizes_px(bands)
    arrays = {name: torch.stack([torch.as_tensor(s[name]) for s in ds]) for name in ds.bands}
    images = Preprocess(ds.manifest, bands, sizes_px, "bilinear")(arrays)
    masks = draw_masks(pretrained.recipe.model, list(bands), 3, torch.arange(41))
    with torch.no_grad():
        losses = pretrained.model(images, masks)
    assert expected[-1]["val"] == pytest.approx({k: v.item() for k, v in losses.items()}, rel=1e-5)


class MeanPixels:
    """An engine of one rank whose losses are the images' means."""

    device = torch.device("cpu")

    def is_any(self, asked: bool) -> bool:
        return asked

    def losses(self, images: dict[str, torch.Tensor], masks: Any) -> dict[str, torch.Tensor]:
        means = {sensor: image.double().mean() for sensor, image in images.items()}
        return means | {"loss": torch.stack(list(means.values())).sum()}

    def sum_over_ranks(self, values: list[torch.Tensor]) -> list[float]:
        return [value.item() for value in values]


@pytest.mark.parametrize("val_samples", [1024, 5])
def test_validation_leaves_out_what_training_excludes_and_takes_no_fraction(
    recipe: Path, tiny_dataset: Path, val_samples: int
) -> None:
    config = load_recipe(PretrainRecipe, recipe)
    exclude = ("seasonal_snow",)
    data = replace(config.data, subset=SubsetConfig(0.1, exclude=exclude))
    config = replace(config, data=data, run=RunConfig(val_split="train", val_samples=val_samples))
    sources = read_sources(config, [tiny_dataset])
    engine: Any = MeanPixels()
    validation = Validation(config, sources, Ranks(0, 0, 1, 1), 4, engine.device)
    ds = open_dataset(tiny_dataset, "train", subset={"exclude": list(exclude)})
    assert len(ds) < 41
    arrays = {
        name: torch.stack([torch.as_tensor(ds[i][name]) for i in range(min(val_samples, len(ds)))])
        for name in ds.bands
    }
    sizes_px = config.model.sizes_px(data.bands)
    images = Preprocess(ds.manifest, data.bands, sizes_px, data.resample)(arrays)
    expected = {name: loss.item() for name, loss in engine.losses(images, None).items()}
    assert validation.losses(engine, lambda: False) == pytest.approx(expected, rel=1e-5)


def test_sensor_dropout_under_offload_is_refused(
    options: list[str], tmp_path: Path, in_process: InProcess
) -> None:
    ds_json = tmp_path / "offload.json"
    zero = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    table = {"train_micro_batch_size_per_gpu": 4, "zero_optimization": zero}
    ds_json.write_text(json.dumps(table))
    options += ["--out", str(tmp_path / "run"), "--deepspeed_config", str(ds_json)]
    code, _, error = in_process(*options, "--set", "model.sensor_dropout=0.5")
    assert code == 1
    assert error.startswith(f"error: {ds_json}: under offload") and error.count("\n") == 1
