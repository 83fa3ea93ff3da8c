import numpy as np
import numpy.typing as npt
import pytest
import torch

from fusmae.model.positions import SinCosPositions, sincos_2d


def mae_sincos(rows: int, cols: int, width: int) -> npt.NDArray[np.float64]:
    """The formula of facebookresearch/mae `util/pos_embed.py`, token by token."""
    table = np.empty((rows * cols, width))
    quarter = width // 4
    omega = 1.0 / 10000 ** (np.arange(quarter) / quarter)
    for row in range(rows):
        for col in range(cols):
            table[row * cols + col] = np.concatenate(
                [np.sin(col * omega), np.cos(col * omega), np.sin(row * omega), np.cos(row * omega)]
            )
    return table


@pytest.mark.parametrize(("rows", "cols", "width"), [(14, 14, 768), (15, 15, 256), (3, 5, 8)])
def test_positions_equal_maes_formula(rows: int, cols: int, width: int) -> None:
    ours = sincos_2d(rows, cols, width)
    assert ours.dtype == torch.float32
    # Both are float64 until rounded to float32, whose spacing below 1 is at most 6e-8.
    np.testing.assert_allclose(ours.numpy(), mae_sincos(rows, cols, width), rtol=0, atol=6e-8)


def test_no_two_tokens_share_a_position() -> None:
    table = sincos_2d(15, 15, 128)
    distance = torch.cdist(table, table) + 1e3 * torch.eye(225)
    assert distance.min() > 0.1


def test_other_grids_are_computed_and_agree_where_they_overlap() -> None:
    positions = SinCosPositions(4, 4, 32)
    small = positions(4, 4, torch.float32).view(4, 4, 32)
    large = positions(6, 5, torch.float32).view(6, 5, 32)
    assert large[:4, :4].equal(small)
    assert not positions.state_dict()
