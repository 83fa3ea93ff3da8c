"""The engine's side of a checkpoint, for one rank and without DeepSpeed."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fusmae.training.engine import ParameterState


class Memory:
    """Two parameters, every number of them `value` or little more."""

    device = torch.device("cpu")

    def __init__(self, value: float) -> None:
        self.named = {
            name: ParameterState(*(torch.full((3, 2), float(value + i)) for i in range(3)))
            for name in ("a.weight", "b.bias")
        }
        self.adam_steps = int(value)

    @property
    def tensors(self) -> dict[str, dict[str, Tensor]]:
        return {
            part: {name: getattr(state, part) for name, state in self.named.items()}
            for part in ParameterState._fields
        }

    def states(self) -> Iterator[tuple[str, ParameterState]]:
        yield from self.named.items()

    def restore(self, state_of: Callable[[str], ParameterState], adam_steps: int) -> None:
        self.named = {name: state_of(name) for name in self.named}
        self.adam_steps = adam_steps

    def gather_over_ranks(self, value: Any) -> list[Any]:
        return [value]
