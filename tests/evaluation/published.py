"""Checkpoints with the names and shapes that are published, and their layers in plain algebra.

The oracle knows only what upstream's code computes: it shares nothing with
`fusmae.evaluation.backbones`. Blocks share their random tensors, and so a file holds them once.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

Weights = dict[str, Tensor]

_GENERATOR_SEED = 20221


class Draw:
    """Normal tensors, small enough to go through 12 layers; norms' scales around 1."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(_GENERATOR_SEED)

    def __call__(self, *shape: int, around: float = 0.0) -> Tensor:
        return around + 0.05 * torch.randn(shape, generator=self.generator)


def timm_block(draw: Draw, width: int) -> Weights:
    return {
        "norm1.weight": draw(width, around=1),
        "norm1.bias": draw(width),
        "attn.qkv.weight": draw(3 * width, width),
        "attn.qkv.bias": draw(3 * width),
        "attn.proj.weight": draw(width, width),
        "attn.proj.bias": draw(width),
        "norm2.weight": draw(width, around=1),
        "norm2.bias": draw(width),
        "mlp.fc1.weight": draw(4 * width, width),
        "mlp.fc1.bias": draw(4 * width),
        "mlp.fc2.weight": draw(width, 4 * width),
        "mlp.fc2.bias": draw(width),
    }


def timm_vit(width: int, channels: int, patch_px: int, num_positions: int) -> Weights:
    """The names that DINO and timm give to a ViT of 12 blocks, without a head."""
    draw = Draw()
    block = timm_block(draw, width)
    return {
        "cls_token": draw(1, 1, width),
        "pos_embed": draw(1, num_positions, width),
        "patch_embed.proj.weight": draw(width, channels, patch_px, patch_px),
        "patch_embed.proj.bias": draw(width),
        **{f"blocks.{i}.{name}": w for i in range(12) for name, w in block.items()},
        "norm.weight": draw(width, around=1),
        "norm.bias": draw(width),
    }


def imagenet_vit() -> Weights:
    """timm's vit_base_patch16_224."""
    head = {"head.weight": torch.zeros(1000, 768), "head.bias": torch.zeros(1000)}
    return timm_vit(768, 3, 16, 197) | head


def dino_mm_checkpoint() -> dict[str, object]:
    """B14_vits8_dinomm_ep99.pth."""
    backbone = timm_vit(384, 14, 8, 785)
    wide = torch.zeros(1)  # as many numbers as are published, one of them stored
    head = {
        "mlp.0.weight": wide.expand(2048, 384),
        "mlp.0.bias": wide.expand(2048),
        "mlp.2.weight": wide.expand(2048, 2048),
        "mlp.2.bias": wide.expand(2048),
        "mlp.4.weight": wide.expand(256, 2048),
        "mlp.4.bias": wide.expand(256),
        "last_layer.weight_g": wide.expand(65536, 1),
        "last_layer.weight_v": wide.expand(65536, 256),
    }
    parts = {f"backbone.{name}": w for name, w in backbone.items()}
    parts |= {f"head.{name}": w for name, w in head.items()}
    return {
        "student": {f"module.{name}": w for name, w in parts.items()},
        "teacher": parts,
        "optimizer": {"state": {}, "param_groups": [{"lr": 5e-4, "params": [0, 1]}]},
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_small", patch_size=8, data=Path("x").name),
        "dino_loss": {"center": wide.expand(1, 65536)},
    }


