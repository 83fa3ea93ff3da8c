"""The model's layers in matmul, softmax and means, straight from a state dict.

An oracle: it shares no code with `fusmae.model` and knows only the names of the weights.
"""

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def under(weights: Weights, prefix: str) -> Weights:
    """The weights whose names start with `prefix.`, without it."""
    start = f"{prefix}."
    return {name[len(start) :]: w for name, w in weights.items() if name.startswith(start)}


def linear(x: Tensor, w: Weights) -> Tensor:
    return x @ w["weight"].T + w["bias"]


def norm(x: Tensor, w: Weights) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred**2).mean(-1, keepdim=True)
    return centred / torch.sqrt(variance + 1e-6) * w["weight"] + w["bias"]


def mlp(x: Tensor, w: Weights) -> Tensor:
    hidden = linear(x, under(w, "fc1"))
    gelu = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    return linear(gelu, under(w, "fc2"))


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v head by head, heads being slices of the width."""
    size = q.shape[-1] // heads
    outputs = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = q[..., part] @ k[..., part].transpose(-1, -2) / size**0.5
        outputs.append(torch.softmax(scores, dim=-1) @ v[..., part])
    return torch.cat(outputs, dim=-1)


def cross_attention(x: Tensor, y: Tensor, w: Weights, heads: int) -> Tensor:
    """CA(x, y): queries from x, keys and values from y."""
    q = linear(norm(x, under(w, "query_norm")), under(w, "q"))
    k, v = linear(norm(y, under(w, "context_norm")), under(w, "kv")).chunk(2, dim=-1)
    return linear(attend(q, k, v, heads), under(w, "proj"))


def block(x: Tensor, w: Weights, heads: int) -> Tensor:
    q, k, v = linear(norm(x, under(w, "norm1")), under(w, "attn.qkv")).chunk(3, dim=-1)
    x = x + linear(attend(q, k, v, heads), under(w, "attn.proj"))
    return x + mlp(norm(x, under(w, "norm2")), under(w, "mlp"))


def xattn_encoder(tokens: list[Tensor], names: list[str], w: Weights, heads: int) -> Tensor:
    """Eqs. 2-5, the context of a sensor being all the others."""
    z = torch.cat(_crossed(tokens, names, w, heads), dim=1)
    return z + mlp(norm(z, under(w, "norm")), under(w, "mlp"))


def xattn_decoder(tokens: list[Tensor], names: list[str], w: Weights, heads: int) -> list[Tensor]:
    """Eqs. 10-11."""
    return [
        z + mlp(norm(z, under(w, f"norm.{name}")), under(w, f"mlp.{name}"))
        for name, z in zip(names, _crossed(tokens, names, w, heads), strict=True)
    ]


def _crossed(tokens: list[Tensor], names: list[str], w: Weights, heads: int) -> list[Tensor]:
    if len(tokens) == 1:
        return tokens
    crossed = []
    for i, name in enumerate(names):
        context = torch.cat([y for j, y in enumerate(tokens) if j != i], dim=1)
        weights = under(w, f"cross.attention.{name}")
        crossed.append(tokens[i] + cross_attention(tokens[i], context, weights, heads))
    return crossed


def through_blocks(z: Tensor, w: Weights, heads: int) -> Tensor:
    """The global token appended, then all blocks that `w` has."""
    z = torch.cat([z, w["global_token"].expand(len(z), 1, -1)], dim=1)
    index = 0
    while under(w, f"blocks.{index}"):
        z = block(z, under(w, f"blocks.{index}"), heads)
        index += 1
    return z


def encoder(
    fusion: str, pixels: dict[str, Tensor], positions: dict[str, Tensor], w: Weights, heads: int
) -> tuple[dict[str, Tensor], Tensor]:
    """The six variants: tokens by sensor ("stack" for all) and the global token.

    `pixels` are the values of the visible tokens, (B, n, C * P * P), and `positions` their
    embeddings, (B, n, D).
    """
    if fusion == "stack":
        first = next(iter(pixels))
        pixels = {"stack": torch.cat(list(pixels.values()), dim=-1)}
        positions = {"stack": positions[first]}
    names = list(pixels)
    tokens = []
    for name in names:
        weight = w[f"patch_embed.{name}.weight"].flatten(1)
        tokens.append(pixels[name] @ weight.T + w[f"patch_embed.{name}.bias"] + positions[name])
    if fusion == "late":
        apart = [
            through_blocks(x, under(w, f"late.{name}"), heads)
            for name, x in zip(names, tokens, strict=True)
        ]
        own = sum(z[:, -1] for z in apart) / len(apart)
        return {name: z[:, :-1] for name, z in zip(names, apart, strict=True)}, own
    z = torch.cat(tokens, dim=1)
    if fusion in ("xae_xad", "xae"):
        z = xattn_encoder(tokens, names, under(w, "xattn"), heads)
    z = through_blocks(z, w, heads)
    parts, start = {}, 0
    for name, x in zip(names, tokens, strict=True):
        parts[name] = z[:, start : start + x.shape[1]]
        start += x.shape[1]
    return parts, z[:, -1]


def light_decoder(
    latents: Tensor, visible: Tensor, positions: Tensor, w: Weights, heads: int
) -> Tensor:
    """MAE's way: a grid of mask tokens, visible ones written into their places; all (B, N, V)."""
    batch, count = len(latents), len(positions)
    x = w["mask_token"].expand(batch, count, -1).clone()
    projected = linear(latents, under(w, "embed"))
    for b in range(batch):
        x[b, visible[b]] = projected[b]
    x = x + positions
    index = 0
    while under(w, f"blocks.{index}"):
        x = block(x, under(w, f"blocks.{index}"), heads)
        index += 1
    return linear(norm(x, under(w, "norm")), under(w, "predict"))


def randomise(module: torch.nn.Module, seed: int) -> None:
    """Normal weights everywhere, so that no norm is the identity and no bias zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        parameter.data = 0.3 * noise + (1.0 if parameter.ndim == 1 else 0.0)
