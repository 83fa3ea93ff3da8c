"""What `--dry-run` says: arithmetic that a reader can check, and memory without a GPU's help."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fusmae.training.dry_run import Memory, Timing, Trial, describe_trial, short_run
from fusmae.training.run import Run, read_run


@pytest.fixture
def run(recipe: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    ds_json = tmp_path / "ds.json"
    ds_json.write_text(json.dumps({"train_micro_batch_size_per_gpu": 2}))
    changes = ("optim.global_batch=48", "run.keep_every_steps=5", "run.save_every_minutes=2.5")
    return read_run(recipe, [str(tiny_dataset)], tmp_path, tmp_path / "out", ds_json, changes)


def test_the_plan_is_the_arithmetic_of_what_was_timed(run: Run) -> None:
    assert (run.plan.accumulation, run.schedule.total_steps) == (12, 4)  # ceil(4 * 41 / 48)
    timing = Timing(samples=2, data_s=0.1, compute_s=0.3, update_s=0.2)
    lines = dict(line.split(maxsplit=1) for line in describe_trial(run, timing, None, "CPU"))
    assert lines["batch"] == "48 = micro-batch 2 x 2 ranks x accumulation 12"
    assert lines["steps"] == "4 (4 epochs)"
    # 12 * (0.1 + 0.3) + 0.2 = 5 s a step
    assert lines["speed"] == "9.6 samples/s, 5 s a step, 24.0% of it data"
    assert lines["time"].startswith("0.01 hours")
    assert "every 6 steps and 2.5 minutes; 2 are kept" in lines["checkpoints"]
    assert "no GPU" in lines["memory"]
    # Of one sample instead of two: compute takes twice as long for the micro-batch.
    timing = Timing(samples=1, data_s=0.0, compute_s=0.2, update_s=0.2)
    (speed,) = [s for s in describe_trial(run, timing, None, "CPU") if s.startswith("speed")]
    assert "9.6 samples/s, 5 s a step" in speed and "estimated from micro-batches of 1" in speed


def test_the_disk_is_looked_at_before_the_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    lines = describe_trial(run, Timing(2, 0.1, 0.3, 0.2), None, "CPU")
    assert f"the disk of {run.out} has no room for the checkpoints" in lines[-1]


GIB = 2**30


class Gpu(Trial):
    """10 GiB for weights and the rest, 1 GiB a sample; what does not fit fails."""

    def _peak(self, samples: int) -> int:
        return (10 + samples) * GIB

    def _step(self, samples: int) -> tuple[float, float]:
        if (10 + samples) * GIB > self.room:
            raise torch.cuda.OutOfMemoryError
        return 0.0, 0.0

    room = 0


@pytest.mark.parametrize(
    ("total", "room", "ranks", "expected"),
    [
        (40, 40, 1, (24, True)),  # 0.9 * 40 - 10 = 26 samples; 48 / 24
        (40, 30, 1, (16, False)),  # 24 was tried, and did not fit
        (60, 60, 2, (24, False)),  # of a rank's 24 samples; the other rank would wait
        (12, 12, 1, (2, True)),  # the run's own, which was made
    ],
)
def test_the_largest_micro_batch_divides_the_batch_and_fits(
    run: Run,
    total: int,
    room: int,
    ranks: int,
    expected: tuple[int, bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    properties = SimpleNamespace(total_memory=total * GIB)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: properties)
    engine: Any = SimpleNamespace(device=torch.device("cuda"), gather_over_ranks=lambda x: [x])
    of_ranks: Any = short_run(run)
    object.__setattr__(of_ranks, "ranks", SimpleNamespace(world_size=ranks))
    nothing: Any = None
    gpu = Gpu(of_ranks, engine, nothing, nothing)
    gpu.room = room * GIB
    memory = gpu.memory()
    assert memory == Memory(12 * GIB, total * GIB, *expected)
