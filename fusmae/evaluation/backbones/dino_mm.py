"""DINO-MM (Wang, Albrecht and Zhu, IGARSS 2022): ViT-S/8 of 14 stacked channels.

What is said of upstream is of zhu-xlab/DINO-MM and of its checkpoint `B14_vits8_dinomm_ep99.pth`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusmae.evaluation.backbones.backbone import Backbone
from fusmae.evaluation.backbones.checkpoints import read_checkpoint
from fusmae.evaluation.backbones.layout import Layout, finish, on_meta, read_weights
from fusmae.evaluation.backbones.vit import StackedVit, VitShape
from fusmae.model import EncoderCard

SHAPE = VitShape(384, 12, 6, 8, grid=28, class_token=True, qkv_bias=True, norm_eps=1e-6)
# The side of its global crops; its positions are those of 224 px all the same.
_IMAGE_PX = 112
# Mean and deviation. S2's are those of BigEarthNet that SeCo's loader has from
# bigearthnet-models; upstream names its own loader after SeCo's and does not publish it.
_S2 = {
    "B01": (340.76769064, 554.81258967),
    "B02": (429.9430203, 572.41639287),
    "B03": (614.21682446, 582.87945694),
    "B04": (590.23569706, 675.88746967),
    "B05": (950.68368468, 729.89827633),
    "B06": (1792.46290469, 1096.01480586),
    "B07": (2075.46795189, 1273.45393088),
    "B08": (2218.94553375, 1365.45589904),
    "B8A": (2266.46036911, 1356.13789355),
    "B09": (2246.0605464, 1302.3292881),
    "B11": (1594.42694882, 1079.19066363),
    "B12": (1009.32729131, 818.86747235),
}
# bigearthnet_dataset_seco_lmdb_B14.py
_S1 = {"VH": (-19.22, 5.42), "VV": (-12.59, 5.04)}
_BANDS = {"s1": tuple(_S1), "s2": tuple(_S2)}
_CHANNELS = (*_S2, *_S1)
_LAYOUT = Layout(
    name=lambda ours: ours, patch="patch_embed.proj", kernel=(384, 14, 8, 8), unused=("head.",)
)


def to_bytes(sensor: str, image: Tensor) -> Tensor:
    """Upstream's pixels of an image (B, C, S, S) in deviations: its 256 levels as 0 to 1.

    Two deviations to each side of the mean become 0 to 255, whole numbers, and are divided by
    255; S1 is first clipped to each image's own 1st and 99th percentile. Upstream does this at
    128 px and resizes afterwards.
    """
    if sensor == "s1":
        image = _clip_percentiles(image, 0.01)
    return ((image + 2) / 4 * 255).clamp(0, 255).floor() / 255


def _clip_percentiles(image: Tensor, share: float) -> Tensor:
    """Each image's band within its percentiles, which lie between pixels as numpy's do.

    torch.quantile takes no more than 2^24 numbers.
    """
    ordered = image.flatten(2).sort(dim=2).values  # (B, C, S * S)
    place = share * (ordered.shape[2] - 1)
    below = int(place)
    above = min(below + 1, ordered.shape[2] - 1)
    part = place - below
    low = torch.lerp(ordered[:, :, below], ordered[:, :, above], part)
    high = torch.lerp(ordered[:, :, -1 - below], ordered[:, :, -1 - above], part)
    return image.clamp(low[..., None, None], high[..., None, None])


def open_dino_mm(path: Path) -> Backbone:
    """Its checkpoint's teacher, which is what upstream evaluates.

    Raises:
        ValueError: it is not that checkpoint; the keys are named.
    """
    encoder = on_meta(_make)
    teacher = _teacher(read_checkpoint(path), path)
    where = f"{path}: its 'teacher' is not DINO-MM's"
    weights = read_weights(encoder, teacher, _LAYOUT, where)
    table = {"s1": _S1, "s2": _S2}
    return Backbone(
        name="dino-mm",
        label="DINO-MM",
        card=EncoderCard(
            model=encoder.config,
            bands=_BANDS,
            mean={sensor: tuple(mean for mean, _ in b.values()) for sensor, b in table.items()},
            std={sensor: tuple(std for _, std in b.values()) for sensor, b in table.items()},
            resample="bicubic",
            dataset="DINO-MM: S1 as published, S2 as in SeCo's BigEarthNet",
            simulated=False,
            licence="weights: CC-BY-4.0 (huggingface.co/wangyi111/dino-mm)",
        ),
        poolings=("global_token", "mean_tokens"),
        normalisation=(
            "mean - 2 to mean + 2 deviations of each band as 256 levels from 0 to 1; S1 clipped "
            "to each image's 1st and 99th percentile before"
        ),
        absent_sensor=(
            "zeros in its channels after normalisation, as upstream: channels that are stacked "
            "cannot be skipped otherwise"
        ),
        files=(path,),
        pretrained=finish(encoder, weights),
        make_random=_make,
        channels=_CHANNELS,
    )


def _make() -> StackedVit:
    return StackedVit(SHAPE, _IMAGE_PX, _BANDS, _CHANNELS, normalise=to_bytes)


def _teacher(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    teacher = content.get("teacher")
    if not isinstance(teacher, dict):
        raise ValueError(
            f"{path} has no 'teacher' with DINO-MM's weights; its keys are "
            f"{', '.join(map(str, list(content)[:6]))}{', ...' if len(content) > 6 else ''}"
        )
    return {
        name.removeprefix("module.").removeprefix("backbone."): value
        for name, value in teacher.items()
    }
