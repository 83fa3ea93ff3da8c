"""SatViT (Fuller, Millard and Green 2022), versions 1 and 2: MAE's ViT-B of stacked channels.

What is said of upstream is of antofuller/SatViT and of its `SatViT_V1.pt` and `SatViT_V2.pt`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from fusmae.evaluation.backbones.backbone import Backbone
from fusmae.evaluation.backbones.checkpoints import read_checkpoint
from fusmae.evaluation.backbones.layout import Layout, finish, on_meta, read_weights
from fusmae.evaluation.backbones.vit import StackedVit, VitShape
from fusmae.model import EncoderCard

Version = Literal["satvit-v1", "satvit-v2"]

_IMAGE_PX = 256
SHAPES: dict[Version, VitShape] = {
    "satvit-v1": VitShape(768, 12, 12, 16, 16, class_token=False, qkv_bias=False, norm_eps=1e-5),
    "satvit-v2": VitShape(768, 12, 12, 8, 32, class_token=False, qkv_bias=False, norm_eps=1e-5),
}
_LABELS: dict[Version, str] = {"satvit-v1": "SatViT v1", "satvit-v2": "SatViT v2"}
# Mean and deviation in tutorials/README.md, by its order of bands, which is Earth Engine's; of
# S1 the ascending orbit's, from which the descending one's differ by 0.1 dB at most.
_STATISTICS: dict[str, dict[str, tuple[float, float]]] = {
    "s1": {"VV": (-10.9700, 3.6673), "VH": (-17.9148, 4.5137)},
    "s2": {
        "B01": (884.7334, 1254.2722),
        "B02": (958.7927, 1269.4990),
        "B03": (1144.4814, 1201.9749),
        "B04": (1152.3252, 1262.4783),
        "B05": (1559.3584, 1241.1108),
        "B06": (2384.0615, 1175.8447),
        "B07": (2680.8501, 1203.6945),
        "B08": (2769.1274, 1223.6914),
        "B8A": (2886.8269, 1193.5830),
        "B09": (3064.9661, 1439.5085),
        "B11": (2169.6279, 998.2980),
        "B12": (1491.0271, 907.8351),
    },
}
_LEFT_OUT = "-"
# Ours to theirs; i is a block's number.
_NAMES = {
    "norm1.": "0.input_norm.",
    "attn.qkv.": "0.to_qkv.",
    "attn.proj.": "0.to_out.",
    "norm2.": "1.input_norm.",
    "mlp.fc1.": "1.net.0.",
    "mlp.fc2.": "1.net.3.",
}
_UNUSED = ("mask_token", "decoder.", "decoder_pos_embed", "enc_to_dec.", "linear_output.")


def open_satvit(version: Version, path: Path, channels: Sequence[str]) -> Backbone:
    """Its state dict, with the band of each channel, which no file and no page tells for sure.

    Raises:
        ValueError: it is no such file, whose keys are then named, or the channels are not as
            many as the weights have, or no bands of S1 and S2.
    """
    content = read_checkpoint(path)
    found = content.get("mae_model", content)  # as the first release wrapped it
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no state dict as its 'mae_model': not {_LABELS[version]}'s")
    shape = SHAPES[version]
    num_channels = _num_channels(found, shape)
    layout = Layout(
        _their_name, "linear_input", (shape.width, num_channels * shape.patch_px**2), _UNUSED
    )
    stand_in = on_meta(partial(StackedVit, shape, _IMAGE_PX, {"s1": ("VV",)}, ("VV",)))
    weights = read_weights(stand_in, found, layout, f"{path}: not {_LABELS[version]}'s")
    _check_channels(version, path, channels, num_channels)
    # A token's pixels lie in the order (channel, row, column), as in a kernel.
    kernel = (shape.width, num_channels, shape.patch_px, shape.patch_px)
    weights["patch_weight"] = weights["patch_weight"].view(kernel)
    bands = _bands(channels)
    make = partial(StackedVit, shape, _IMAGE_PX, bands, channels)
    return _describe(version, path, channels, bands, make, weights)


def _describe(
    version: Version,
    path: Path,
    channels: Sequence[str],
    bands: Mapping[str, tuple[str, ...]],
    make: partial[StackedVit],
    weights: Mapping[str, Tensor],
) -> Backbone:
    encoder = on_meta(make)
    numbers = {s: [_STATISTICS[s][name] for name in names] for s, names in bands.items()}
    return Backbone(
        name=version,
        label=_LABELS[version],
        card=EncoderCard(
            model=encoder.config,
            bands=dict(bands),
            mean={sensor: tuple(mean for mean, _ in rows) for sensor, rows in numbers.items()},
            std={sensor: tuple(std for _, std in rows) for sensor, rows in numbers.items()},
            resample="bilinear",
            dataset="SatViT's tutorials/README.md",
            simulated=False,
            licence="weights: MIT (antofuller/SatViT)",
        ),
        poolings=("mean_tokens",),
        normalisation="mean 0, deviation 1 of each band",
        absent_sensor=(
            "zeros in its channels after normalisation: channels that are stacked cannot be "
            "skipped otherwise"
        ),
        files=(path,),
        pretrained=finish(encoder, weights),
        make_random=make,
        channels=tuple(channels),
    )


def _their_name(ours: str) -> str:
    if not ours.startswith("blocks."):
        return ours.replace("norm.", "encoder.norm_out.")
    _, i, part = ours.split(".", 2)
    start = next(start for start in _NAMES if part.startswith(start))
    return f"encoder.layers.{i}.{_NAMES[start]}{part.removeprefix(start)}"


def _num_channels(found: Mapping[str, Any], shape: VitShape) -> int:
    """As many as the input layer has; 1 where it tells no whole number, which is refused later."""
    weight = found.get("linear_input.weight")
    if not isinstance(weight, Tensor) or weight.ndim != 2 or weight.shape[1] % shape.patch_px**2:
        return 1
    return int(weight.shape[1]) // shape.patch_px**2


def _check_channels(
    version: Version, path: Path, channels: Sequence[str], num_channels: int
) -> None:
    known = [name for bands in _STATISTICS.values() for name in bands]
    wanted = f"channels = [{num_channels} of {', '.join(known)}, or {_LEFT_OUT!r} for none]"
    if not channels:
        raise ValueError(
            f"{path} has {num_channels} channels, and {_LABELS[version]} does not say which bands "
            f'they are: give --pretrained a TOML file with name = "{version}", weights = "{path}" '
            f"and {wanted}; a band may stand in several"
        )
    strange = [name for name in channels if name not in (*known, _LEFT_OUT)]
    if strange or len(channels) != num_channels or set(channels) == {_LEFT_OUT}:
        named = f", of which {', '.join(strange)} is unknown" if strange else ""
        raise ValueError(f"{path}: {len(channels)} channels are given{named}; expected {wanted}")


def _bands(channels: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Each sensor's bands among the channels, each once; a sensor without any is not known."""
    used = dict.fromkeys(channels)
    bands = {s: tuple(name for name in used if name in table) for s, table in _STATISTICS.items()}
    return {sensor: names for sensor, names in bands.items() if names}
