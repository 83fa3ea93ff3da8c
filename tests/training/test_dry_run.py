"""What `--dry-run` says: arithmetic that a reader can check, and memory without a GPU's help."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fusmae.config import RunConfig
from fusmae.training.checkpoint import write_checkpoint
from fusmae.training.dry_run import describe_trial, num_kept
from fusmae.training.ranks import RankError
from fusmae.training.run import Run, read_run
from fusmae.training.trial import (
    Memory,
    Timing,
    Trial,
    check_memory,
    possible_micro_batches,
    short_run,
)

from .conftest import InProcess


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


@pytest.mark.parametrize(
    ("save", "for_good"), [(4, 10), (10, 4), (5, 5), (6, 0), (100, 7), (3, 20), (19, 100)]
)
def test_checkpoints_are_counted_as_a_run_saves_and_keeps_them(
    run: Run, tmp_path: Path, save: int, for_good: int
) -> None:
    config = RunConfig(save_every_steps=save, keep_every_steps=for_good)
    run = replace(
        run,
        recipe=replace(run.recipe, run=config),
        schedule=replace(run.schedule, total_steps=20),
    )
    for step in filter(run.is_save_due, range(1, 21)):
        state = {"step": step}
        write_checkpoint(tmp_path, {}, state, config.keep_checkpoints, config.keep_every_steps)
    left = {int(path.name[5:]) for path in (tmp_path / "checkpoints").glob("step-*")}
    assert left >= set(range(for_good, 21, for_good) if for_good else ())
    assert num_kept(config, 20) == len(left)
    # Those that the clock saves may lie between, and be the newest.
    assert num_kept(replace(config, save_every_minutes=1), 20) >= len(left)


GIB = 2**30


class Gpu(Trial):
    """10 GiB for weights and the rest, 1 GiB a sample; what does not fit fails."""

    room = 0
    tried: list[int]

    def _step(self, samples: int) -> tuple[float, float]:
        self.tried.append(samples)
        if (10 + samples) * GIB > self.room:
            raise torch.cuda.OutOfMemoryError
        return 0.1, 0.1

    def _next_images(self, samples: int) -> float:
        return 0.0


@pytest.fixture
def gpu_of(run: Run, monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(
        total: int, room: int, ranks: int = 1, micro_batch: int = 2, stage: int = 0, **quotas: Any
    ) -> Gpu:
        plan = replace(run.plan, micro_batch=micro_batch, stage=stage)
        here = replace(run, plan=plan, ranks=replace(run.ranks, world_size=ranks), **quotas)
        properties = SimpleNamespace(total_memory=total * GIB)
        monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: properties)
        monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", lambda: None)
        engine: Any = SimpleNamespace(device=torch.device("cuda"), gather_over_ranks=lambda x: [x])
        nothing: Any = None
        gpu = Gpu(short_run(here), engine, nothing, nothing)
        gpu.room, gpu.tried = room * GIB, []
        monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda: (10 + gpu.tried[-1]) * GIB)
        return gpu

    return make


@pytest.mark.parametrize(
    ("total", "room", "ranks", "expected"),
    [
        (40, 40, 1, (24, True)),  # 0.9 * 40 - 10 = 26 samples; 48 / 24
        (40, 30, 1, (16, True)),  # 24 was tried, and did not fit; then 16
        (40, 25, 1, (12, True)),
        (60, 60, 2, (24, False)),  # of a rank's 24 samples; the other rank would wait
        (12, 12, 1, (2, True)),  # the run's own, which was made
    ],
)
def test_the_largest_micro_batch_divides_the_batch_and_fits(
    gpu_of: Any, total: int, room: int, ranks: int, expected: tuple[int, bool]
) -> None:
    gpu = gpu_of(total, room, ranks)
    gpu.time()
    assert gpu.memory() == Memory(12 * GIB, total * GIB, *expected)


@pytest.mark.parametrize(
    ("total", "room", "stage", "expected"),
    [
        (40, 40, 0, (24, True)),  # 34 GiB; 48 samples would take 58, and are not tried
        (60, 30, 0, (16, True)),  # 48 and 24 fail, 16 was timed on the way
        (60, 25, 0, (12, True)),  # as before, and 12 is tried
        (60, 25, 2, (12, False)),  # the engine is not to be used after a failure
        (12, 12, 0, (2, True)),
    ],
)
def test_a_micro_batch_that_does_not_fit_leads_to_the_largest_that_does(
    run: Run, gpu_of: Any, total: int, room: int, stage: int, expected: tuple[int, bool]
) -> None:
    gpu = gpu_of(total, room, micro_batch=48, stage=stage)
    timing, memory = gpu.time(), gpu.memory()
    assert memory == Memory(None, total * GIB, *expected)
    assert 10 + timing.samples <= room
    failed = [samples for samples in gpu.tried if 10 + samples > room]
    assert len(failed) <= (2 if stage == 0 else 1)
    with pytest.raises(ValueError, match=f"set train_micro_batch_size_per_gpu to {expected[0]}"):
        check_memory(gpu._run, memory)
    here = replace(run, plan=replace(run.plan, micro_batch=48))
    (told,) = [li for li in describe_trial(here, timing, memory, "GPU") if li.startswith("memory")]
    assert f"micro-batch 48 does not fit into {total}.0 GiB; of those that" in told
    assert f"{expected[0]} {'fits' if expected[1] else 'should fit'}" in told


def test_a_rank_of_several_that_is_out_of_memory_ends_all(gpu_of: Any) -> None:
    gpu = gpu_of(40, 27, ranks=2, micro_batch=24)
    with pytest.raises(RankError, match=r"rank 0: .* of 24; lower .*: 12 should fit"):
        gpu.time()


def test_micro_batches_that_do_not_divide_the_quotas_are_not_proposed(
    run: Run, gpu_of: Any
) -> None:
    quotas = [replace(run.sources[0], quota=quota) for quota in (40, 8)]
    assert possible_micro_batches(run) == [1, 2, 3, 4, 6, 8, 12, 24]
    mixed = replace(run, sources=tuple(quotas))
    # 40 + 8 in as many micro-batches as divide both, and the ranks: 8, 4 and 2.
    assert possible_micro_batches(mixed) == [6, 12, 24]
    gpu = gpu_of(50, 30, sources=tuple(quotas), micro_batch=6)
    gpu.time()
    memory = gpu.memory()
    assert memory == Memory(16 * GIB, 50 * GIB, 12, tried=True)  # 16 would fit, too


def test_a_trial_is_not_compiled_and_says_so(run: Run) -> None:
    compiled = replace(run, recipe=replace(run.recipe, run=replace(run.recipe.run, compile=True)))
    assert not short_run(compiled).recipe.run.compile
    timing = Timing(2, 0.1, 0.3, 0.2)
    lines = dict(line.split(maxsplit=1) for line in describe_trial(compiled, timing, None, "CPU"))
    assert "without run.compile" in lines["compile"]
    assert lines["speed"].startswith("at least 9.6 samples/s, at most 5 s a step")
    assert lines["time"].startswith("at most 0.01 hours")
    assert "without run.compile" not in "\n".join(describe_trial(run, timing, None, "CPU"))


def test_a_full_gpu_is_one_line(options: list[str], tmp_path: Path, in_process: InProcess) -> None:
    def full(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fusmae.training.run.load_recipe", full)
        code, _, error = in_process(*options, "--out", str(tmp_path / "run"))
    assert code == 1
    (line,) = error.splitlines()
    assert line.startswith("error: rank 0: CUDA out of memory: lower train_micro_batch_size_per")
