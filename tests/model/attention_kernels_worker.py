"""The kernels of `short_attention` on a CPU, through Triton's interpreter, against float64.

TRITON_INTERPRET=1 python attention_kernels_worker.py
"""

import torch

from fusmae.model import short_attention_kernels as kernels

# A power of two, one less and one more, more than one block of rows; several widths of a head.
SHAPES = [
    (2, 99, 2, 64),
    (1, 196, 2, 32),
    (2, 33, 1, 16),
    (1, 64, 3, 16),
    (1, 65, 1, 32),
    (1, 1, 1, 16),
]


def main() -> None:
    worst = 0.0
    for batch, tokens, heads, width in SHAPES:
        torch.manual_seed(tokens)
        qkv = torch.randn(batch, tokens, 3, heads, width)
        gradient = torch.randn(batch, tokens, heads, width)
        exact = qkv.double().requires_grad_()
        q, k, v = exact.permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-1, -2) / width**0.5
        expected = (torch.softmax(scores, dim=-1) @ v).transpose(1, 2)
        expected.backward(gradient.double())
        assert exact.grad is not None
        found = kernels.forward(qkv), kernels.backward(qkv, gradient)
        for one, other in zip(found, (expected.detach(), exact.grad), strict=True):
            worst = max(worst, ((one - other).norm() / other.norm()).item())
    print("worst", worst)


if __name__ == "__main__":
    main()
