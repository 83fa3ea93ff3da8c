"""From the names of a published vision transformer's weights to those of `StackedVit`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusmae.evaluation.backbones.checkpoints import take_tensors
from fusmae.evaluation.backbones.vit import StackedVit

# What is not named block by block.
_OWN = ("patch_weight", "patch_bias", "pos_embed", "cls_token")


@dataclass(frozen=True)
class Layout:
    """Where a checkpoint keeps what.

    `name` gives the published name of one of ours, of blocks and norm; `patch` is the module of
    the patch embedding and `kernel` its weight's shape; `unused` are starts of names that are
    known and not needed.
    """

    name: Callable[[str], str]
    patch: str
    kernel: Sequence[int]
    unused: tuple[str, ...]


def on_meta(make: Callable[[], StackedVit]) -> StackedVit:
    """The encoder without memory for its weights, which `finish` brings."""
    with torch.device("meta"):
        return make()


def read_weights(
    encoder: StackedVit, found: Mapping[str, Any], layout: Layout, where: str
) -> dict[str, Tensor]:
    """The weights by our names; `patch_weight` is the published kernel as it is.

    The class token's position, which is the first one, is added to the token.

    Raises:
        ValueError: as `take_tensors`; `where` says of which file.
    """
    state = encoder.state_dict()
    names = {ours: layout.name(ours) for ours in state if ours not in _OWN}
    expected = {theirs: tuple(state[ours].shape) for ours, theirs in names.items()}
    prefix = int("cls_token" in state)
    _, num_tokens, width = state["pos_embed"].shape
    expected |= {
        f"{layout.patch}.weight": tuple(layout.kernel),
        f"{layout.patch}.bias": (width,),
        "pos_embed": (1, prefix + num_tokens, width),
    }
    if prefix:
        expected["cls_token"] = (1, 1, width)
    taken = take_tensors(found, expected, layout.unused, where)
    weights = {ours: taken[theirs] for ours, theirs in names.items()}
    weights["patch_weight"] = taken[f"{layout.patch}.weight"]
    weights["patch_bias"] = taken[f"{layout.patch}.bias"]
    weights["pos_embed"] = taken["pos_embed"][:, prefix:].contiguous()
    if prefix:
        weights["cls_token"] = taken["cls_token"] + taken["pos_embed"][:, :1]
    return weights


def finish(encoder: StackedVit, weights: Mapping[str, Tensor]) -> StackedVit:
    """The encoder of `on_meta` with these weights."""
    encoder.load_state_dict(dict(weights), assign=True)
    return encoder