def satvit_state(num_channels: int, patch_px: int, decoder: int) -> Weights:
    """SatViT_V1.pt (patch 16, decoder 384 of 2 layers) or SatViT_V2.pt (8, 512 of 1 layer)."""
    draw = Draw()
    num_tokens, io = (256 // patch_px) ** 2, num_channels * patch_px**2

    def layers(where: str, width: int, depth: int) -> Weights:
        layer = {
            "0.to_qkv.weight": draw(3 * width, width),
            "0.to_out.weight": draw(width, width),
            "0.to_out.bias": draw(width),
            "0.input_norm.weight": draw(width, around=1),
            "0.input_norm.bias": draw(width),
            "1.net.0.weight": draw(4 * width, width),
            "1.net.0.bias": draw(4 * width),
            "1.net.3.weight": draw(width, 4 * width),
            "1.net.3.bias": draw(width),
            "1.input_norm.weight": draw(width, around=1),
            "1.input_norm.bias": draw(width),
        }
        return {f"{where}.layers.{i}.{name}": w for i in range(depth) for name, w in layer.items()}

    return {
        "mask_token": draw(1, 1, decoder),
        "pos_embed": draw(1, num_tokens, 768),
        "decoder_pos_embed": draw(1, num_tokens, decoder),
        **layers("encoder", 768, 12),
        "encoder.norm_out.weight": draw(768, around=1),
        "encoder.norm_out.bias": draw(768),
        **layers("decoder", decoder, 2 if patch_px == 16 else 1),
        "decoder.norm_out.weight": draw(decoder, around=1),
        "decoder.norm_out.bias": draw(decoder),
        "enc_to_dec.weight": draw(decoder, 768),
        "enc_to_dec.bias": draw(decoder),
        "linear_input.weight": draw(768, io),
        "linear_input.bias": draw(768),
        "linear_output.weight": draw(io, decoder),
        "linear_output.bias": draw(io),
    }


# The 15 channels of a user's choice; VV and VH stand in for a second orbit, one is left out.
S2 = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
MAP = (*S2, "VV", "VH", "VV")


def satvit_toml(folder: Path, version: str, state: object, channels: tuple[str, ...]) -> Path:
    torch.save(state, folder / "weights.pt")
    listed = ", ".join(f'"{name}"' for name in channels)
    spec = folder / "satvit.toml"
    spec.write_text(f'name = "{version}"\nweights = "weights.pt"\nchannels = [{listed}]\n')
    return spec


def norm(x: Tensor, w: Weights, name: str, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    spread = (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return centred / spread * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x: Tensor, w: Weights, name: str) -> Tensor:
    product = torch.einsum("bni,oi->bno", x, w[f"{name}.weight"])
    bias = w.get(f"{name}.bias")
    return product if bias is None else product + bias


def attention(qkv: Tensor, heads: int) -> Tensor:
    """(B, N, 3 D) to (B, N, D), head by head; the three lie one after another."""
    q, k, v = qkv.chunk(3, dim=-1)
    size = q.shape[-1] // heads
    outputs = []
    for start in range(0, q.shape[-1], size):
        part = slice(start, start + size)
        scores = torch.einsum("bnd,bmd->bnm", q[..., part], k[..., part]) / size**0.5
        share = scores.exp() / scores.exp().sum(-1, keepdim=True)
        outputs.append(torch.einsum("bnm,bmd->bnd", share, v[..., part]))
    return torch.cat(outputs, dim=-1)


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


# (first norm, q k v, out, second norm, first and second layer of the MLP)
TIMM = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
SATVIT = ("0.input_norm", "0.to_qkv", "0.to_out", "1.input_norm", "1.net.0", "1.net.3")


def block(
    x: Tensor, w: Weights, prefix: str, names: tuple[str, ...], heads: int, eps: float
) -> Tensor:
    norm1, qkv, out, norm2, fc1, fc2 = (f"{prefix}.{name}" for name in names)
    x = x + linear(attention(linear(norm(x, w, norm1, eps), w, qkv), heads), w, out)
    return x + linear(gelu(linear(norm(x, w, norm2, eps), w, fc1)), w, fc2)


def patches(image: Tensor, patch_px: int) -> Tensor:
    """(B, C, H, W) to (B, N, C * P * P), token by token: "b c (h i) (w j) -> b (h w) (c i j)"."""
    rows, cols = (side // patch_px for side in image.shape[2:])
    cut = [
        image[:, :, r * patch_px : (r + 1) * patch_px, c * patch_px : (c + 1) * patch_px]
        for r in range(rows)
        for c in range(cols)
    ]
    return torch.stack([piece.reshape(len(image), -1) for piece in cut], dim=1)
