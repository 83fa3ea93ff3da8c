"""The metrics file survives kills and resumes without doubled or torn lines."""

import json
import time
from pathlib import Path

import pytest
import torch

from fusmae.training.metrics import Means, MetricsWriter, Stopwatch, peak_flops

from .conftest import fill


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_resuming_drops_lines_that_will_be_made_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path, 0)
    for step in (10, 20, 30):
        writer.write({"step": step})
    MetricsWriter(path, 20).write({"step": 30, "again": True})
    assert steps(path) == [10, 20, 30]
    assert "again" in path.read_text().splitlines()[-1]


def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10}\n{"step": 2')
    MetricsWriter(path, 20).write({"step": 20})
    assert steps(path) == [10, 20]


def test_a_new_run_starts_with_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10}\n')
    MetricsWriter(path, 0)
    assert path.read_bytes() == b""


def test_means_are_those_of_the_steps_since_the_last_line() -> None:
    means = Means()
    means.add({"loss": 1.0})
    means.add({"loss": 4.0})
    assert means.take() == {"loss": 2.5}
    means.add({"loss": 7.0})
    assert means.take() == {"loss": 7.0}


def test_the_mean_of_an_absent_sensor_is_over_the_steps_that_had_it() -> None:
    means = Means()
    means.add({"s1": 1.0, "s2": 2.0, "loss": 3.0})
    means.add({"s2": 4.0, "loss": 4.0}, absent=["s1"])
    means.add({"s1": 5.0, "s2": 6.0, "loss": 11.0})
    assert means.take() == {"s1": 3.0, "s2": 4.0, "loss": 6.0}
    means.add({"s2": 4.0, "loss": 4.0}, absent=["s1"])
    assert means.take() == {"s2": 4.0, "loss": 4.0}


def test_means_kept_in_a_checkpoint_go_on_exactly() -> None:
    values = [0.1, 0.7, 1e-9, 3.3]
    whole, half = Means(), Means()
    for value in values:
        whole.add({"loss": value})
    for value in values[:2]:
        half.add({"loss": value})
    resumed = Means(**json.loads(json.dumps({"count": half.count, "sums": half.sums})))
    for value in values[2:]:
        resumed.add({"loss": value})
    assert resumed.take() == whole.take()


def test_skipped_steps_are_in_no_mean() -> None:
    means = Means()
    means.skip()
    assert means.take() == {}
    means.add({"loss": 3.0})
    means.skip()
    assert means.skipped == 1
    assert means.take() == {"loss": 3.0}
    assert means.skipped == 0


@pytest.mark.parametrize(
    ("gpu", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA A100-PCIE-40GB", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
    ],
)
def test_the_peak_is_known_of_these_gpus_alone(gpu: str, peak: float | None) -> None:
    assert peak_flops(gpu) == peak


def test_a_cpu_has_a_wait_for_data_and_no_share_of_a_peak() -> None:
    watch = Stopwatch(torch.device("cpu"))
    for _ in range(2):
        with watch.waiting():
            time.sleep(0.01)
        watch.add(samples=8, flops=100)
    speed = watch.read()
    assert set(speed) == {"samples_per_s", "step_s", "data_wait"}
    assert 0 < speed["data_wait"] <= 1
    assert speed["samples_per_s"] * speed["step_s"] == pytest.approx(8)


def test_what_is_done_apart_is_not_training(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 17.0, 20.0, 20.0])  # made, apart from 10 to 17, read and begun anew
    monkeypatch.setattr("fusmae.training.metrics.time.perf_counter", lambda: next(clock))
    watch = Stopwatch(torch.device("cpu"))
    with watch.apart():
        pass
    watch.add(26, flops=1)
    assert watch.read()["samples_per_s"] == 2.0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_busy_gpu_does_not_wait_while_the_host_does() -> None:
    watch, matrix = Stopwatch(torch.device("cuda")), torch.randn(4096, 4096, device="cuda")
    for _ in range(200):
        product = matrix @ matrix
    with watch.waiting():
        time.sleep(0.001)
    watch.add(samples=1, flops=200 * 2 * 4096**3)
    float(product.sum())
    speed = watch.read()
    assert speed["data_wait"] < 0.001 / speed["step_s"]
    assert speed["tflops"] > 0


def test_a_full_disk_leaves_no_part_of_a_line(small_disk: Path) -> None:
    path = small_disk / "metrics.jsonl"
    metrics = MetricsWriter(path, 0)
    metrics.write({"step": 0})
    fill(small_disk / "filler")
    for step in range(1, 200):  # the first still fit into the file's last page
        try:
            metrics.write({"step": step, "loss": 0.123456789})
        except OSError:
            break
    assert step > 1
    (small_disk / "filler").unlink()
    metrics.write({"step": step})
    written = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert written == list(range(step + 1))
