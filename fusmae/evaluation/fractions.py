"""Which training samples a few-label protocol may see: seeded, without replacement, nested."""

import hashlib
from collections.abc import Sequence

from fusmae.data.subset import num_drawn


def choose_labelled(keys: Sequence[str], fraction: float, seed: int) -> list[str]:
    """The keys of round(fraction * len(keys)) samples, at least one, in their drawn order.

    Drawn by key, so that every ingest of an archive has the same labels; `draw_fraction` draws
    by sample id, which needs no keys.

    Keys are ordered by a hash of (seed, key) and the first ones are taken: a smaller fraction
    lies inside a larger one of the same seed, and the order of `keys` does not matter.

    Raises:
        ValueError: `fraction` is not in (0, 1], or there are no keys.
    """
    count = num_drawn(len(keys), fraction)
    drawn = sorted(keys, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())
    return drawn[:count]
