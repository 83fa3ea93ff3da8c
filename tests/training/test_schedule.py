"""The learning rate against its closed form."""

import math

import pytest

from fusmae.config import OptimConfig
from fusmae.training.schedule import schedule_for


def test_paper_has_886_steps_an_epoch_and_the_stated_total() -> None:
    schedule = schedule_for(OptimConfig(), num_samples=354_196)
    assert schedule.total_steps == 88_549  # 354,196 * 100 / 400, exactly
    assert schedule.warmup_steps == 8_855  # 8,854.9, rounded up


def test_rate_is_a_line_and_then_half_a_cosine() -> None:
    optim = OptimConfig(
        lr=3e-4, warmup_lr=1e-6, min_lr=1e-5, global_batch=10, epochs=10, warmup_epochs=2
    )
    schedule = schedule_for(optim, num_samples=100)  # 100 steps, 20 of them warm-up
    rates = [schedule.rate(step) for step in range(100)]
    assert rates[0] == 1e-6
    assert rates[10] == pytest.approx((1e-6 + 3e-4) / 2)
    assert rates[20] == pytest.approx(3e-4)
    assert rates[60] == pytest.approx((3e-4 + 1e-5) / 2)  # half-way down the cosine
    assert rates[40] == pytest.approx(1e-5 + (3e-4 - 1e-5) * (1 + math.sqrt(0.5)) / 2)
    assert max(rates) == rates[20]
    assert rates[:21] == sorted(rates[:21])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[99] - 1e-5 < 3e-4 * 1e-3  # all but at the bottom


def test_a_run_without_warm_up_starts_at_the_peak() -> None:
    optim = OptimConfig(lr=2e-3, global_batch=10, epochs=1, warmup_epochs=0)
    assert schedule_for(optim, 100).rate(0) == 2e-3


@pytest.mark.parametrize(
    ("epochs", "samples", "batch", "steps"),
    [
        (1, 100, 10, 10),
        (1, 101, 10, 11),  # the last global batch takes samples of the next epoch
        (0.5, 41, 8, 3),
        (0.07, 100, 1, 7),  # as a binary fraction 0.07 * 100 is more than 7
    ],
)
def test_steps_are_rounded_up_from_the_written_number(
    epochs: float, samples: int, batch: int, steps: int
) -> None:
    optim = OptimConfig(global_batch=batch, epochs=epochs, warmup_epochs=0)
    assert schedule_for(optim, samples).total_steps == steps
