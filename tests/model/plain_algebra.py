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


def randomise(module: torch.nn.Module, seed: int) -> None:
    """Normal weights everywhere, so that no norm is the identity and no bias zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        parameter.data = 0.3 * noise + (1.0 if parameter.ndim == 1 else 0.0)
