"""The transformer's parts: self-attention, cross-attention, MLP and the pre-norm block.

Layouts are timm's and MAE's, with LayerNorm eps 1e-6 as theirs. The paper prints no norms,
heads or output projections for its cross-attention: those are OUR choice.
"""

# B batch, N query tokens, M context tokens, D width, A heads
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusmae.model.short_attention import attend

NORM_EPS = 1e-6


def xavier_linear(in_features: int, out_features: int, num_matrices: int = 1) -> nn.Linear:
    """A Linear with zero bias and Xavier-uniform weights, as in MAE and MultiMAE.

    A weight that stacks `num_matrices` projections (q, k and v) is initialised one by one,
    since their common fan-out would make each too small.
    """
    linear = nn.Linear(in_features, out_features)
    for matrix in linear.weight.chunk(num_matrices):
        nn.init.xavier_uniform_(matrix)
    nn.init.zeros_(linear.bias)
    return linear


def layer_norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=NORM_EPS)


def _split_heads(x: Tensor, num_matrices: int, heads: int) -> tuple[Tensor, ...]:
    """(B, N, num_matrices * D) to `num_matrices` tensors of (B, A, N, D / A)."""
    batch, length, width = x.shape
    x = x.view(batch, length, num_matrices, heads, width // (num_matrices * heads))
    return x.permute(2, 0, 3, 1, 4).unbind(0)


def _merge_heads(x: Tensor) -> Tensor:
    """(B, A, N, D / A) to (B, N, D)."""
    return x.transpose(1, 2).flatten(2)


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    """What `scaled_dot_product_attention` computes and does not give away.

    (B, A, N, d) queries and (B, A, M, d) keys to (B, A, N, M) float32, for looking at.
    """
    scores = q.float() @ k.float().transpose(-1, -2)
    return torch.softmax(scores / q.shape[-1] ** 0.5, dim=-1)


class SelfAttention(nn.Module):
    """Multi-head self-attention, (B, N, D) to (B, N, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = xavier_linear(width, 3 * width, num_matrices=3)
        self.proj = xavier_linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        return self.proj(attend(qkv).flatten(2))

    def weights(self, x: Tensor) -> Tensor:
        """The attention of each query to each key, (B, A, N, N) float32; rows add up to 1."""
        q, k, _ = _split_heads(self.qkv(x), 3, self.heads)
        return attention_weights(q, k)


class CrossAttention(nn.Module):
    """CA(x, y) of Fus-MAE: queries from x, keys and values from y, both normed first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_norm = layer_norm(width)
        self.context_norm = layer_norm(width)
        self.q = xavier_linear(width, width)
        self.kv = xavier_linear(width, 2 * width, num_matrices=2)
        self.proj = xavier_linear(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """(B, N, D) queries and (B, M, D) context to (B, N, D), without the residual."""
        (q,) = _split_heads(self.q(self.query_norm(x)), 1, self.heads)
        k, v = _split_heads(self.kv(self.context_norm(context)), 2, self.heads)
        return self.proj(_merge_heads(F.scaled_dot_product_attention(q, k, v)))

    def weights(self, x: Tensor, context: Tensor) -> Tensor:
        """The attention of each query to each key, (B, A, N, M) float32; rows add up to 1."""
        (q,) = _split_heads(self.q(self.query_norm(x)), 1, self.heads)
        k, _ = _split_heads(self.kv(self.context_norm(context)), 2, self.heads)
        return attention_weights(q, k)


class CrossSensorAttention(nn.Module):
    """x + CA(x, y) for every sensor's tokens x, y being all other sensors' tokens.

    Each sensor has its own CA. A sensor that is alone keeps its tokens as they are; a model
    of one sensor has no CA at all.
    """

    def __init__(self, sensors: Sequence[str], width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.ModuleDict()
        if len(sensors) > 1:
            self.attention.update({sensor: CrossAttention(width, heads) for sensor in sensors})

    def forward(self, tokens: dict[str, Tensor]) -> dict[str, Tensor]:
        """(B, N_s, D) by sensor, to the same shapes."""
        if len(tokens) == 1:
            return dict(tokens)
        fused: dict[str, Tensor] = {}
        for sensor, x in tokens.items():
            others = [y for name, y in tokens.items() if name != sensor]
            fused[sensor] = x + self.attention[sensor](x, torch.cat(others, dim=1))
        return fused


class Mlp(nn.Module):
    """Linear, GELU, Linear; (B, N, D) to (B, N, D)."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.fc1 = xavier_linear(width, ratio * width)
        self.fc2 = xavier_linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """The pre-norm ViT block, (B, N, D) to (B, N, D)."""

    def __init__(self, width: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = layer_norm(width)
        self.attn = SelfAttention(width, heads)
        self.norm2 = layer_norm(width)
        self.mlp = Mlp(width, mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))
