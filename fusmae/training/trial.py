"""A few steps of a run, made for real before it starts: their seconds, and the memory they take."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor

from fusmae.data import MixedBatch, MixedPreprocess
from fusmae.data.mixture import cut_quotas
from fusmae.model import draw_masks
from fusmae.training.engine import Engine
from fusmae.training.ranks import RankError
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
    """Bytes of the GPU, and the largest micro-batch that divides the batch and fits.

    used: at the run's micro-batch; None where that does not fit.
    largest: None where no micro-batch that divides fits.
    tried: whether the largest was tried; else a straight line through two sizes says that it fits.
    """

    used: int | None
    total: int
    largest: int | None
    tried: bool


def short_run(run: Run) -> Run:
    """The run with one micro-batch a step, so that a step takes no longer than it must.

    Without `run.compile`, which would compile for each size that is tried, a minute each.
    """
    at_once = run.plan.micro_batch * run.ranks.world_size
    config = {**run.plan.config, "train_batch_size": at_once, "gradient_accumulation_steps": 1}
    recipe = replace(run.recipe, run=replace(run.recipe.run, compile=False))
    return replace(run, recipe=recipe, plan=replace(run.plan, accumulation=1, config=config))


def possible_micro_batches(run: Run) -> list[int]:
    """The micro-batches that the global batch and each source's quota allow, ascending."""
    quotas = [source.quota for source in run.sources]

    def divides(size: int) -> bool:
        try:
            cut_quotas(quotas, run.ranks.world_size, size)
        except ValueError:
            return False
        return True

    return [n for n in range(1, sum(quotas) // run.ranks.world_size + 1) if divides(n)]


def check_memory(run: Run, memory: Memory | None) -> None:
    """Raises ValueError if the run's micro-batch does not fit into the GPU."""
    if memory is None or memory.used is not None:
        return
    raise ValueError(
        f"micro-batch {run.plan.micro_batch} does not fit into the GPU's "
        f"{memory.total / 2**30:.1f} GiB; "
        + (
            f"set train_micro_batch_size_per_gpu to {memory.largest}"
            if memory.largest
            else "no smaller one does: choose a higher ZeRO stage, offload or a smaller model"
        )
    )


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
        self._on_gpu = engine.device.type == "cuda"
        self._total = 0
        if self._on_gpu:
            self._total = torch.cuda.get_device_properties(engine.device).total_memory
        self._peaks: dict[int, int] = {}  # bytes by micro-batch, of all ranks the most
        self._too_many: int | None = None  # the smallest micro-batch known not to fit
        self._is_spoilt = False

    def time(self) -> Timing:
        """Time micro-batches of 1, 2, 4 ... samples up to the run's.

        As far as time and memory allow: what does not fit is not timed.

        Raises:
            RankError: this rank, of several, is out of memory.
        """
        full, samples, left_s = self._run.plan.micro_batch, 1, _BUDGET_S
        self._next_images(samples)
        first = self._step(samples)
        found, left_s = Timing(samples, 0.0, *first), left_s - sum(first)  # what happens only once
        while (row := self._try(samples)) is not None:
            found, seconds = Timing(samples, 0.0, *row), sum(row)
            left_s -= seconds
            if samples == full or left_s < 4 * seconds:
                break
            samples = min(2 * samples, full)
        if self._is_spoilt:
            return found
        samples = found.samples
        rows: list[tuple[float, float, float]] = []
        while not rows or (len(rows) < _NUM_TIMED and sum(map(sum, rows)) + sum(rows[-1]) < left_s):
            data_s = self._next_images(samples) if samples == full else 0.0
            rows.append((data_s, *self._step(samples)))
        return Timing(samples, *(median(column) for column in zip(*rows, strict=True)))

    def memory(self) -> Memory | None:
        """What the GPU holds; None without one. Comes after `time`, whose steps it knows.

        Memory is a constant and a part for each sample, which two sizes tell; the largest size is
        then tried, and smaller ones until one fits, unless other ranks would wait for one that
        has failed, or a failure has left the engine unfit for another step.

        Raises:
            RankError: this rank, of several, is out of memory.
        """
        if not self._on_gpu:
            return None
        full = self._run.plan.micro_batch
        self._images = {name: image[:1].clone() for name, image in self._images.items()}
        if full not in self._peaks:
            self._try(full)
        if len(self._peaks) < 2:
            self._try(2)
        used = self._peaks.get(full)
        while (size := self._largest()) is not None and size not in self._peaks:
            if self._is_spoilt or self._run.ranks.world_size > 1:
                return Memory(used, self._total, size, tried=False)
            self._try(size)
        return Memory(used, self._total, size, tried=size is not None)

    def _largest(self) -> int | None:
        """The largest micro-batch that divides the batch and did or should fit, if any."""
        fit = (
            size
            for size in possible_micro_batches(self._run)
            if size in self._peaks or self._expected(size) <= _USABLE * self._total
        )
        return max(fit, default=None)

    def _try(self, samples: int) -> tuple[float, float] | None:
        """As `_step`; None where the memory is known not to suffice, or does not."""
        if not self._on_gpu:
            return self._step(samples)
        if self._expected(samples) > self._total:
            return None
        torch.cuda.reset_peak_memory_stats()
        try:
            seconds = self._step(samples)
        except torch.cuda.OutOfMemoryError:
            self._too_many = samples
            if self._run.ranks.world_size > 1:
                raise RankError(
                    f"rank {self._run.ranks.rank}: the GPU's memory does not suffice for a "
                    f"micro-batch of {samples}; lower train_micro_batch_size_per_gpu: "
                    f"{self._largest()} should fit by a straight line through two sizes"
                ) from None
            # From stage 1 on DeepSpeed does not forget the gradients of half a backward pass.
            self._is_spoilt = self._run.plan.stage > 0
        else:
            peak = torch.cuda.max_memory_allocated()
            self._peaks[samples] = max(self._engine.gather_over_ranks(peak))
            return seconds
        torch.cuda.empty_cache()
        return None

    def _expected(self, samples: int) -> float:
        """Bytes on the line through the two largest sizes that fit; infinite if known too many."""
        if self._too_many is not None and samples >= self._too_many:
            return math.inf
        if len(self._peaks) < 2:
            return max(self._peaks.values(), default=0)
        (before, used_before), (last, used) = sorted(self._peaks.items())[-2:]
        return used + max(1.0, (used - used_before) / (last - before)) * (samples - last)

    def _next_images(self, samples: int) -> float:
        """Fetch a micro-batch and keep that many of it, or a few more; the seconds of it."""
        started = self._now()
        parts = self._fetch().parts
        size = sum(map(len, parts))
        rows = [-(-samples * len(part) // size) for part in parts]
        self._images = self._preprocess([p.rows(0, n) for p, n in zip(parts, rows, strict=True)])
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
        images = {
            name: image.repeat(-(-samples // len(image)), 1, 1, 1)[:samples]
            for name, image in self._images.items()
        }
        started = self._now()
        self._engine.forward_backward(images, masks)
        compute_s, started = self._since(started), self._now()
        self._engine.update(self._run.schedule.rate(0))
        return compute_s, self._since(started)

    def _now(self) -> float:
        if self._on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def _since(self, started: float) -> float:
        """Rank 0's seconds, so that all ranks decide alike."""
        elapsed: float = self._engine.gather_over_ranks(self._now() - started)[0]
        return elapsed
