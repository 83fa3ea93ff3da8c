import numpy as np
import pytest
import torch

from fusmae.model.losses import masked_mse


def test_the_loss_is_the_mean_squared_error() -> None:
    prediction, target = torch.randn(2, 5, 12), torch.randn(2, 5, 12)
    expected = np.mean((prediction.numpy().astype(float) - target.numpy()) ** 2)
    # A float32 mean of 120 numbers.
    assert masked_mse(prediction, target, False).item() == pytest.approx(expected, rel=1e-6)


def test_the_normalised_target_is_maes() -> None:
    prediction, target = torch.randn(2, 5, 12), 3 * torch.randn(2, 5, 12) + 7
    pixels = target.numpy().astype(float)
    mean, var = pixels.mean(-1, keepdims=True), pixels.var(-1, ddof=1, keepdims=True)
    expected = np.mean((prediction.numpy() - (pixels - mean) / np.sqrt(var + 1e-6)) ** 2)
    assert masked_mse(prediction, target, True).item() == pytest.approx(expected, rel=1e-5)


def test_a_flat_patch_gives_a_finite_normalised_loss_and_gradient() -> None:
    prediction = torch.zeros(1, 1, 4, requires_grad=True)
    loss = masked_mse(prediction, torch.full((1, 1, 4), 5.0), True)
    loss.backward()
    assert loss.item() == 0
    assert prediction.grad is not None
    assert prediction.grad.isfinite().all()


def test_the_loss_of_bf16_predictions_is_taken_in_float32() -> None:
    prediction = torch.full((1, 1, 4096), 1.0, dtype=torch.bfloat16)
    target = torch.full((1, 1, 4096), 1.001)  # 1.001 is 1 in bfloat16
    loss = masked_mse(prediction, target, False)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(1e-6, rel=1e-3)
