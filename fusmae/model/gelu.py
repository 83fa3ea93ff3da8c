"""The exact GELU, x Phi(x), without a branch where it is compiled."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# Press et al., Numerical Recipes in C, 2nd ed., sec. 6.2, `erfcc`: erfc(z) for z >= 0 is
# t exp(-z^2 + p(t)), t = 1 / (1 + z / 2), with a relative error below 1.2e-7, float32's own.
# The highest power of t first.
_ERFC = (
    0.17087277,
    -0.82215223,
    1.48851587,
    -1.13520398,
    0.27886807,
    -0.18628806,
    0.09678418,
    0.37409196,
    1.00002368,
    -1.26551223,
)
_LOG2_E = math.log2(math.e)


def gelu(x: Tensor) -> Tensor:
    """x Phi(x), Phi the normal distribution's: torch's `gelu`, to float32's rounding.

    CUDA's erf takes one of two branches for each value, and with it a compiled GELU takes half as
    long again as its bytes would. In a compiled model it is therefore one formula for all values.
    """
    if x.is_cuda and torch.compiler.is_compiling():
        compiled: Tensor = BranchFree.apply(x)  # type: ignore[no-untyped-call]
        return compiled
    return F.gelu(x)


def normal_cdf(x: Tensor) -> Tensor:
    """Phi(x) of float32, with a relative error of some 1e-7 also where it is tiny."""
    z = x.abs() * math.sqrt(0.5)
    t = 1 / (1 + 0.5 * z)
    power = torch.full_like(t, _ERFC[0])
    for coefficient in _ERFC[1:]:
        power = power * t + coefficient
    tail = 0.5 * t * torch.exp2((power - z * z) * _LOG2_E)
    return torch.where(x < 0, tail, 1 - tail)


class BranchFree(torch.autograd.Function):
    """GELU and its derivative in float32, rounded to the input's dtype."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        wide = x.float()
        return (wide * normal_cdf(wide)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        wide = x.float()
        density = torch.exp2(wide * wide * (-0.5 * _LOG2_E)) * (1 / math.sqrt(2 * math.pi))
        return (gradient.float() * (normal_cdf(wide) + wide * density)).to(x.dtype)
