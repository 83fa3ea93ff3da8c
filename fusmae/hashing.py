"""Random words of a sample, on its device: a pure function of (seed, position, stream).

`position` is a sample's place in the endless sequence of training samples. Masks, flips and crops
are drawn from it and not from torch's random state, so neither the rank nor the micro-batch has a
say. The hash is splitmix64 (Steele, Lea and Flood 2014, OOPSLA; constants as in
https://prng.di.unimi.it/splitmix64.c) in wrapping int64 arithmetic.
"""

import torch
from torch import Tensor


def _as_int64(value: int) -> int:
    """The int64 with the low 64 bits of `value`."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


_GOLDEN = _as_int64(0x9E3779B97F4A7C15)
_MIX_1 = _as_int64(0xBF58476D1CE4E5B9)
_MIX_2 = _as_int64(0x94D049BB133111EB)


def hash_positions(positions: Tensor, seed: int, stream: int) -> Tensor:
    """One word for each position, (B,) int64 like `positions` and on their device.

    Args:
        positions: (B,) int64.
        seed: any integer; its low 64 bits count.
        stream: keeps apart what is drawn from the same seed and position.

    Raises:
        ValueError: `positions` are no such tensor (of other integers other words would come), or
            `seed` is no int.
    """
    if not isinstance(seed, int):
        raise ValueError(f"seed = {seed!r} must be an int")
    if not isinstance(positions, Tensor) or positions.dtype != torch.int64 or positions.ndim != 1:
        shape = tuple(positions.shape) if isinstance(positions, Tensor) else ""
        kind = positions.dtype if isinstance(positions, Tensor) else type(positions).__name__
        raise ValueError(
            f"positions must be (B,) torch.int64, as a batch has them, got {shape} {kind}"
        )
    state = _mix(positions + _GOLDEN)
    state = _mix(state + _as_int64(seed))
    return _mix(state + stream)


def outputs(states: Tensor, count: int) -> Tensor:
    """The first `count` outputs of splitmix64 started from each of `states` (B,): (B, count)."""
    number = torch.arange(1, count + 1, device=states.device)
    return _mix(states[:, None] + number * _GOLDEN)


def below(words: Tensor, bound: int) -> Tensor:
    """Each word as a number from 0 to bound - 1; they are as good as equally likely."""
    return _shift_right(words, 1) % bound


def _mix(x: Tensor) -> Tensor:
    """splitmix64's bijection of 64-bit words."""
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """The logical shift; torch's own shift of int64 carries the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
