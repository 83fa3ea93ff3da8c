"""What a run will take, before it starts: a few steps are made for real, and nothing is written."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from fusmae.data import MixedBatch, MixedPreprocess, location_of
from fusmae.model import draw_masks
from fusmae.model.budget import count_parameters
from fusmae.training.engine import Engine, ParameterState
from fusmae.training.run import Run

# Seconds of timing, which leaves time to start in a minute; each more step of the same size
# narrows the median.
_BUDGET_S = 20.0
_NUM_TIMED = 5
# Of a GPU's memory; the rest is fragments, NCCL's buffers and what else uses the GPU.
_USABLE = 0.9


@dataclass(frozen=True)
class Timing:
    """Medians, in seconds, of one micro-batch of `samples`, and of an optimiser step."""

    samples: int
    data_s: float
    compute_s: float
    update_s: float


@dataclass(frozen=True)
class Memory:
    """Bytes of the GPU at the run's micro-batch, and the largest that divides and should fit.

    `tried` is whether the largest was tried, too, and did fit.
    """

    used: int
    total: int
    largest: int
    tried: bool


def short_run(run: Run) -> Run:
    """The run with one micro-batch a step, so that a step takes no longer than it must."""
    at_once = run.plan.micro_batch * run.ranks.world_size
    config = {**run.plan.config, "train_batch_size": at_once, "gradient_accumulation_steps": 1}
    return replace(run, plan=replace(run.plan, accumulation=1, config=config))


class Trial:
    """Makes steps as the training loop does; every method is called by all ranks together."""

    def __init__(
        self, run: Run, engine: Engine, preprocess: MixedPreprocess, fetch: Callable[[], MixedBatch]
    ) -> None:
        """`run` and the engine are of `short_run`; `fetch` gives the next micro-batch."""
        self._run = run
        self._engine = engine
        self._preprocess = preprocess
        self._fetch = fetch
        self._images: dict[str, Tensor] = {}

    def time(self) -> Timing:
        """Time micro-batches of 1, 2, 4 ... samples up to the run's, as far as time allows."""
        full, samples, left_s = self._run.plan.micro_batch, 1, _BUDGET_S
        self._next_images()
        left_s -= sum(self._step(samples))  # what happens only once
        while True:
            seconds = sum(self._step(samples))
            left_s -= seconds
            if samples == full or left_s < 4 * seconds:
                break
            samples = min(2 * samples, full)
        rows = [(self._next_images() if samples == full else 0.0, *self._step(samples))]
        while len(rows) < _NUM_TIMED and sum(map(sum, rows)) + sum(rows[-1]) < left_s:
            data_s = self._next_images() if samples == full else 0.0
            rows.append((data_s, *self._step(samples)))
        return Timing(samples, *(median(column) for column in zip(*rows, strict=True)))

    def memory(self) -> Memory | None:
        """What the GPU holds; None without one. Comes last: the engine may be spoilt by it.

        Memory is a constant and a part for each sample, which two sizes tell; the largest size
        is then tried, unless other ranks would wait for one that has failed.
        """
        if self._engine.device.type != "cuda":
            return None
        plan, ranks = self._run.plan, self._run.ranks.world_size
        full = plan.micro_batch
        half = max(1, full // 2)
        used, used_half = self._peak(full), self._peak(half)
        total = torch.cuda.get_device_properties(self._engine.device).total_memory
        a_sample = max(1.0, (used - used_half) / max(1, full - half))
        limit = full + int((_USABLE * total - used) / a_sample)
        limit = min(self._engine.gather_over_ranks(limit))
        share = self._run.recipe.optim.global_batch // ranks
        sizes = [n for n in range(full, share + 1) if share % n == 0 and n <= limit] or [full]
        if ranks > 1 or sizes[-1] == full:
            return Memory(used, total, sizes[-1], tried=sizes[-1] == full)
        try:
            self._step(sizes[-1])
        except torch.cuda.OutOfMemoryError:
            return Memory(used, total, sizes[-2], tried=False)
        return Memory(used, total, sizes[-1], tried=True)

    def _peak(self, samples: int) -> int:
        torch.cuda.reset_peak_memory_stats()
        self._step(samples)
        return torch.cuda.max_memory_allocated()

    def _next_images(self) -> float:
        """Fetch a micro-batch; the seconds that it took."""
        started = self._now()
        self._images = self._preprocess(self._fetch().parts)
        return self._since(started)

    def _step(self, samples: int) -> tuple[float, float]:
        """Seconds of forward and backward, and of the optimiser, with that many samples."""
        recipe = self._run.recipe
        masks = draw_masks(
            recipe.model,
            list(recipe.data.bands),
            recipe.seed,
            torch.arange(samples, device=self._engine.device),
        )
        times = -(-samples // self._run.plan.micro_batch)
        images = {
            name: image.repeat(times, 1, 1, 1)[:samples] for name, image in self._images.items()
        }
        started = self._now()
        self._engine.forward_backward(images, masks)
        compute_s, started = self._since(started), self._now()
        self._engine.update(self._run.schedule.rate(0))
        return compute_s, self._since(started)

    def _now(self) -> float:
        if self._engine.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _since(self, started: float) -> float:
        """Rank 0's seconds, so that all ranks decide alike."""
        elapsed: float = self._engine.gather_over_ranks(self._now() - started)[0]
        return elapsed


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
    return [
        ("device", f"{run.ranks.world_size} x {device_name}"),
        (
            "speed",
            f"{run.recipe.optim.global_batch / step_s:,.1f} samples/s, {step_s:.3g} s a step, "
            f"{wait:.1%} of it data{part}",
        ),
        ("time", f"{step_s * run.schedule.total_steps / 3600:,.2f} hours, without validation"),
    ]


def _memory_text(run: Run, memory: Memory | None) -> str:
    if memory is None:
        return "no GPU, so no limit of the micro-batch is looked for"
    fits = "fits" if memory.tried else "should fit by a straight line through two sizes"
    return (
        f"{memory.used / 2**30:.1f} of {memory.total / 2**30:.1f} GiB at micro-batch "
        f"{run.plan.micro_batch}; of those that divide the batch, {memory.largest} {fits}"
    )


def _checkpoint_rows(run: Run, parameters: int) -> list[tuple[str, str]]:
    config, total_steps = run.recipe.run, run.schedule.total_steps
    size = 4 * len(ParameterState._fields) * parameters
    minutes = f" and {config.save_every_minutes:g} minutes" if config.save_every_minutes else ""
    kept = config.keep_checkpoints
    if config.keep_every_steps:
        kept += total_steps // config.keep_every_steps
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


def _existing(path: Path) -> Path:
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())


def name_of(device: torch.device) -> str:
    if device.type == "cuda":
        name: Any = torch.cuda.get_device_name(device)
        return str(name)
    return f"CPU with {torch.get_num_threads()} threads"
