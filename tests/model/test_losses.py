import numpy as np
import pytest
import torch

from fusmae.model.losses import masked_cross_entropy, masked_mse


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


def test_cross_entropy_is_the_mean_over_pixels_that_have_a_class() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 3, (2, 3, 4, 9))  # samples, tokens, classes, pixels
    classes = rng.integers(-1, 4, (2, 3, 9))
    shares = np.exp(scores) / np.exp(scores).sum(2, keepdims=True)
    expected = np.mean(
        [
            -np.log(shares[b, k, classes[b, k, i], i])
            for b, k, i in np.ndindex(2, 3, 9)
            if classes[b, k, i] >= 0
        ]
    )
    prediction = torch.tensor(scores).flatten(2).bfloat16().double()
    exact = masked_cross_entropy(torch.tensor(scores).flatten(2), torch.tensor(classes), 4)
    assert exact.dtype == torch.float32
    assert exact.item() == pytest.approx(expected, rel=1e-6)
    rounded = masked_cross_entropy(prediction.bfloat16(), torch.tensor(classes).bfloat16(), 4)
    assert rounded.item() == masked_cross_entropy(prediction, torch.tensor(classes), 4).item()


def test_cross_entropy_without_any_class_is_0_and_moves_nothing() -> None:
    prediction = torch.randn(1, 2, 12, requires_grad=True)
    loss = masked_cross_entropy(prediction, torch.full((1, 2, 4), -1.0), 3)
    loss.backward()
    assert loss.item() == 0
    assert prediction.grad is not None
    assert not prediction.grad.any()
