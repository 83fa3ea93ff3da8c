"""Attention in one kernel against the plain algebra; on a GPU, where it runs, and interpreted."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from fusmae.model.short_attention import MAX_TOKENS, attend


def test_without_a_kernel_it_is_the_plain_algebra() -> None:
    qkv = torch.randn(2, 7, 3, 4, 8, dtype=torch.float64)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    expected = torch.softmax(q @ k.transpose(-1, -2) / 8**0.5, dim=-1) @ v
    assert torch.allclose(attend(qkv), expected.transpose(1, 2), rtol=1e-12)


@pytest.mark.skipif(find_spec("triton") is None, reason="torch for CPUs comes without Triton")
def test_the_kernels_in_float32_are_the_plain_algebra() -> None:
    """float32: a relative error of some of its roundings, 1e-6."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("attention_kernels_worker.py")],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 1e-6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize(
    ("tokens", "heads", "width"),
    [
        (99, 12, 64),
        (113, 12, 64),
        (33, 12, 64),
        (196, 8, 32),
        (225, 8, 32),
        (256, 4, 64),
        (1, 1, 16),
    ],
)
def test_on_a_gpu_it_is_as_near_as_torchs_own(tokens: int, heads: int, width: int) -> None:
    """bfloat16 operands: errors of 1e-3 to 1e-2, ours at most 1.5 times those of torch's."""
    assert tokens <= MAX_TOKENS
    torch.manual_seed(tokens)
    qkv = torch.randn(3, tokens, 3, heads, width, dtype=torch.bfloat16, device="cuda")
    gradient = torch.randn(3, tokens, heads, width, dtype=torch.bfloat16, device="cuda")

    def attended(attend_with: object, x: torch.Tensor) -> list[torch.Tensor]:
        x = x.detach().requires_grad_()
        out = attend_with(x)  # type: ignore[operator]
        (d_x,) = torch.autograd.grad(out, x, gradient.to(x.dtype))
        return [out.detach(), d_x]

    def torchs(x: torch.Tensor) -> torch.Tensor:
        q, k, v = x.permute(2, 0, 3, 1, 4).unbind(0)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    exact = attended(torchs, qkv.double())
    for ours, theirs, true in zip(attended(attend, qkv), attended(torchs, qkv), exact, strict=True):
        assert (ours - true).norm() <= 1.5 * (theirs - true).norm() + 1e-6


def test_a_compiled_model_with_the_kernel_is_one_graph() -> None:
    """Or layers would be compiled one by one, and what lies between them not at all."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("one_graph_worker.py")],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["graphs", "1", "kernels", "5"]
