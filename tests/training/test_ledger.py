"""Steps are read together, each as it was, and often enough for a signal to be obeyed."""

import itertools
from typing import Any

import pytest
import torch

from fusmae.training import ledger as module
from fusmae.training.ledger import Ledger
from fusmae.training.step import Update


class OneRank:
    """The engine's side of a reading, alone."""

    def sum_over_ranks(self, values: list[Any]) -> list[float]:
        return [float(value) for value in values]

    def gather_over_ranks(self, value: Any) -> list[Any]:
        return [value]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that each reading of the clock is after the one before; the last stays."""
    steps = [0.0]
    now = itertools.accumulate(steps[min(i, len(steps) - 1)] for i in itertools.count())
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(now))
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    return steps


def add(book: Ledger, step: int, losses: list[dict[str, float]], skipped: float = 0.0) -> None:
    tensors = [{name: torch.tensor(value) for name, value in micro.items()} for micro in losses]
    ids = [torch.tensor([[0, 10 * step + n]]) for n in range(len(losses))]
    book.add(step, tensors, Update(torch.tensor(2.0), torch.tensor(skipped)), ids, step)


def test_steps_of_different_sensors_come_back_as_they_were(clock: list[float]) -> None:
    clock.append(1.0)
    book = Ledger()
    add(book, 1, [{"s1": 1.0, "s2": 2.0, "loss": 3.0}, {"s1": 2.0, "s2": 4.0, "loss": 6.0}])
    add(book, 2, [{"s2": 5.0, "loss": 5.0}, {"s2": 7.0, "loss": 7.0}])
    results, stopping, saving = book.read(OneRank(), stop=True)
    assert stopping and not saving
    assert [result.losses for result in results] == [
        {"s1": 1.5, "s2": 3.0, "loss": 4.5},
        {"s2": 6.0, "loss": 6.0},
    ]
    assert [(r.step, r.norm, r.replaced, r.bad_rows) for r in results] == [
        (1, 2.0, 1, None),
        (2, 2.0, 2, None),
    ]


def test_of_a_skipped_step_the_micro_batches_that_are_not_finite_are_blamed_else_all(
    clock: list[float],
) -> None:
    clock.append(1.0)
    book = Ledger()
    add(book, 1, [{"loss": 1.0}, {"loss": float("nan")}], skipped=1.0)
    add(book, 2, [{"loss": 1.0}, {"loss": 2.0}], skipped=1.0)
    results, *_ = book.read(OneRank(), stop=False)
    assert [result.bad_rows for result in results] == [[[0, 11]], [[0, 20], [0, 21]]]


@pytest.mark.parametrize(("step_s", "due"), [(0.05, 100), (2.0, 2), (8.0, 1)])
def test_ranks_agree_about_every_five_seconds(clock: list[float], step_s: float, due: int) -> None:
    """Whatever a line of metrics covers; the first step, whose length nobody knows, is read."""
    clock.append(step_s)
    book = Ledger()
    add(book, 1, [{"loss": 1.0}])
    assert book.is_due
    book.read(OneRank(), stop=False)
    for step in range(due):
        assert not book.is_due
        add(book, step, [{"loss": 1.0}])
    assert book.is_due
