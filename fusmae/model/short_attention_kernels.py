"""The Triton kernels of `short_attention`, one program a head of a sample; imports Triton.

With q, k, v (N, d), scale s = 1 / sqrt(d), P = softmax(s q k^T), o = P v, and do the gradient of o:

    dv = P^T do,   dP = do v^T,   dS = P * (dP - rowsum(P * dP)),   dq = s dS k,   dk = s dS^T q

All N keys are at hand, so a row's softmax is exact at once and rowsum(P * dP) needs no o.
Products are of the inputs' dtype with float32 sums; softmax is float32.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

# Rows of queries at a time, and warps: the fastest of 16 to 128 rows, 4 and 8 warps, on an H200 for
# 99 tokens of width 64 and 196 of width 32. Backward, few rows leave room for another program.
_LONG, _ROWS, _ROWS_BACKWARD, _WARPS = 128, 64, 16, 4
_LEAST = 16  # the least side of a product in Triton


@triton.jit
def _short_attention_forward(
    qkv,
    out,
    scale_log2,
    N: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    sample = (tl.program_id(0) // HEADS).to(tl.int64)
    head = tl.program_id(0) % HEADS
    keys = tl.arange(0, KEYS)[:, None]
    dims = tl.arange(0, WIDTH)[None, :]
    stride = 3 * HEADS * WIDTH
    first = qkv + sample * N * stride + head * WIDTH
    k = tl.load(first + HEADS * WIDTH + keys * stride + dims, mask=keys < N, other=0.0)
    v = tl.load(first + 2 * HEADS * WIDTH + keys * stride + dims, mask=keys < N, other=0.0)
    for start in range(0, N, ROWS):
        rows = start + tl.arange(0, ROWS)[:, None]
        q = tl.load(first + rows * stride + dims, mask=rows < N, other=0.0)
        scores = tl.dot(q, tl.trans(k)) * scale_log2
        scores = tl.where(tl.arange(0, KEYS)[None, :] < N, scores, float("-inf"))
        p = tl.exp2(scores - tl.max(scores, 1)[:, None])
        o = tl.dot(p.to(v.dtype), v) / tl.sum(p, 1)[:, None]
        place = out + (sample * N + rows) * HEADS * WIDTH + head * WIDTH + dims
        tl.store(place, o.to(v.dtype), mask=rows < N)


@triton.jit
def _short_attention_backward(
    qkv,
    d_out,
    d_qkv,
    scale,
    scale_log2,
    N: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Scores lie here as (keys, rows): the products that add up to dk and dv need no transpose."""
    sample = (tl.program_id(0) // HEADS).to(tl.int64)
    head = tl.program_id(0) % HEADS
    keys = tl.arange(0, KEYS)[:, None]
    dims = tl.arange(0, WIDTH)[None, :]
    stride = 3 * HEADS * WIDTH
    first = sample * N * stride + head * WIDTH
    to_k = first + HEADS * WIDTH + keys * stride + dims
    to_v = to_k + HEADS * WIDTH
    k = tl.load(qkv + to_k, mask=keys < N, other=0.0)
    v = tl.load(qkv + to_v, mask=keys < N, other=0.0)
    dk = tl.zeros((KEYS, WIDTH), tl.float32)
    dv = tl.zeros((KEYS, WIDTH), tl.float32)
    for start in range(0, N, ROWS):
        # Rows past the last are zeros: they add nothing to dk and dv.
        rows = start + tl.arange(0, ROWS)[:, None]
        q = tl.load(qkv + first + rows * stride + dims, mask=rows < N, other=0.0)
        place = d_out + (sample * N + rows) * HEADS * WIDTH + head * WIDTH + dims
        do = tl.load(place, mask=rows < N, other=0.0)
        scores = tl.dot(k, tl.trans(q)) * scale_log2
        scores = tl.where(keys < N, scores, float("-inf"))
        p = tl.exp2(scores - tl.max(scores, 0)[None, :])
        p = p / tl.sum(p, 0)[None, :]
        dp = tl.dot(v, tl.trans(do))
        dv += tl.dot(p.to(q.dtype), do)
        ds = (p * (dp - tl.sum(p * dp, 0)[None, :]) * scale).to(q.dtype)
        dk += tl.dot(ds, q)
        dq = tl.dot(tl.trans(ds), k)
        tl.store(d_qkv + first + rows * stride + dims, dq.to(q.dtype), mask=rows < N)
    tl.store(d_qkv + to_k, dk.to(k.dtype), mask=keys < N)
    tl.store(d_qkv + to_v, dv.to(k.dtype), mask=keys < N)


def forward(qkv: Tensor) -> Tensor:
    """(B, N, 3, A, d), contiguous, to (B, N, A, d)."""
    batch, tokens, _, heads, width = qkv.shape
    out = qkv.new_empty(batch, tokens, heads, width)
    keys = _padded(tokens)
    rows = keys if keys <= _LONG else _ROWS
    _short_attention_forward[(batch * heads,)](
        qkv, out, _scale_log2(width), tokens, heads, width, rows, keys, num_warps=_WARPS
    )
    return out


def backward(qkv: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of `qkv` from that of `forward`'s result, both contiguous."""
    batch, tokens, _, heads, width = qkv.shape
    d_qkv = torch.empty_like(qkv)
    _short_attention_backward[(batch * heads,)](
        qkv,
        gradient,
        d_qkv,
        width**-0.5,
        _scale_log2(width),
        tokens,
        heads,
        width,
        _ROWS_BACKWARD,
        _padded(tokens),
        num_warps=_WARPS,
    )
    return d_qkv


def _scale_log2(width: int) -> float:
    """1 / sqrt(d), and e^x as 2^(x log2 e)."""
    return width**-0.5 * math.log2(math.e)


def _padded(tokens: int) -> int:
    """Keys in shared memory, with those past the last masked."""
    return max(_LEAST, triton.next_power_of_2(tokens))
