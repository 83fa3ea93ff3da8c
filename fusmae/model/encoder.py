"""The encoder: patch embeddings, XAttnEncoder (Eqs. 2-5 of Fus-MAE) and ViT blocks.

It works for any non-empty subset of its sensors, for any image size that is a multiple of
the patch, and for all tokens or the visible ones only.

`fusion` says where the sensors meet. N is the number of blocks, g the global token:

    xae_xad  [z; g] through N - 1 blocks, z = XAttnEncoder(x, y)      and XAttnDecoder
    xae      the same
    xad      [x; y; g] through N blocks                               and XAttnDecoder
    none     the same (the way of MultiMAE)
    late     [x; g_x] and [y; g_y], each through N blocks of its own: sensors never meet
    stack    [e; g] through N blocks, e embedding the channels of all sensors together (SatViT)
"""

# B batch, C channels, H x W pixels, N tokens of one sensor, D width
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from fusmae.config import ModelConfig
from fusmae.model.attention import Block, CrossSensorAttention, Mlp, layer_norm
from fusmae.model.patches import NO_CLASS, PatchEmbedding, class_planes
from fusmae.model.positions import SinCosPositions

# MAE, MultiMAE: tokens that are learned rather than computed start from this normal.
TOKEN_STD = 0.02
# The name of the tokens that hold all sensors.
STACK = "stack"


# A NamedTuple: ZeRO-3's hooks find the tensors in tuples and dicts, not in other classes.
class EncoderOutput(NamedTuple):
    """`tokens`: (B, N, D) by sensor, in the model's order. `global_token`: (B, D).

    With `stack` fusion the tokens of all sensors are one, and their name is "stack"; with
    `late` fusion the global token is the mean of the sensors' own.
    """

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


def vit_blocks(count: int, config: ModelConfig) -> nn.ModuleList:
    return nn.ModuleList(Block(config.width, config.heads, config.mlp_ratio) for _ in range(count))


def new_global_token(config: ModelConfig) -> nn.Parameter:
    token = nn.Parameter(torch.empty(1, 1, config.width))
    nn.init.normal_(token, std=TOKEN_STD)
    return token


def run_blocks(z: Tensor, global_token: Tensor, blocks: Iterable[nn.Module]) -> Tensor:
    """Eqs. 6-7: append the global token (1, 1, D) to (B, N, D), and run; (B, N + 1, D)."""
    z = torch.cat([z, global_token.expand(len(z), -1, -1)], dim=1)
    for block in blocks:
        z = block(z)
    return z


