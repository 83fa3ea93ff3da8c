"""The GPU benchmark's own lines run on a CPU; its figures are nobody's promise there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fusmae.training.record import git_commit

from .kernel_time import summarise

HERE = Path(__file__).parent
WORKERS = "peer: AMP, float32 batches from workers"


@pytest.mark.timeout(900)
def test_gpu_benchmark_runs_on_a_cpu_and_relates_its_figures(tmp_path: Path) -> None:
    report_path = tmp_path / "report.json"
    command = [sys.executable, HERE / "gpu_pretrain.py", "--device", "cpu", "--tiny"]
    command += ["--samples", "40", "--seconds", "0.1", "--minutes", "14", "--out", report_path]
    only = [
        "product",
        "paper",
        "A, deterministic",
        "loader",
        "A",
        WORKERS,
        "peer: DeepSpeed's defaults",
    ]
    command += ["--only", *only]
    done = subprocess.run(
        list(map(str, command)),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=880,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(report_path.read_text())
    cases = report["cases"]
    assert report["left_out"] == []
    assert list(cases) == only  # in the order that was given
    assert {figures["git_commit"] for figures in cases.values()} == {git_commit()}
    assert [case for case, figures in cases.items() if "failed" in figures] == []
    ours = cases["A"]
    assert ours["micro_batch"] == 4
    assert ours["samples_per_s"] == pytest.approx(4 / ours["step_s"]["median"], rel=0.1)
    resident = ours["resident_step_s"]["median"]
    assert ours["data_wait"] == pytest.approx(1 - resident / ours["step_s"]["median"], abs=1e-3)
    product = cases["product"]["tflops"]
    assert ours["of_product"] == pytest.approx(ours["tflops"] / product, abs=1e-3)
    assert WORKERS in done.stdout
    assert cases["paper"]["samples_per_s"] > 0 and cases["paper"]["micro_batch"] == 4


def test_kernel_time_is_split_by_kind_and_overlap_counts_once() -> None:
    spans = [
        (0.0, 100.0, "nvjet_tst_128x256"),
        (50.0, 150.0, "Memcpy HtoD"),
        (200.0, 230.0, "void pytorch_flash::flash_fwd_kernel"),
        (230.0, 250.0, "nvjet_tst_128x256"),
    ]
    account = summarise(spans, steps=1, longest=1)
    assert account["by_kind_ms"] == {"matrix products": 0.12, "copies": 0.1, "attention": 0.03}
    assert account["idle_ms"] == 0.05
    assert account["longest"] == [{"kernel": "nvjet_tst_128x256", "ms": 0.12, "times": 2.0}]
