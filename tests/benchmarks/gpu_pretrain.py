"""Speed of pretraining a ViT-B on one GPU: ours, its parts, and the field's ways beside it.

    python tests/benchmarks/gpu_pretrain.py --out tests/benchmarks/results/gpu_pretrain.json

On one H100 or H200 with 16 cores it is made to end within 8 minutes (`--minutes`), without a
network: a simulated archive and its shards (a minute), then one process a case, each with a
warm-up and `--seconds` of steps in three rounds, half a minute a case and up to two where the
model is compiled. Cases stand in the order of their weight; those for which no time is left are
listed under `left_out`.

- A: 224 px, tokens of 16; B: 128 px, 16; C: 120 px, 8; each bfloat16 autocast at ZeRO-0, from
  the shards in the page cache to the update. `data_wait` is 1 - the step on data that stays on
  the device / this step.
  `kernel_time` is a profile of the resident step. "A, deterministic" is A with run.deterministic.
- paper: train/pretrain.py with paper.toml and zero0_autocast.json as a user runs it, 150 steps.
- loader: batches to the device alone. product: the fastest bfloat16 product on this GPU.
- peers, on A's model: float32 and AMP as MAE's loop, AMP from DataLoader workers that resample
  to float32 at 224 px, and DeepSpeed's defaults for bf16 with ZeRO-1.

`--device cpu --tiny` runs it with a tiny model in about a minute on two idle cores; the compiled
cases, which take minutes there, only if `--only` names them.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
import torch
from gpu_pretrain_bench import Setting
from gpu_pretrain_cases import APART, CASES

from fusmae.training.record import git_commit

CASES_SCRIPT = Path(__file__).with_name("gpu_pretrain_cases.py")
COLUMNS = ("samples_per_s", "tflops", "mfu", "of_product", "data_wait", "micro_batch")


def ingest(*arguments: object) -> None:
    command = [sys.executable, "-m", "fusmae_ingest.cli", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True)


def make_shards(folder: Path, samples: int, workers: int) -> Path:
    """A dataset of ours from a simulated archive; its pixels are incompressible enough to read."""
    dataset, archive = folder / "dataset", folder / "archive"
    if not (dataset / "dataset.json").is_file():
        more = ("--workers", workers)
        ingest("simulate", "bigearthnet", "--out", archive, "--patches", samples, *more)
        halves = ("--s2", archive / "BigEarthNet-v1.0", "--s1", archive / "BigEarthNet-S1-v1.0")
        ingest("bigearthnet", *halves, "--out", dataset, "--samples-per-shard", 256, *more)
    return dataset


def run_case(setting: Setting, at_most_s: float) -> dict[str, Any]:
    """A case's figures from its own process, or what went wrong."""
    command = [sys.executable, str(CASES_SCRIPT), json.dumps(dataclasses.asdict(setting))]
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    if setting.device == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=at_most_s
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {at_most_s:.0f} s"}
    for line in done.stdout.splitlines():
        if line.startswith("figures:"):
            figures: dict[str, Any] = json.loads(line.removeprefix("figures:"))
            return figures
    sys.stderr.write(done.stderr[-4000:])
    return {"failed": (done.stderr.strip().splitlines() or ["no output"])[-1]}


def table(cases: dict[str, dict[str, Any]]) -> str:
    lines = [f"{'case':<42}" + "".join(f"{name:>15}" for name in COLUMNS)]
    for case, figures in cases.items():
        if "failed" in figures:
            lines.append(f"{case:<42} failed: {figures['failed']}")
            continue
        cells = ["" if figures.get(name) is None else str(figures[name]) for name in COLUMNS]
        lines.append(f"{case:<42}" + "".join(f"{cell:>15}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    parser.add_argument("--data", type=Path, help="folder for the dataset, which is kept")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, a step a round")
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--seconds", type=float, default=6.0, help="of steps, for each figure")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything")
    parser.add_argument("--only", nargs="+", choices=[*APART, *CASES], help="these cases")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --device cpu --tiny shows that the command works")
    until = time.monotonic() + 60 * options.minutes
    workers, commit = len(os.sched_getaffinity(0)), git_commit()
    on_gpu = options.device == "cuda"
    report: dict[str, Any] = {
        "machine": machine.describe("fusmae", "torch", "deepspeed")
        | {"gpu": torch.cuda.get_device_name() if on_gpu else None, "cuda": torch.version.cuda},
        "config": {
            "samples": options.samples,
            "seconds": options.seconds,
            "model": "tiny" if options.tiny else "base",
            "pixels": "SIMULATED",
            "peak_tflops_of_mfu": "989 for H100 SXM and H200, 312 for A100",
        },
        "cases": {},
        "left_out": [],
    }
    with tempfile.TemporaryDirectory() as scratch:
        dataset = make_shards(options.data or Path(scratch), options.samples, workers)
        default = [case for case in CASES if not (options.tiny and case.endswith("compiled"))]
        for case in options.only or [*APART, *default]:
            left_s = until - time.monotonic()
            if left_s < (10 if options.tiny else 25):
                report["left_out"].append(case)
                continue
            setting = Setting(
                case, str(dataset), options.device, options.tiny, options.seconds, workers
            )
            figures = report["cases"][case] = run_case(setting, left_s)
            figures["git_commit"] = commit
            product = report["cases"].get("product", {}).get("tflops")
            if case != "product" and product and "tflops" in figures:
                figures["of_product"] = round(figures["tflops"] / product, 4)
            machine.write(options.out, report)  # so that a stopped run leaves what it has
    print(table(report["cases"]))
    if report["left_out"]:
        print("left out for lack of time:", ", ".join(report["left_out"]))


if __name__ == "__main__":
    main()
