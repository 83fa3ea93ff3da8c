"""The encoder: patch embeddings, XAttnEncoder (Eqs. 2-5 of Fus-MAE) and ViT blocks.

It works for any non-empty subset of its sensors, for any image size that is a multiple of
the patch, and for all tokens or the visible ones only.
"""

# B batch, C channels, H x W pixels, N tokens of one sensor, D width
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fusmae.config import ModelConfig
from fusmae.model.attention import Block, CrossSensorAttention, Mlp, layer_norm
from fusmae.model.patches import PatchEmbedding
from fusmae.model.positions import SinCosPositions

# MAE, MultiMAE: tokens that are learned rather than computed start from this normal.
TOKEN_STD = 0.02


# A NamedTuple: ZeRO-3's hooks find the tensors in tuples and dicts, not in other classes.
class EncoderOutput(NamedTuple):
    """`tokens`: (B, N, D) by sensor, in the model's order. `global_token`: (B, D)."""

    tokens: dict[str, Tensor]
    global_token: Tensor


class XAttnEncoder(nn.Module):
    """XAttnEncoder, which takes the place of the first ViT block.

    Eq. 2: z = concat(x, y) + concat(CA(x, y), CA(y, x)), one CA for each sensor; then
    z + MLP(z) with one MLP for all. The paper writes no norms; pre-norm is OUR choice.
    """

    def __init__(self, sensors: Sequence[str], config: ModelConfig) -> None:
        super().__init__()
        self.cross = CrossSensorAttention(sensors, config.width, config.heads)
        self.norm = layer_norm(config.width)
        self.mlp = Mlp(config.width, config.mlp_ratio)

    def forward(self, tokens: dict[str, Tensor]) -> Tensor:
        """(B, N_s, D) by sensor to (B, sum of N_s, D), in the order of `tokens`."""
        z = torch.cat(list(self.cross(tokens).values()), dim=1)
        return z + self.mlp(self.norm(z))


class FusMAEEncoder(nn.Module):
    """Images of one or more sensors to fused tokens.

    With `fusion = "xae_xad"` XAttnEncoder is block 1 and the global token is appended after
    it (Eq. 6); with `"xad"` all blocks are joint self-attention and the global token enters
    before block 1. There is no norm after the last block: as in MultiMAE, OUR choice.

    `config` is its shape and `channels` maps each sensor, in order, to its channel count.
    """

    def __init__(self, config: ModelConfig, channels: Mapping[str, int]) -> None:
        """Raises ValueError if `channels` is empty."""
        super().__init__()
        if not channels:
            raise ValueError("the model needs at least one sensor; `channels` is empty")
        self.config = config
        self.channels = dict(channels)
        side = config.image_px // config.patch_px
        self.positions = SinCosPositions(side, side, config.width)
        self.patch_embed = nn.ModuleDict(
            {
                sensor: PatchEmbedding(count, config.width, config.patch_px)
                for sensor, count in channels.items()
            }
        )
        self.xattn = XAttnEncoder(list(channels), config) if config.fusion == "xae_xad" else None
        num_blocks = config.depth - (self.xattn is not None)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.mlp_ratio) for _ in range(num_blocks)
        )
        self.global_token = nn.Parameter(torch.empty(1, 1, config.width))
        nn.init.normal_(self.global_token, std=TOKEN_STD)

    def forward(
        self, images: dict[str, Tensor], visible: dict[str, Tensor] | None = None
    ) -> EncoderOutput:
        """Encode some or all of the sensors.

        Args:
            images: (B, C, H, W) floats by sensor, normalised. An absent sensor is left out
                together with its cross-attention term, and nothing else changes.
            visible: (B, N) int64 token numbers by sensor; other tokens' pixels are not
                read. None encodes every token.

        Raises:
            ValueError: no image, an unknown sensor, an image of the wrong channel count,
                size or dtype, or `visible` without one of the sensors.
        """
        tokens = self._embed(images, visible)
        counts = [x.shape[1] for x in tokens.values()]
        z = torch.cat(list(tokens.values()), dim=1) if self.xattn is None else self.xattn(tokens)
        z = torch.cat([z, self.global_token.expand(len(z), -1, -1)], dim=1)
        for block in self.blocks:
            z = block(z)
        *parts, global_token = z.split([*counts, 1], dim=1)
        return EncoderOutput(dict(zip(tokens, parts, strict=True)), global_token.squeeze(1))

    def pool(self, output: EncoderOutput) -> Tensor:
        """The mean over the tokens of all sensors present, (B, D); OUR choice."""
        return torch.cat(list(output.tokens.values()), dim=1).mean(dim=1)

    def _embed(
        self, images: dict[str, Tensor], visible: dict[str, Tensor] | None
    ) -> dict[str, Tensor]:
        """Eq. 1: embeddings plus positions, (B, N, D) by sensor in the model's order."""
        self._check(images, visible)
        tokens: dict[str, Tensor] = {}
        for sensor in self.channels:
            if sensor not in images:
                continue
            image = images[sensor]
            chosen = None if visible is None else visible[sensor]
            rows, cols = (size // self.config.patch_px for size in image.shape[2:])
            positions = self.positions(rows, cols, self.global_token.dtype)
            tokens[sensor] = self.patch_embed[sensor](image, chosen) + (
                positions if chosen is None else positions[chosen]
            )
        return tokens

    def _check(self, images: dict[str, Tensor], visible: dict[str, Tensor] | None) -> None:
        if not images:
            raise ValueError(f"no image was given; the encoder knows {list(self.channels)}")
        for sensor, image in images.items():
            if sensor not in self.channels:
                raise ValueError(f"unknown sensor {sensor!r}; known: {list(self.channels)}")
            expected = (self.channels[sensor], self.config.patch_px)
            if (
                image.ndim != 4
                or image.shape[1] != expected[0]
                or image.shape[2] % expected[1]
                or image.shape[3] % expected[1]
                or not image.is_floating_point()
            ):
                raise ValueError(
                    f"images of sensor {sensor!r} are {image.dtype} {tuple(image.shape)}, "
                    f"expected floats (B, {expected[0]}, H, W) with H and W multiples "
                    f"of {expected[1]}"
                )
            if visible is not None and sensor not in visible:
                raise ValueError(f"sensor {sensor!r} has an image but no `visible` tokens")
