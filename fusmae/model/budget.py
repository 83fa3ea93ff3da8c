"""What a model costs: parameters, and floating-point operations a sample by formula.

`python -m fusmae.model.budget` prints the table of fusion variants in README.md.
"""

# n visible tokens of a sensor, N all of them, D encoder width, E decoder width
import typing
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fusmae.config import Fusion, ModelConfig
from fusmae.model.fusmae import FusMAE

_VARIANTS: dict[Fusion, str] = {
    "xae_xad": "XAttnEncoder as block 1, XAttnDecoder; the paper's best",
    "xad": "joint self-attention in all blocks, XAttnDecoder",
    "xae": "XAttnEncoder as block 1, light decoders alone",
    "none": "joint self-attention, light decoders alone (as MultiMAE)",
    "late": "a whole encoder a sensor; they never meet before pooling",
    "stack": "all channels as one image, one token a position (as SatViT)",
}


@dataclass(frozen=True)
class Flops:
    """Of one sample's masked pass, 2 for each multiplication with its addition.

    Matrix products alone, attention included; norms, GELU, softmax and the loss are left out.
    """

    embedding: int
    encoder: int
    decoder: int

    @property
    def forward(self) -> int:
        return self.embedding + self.encoder + self.decoder

    @property
    def training(self) -> int:
        """Forward and backward: each product has two gradients, but none flows to the pixels."""
        return 3 * self.forward - self.embedding


def count_flops(config: ModelConfig, channels: Mapping[str, int]) -> Flops:
    """The operations of `FusMAE(config, channels)` on one sample, at the config's image size.

    `channels` maps each sensor to its channel count; all are present.
    """
    n, width, ratio = config.num_visible, config.width, config.mlp_ratio
    sensors = list(channels)
    values = [  # of a token, by sensor: its pixels, for a class map one for each class
        (config.num_classes_of(sensor) or count) * config.patch_px_of(sensor) ** 2
        for sensor, count in channels.items()
    ]
    if config.fusion == "stack":
        sensors, values = sensors[:1], [sum(values)]
    num_sensors, num_others = len(sensors), len(sensors) - 1
    embedding = sum(_linear(n, value, width) for value in values)
    cross = num_sensors * _cross(n, num_others * n, width) if num_others else 0
    fused_mlp = _mlp(num_sensors * n, width, ratio)
    if config.fusion == "late":
        encoder = num_sensors * config.depth * _block(n + 1, width, ratio)
    else:
        encoder = config.has_xae * (cross + fused_mlp)
        num_blocks = config.depth - config.has_xae
        encoder += num_blocks * _block(num_sensors * n + 1, width, ratio)
    decoder = config.has_xad * (cross + fused_mlp)
    decoder += sum(_light_decoder(config, value) for value in values)
    return Flops(embedding, encoder, decoder)


def count_parameters(config: ModelConfig, channels: Mapping[str, int]) -> int:
    """Parameters of the whole model, encoder and decoders."""
    with torch.device("meta"):
        model = FusMAE(config, channels)
    return sum(parameter.numel() for parameter in model.parameters())


def _linear(tokens: int, inputs: int, outputs: int) -> int:
    return 2 * tokens * inputs * outputs


def _attention(queries: int, keys: int, width: int) -> int:
    """Scores and weighted sum, over all heads."""
    return 4 * queries * keys * width


def _mlp(tokens: int, width: int, ratio: int) -> int:
    return 2 * _linear(tokens, width, ratio * width)


def _block(tokens: int, width: int, ratio: int) -> int:
    """q, k, v and projection; attention; MLP."""
    return (
        4 * _linear(tokens, width, width)
        + _attention(tokens, tokens, width)
        + _mlp(tokens, width, ratio)
    )


def _cross(queries: int, keys: int, width: int) -> int:
    """q and projection of the queries, k and v of the context; attention."""
    return (
        2 * _linear(queries, width, width)
        + 2 * _linear(keys, width, width)
        + _attention(queries, keys, width)
    )


def _light_decoder(config: ModelConfig, num_values: int) -> int:
    """Projection of the n visible tokens, blocks over all N, prediction of the masked ones."""
    width, total = config.decoder_width, config.num_tokens
    return (
        _linear(config.num_visible, config.width, width)
        + config.decoder_depth * _block(total, width, config.mlp_ratio)
        + _linear(total - config.num_visible, width, num_values)
    )


def variants_table() -> str:
    """The variants of ViT-B on BigEarthNet's two sensors, 224 px in tokens of 16, as Markdown."""
    channels = {"s1": 2, "s2": 12}
    lines = [
        "| `model.fusion` | what it is | parameters | forward | training |",
        "|---|---|---|---|---|",
    ]
    for fusion in typing.get_args(Fusion):
        config = ModelConfig(preset="base", fusion=fusion, image_px=224, patch_px=16)
        flops, millions = count_flops(config, channels), count_parameters(config, channels) / 1e6
        lines.append(
            f"| `{fusion}` | {_VARIANTS[fusion]} | {millions:.1f} M "
            f"| {flops.forward / 1e9:.1f} | {flops.training / 1e9:.1f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(variants_table(), end="")
