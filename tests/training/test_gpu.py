"""What only a GPU can show."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from fusmae.config import ModelConfig
from fusmae.model import FusMAE, draw_masks
from fusmae.training.engine import compile_model

from .conftest import ROOT, SCRIPT, without_ranks
from .script import assert_same_run, lines_of, wait_until_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

CHANNELS = {"s1": 2, "s2": 12}
MODEL = ModelConfig(preset="tiny", image_px=48, patch_px=8)
TABLES = {
    path.stem: json.loads(path.read_text())
    for path in sorted((ROOT / "ds_configs").glob("*.json"))
    if path.stem != "cpu"
}
TABLES["DeepSpeed's AdamW"] = TABLES["zero1_autocast"] | {"optimizer": {"type": "AdamW"}}
AUTOCAST = {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}


def start(script: Path, *arguments: object) -> subprocess.Popen[str]:
    """A script on the GPU, one rank, no launcher."""
    return subprocess.Popen(
        [sys.executable, script, *map(str, arguments)],
        env=without_ranks(os.environ),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def inputs(device: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Images of 4 samples, drawn on the CPU, and positions."""
    generator = torch.Generator().manual_seed(0)
    shape = (MODEL.image_px, MODEL.image_px)
    images = {
        sensor: torch.randn(4, count, *shape, generator=generator).to(device)
        for sensor, count in CHANNELS.items()
    }
    return images, torch.arange(4, device=device)


def losses(model: FusMAE, device: str, autocast: bool) -> dict[str, float]:
    images, positions = inputs(device)
    masks = draw_masks(MODEL, list(CHANNELS), 0, positions)
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        found = model(images, masks)
    return {name: loss.item() for name, loss in found.items()}


@pytest.mark.parametrize(("stage", "compiled"), [(0, False), (1, False), (2, False), (0, True)])
def test_the_host_waits_for_nothing_from_batch_to_ledger_on_a_gpu(
    stage: int, compiled: bool, recipe: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    """One step of four is not finite: skipped, without a wait either."""
    ds_json = tmp_path / "ds.json"
    table = {"train_micro_batch_size_per_gpu": 8, "zero_optimization": {"stage": stage}}
    ds_json.write_text(json.dumps(table | AUTOCAST))
    change = f"run.compile={str(compiled).lower()}"
    worker = Path(__file__).with_name("gpu_worker.py")
    assert "skipped [0, 0, 1, 0] 3 steps" in finish(
        start(worker, recipe, tiny_dataset, ds_json, change)
    )


def test_masks_are_those_of_the_cpu() -> None:
    masks = [draw_masks(MODEL, list(CHANNELS), 5, inputs(d)[1]) for d in ("cpu", "cuda")]
    for sensor in CHANNELS:
        assert torch.equal(masks[0].visible[sensor], masks[1].visible[sensor].cpu())
        assert torch.equal(masks[0].masked[sensor], masks[1].masked[sensor].cpu())


def test_losses_are_those_of_the_cpu() -> None:
    """float32 without TF32, torch's default: sums in another order, 1e-5."""
    torch.manual_seed(0)
    model = FusMAE(MODEL, CHANNELS)
    expected = losses(model, "cpu", autocast=False)
    assert losses(model.cuda(), "cuda", autocast=False) == pytest.approx(expected, rel=1e-5)


def test_the_compiled_model_gives_the_losses_of_the_eager_one() -> None:
    """bfloat16 has 8 bits: a sum of values that round differently may differ by 1 %."""
    torch.manual_seed(0)
    model = FusMAE(MODEL, CHANNELS).cuda()
    expected = losses(model, "cuda", autocast=True)
    compile_model(model)
    assert losses(model, "cuda", autocast=True) == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("name", TABLES)
def test_each_shipped_config_trains_as_the_cpu_does(
    name: str, options: Sequence[str], tmp_path: Path
) -> None:
    """3 steps; bfloat16 against float32: 2 %."""
    table = TABLES[name] | {"train_micro_batch_size_per_gpu": 4}
    runs = {"gpu": tmp_path / "gpu", "cpu": tmp_path / "cpu"}
    json_of = {device: tmp_path / f"{device}.json" for device in runs}
    json_of["gpu"].write_text(json.dumps(table))
    json_of["cpu"].write_text('{"train_micro_batch_size_per_gpu": 4}')
    short = ["--set", "optim.epochs=0.5", "--set", "optim.warmup_epochs=0", *options[:4]]
    more = {d: [*short, "--deepspeed_config", json_of[d], "--out", runs[d]] for d in runs}
    on_gpu = start(SCRIPT, *more["gpu"])
    subprocess.run(
        [sys.executable, SCRIPT, *map(str, more["cpu"])],
        env=without_ranks(os.environ) | {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"},
        cwd=ROOT,
        check=True,
        timeout=240,
    )
    finish(on_gpu)
    for line, expected in zip(lines_of(runs["gpu"]), lines_of(runs["cpu"]), strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=0.02)


def test_a_deterministic_run_goes_on_to_the_same_numbers(
    options: Sequence[str], tmp_path: Path
) -> None:
    """Tolerance 0: each line of metrics, and the encoder to the byte."""
    (tmp_path / "ds.json").write_text(json.dumps({"train_micro_batch_size_per_gpu": 8} | AUTOCAST))
    always = [*options[:4], "--deepspeed_config", tmp_path / "ds.json"]
    always += ["--set", "run.deterministic=true", "--set", "optim.epochs=80"]
    whole = start(SCRIPT, *always, "--out", tmp_path / "whole")
    stopped = start(SCRIPT, *always, "--out", tmp_path / "stopped")
    wait_until_step(tmp_path / "stopped", 12, [stopped])
    stopped.send_signal(signal.SIGTERM)
    assert "asked to stop: saved step" in finish(stopped)
    finish(whole)
    finish(start(SCRIPT, *always, "--out", tmp_path / "stopped", "--resume", "auto"))
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
