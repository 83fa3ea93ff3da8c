"""The vision transformer that published models are: stacked channels, timm's blocks."""

# B batch, C channels, S the image's side, N tokens on a grid of h x w, D width
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusmae.config import ModelConfig
from fusmae.model.encoder import STACK, EncoderOutput
from fusmae.model.patches import patchify
from fusmae.torchvision_repair import repair_torchvision

repair_torchvision()

from timm.models.vision_transformer import Block  # noqa: E402

# A sensor's image in deviations from the mean of each band, to what the model was trained on.
Normalise = Callable[[str, Tensor], Tensor]

_INIT_STD = 0.02  # of timm's and DINO's linear layers, positions and class token


@dataclass(frozen=True)
class VitShape:
    """A published vision transformer; `grid` is the side of its positions, in tokens."""

    width: int
    depth: int
    heads: int
    patch_px: int
    grid: int
    class_token: bool
    qkv_bias: bool
    norm_eps: float


def stretch_positions(positions: Tensor, rows: int, cols: int) -> Tensor:
    """Learned positions of a square grid, (1, N, D), for one of rows x cols; the same at its own.

    Bicubic with DINO's scale of (rows + 0.1) / side (facebookresearch/dino,
    `vision_transformer.py`): DINO-MM was trained through it, at half the side of its grid.
    """
    side = math.isqrt(positions.shape[1])
    if (rows, cols) == (side, side):
        return positions
    maps = positions.transpose(1, 2).reshape(1, -1, side, side)  # (1, D, side, side)
    scale = ((rows + 0.1) / side, (cols + 0.1) / side)
    return F.interpolate(maps, scale_factor=scale, mode="bicubic").flatten(2).transpose(1, 2)


class StackedVit(nn.Module):
    """Images by sensor, stacked as the published weights want them, to tokens.

    `channels` names the band of each channel of the patch embedding, "-" for one that is left
    out; a band may stand in several. Leaving a sensor out leaves out its kernels, which equals
    zeros in its channels. With `base_channels` the kernels are those of so many channels,
    inflated, and are scaled by base_channels / channels present, so that here a sensor is skipped
    and zeros are something else. A norm follows the last block.
    """

    def __init__(
        self,
        shape: VitShape,
        image_px: int,
        bands: Mapping[str, Sequence[str]],
        channels: Sequence[str],
        normalise: Normalise | None = None,
        base_channels: int = 0,
    ) -> None:
        """`bands`: each sensor's, as its images have them; all of `channels` are among them."""
        super().__init__()
        self.config = ModelConfig(
            fusion="stack",
            image_px=image_px,
            patch_px=shape.patch_px,
            width=shape.width,
            depth=shape.depth,
            heads=shape.heads,
        )
        self.channels = {sensor: len(names) for sensor, names in bands.items()}
        places = {band: (sensor, i) for sensor, b in bands.items() for i, band in enumerate(b)}
        self.sources = [None if name == "-" else places[name] for name in channels]
        self.normalise = normalise
        self.base_channels = base_channels
        kernel = (shape.width, len(channels), shape.patch_px, shape.patch_px)
        self.patch_weight = nn.Parameter(torch.empty(kernel))
        self.patch_bias = nn.Parameter(torch.zeros(shape.width))
        self.pos_embed = nn.Parameter(torch.empty(1, shape.grid**2, shape.width))
        self.cls_token: nn.Parameter | None = None
        if shape.class_token:
            # Its own position included, which other grids do not change.
            self.cls_token = nn.Parameter(torch.empty(1, 1, shape.width))
        norm = partial(nn.LayerNorm, eps=shape.norm_eps)
        self.blocks = nn.ModuleList(
            Block(shape.width, shape.heads, qkv_bias=shape.qkv_bias, norm_layer=norm)
            for _ in range(shape.depth)
        )
        self.norm = norm(shape.width)
        self._initialise()

    @property
    def skips_absent(self) -> bool:
        return self.base_channels > 0

    def fill_absent(self, images: dict[str, Tensor]) -> dict[str, Tensor]:
        """The images, and zeros for each absent sensor where that changes anything."""
        if not self.skips_absent:
            return images
        image = next(iter(images.values()))
        size = image.shape[2:]
        return {
            sensor: images.get(sensor, image.new_zeros(len(image), count, *size))
            for sensor, count in self.channels.items()
        }

    def forward(self, images: dict[str, Tensor]) -> EncoderOutput:
        """Images (B, C, S, S) by sensor, each in deviations from the mean, to normed tokens.

        Raises:
            ValueError: no image, an unknown sensor, or an image of another channel count or of
                a size that is no multiple of the patch.
        """
        self._check(images)
        present = [k for k, source in enumerate(self.sources) if source and source[0] in images]
        normalised = {
            sensor: image if self.normalise is None else self.normalise(sensor, image)
            for sensor, image in images.items()
        }
        planes = [normalised[sensor][:, i] for sensor, i in (self.sources[k] for k in present)]  # type: ignore[misc]
        z = self.embed(torch.stack(planes, dim=1), present)
        if self.cls_token is not None:
            z = torch.cat([self.cls_token.expand(len(z), -1, -1), z], dim=1)
        for block in self.blocks:
            z = block(z)
        z = self.norm(z)  # (B, N or 1 + N, D)
        if self.cls_token is None:
            return EncoderOutput({STACK: z}, z.new_empty(len(z), 0))
        return EncoderOutput({STACK: z[:, 1:]}, z[:, 0])

    def embed(self, image: Tensor, present: Sequence[int]) -> Tensor:
        """Tokens with their positions, (B, N, D), of the channels present, (B, C, S, S)."""
        weight = self.patch_weight[:, list(present)]
        if self.base_channels:
            weight = weight * (self.base_channels / len(present))
        patch_px = self.config.patch_px
        rows, cols = (side // patch_px for side in image.shape[2:])
        tokens = F.linear(patchify(image, patch_px), weight.flatten(1), self.patch_bias)
        return tokens + stretch_positions(self.pos_embed, rows, cols)

    def pool(self, output: EncoderOutput) -> Tensor:
        return output.tokens[STACK].mean(dim=1)

    def _check(self, images: dict[str, Tensor]) -> None:
        if not images:
            raise ValueError(f"no image was given; the encoder knows {list(self.channels)}")
        for sensor, image in images.items():
            if sensor not in self.channels:
                raise ValueError(f"unknown sensor {sensor!r}; known: {list(self.channels)}")
            count, patch_px = self.channels[sensor], self.config.patch_px
            if (
                image.ndim != 4
                or image.shape[1] != count
                or any(side % patch_px for side in image.shape[2:])
            ):
                raise ValueError(
                    f"images of sensor {sensor!r} are {tuple(image.shape)}, expected "
                    f"(B, {count}, H, W) with H and W multiples of {patch_px}"
                )

    def _initialise(self) -> None:
        """As timm and DINO: what `random` features start from."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=_INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_weight.view(len(self.patch_weight), -1))
        nn.init.trunc_normal_(self.pos_embed, std=_INIT_STD)
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=_INIT_STD)
