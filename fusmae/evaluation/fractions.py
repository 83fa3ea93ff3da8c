"""Which training samples a few-label protocol may see: seeded, without replacement, nested."""

import hashlib
from collections.abc import Sequence


def choose_labelled(keys: Sequence[str], fraction: float, seed: int) -> list[str]:
    """The keys of round(fraction * len(keys)) samples, at least one, in their drawn order.

    Keys are ordered by a hash of (seed, key) and the first ones are taken: a smaller fraction
    lies inside a larger one of the same seed, and the order of `keys` does not matter.

    Raises:
        ValueError: `fraction` is not in (0, 1], or there are no keys.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction = {fraction} must be above 0 and at most 1 (1 % is 0.01)")
    if not keys:
        raise ValueError("the train split has no samples to draw from")
    drawn = sorted(keys, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())
    return drawn[: max(1, round(fraction * len(keys)))]
