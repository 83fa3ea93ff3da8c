"""Counts what a step dispatches: operations, waits for the device, and bytes between ranks."""

from collections import Counter
from typing import Any, Self

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# A number for the host, and what has a shape that depends on values.
_WAIT_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
# They have that tag, but with numbers as indices nobody waits: a mask is searched first.
_INDEXED = (
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
)
# On a CPU they copy nothing, so that no operation is seen.
_COPIES = (torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.tolist)


class _Copies(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += function in _COPIES
        return function(*args, **(kwargs or {}))


class Operations(TorchDispatchMode):
    """Operations inside `with`; what is compiled runs eagerly there.

    total: all of them.
    sent: by collective, the bytes of its whole result, of a reduce-scatter of its whole input.

    A copy to the host that C++ makes, or `.to("cpu")`, looks on a CPU like none at all, and is not
    counted; test_gpu.py has a GPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = self._waits = 0
        self.sent: Counter[str] = Counter()
        self._copies = _Copies()

    @property
    def waits(self) -> int:
        """Times that the host would wait for a GPU."""
        return self._waits + self._copies.count

    def __enter__(self) -> Self:
        self._copies.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._copies.__exit__(*error)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.total += 1
        self._waits += _waits(function, args)
        if function.namespace == "c10d":
            whole = args[1] if "reduce_scatter" in function.__name__ else args[0]
            size = sum(leaf.nbytes for leaf in tree_leaves(whole) if torch.is_tensor(leaf))
            self.sent[function.__name__.partition(".")[0].strip("_")] += size
        return function(*args, **(kwargs or {}))


def _waits(function: Any, args: Any) -> bool:
    if function in _INDEXED:
        return any(index is not None and index.dtype == torch.bool for index in args[1])
    return not _WAIT_TAGS.isdisjoint(function.tags)
