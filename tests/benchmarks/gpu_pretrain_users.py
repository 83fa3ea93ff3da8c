"""The case of gpu_pretrain.py that is a user's own command: train/pretrain.py by what it logs."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import machine
from gpu_pretrain_bench import Setting

from fusmae.manifest import read_manifest

ROOT = Path(__file__).resolve().parents[2]
RECIPE, DS_JSON = ROOT / "train/recipes/paper.toml", ROOT / "ds_configs/zero0_autocast.json"
STEPS = 150
# What the recipe logs first has the choice of kernels in it.
FIRST_LINES = 2


def paper(setting: Setting) -> dict[str, Any]:
    """paper.toml with zero0_autocast.json, eager: 2 micro-batches of 200 a step, for 150 steps."""
    table, steps, batch = json.loads(DS_JSON.read_text()), STEPS, 400
    changes = {"run.validate_every_steps": "0"}
    if setting.tiny:
        table["train_micro_batch_size_per_gpu"], steps, batch = 4, 3 + FIRST_LINES, 8
        changes |= {"model.preset": "tiny", "optim.global_batch": "8", "run.log_every_steps": "1"}
    epochs = steps * batch / read_manifest(Path(setting.dataset)).split("train").num_samples
    changes |= {"optim.epochs": f"{epochs:.6f}", "optim.warmup_epochs": f"{epochs / 10:.6f}"}
    with tempfile.TemporaryDirectory() as scratch:
        out, ds_json = Path(scratch) / "run", Path(scratch) / "ds.json"
        ds_json.write_text(json.dumps(table))
        command = [sys.executable, ROOT / "train/pretrain.py", "--recipe", RECIPE]
        command += ["--data", setting.dataset, "--deepspeed_config", ds_json, "--out", out]
        for key, value in changes.items():
            command += ["--set", f"{key}={value}"]
        subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    lines = lines[FIRST_LINES:]
    figures = {
        name: round(median(line[name] for line in lines), 4)
        for name in ("samples_per_s", "tflops", "mfu", "data_wait")
        if name in lines[0]
    }
    step_s = machine.spread([line["step_s"] for line in lines], digits=6)
    return figures | {"step_s": step_s, "micro_batch": table["train_micro_batch_size_per_gpu"]}
