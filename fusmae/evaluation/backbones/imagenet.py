"""ViT-B/16 trained on ImageNet, timm's weights, its patch embedding inflated to the bands."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fusmae.evaluation.backbones.backbone import Backbone
from fusmae.evaluation.backbones.checkpoints import read_checkpoint
from fusmae.evaluation.backbones.layout import Layout, finish, on_meta, read_weights
from fusmae.evaluation.backbones.vit import StackedVit, VitShape
from fusmae.model import EncoderCard
from fusmae.sensors import S1, SEN12MS_S2

# timm's vit_base_patch16_224.
SHAPE = VitShape(768, 12, 12, 16, grid=14, class_token=True, qkv_bias=True, norm_eps=1e-6)
_IMAGE_PX = 224
_BANDS = {
    "s1": S1.band_names,
    # Those of level 2A: B10 is in no other row of the tables.
    "s2": tuple(name for name in SEN12MS_S2.band_names if name != "B10"),
}
_CHANNELS = _BANDS["s1"] + _BANDS["s2"]
_RGB = ("B04", "B03", "B02")
_LAYOUT = Layout(
    name=lambda ours: ours, patch="patch_embed.proj", kernel=(768, 3, 16, 16), unused=("head.",)
)


def inflate(kernel: Tensor, channels: Sequence[str]) -> Tensor:
    """The kernels (D, C, P, P) of these bands from those of red, green and blue, (D, 3, P, P).

    B04, B03 and B02 have theirs, every other band the mean of the three. Scaled by 3 / C, as
    timm's `adapt_input_conv` scales, an image of C equal bands has the tokens of a grey one.
    timm itself deals out red, green and blue by the order of the channels, which would give
    each radar and infrared band the contrast of a colour that it does not measure.
    """
    colours = dict(zip(_RGB, kernel.unbind(1), strict=True))
    mean = kernel.mean(dim=1)
    return torch.stack([colours.get(name, mean) for name in channels], dim=1)


def open_imagenet(path: Path) -> Backbone:
    """A file of timm's ViT-B/16 at 224 px, safetensors or torch's.

    Raises:
        ValueError: it is no such file; the keys are named.
    """
    encoder = on_meta(_make)
    weights = read_weights(encoder, read_checkpoint(path), _LAYOUT, f"{path}: not timm's ViT-B/16")
    weights["patch_weight"] = inflate(weights["patch_weight"], _CHANNELS)
    unknown = {sensor: (float("nan"),) * len(names) for sensor, names in _BANDS.items()}
    return Backbone(
        name="imagenet",
        label="ImageNet",
        card=EncoderCard(
            model=encoder.config,
            bands=_BANDS,
            mean=unknown,
            std=unknown,
            resample="bicubic",  # timm's for these weights
            dataset="ImageNet",
            simulated=False,
            licence="weights: Apache-2.0 (timm)",
        ),
        poolings=("global_token", "mean_tokens"),
        normalisation=(
            "mean 0, deviation 1 of each band over the dataset evaluated: the weights know no "
            "statistics of these bands"
        ),
        absent_sensor=(
            "skipped: the embedding is that of the bands present, times 3 / their number; the "
            "rows zero_filled have it for all bands"
        ),
        files=(path,),
        pretrained=finish(encoder, weights),
        make_random=_make,
        channels=_CHANNELS,
        own_statistics=False,
    )


def _make() -> StackedVit:
    return StackedVit(SHAPE, _IMAGE_PX, _BANDS, _CHANNELS, base_channels=3)
