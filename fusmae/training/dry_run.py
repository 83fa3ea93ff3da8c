"""What a run will take, in words and before it starts: by the steps of `trial.py`."""

import shutil
from pathlib import Path
from typing import Any

import torch

from fusmae.config import RunConfig
from fusmae.data import location_of
from fusmae.model.budget import count_parameters
from fusmae.training.engine import ParameterState
from fusmae.training.run import Run
from fusmae.training.trial import Memory, Timing


def describe_trial(run: Run, timing: Timing, memory: Memory | None, device_name: str) -> list[str]:
    """The lines to print; `run` is the real one."""
    recipe, plan, schedule = run.recipe, run.plan, run.schedule
    parameters = count_parameters(recipe.model, run.channels)
    rows = [
        *_data_rows(run),
        ("model", f"{recipe.model.fusion}, {parameters / 1e6:.1f} M parameters"),
        (
            "batch",
            f"{recipe.optim.global_batch} = micro-batch {plan.micro_batch} x {run.ranks.world_size}"
            f" ranks x accumulation {plan.accumulation}",
        ),
        ("steps", f"{schedule.total_steps:,} ({recipe.optim.epochs:g} epochs)"),
        *_time_rows(run, timing, device_name),
        ("memory", _memory_text(run, memory)),
        *_compile_rows(run),
        *_checkpoint_rows(run, parameters),
    ]
    return [f"{name:12}{text}" for name, text in rows]


def _data_rows(run: Run) -> list[tuple[str, str]]:
    return [
        (
            "data",
            f"{location_of(source.path)}: {source.num_samples:,} samples of {source.data.split}, "
            f"{source.quota} a step",
        )
        for source in run.sources
    ]


def _time_rows(run: Run, timing: Timing, device_name: str) -> list[tuple[str, str]]:
    plan = run.plan
    micro_s = timing.data_s + timing.compute_s * plan.micro_batch / timing.samples
    step_s = plan.accumulation * micro_s + timing.update_s
    part = (
        ""
        if timing.samples == plan.micro_batch
        else f", estimated from micro-batches of {timing.samples}"
    )
    wait = plan.accumulation * timing.data_s / step_s
    least, most = ("at least ", "at most ") if run.recipe.run.compile else ("", "")
    return [
        ("device", f"{run.ranks.world_size} x {device_name}"),
        (
            "speed",
            f"{least}{run.recipe.optim.global_batch / step_s:,.1f} samples/s, "
            f"{most}{step_s:.3g} s a step, "
            f"{wait:.1%} of it data{part}",
        ),
        (
            "time",
            f"{most}{step_s * run.schedule.total_steps / 3600:,.2f} hours, without validation",
        ),
    ]


def _compile_rows(run: Run) -> list[tuple[str, str]]:
    if not run.recipe.run.compile:
        return []
    return [("compile", "all this is without run.compile, which is faster and needs less memory")]


def _memory_text(run: Run, memory: Memory | None) -> str:
    if memory is None:
        return "no GPU, so no limit of the micro-batch is looked for"
    total, micro_batch = f"{memory.total / 2**30:.1f} GiB", run.plan.micro_batch
    if memory.used is None:
        here = f"micro-batch {micro_batch} does not fit into {total}"
    else:
        here = f"{memory.used / 2**30:.1f} of {total} at micro-batch {micro_batch}"
    if memory.largest is None:
        return f"{here}; none that divides the batch does"
    fits = "fits" if memory.tried else "should fit by a straight line through two sizes"
    return f"{here}; of those that divide the batch, {memory.largest} {fits}"


def _checkpoint_rows(run: Run, parameters: int) -> list[tuple[str, str]]:
    config, total_steps = run.recipe.run, run.schedule.total_steps
    size = 4 * len(ParameterState._fields) * parameters
    minutes = f" and {config.save_every_minutes:g} minutes" if config.save_every_minutes else ""
    kept = num_kept(config, total_steps)
    needed, free = size * (kept + 1), shutil.disk_usage(_existing(run.out)).free
    rows = [
        (
            "checkpoints",
            f"{size / 1e9:.3g} GB each, every {config.save_every_steps:,} steps{minutes}; {kept} "
            f"are kept: {needed / 1e9:.3g} GB with the one being written, {free / 1e9:.3g} GB free",
        )
    ]
    if needed > free:
        rows.append(("warning", f"the disk of {run.out} has no room for the checkpoints"))
    return rows


def num_kept(config: RunConfig, total_steps: int) -> int:
    """Checkpoints that a finished run has; with saves by the clock, at most."""
    every = config.keep_every_steps
    for_good = set(range(every, total_steps + 1, every)) if every else set()
    if config.save_every_minutes:  # its newest may be of any step
        return len(for_good | {total_steps}) + config.keep_checkpoints - 1
    saved = {*range(config.save_every_steps, total_steps, config.save_every_steps), total_steps}
    return len(for_good.union(sorted(saved | for_good)[-config.keep_checkpoints :]))


def _existing(path: Path) -> Path:
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())


def name_of(device: torch.device) -> str:
    if device.type == "cuda":
        name: Any = torch.cuda.get_device_name(device)
        return str(name)
    return f"CPU with {torch.get_num_threads()} threads"
