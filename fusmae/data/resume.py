"""What a saved place in an order belongs to, and the refusal to go on in another one."""

import hashlib
from collections.abc import Mapping
from typing import Any

from fusmae.config import SubsetConfig
from fusmae.data.order import Order
from fusmae.data.reader import SplitReader


def describe_order(
    reader: SplitReader, order: Order, seed: int, window: int, subset: SubsetConfig
) -> dict[str, Any]:
    """What defines a sequence of samples; JSON-ready. The two digests decide, the rest explains."""
    hashes = "".join(shard.sha256 for shard in reader.record.shards)
    return {
        "digest": order.digest,
        "shards_sha256": hashlib.sha256(hashes.encode()).hexdigest(),
        "split": reader.split,
        "subset": str(subset),
        "num_samples": order.num_samples,
        "seed": seed,
        "window": window,
    }


def consumed_of(state: Mapping[str, Any], mine: Mapping[str, Any]) -> int:
    """The positions that `state` says are consumed.

    Raises:
        ValueError: the state belongs to another order or other shards than `mine`, from
            `describe_order`, and what differs is named; or it is no such state.
    """
    if any(state.get(key) != mine[key] for key in ("digest", "shards_sha256")):
        differs = [
            f"{key} was {state.get(key)!r} and is {mine[key]!r}"
            for key in mine
            if state.get(key) != mine[key]
        ]
        raise ValueError(f"cannot resume in another order of samples: {'; '.join(differs)}")
    consumed = state.get("consumed")
    if not isinstance(consumed, int) or consumed < 0:
        raise ValueError(f"consumed = {consumed!r} must be a whole number, 0 or more")
    return consumed
