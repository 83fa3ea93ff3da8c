"""What the blocks of an encoder give on the way, as feature maps by sensor."""

# B batch, N tokens of one sensor on a grid of h x w, D width
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from torch import Tensor, nn

from fusmae.model.encoder import EncoderOutput, FusMAEEncoder


def run_with_levels(
    encoder: FusMAEEncoder, images: dict[str, Tensor], blocks: Sequence[int]
) -> tuple[list[dict[str, Tensor]], EncoderOutput]:
    """The maps of each sensor, (B, D, h, w), after each of `blocks`, and the encoder's output.

    Blocks are numbered from 1 to the depth, XAttnEncoder is block 1. The maps of the last block
    are the output's tokens. Not for several threads at once on one encoder.

    Raises:
        ValueError: there is no such block; else as the encoder.
    """
    depth = encoder.config.depth
    if not blocks or not all(1 <= number <= depth for number in blocks):
        raise ValueError(f"blocks must be numbers from 1 to {depth}, got {list(blocks)}")
    taken: dict[tuple[int, str], Tensor] = {}
    hooks = [
        module.register_forward_hook(_keep(taken, (number, name)))
        for number, name, module in _numbered_blocks(encoder)
        if number in blocks
    ]
    try:
        output: EncoderOutput = encoder(images)
    finally:
        for hook in hooks:
            hook.remove()
    grids = {name: _grid(encoder, name, images) for name in output.tokens}
    return [_maps(taken, number, grids) for number in blocks], output


def _grid(encoder: FusMAEEncoder, name: str, images: Mapping[str, Tensor]) -> tuple[int, int]:
    """Rows and columns of the tokens called `name`."""
    sensor = encoder.members[name][0]
    patch_px = encoder.config.patch_px_of(sensor)
    height, width = images[sensor].shape[2:]
    return height // patch_px, width // patch_px


def _numbered_blocks(encoder: FusMAEEncoder) -> list[tuple[int, str, nn.Module]]:
    """Number, name of its tokens ("" for those of all sensors, joined) and module of each block."""
    if encoder.config.fusion == "late":
        return [
            (number, sensor, block)
            for sensor, own in encoder.late.items()
            for number, block in enumerate(cast(nn.ModuleList, own.blocks), start=1)
        ]
    first: list[nn.Module] = [] if encoder.xattn is None else [encoder.xattn]
    return [(number, "", block) for number, block in enumerate([*first, *encoder.blocks], start=1)]


def _keep(
    taken: dict[tuple[int, str], Tensor], key: tuple[int, str]
) -> Callable[[nn.Module, object, Tensor], None]:
    """A forward hook that puts what its block gave into `taken`."""

    def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
        taken[key] = output

    return hook


def _maps(
    taken: Mapping[tuple[int, str], Tensor], number: int, grids: Mapping[str, tuple[int, int]]
) -> dict[str, Tensor]:
    """What block `number` gave, the global token at the end of it dropped, as maps by sensor."""
    maps: dict[str, Tensor] = {}
    start = 0
    for name, (rows, cols) in grids.items():
        count = rows * cols
        if (number, name) in taken:  # blocks of its own
            tokens = taken[number, name][:, :count]
        else:
            tokens = taken[number, ""][:, start : start + count]
            start += count
        maps[name] = tokens.transpose(1, 2).reshape(len(tokens), -1, rows, cols)
    return maps
