"""What single tokens attend to: maps of one sensor's token over another sensor's image."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import permutations
from typing import Any, cast

import torch
from torch import Tensor, nn

from fusmae.evaluation.attention import check_joint, token_counts, watched
from fusmae.model import FusMAE, FusMAEEncoder
from fusmae.model.attention import CrossAttention
from fusmae.model.decoder import XAttnDecoder
from fusmae.model.encoder import XAttnEncoder

# B batch, A heads, N queries, M keys, h x w the token grid


@dataclass(frozen=True)
class TokenMap:
    """The attention of one token of `query`, its row and column in `token`, over `key`'s tokens.

    `times_uniform` is (B, h, w) float32, the mean over heads, 1 where a token of `key` gets what it
    would if all keys had the same.
    """

    layer: str
    query: str
    key: str
    token: tuple[int, int]
    times_uniform: Tensor


def token_maps(model: FusMAE, images: dict[str, Tensor], sensors: Sequence[str]) -> list[TokenMap]:
    """Maps of the middle token of each of `sensors` over each other one, where sensors meet.

    First those of XAttnEncoder, or of block 1 where there is none, then those of the last block,
    then those of XAttnDecoder where there is one. All of the encoder's sensors are in `images`;
    nothing is masked.

    Raises:
        ValueError: the encoder has no joint self-attention.
    """
    encoder, decoder = model.encoder, model.xattn_decoder
    check_joint(encoder)
    counts = token_counts(encoder, images)
    starts = dict(zip(counts, _starts(list(counts.values())), strict=True))
    rows, cols = _grid(encoder, images)
    token = (rows // 2, cols // 2)
    number = token[0] * cols + token[1]
    found: dict[int, Tensor] = {}
    ends = {encoder.config.depth} | (set() if encoder.xattn else {1})

    def look(block: int, weights: Tensor) -> None:
        if block in ends:
            found[block] = weights.mean(1)  # (B, N, N)

    pairs = list(permutations(sensors, 2))
    maps: list[TokenMap] = []

    def add_crossings(layer: str, crossed: dict[str, Tensor]) -> None:
        for query, key in pairs if crossed else []:
            others = [sensor for sensor in encoder.channels if sensor != query]
            start = sum(counts[sensor] for sensor in others[: others.index(key)])
            line = crossed[query][:, number]  # (B, M)
            maps.append(_map(layer, query, key, token, line, start, (rows, cols)))

    with watched(encoder, look), _crossings(encoder.xattn) as crossed, torch.inference_mode():
        latents = encoder(images).tokens
    add_crossings("XAttnEncoder", crossed)
    for block, weights in sorted(found.items()):
        for query, key in pairs:
            line = weights[:, starts[query] + number]  # (B, N)
            maps.append(_map(f"block {block}", query, key, token, line, starts[key], (rows, cols)))
    with _crossings(decoder) as crossed, torch.inference_mode():
        if decoder is not None:
            decoder(latents)
    add_crossings("XAttnDecoder", crossed)
    return maps


@contextmanager
def _crossings(part: XAttnEncoder | XAttnDecoder | None) -> Iterator[dict[str, Tensor]]:
    """Within, each sensor's cross-attention leaves its attention here, (B, N, M), mean over heads.

    Empty for a model without this part.
    """
    crossed: dict[str, Tensor] = {}

    def hook_of(sensor: str, attention: CrossAttention) -> Callable[[nn.Module, Any], None]:
        def hook(_: nn.Module, inputs: Any) -> None:
            crossed[sensor] = attention.weights(*inputs).mean(1)

        return hook

    hooks = []
    for sensor, module in part.cross.attention.items() if part else []:
        attention = cast(CrossAttention, module)
        hooks.append(attention.register_forward_pre_hook(hook_of(sensor, attention)))
    try:
        yield crossed
    finally:
        for hook in hooks:
            hook.remove()


def _map(
    layer: str,
    query: str,
    key: str,
    token: tuple[int, int],
    line: Tensor,
    start: int,
    grid: tuple[int, int],
) -> TokenMap:
    """The part of a query's attention (B, keys) that lies on the h * w keys from `start` on."""
    part = line[:, start : start + grid[0] * grid[1]] * line.shape[1]
    return TokenMap(layer, query, key, token, part.reshape(-1, *grid))


def _grid(encoder: FusMAEEncoder, images: dict[str, Tensor]) -> tuple[int, int]:
    """Rows and columns of the token grid, which all sensors share."""
    sensor = next(iter(encoder.channels))
    patch_px = encoder.config.patch_px_of(sensor)
    height, width = images[sensor].shape[2:]
    return height // patch_px, width // patch_px


def _starts(sizes: Sequence[int]) -> list[int]:
    return [sum(sizes[:place]) for place in range(len(sizes))]
