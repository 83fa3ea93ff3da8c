"""The length of a run and its learning rate: pure functions of the step."""

import math
from dataclasses import dataclass
from fractions import Fraction

from fusmae.config import OptimConfig


def steps_of(epochs: float, num_samples: int, global_batch: int) -> int:
    """ceil(epochs * num_samples / global_batch), exact: `epochs` counts as it is written."""
    return math.ceil(Fraction(str(epochs)) * num_samples / global_batch)


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then half a cosine, both per optimiser step.

    The rate of step t (from 0) is the one with which update t is made. It rises from
    `warmup_lr` at t = 0 to `lr` at t = `warmup_steps`, then falls towards `min_lr`, which
    it would reach at t = `total_steps`. As in MAE (He et al. 2022, util/lr_sched.py), but
    from `warmup_lr` instead of 0, which MultiMAE's recipes do.
    """

    total_steps: int
    warmup_steps: int
    lr: float
    warmup_lr: float
    min_lr: float

    def rate(self, step: int) -> float:
        """The learning rate of update `step`, 0 <= step < total_steps."""
        if step < self.warmup_steps:
            return self.warmup_lr + (self.lr - self.warmup_lr) * step / self.warmup_steps
        done = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        return self.min_lr + (self.lr - self.min_lr) * 0.5 * (1 + math.cos(math.pi * done))


def schedule_for(optim: OptimConfig, num_samples: int) -> Schedule:
    """The schedule of a recipe over a split of `num_samples` samples."""
    return Schedule(
        total_steps=steps_of(optim.epochs, num_samples, optim.global_batch),
        warmup_steps=steps_of(optim.warmup_epochs, num_samples, optim.global_batch),
        lr=optim.lr,
        warmup_lr=optim.warmup_lr,
        min_lr=optim.min_lr,
    )
