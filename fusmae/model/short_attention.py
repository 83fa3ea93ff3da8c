"""Self-attention over at most 256 tokens, in one kernel forward and one backward, on a GPU.

A masked autoencoder attends over short sequences: 99 visible tokens in ViT-B at 224 px, 196 in
its decoders. The general kernels behind `scaled_dot_product_attention` are made for long ones:
they split the keys, keep statistics for the backward pass and add up dQ in a second one. Here
all keys and values of a head lie in the GPU's shared memory, the scores are computed anew in the
backward pass, and q, k and v are read from where the projection has put them, their gradients
written to where it wants them: nothing is copied. `docs/LOG.md` has the measured gain.
"""

# B batch, N tokens, A heads, d width of a head
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_TOKENS = 256
_WIDTHS = (16, 32, 64, 128)
# Of a head's keys: what a multiprocessor holds beside its gradients.
_MAX_ELEMENTS = MAX_TOKENS * 64
_HOPPER = (9, 0)
# AMD's GPUs have torch's CUDA names, and numbers of their own.
_TRITON = find_spec("triton") is not None and torch.version.hip is None


def attend(qkv: Tensor) -> Tensor:
    """Softmax attention of (B, N, 3, A, d) queries, keys and values, to (B, N, A, d).

    In one kernel where there is one: bfloat16, on an NVIDIA GPU of Hopper's kind or later, with
    Triton, which torch for CUDA brings. Elsewhere torch's own.
    """
    if _has_kernel(qkv):
        attended: Tensor = torch.ops.fusmae.short_attention(qkv)
        return attended
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _has_kernel(qkv: Tensor) -> bool:
    _, tokens, _, _, width = qkv.shape
    return (
        qkv.is_cuda
        and qkv.dtype == torch.bfloat16
        and tokens <= MAX_TOKENS
        and width in _WIDTHS
        and tokens * width <= _MAX_ELEMENTS
        and _has_compiler(qkv.device.index)
    )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _has_compiler(device: int) -> bool:
    """Measured on Hopper alone, so used there and later. A constant for a model being compiled."""
    return _TRITON and torch.cuda.get_device_capability(device) >= _HOPPER


@torch.library.custom_op("fusmae::short_attention", mutates_args=(), device_types="cuda")
def _forward(qkv: Tensor) -> Tensor:
    from fusmae.model import short_attention_kernels

    return short_attention_kernels.forward(qkv.contiguous())


@torch.library.custom_op("fusmae::short_attention_backward", mutates_args=(), device_types="cuda")
def _backward(qkv: Tensor, gradient: Tensor) -> Tensor:
    from fusmae.model import short_attention_kernels

    return short_attention_kernels.backward(qkv.contiguous(), gradient.contiguous())


@_forward.register_fake
def _(qkv: Tensor) -> Tensor:
    batch, tokens, _, heads, width = qkv.shape
    return qkv.new_empty(batch, tokens, heads, width)


@_backward.register_fake
def _(qkv: Tensor, gradient: Tensor) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
    (qkv,) = ctx.saved_tensors  # type: ignore[attr-defined]
    d_qkv: Tensor = torch.ops.fusmae.short_attention_backward(qkv, gradient)
    return d_qkv


_forward.register_autograd(_differentiate, setup_context=_keep)
