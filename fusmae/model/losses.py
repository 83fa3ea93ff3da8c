"""The reconstruction loss: mean squared error over masked tokens."""

from torch import Tensor
from torch.nn import functional as F

# He et al. 2022 (MAE), models_mae.py: keeps flat patches finite.
_VARIANCE_EPS = 1e-6


def patch_statistics(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each token, (B, K, 1) each, of (B, K, C * P * P)."""
    mean = pixels.mean(dim=-1, keepdim=True)
    return mean, (pixels.var(dim=-1, keepdim=True) + _VARIANCE_EPS).sqrt()


def masked_mse(prediction: Tensor, target: Tensor, normalise_target: bool) -> Tensor:
    """Mean over tokens and pixels of the squared error, a float32 scalar.

    Args:
        prediction: (B, K, C * P * P), of the masked tokens only; any float dtype.
        target: the pixels of the same tokens, same shape.
        normalise_target: compare with the target less its token's mean, divided by its
            token's standard deviation (MAE's `norm_pix_loss`).
    """
    target = target.float()
    if normalise_target:
        mean, std = patch_statistics(target)
        target = (target - mean) / std
    return F.mse_loss(prediction.float(), target)
