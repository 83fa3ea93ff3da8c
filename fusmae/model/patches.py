"""Images to patches and back, and the patch embedding of one sensor (Eq. 1 of Fus-MAE).

A token is a P x P square of the image; tokens are numbered row by row. The pixels of a
token lie in the order (channel, row, column), which is a convolution kernel's order.
"""

# B batch, C channels, H x W pixels, P patch side, h x w tokens, N = h * w, K chosen tokens
import torch
from torch import Tensor, nn
from torch.nn import functional as F

# In a class map: a pixel that belongs to no class.
NO_CLASS = -1


def class_planes(classes: Tensor, num_classes: int) -> Tensor:
    """A class map (B, 1, H, W) as a channel a class, (B, num_classes, H, W) bool.

    A pixel whose number is not one of 0 to num_classes - 1 is false in all of them.
    """
    numbers = torch.arange(num_classes, dtype=classes.dtype, device=classes.device)
    return classes == numbers.view(-1, 1, 1)


def _grid_view(images: Tensor, patch_px: int) -> Tensor:
    """A view of the images as (B, h, w, C, P, P); no pixel is copied."""
    batch, channels, height, width = images.shape
    rows, cols = height // patch_px, width // patch_px
    grid = images.reshape(batch, channels, rows, patch_px, cols, patch_px)
    return grid.permute(0, 2, 4, 1, 3, 5)


def patchify(images: Tensor, patch_px: int) -> Tensor:
    """The pixels of every token: (B, C, H, W) to (B, N, C * P * P); H and W multiples of P."""
    return _grid_view(images, patch_px).flatten(3).flatten(1, 2)


def unpatchify(tokens: Tensor, patch_px: int, image_px: tuple[int, int]) -> Tensor:
    """The inverse of `patchify`: (B, N, C * P * P) to (B, C, H, W); `image_px` is (H, W)."""
    rows, cols = image_px[0] // patch_px, image_px[1] // patch_px
    grid = tokens.reshape(len(tokens), rows, cols, -1, patch_px, patch_px)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), -1, *image_px)


def gather_patches(images: Tensor, patch_px: int, indices: Tensor) -> Tensor:
    """The pixels of chosen tokens only, (B, K, C * P * P).

    Args:
        images: (B, C, H, W), H and W multiples of P.
        patch_px: P.
        indices: (B, K) int64 token numbers in [0, N).
    """
    grid = _grid_view(images, patch_px)
    batch = torch.arange(len(images), device=images.device)[:, None]
    row = torch.div(indices, grid.shape[2], rounding_mode="floor")
    return grid[batch, row, indices % grid.shape[2]].flatten(2)


class PatchEmbedding(nn.Module):
    """One sensor's patch embedding: a convolution with kernel and stride P.

    It is computed as a matrix product over patches, so that masked tokens cost nothing.
    `weight` is a Conv2d weight, (D, C, P, P), initialised like a Linear (MAE, MultiMAE).
    The parameters are this module's own, not a Conv2d child's: ZeRO-3 gathers a module's
    parameters when its `forward` runs, and a child used only for its weight never runs.
    """

    def __init__(self, channels: int, width: int, patch_px: int) -> None:
        super().__init__()
        self.patch_px = patch_px
        self.weight = nn.Parameter(torch.empty(width, channels, patch_px, patch_px))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.xavier_uniform_(self.weight.view(width, -1))

    @property
    def in_channels(self) -> int:
        """C, under the name by which torchgeo asks a model's first layer, as of a Conv2d."""
        return self.weight.shape[1]

    def forward(self, images: Tensor, visible: Tensor | None = None) -> Tensor:
        """Embeddings without positions, (B, K, D), of the `visible` (B, K) or of all tokens.

        Pixels of other tokens are not read.
        """
        if visible is None:
            pixels = patchify(images, self.patch_px)
        else:
            pixels = gather_patches(images, self.patch_px, visible)
        return F.linear(pixels.to(self.weight.dtype), self.weight.flatten(1), self.bias)