class SensorEncoder(nn.Module):
    """`late` fusion: one sensor's own N blocks and global token, (B, N, D) to (B, N + 1, D).

    A whole ViT for each sensor, its class token included, as the two backbones of DeCUR (Wang
    et al. 2023, arXiv:2309.05300): what sensors share with another is nothing but the loss.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.blocks = vit_blocks(config.depth, config)
        self.global_token = new_global_token(config)

    def forward(self, x: Tensor) -> Tensor:
        return run_blocks(x, self.global_token, self.blocks)


class FusMAEEncoder(nn.Module):
    """Images of one or more sensors to tokens, fused as `config.fusion` says.

    With XAttnEncoder as block 1 the global token is appended after it (Eq. 6); otherwise it
    enters before block 1. There is no norm after the last block: as in MultiMAE, OUR choice.

    `config` is its shape and `channels` maps each sensor, in order, to its channel count. The
    image of a class map has one channel; `planes` counts it as one for each class.
    """

    def __init__(self, config: ModelConfig, channels: Mapping[str, int]) -> None:
        """Raises ValueError if `channels` is empty, or not 1 for a class map."""
        super().__init__()
        _check_channels(config, channels)
        self.config = config
        self.channels = dict(channels)
        self.planes = {s: config.num_classes_of(s) or count for s, count in channels.items()}
        # The sensors whose pixels are in a token, by the name of the tokens.
        self.members: dict[str, tuple[str, ...]] = {sensor: (sensor,) for sensor in channels}
        if config.fusion == "stack":
            self.members = {STACK: tuple(channels)}
        # The first child: torchgeo takes it for the input layer (PatchEmbedding.in_channels).
        self.patch_embed = nn.ModuleDict(
            {
                name: PatchEmbedding(
                    sum(self.planes[sensor] for sensor in sensors),
                    config.width,
                    config.patch_px_of(sensors[0]),
                )
                for name, sensors in self.members.items()
            }
        )
        side = config.image_px // config.patch_px
        self.positions = SinCosPositions(side, side, config.width)
        self.xattn: XAttnEncoder | None = None
        if config.fusion == "late":
            self.late = nn.ModuleDict({sensor: SensorEncoder(config) for sensor in channels})
            return
        if config.has_xae:
            self.xattn = XAttnEncoder(list(channels), config)
        self.blocks = vit_blocks(config.depth - config.has_xae, config)
        self.global_token = new_global_token(config)

    def forward(
        self, images: dict[str, Tensor], visible: dict[str, Tensor] | None = None
    ) -> EncoderOutput:
        """Encode some or all of the sensors.

        Args:
            images: (B, C, H, W) floats by sensor, normalised; of a class map (B, 1, H, W)
                class numbers, -1 for none. An absent sensor is left out together with its
                cross-attention term, and nothing else changes; `stack` needs all sensors.
            visible: (B, N) int64 token numbers by sensor; other tokens' pixels are not
                read. None encodes every token. `stack` takes the first sensor's for all.

        Raises:
            ValueError: no image, an unknown sensor, an image of the wrong channel count,
                size or dtype, a sensor that `stack` needs, or `visible` without one of the
                sensors.
        """
        tokens = self._embed(images, visible)
        if self.config.fusion == "late":
            apart = {sensor: self.late[sensor](x) for sensor, x in tokens.items()}
            own = torch.stack([z[:, -1] for z in apart.values()])
            return EncoderOutput({sensor: z[:, :-1] for sensor, z in apart.items()}, own.mean(0))
        counts = [x.shape[1] for x in tokens.values()]
        z = torch.cat(list(tokens.values()), dim=1) if self.xattn is None else self.xattn(tokens)
        z = run_blocks(z, self.global_token, self.blocks)
        *parts, global_token = torch.split(z, [*counts, 1], dim=1)
        return EncoderOutput(dict(zip(tokens, parts, strict=True)), global_token.squeeze(1))

    @property
    def skips_absent(self) -> bool:
        """Whether a sensor can be left out; `stack` needs `fill_absent` in its place."""
        return self.config.fusion != "stack"

    def pool(self, output: EncoderOutput) -> Tensor:
        """The mean over the tokens of all sensors present, (B, D); OUR choice."""
        return torch.cat(list(output.tokens.values()), dim=1).mean(dim=1)

    def fill_absent(self, images: dict[str, Tensor]) -> dict[str, Tensor]:
        """The images, and in place of each absent sensor its mean: zeros, or pixels of no class.

        For `stack`, which cannot skip a sensor, and to compare with skipping in the others.
        """
        given, image = next(iter(images.items()))
        grid = [size // self.config.patch_px_of(given) for size in image.shape[2:]]
        filled: dict[str, Tensor] = {}
        for sensor, count in self.channels.items():
            size = [cells * self.config.patch_px_of(sensor) for cells in grid]
            value = NO_CLASS if self.config.num_classes_of(sensor) else 0.0
            filled[sensor] = (
                images[sensor]
                if sensor in images
                else image.new_full((len(image), count, *size), value)
            )
        return filled

    def _embed(
        self, images: dict[str, Tensor], visible: dict[str, Tensor] | None
    ) -> dict[str, Tensor]:
        """Eq. 1: embeddings plus positions, (B, N, D) by sensor in the model's order."""
        self._check(images, visible)
        tokens: dict[str, Tensor] = {}
        for name, sensors in self.members.items():
            if sensors[0] not in images:
                continue
            planes = [self._as_planes(sensor, images[sensor]) for sensor in sensors]
            image = planes[0] if len(planes) == 1 else torch.cat(planes, dim=1)
            chosen = None if visible is None else visible[sensors[0]]
            embed = cast(PatchEmbedding, self.patch_embed[name])
            rows, cols = (size // embed.patch_px for size in image.shape[2:])
            positions = self.positions(rows, cols, embed.weight.dtype)
            tokens[name] = embed(image, chosen) + (
                positions if chosen is None else positions[chosen]
            )
        return tokens

    def _as_planes(self, sensor: str, image: Tensor) -> Tensor:
        """The image, or a channel for each class of a class map."""
        num_classes = self.config.num_classes_of(sensor)
        return class_planes(image, num_classes) if num_classes else image

    def _check(self, images: dict[str, Tensor], visible: dict[str, Tensor] | None) -> None:
        if not images:
            raise ValueError(f"no image was given; the encoder knows {list(self.channels)}")
        for sensor, image in images.items():
            if sensor not in self.channels:
                raise ValueError(f"unknown sensor {sensor!r}; known: {list(self.channels)}")
            expected = (self.channels[sensor], self.config.patch_px_of(sensor))
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
        absent = [sensor for sensor in self.channels if sensor not in images]
        if absent and self.config.fusion == "stack":
            raise ValueError(
                f"fusion 'stack' cannot skip sensor {', '.join(map(repr, absent))}: its channels "
                "are in every token; fill them with `fill_absent`"
            )


def _check_channels(config: ModelConfig, channels: Mapping[str, int]) -> None:
    if not channels:
        raise ValueError("the model needs at least one sensor; `channels` is empty")
    for sensor, count in channels.items():
        if config.num_classes_of(sensor) and count != 1:
            raise ValueError(f"sensor {sensor!r} is a class map of 1 channel, got {count}")
