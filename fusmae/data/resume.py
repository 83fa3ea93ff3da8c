"""What a saved place in an order belongs to, and the refusal to go on in another one."""

import hashlib
from collections.abc import Mapping
from typing import Any

from fusmae.config import SubsetConfig
from fusmae.data.order import Order
from fusmae.data.reader import SplitReader

# What decides whether two sequences are one; the rest of a description explains.
_DIGESTS = ("digest", "shards_sha256")


def describe_order(
    reader: SplitReader, order: Order, seed: int, window: int, subset: SubsetConfig
) -> dict[str, Any]:
    """What defines a sequence of samples; JSON-ready."""
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
    if not isinstance(state, Mapping):
        raise ValueError(f"cannot resume: {state!r} is no state of a loader or a stream")
    if any(state.get(key) != mine[key] for key in _DIGESTS):
        if not set(_DIGESTS) <= set(state):
            raise ValueError(f"cannot resume: this is no state of a loader, it has {list(state)}")
        differs = [key for key in mine if key not in _DIGESTS and state.get(key) != mine[key]]
        told = [f"{key} was {state.get(key)!r} and is {mine[key]!r}" for key in differs]
        if "window" in differs:
            told.append("give the window that was, or the cache_gb of then if a URL's cache set it")
        if state["shards_sha256"] != mine["shards_sha256"]:
            told.append("the shards have other contents (another dataset, or another ingest)")
        elif not told:
            told.append("the subset holds other samples")
        raise ValueError(f"cannot resume in another order of samples: {'; '.join(told)}")
    consumed = state.get("consumed")
    if not isinstance(consumed, int) or consumed < 0:
        raise ValueError(f"consumed = {consumed!r} must be a whole number, 0 or more")
    return consumed
