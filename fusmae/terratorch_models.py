"""An exported encoder as a TerraTorch backbone: `import fusmae.terratorch_models`, or its path
as TerraTorch's `custom_modules_path`, then `backbone="fusmae"` in a recipe of TerraTorch's.

TerraTorch is needed here only.
"""

# B batch, C channels, H x W pixels, D width, h x w tokens
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from fusmae.model.features import load_encoder
from fusmae.model.levels import run_with_levels
from fusmae.torchvision_repair import repair_torchvision

repair_torchvision()

from terratorch.registry import TERRATORCH_BACKBONE_REGISTRY  # noqa: E402

__all__ = ["FusMAEBackbone", "fusmae"]


class FusMAEBackbone(nn.Module):
    """Feature maps of chosen blocks, as TerraTorch's decoders want them.

    `out_channels` has the channels of each map, `patch_size` the side of a token in pixels, to
    whose multiple TerraTorch pads.
    """

    def __init__(
        self,
        encoder: str | Path,
        modalities: Sequence[str] | None,
        bands: Mapping[str, Sequence[str]] | None,
        blocks: Sequence[int],
        merge: Literal["mean", "concat"],
        normalise: bool,
    ) -> None:
        """Raises ValueError if the encoder has no such sensor, band or block."""
        super().__init__()
        if merge not in ("mean", "concat"):
            raise ValueError(f"merge = {merge!r} must be mean or concat")
        self.pretrained = load_encoder(encoder, sensors=modalities, bands=bands)
        model = self.pretrained.card.model
        wrong = [block for block in blocks if not 1 <= block <= model.depth]
        if wrong or not blocks:
            raise ValueError(f"blocks = {list(blocks)}: give some of 1 to {model.depth}")
        self.blocks = tuple(blocks)
        self.merge = merge
        self.normalise = normalise
        self.patch_size = model.patch_px
        parts = len(self.pretrained.encoder.members) if merge == "concat" else 1
        self.out_channels = [parts * model.width] * len(blocks)

    def forward(self, images: Tensor | Mapping[str, Tensor]) -> list[Tensor]:
        """Maps (B, D, h, w), or (B, sensors * D, h, w) with `merge` "concat", one a block.

        `images`: (B, C, H, W) by sensor, channels in the order of `pretrained.bands`; a tensor
        alone is the first sensor's. With `merge` "mean" sensors may be absent.

        Raises:
            ValueError: an unknown sensor or other channels; with "concat", an absent sensor.
        """
        if isinstance(images, Tensor):
            images = {next(iter(self.pretrained.bands)): images}
        if self.merge == "concat" and len(images) != len(self.pretrained.bands):
            raise ValueError(
                f"merge = 'concat' needs all of {list(self.pretrained.bands)}, given: "
                f"{list(images)}; 'mean' does with some"
            )
        if self.normalise:
            levels = self.pretrained.levels(images, self.blocks)
        else:
            levels, _ = run_with_levels(self.pretrained.encoder, dict(images), self.blocks)
        return [self._merged(list(level.values())) for level in levels]

    def _merged(self, maps: list[Tensor]) -> Tensor:
        if self.merge == "concat":
            return torch.cat(maps, dim=1)
        return torch.stack(maps).mean(dim=0)


@TERRATORCH_BACKBONE_REGISTRY.register  # type: ignore[untyped-decorator]
def fusmae(
    encoder: str,
    modalities: Sequence[str] | None = None,
    bands: Mapping[str, Sequence[str]] | None = None,
    blocks: Sequence[int] = (3, 6, 9, 12),
    merge: Literal["mean", "concat"] = "mean",
    normalise: bool = False,
    **options: bool,
) -> FusMAEBackbone:
    """The backbone of an exported encoder.

    Args:
        encoder: a folder, `RUN/encoder`, or `hf://owner/name`.
        modalities: the sensors to keep, such as ["s2"]; all by default.
        bands: sensor -> the bands that its images have, in their order.
        blocks: whose outputs are wanted; 1 is the first, XAttnEncoder if the encoder has one.
        merge: how the sensors' maps become one.
        normalise: False takes images as a data module of TerraTorch normalises them, which must
            then be done with the encoder's own numbers (`card.mean`, `card.std`); True takes
            stored units, dB and reflectance * 10000, of a data module that normalises nothing.
        options: `pretrained`, which TerraTorch's recipes give, must be true if it is there.

    Raises:
        ValueError: the encoder cannot be had, or has no such sensor, band or block.
    """
    unknown = sorted(set(options) - {"pretrained"})
    if unknown or not options.get("pretrained", True):
        raise ValueError(
            f"unknown options {unknown}"
            if unknown
            else "pretrained = false: this backbone is an export's; it has no random weights"
        )
    return FusMAEBackbone(encoder, modalities, bands, blocks, merge, normalise)
