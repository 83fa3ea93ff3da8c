"""Fixed 2-D sin-cos position embeddings, as in MAE, for a grid of any size.

He et al. 2022, arXiv:2111.06377; facebookresearch/mae `util/pos_embed.py`. A position is
a token's row and column, so the same ground distance has the same embedding in an image of
any size: other sizes are computed, never interpolated.
"""

import torch
from torch import Tensor, nn

# Vaswani et al. 2017, arXiv:1706.03762, sec. 3.5.
_LONGEST_WAVE = 10000.0


def _sincos_1d(positions: Tensor, width: int) -> Tensor:
    """(N,) positions to (N, width): width / 2 sines, then as many cosines."""
    exponents = torch.arange(width // 2, dtype=torch.float64, device=positions.device)
    frequencies = _LONGEST_WAVE ** -(exponents / (width / 2))
    angles = positions[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_2d(rows: int, cols: int, width: int, device: torch.device | None = None) -> Tensor:
    """Embeddings of a grid's tokens, row by row: (rows * cols, width) float32 in [-1, 1].

    As in MAE the first half encodes the column and the second the row; `width` is a
    multiple of 4.
    """
    row = torch.arange(rows, dtype=torch.float64, device=device).repeat_interleave(cols)
    col = torch.arange(cols, dtype=torch.float64, device=device).repeat(rows)
    halves = [_sincos_1d(col, width // 2), _sincos_1d(row, width // 2)]
    return torch.cat(halves, dim=1).float()


class SinCosPositions(nn.Module):
    """`sincos_2d` with the table of one grid kept at hand.

    The table is not part of the state dict: weights fit every image size.
    """

    table: Tensor

    def __init__(self, rows: int, cols: int, width: int) -> None:
        super().__init__()
        self.grid = (rows, cols)
        self.width = width
        self.register_buffer("table", sincos_2d(rows, cols, width), persistent=False)

    def forward(self, rows: int, cols: int, dtype: torch.dtype) -> Tensor:
        """(rows * cols, width) on the module's device.

        `dtype` is that of the parameters around it: DeepSpeed's bf16 casts parameters and
        leaves buffers in float32, and the sum of both would be float32 again.
        """
        if (rows, cols) == self.grid:
            return self.table.to(dtype)
        return sincos_2d(rows, cols, self.width, self.table.device).to(dtype)
