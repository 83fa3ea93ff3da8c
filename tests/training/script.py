"""`train/pretrain.py` launched or alone, and what a run of it has written so far."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from .conftest import ENVIRONMENT, ROOT, SCRIPT, free_port, without_ranks

SPEED = ("samples_per_s", "step_s", "data_wait")


def launch(
    options: list[str], extensions: Path | None = None, script: Path = SCRIPT
) -> subprocess.Popen[str]:
    """`deepspeed train/pretrain.py` with 2 CPU ranks, as the README says."""
    environment = {**ENVIRONMENT, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    if extensions:
        environment["TORCH_EXTENSIONS_DIR"] = str(extensions)
    command = ["deepspeed", "--num_accelerators", "2", "--master_port", str(free_port())]
    return subprocess.Popen(
        [*command, str(script), *options],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def alone(*options: str) -> "subprocess.CompletedProcess[str]":
    """`python train/pretrain.py`: one rank, no launcher."""
    return subprocess.run(
        [sys.executable, str(SCRIPT), *options],
        env=without_ranks(ENVIRONMENT),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )


def lines_of(run: Path) -> list[dict[str, Any]]:
    """The metrics without what the clock says."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in line if key not in SPEED} for line in lines]


def steps_written(run: Path) -> int:
    try:
        return int(lines_of(run)[-1]["step"])
    except (OSError, IndexError, ValueError):
        return 0


def wait_until_step(run: Path, step: int, processes: list[subprocess.Popen[str]]) -> None:
    until = time.monotonic() + 240
    while steps_written(run) < step:
        assert time.monotonic() < until, "the run does not get on"
        assert all(process.poll() is None for process in processes), processes[0].communicate()
        time.sleep(0.002)


def assert_same_run(run: Path, expected: Path) -> None:
    """Tolerance 0: each line of metrics, and the encoder to the byte."""
    assert lines_of(run) == lines_of(expected)
    assert_same_encoder(run, expected)


def assert_same_encoder(run: Path, expected: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        assert (run / "encoder" / name).read_bytes() == (expected / "encoder" / name).read_bytes()
