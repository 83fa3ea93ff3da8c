"""The counter of operations sees what would make the host wait for a GPU."""

from collections.abc import Callable

import pytest
import torch

from .operations import Operations

X, MASK = torch.arange(6.0), torch.arange(6) > 2
TIMES = torch.ones(6, dtype=torch.int64)

WAITS: dict[str, Callable[[], object]] = {
    "item": lambda: X[0].item(),
    "float": lambda: float(X[1]),
    "bool": lambda: bool(MASK[0]),
    "tolist": lambda: X.tolist(),
    "cpu": lambda: X.cpu(),
    "numpy": lambda: X.detach().numpy(),
    "nonzero": lambda: MASK.nonzero(),
    "where": lambda: torch.where(MASK),
    "masked_select": lambda: X.masked_select(MASK),
    "mask": lambda: X[MASK],
    "assignment to a mask": lambda: X.clone().__setitem__(MASK, X[:3] * 2),
    "unique": lambda: torch.unique(X),
    "unique_consecutive": lambda: torch.unique_consecutive(X),
    "equal": lambda: torch.equal(X, X + 1),
    "repeat_interleave": lambda: X.repeat_interleave(TIMES),
}
DOES_NOT: dict[str, Callable[[], object]] = {
    "product": lambda: X @ X,
    "indices": lambda: X[TIMES],
    "assignment to indices": lambda: X.clone().__setitem__(TIMES[:1], X[:1] * 2),
    "gather": lambda: X.gather(0, TIMES),
    "choice": lambda: torch.where(MASK, X, 0.0),
    "sort": lambda: X.argsort(),
    "repetition": lambda: X.repeat_interleave(2),
}


@pytest.mark.parametrize("name", WAITS)
def test_a_wait_is_counted(name: str) -> None:
    with Operations() as counted:
        WAITS[name]()
    assert counted.waits == 1


@pytest.mark.parametrize("name", DOES_NOT)
def test_what_does_not_wait_is_not_counted_as_a_wait(name: str) -> None:
    with Operations() as counted:
        DOES_NOT[name]()
    assert counted.total > 0
    assert counted.waits == 0
