"""The reconstruction losses over masked tokens: squared error, cross-entropy for class maps."""

from torch import Tensor
from torch.nn import functional as F

from fusmae.model.patches import NO_CLASS

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


def masked_cross_entropy(prediction: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Mean cross-entropy of the pixels that have a class, a float32 scalar; 0 if none has.

    Args:
        prediction: (B, K, num_classes * P * P) logits of the masked tokens, class by class.
        classes: (B, K, P * P), the class of each of their pixels; -1 is none. Any dtype.
        num_classes: classes are 0 to num_classes - 1.
    """
    logits = prediction.float().view(*classes.shape[:2], num_classes, -1).transpose(-1, -2)
    target = classes.long().flatten()
    # Pixels as rows: torch's loss of (B, C, ...) has no deterministic kernel on a GPU.
    total = F.cross_entropy(
        logits.reshape(-1, num_classes), target, ignore_index=NO_CLASS, reduction="sum"
    )
    return total / (target != NO_CLASS).sum().clamp(min=1)
