"""The whole model for pretraining: Fus-MAE (Chan-To-Hing and Veeravalli, IGARSS 2024).

Masked images go in, a loss for each sensor comes out. `encoder` is what is kept.
"""

# B batch, C channels, H x W pixels, N tokens of one sensor, Nv visible ones, D width
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fusmae.config import ModelConfig
from fusmae.model.decoder import SensorDecoder, XAttnDecoder
from fusmae.model.encoder import FusMAEEncoder
from fusmae.model.losses import masked_mse, patch_statistics
from fusmae.model.masking import Masks
from fusmae.model.patches import gather_patches, patchify, unpatchify


class FusMAE(nn.Module):
    """Encoder, XAttnDecoder and one light decoder for each sensor.

    Args:
        config: the model's shape; presets in `fusmae.config`.
        channels: each sensor's channel count, in the model's order.
    """

    def __init__(self, config: ModelConfig, channels: Mapping[str, int]) -> None:
        """Raises ValueError if `channels` is empty."""
        super().__init__()
        self.config = config
        self.encoder = FusMAEEncoder(config, channels)
        self.xattn_decoder = XAttnDecoder(list(channels), config)
        self.decoders = nn.ModuleDict(
            {sensor: SensorDecoder(count, config) for sensor, count in channels.items()}
        )

    def forward(self, images: dict[str, Tensor], masks: Masks) -> dict[str, Tensor]:
        """Each sensor's loss under its name and their sum under "loss", float32 scalars.

        Args:
            images: (B, C, H, W) floats by sensor, normalised.
            masks: the tokens that the encoder sees, and those on which the loss is taken.

        Raises:
            ValueError: as `FusMAEEncoder.forward`.
        """
        losses: dict[str, Tensor] = {}
        for sensor, latents in self._latents(images, masks).items():
            prediction = self.decoders[sensor](
                latents, masks.visible[sensor], masks.masked[sensor], self._grid(images[sensor])
            )
            target = gather_patches(images[sensor], self.config.patch_px, masks.masked[sensor])
            losses[sensor] = masked_mse(prediction, target, self.config.normalise_target)
        losses["loss"] = torch.stack(list(losses.values())).sum()
        return losses

    @torch.no_grad()
    def reconstruct(self, images: dict[str, Tensor], masks: Masks) -> dict[str, Tensor]:
        """Predicted images, (B, C, H, W) float32 by sensor, every token predicted.

        With `normalise_target` the model predicts no absolute values: each token is given
        the mean and standard deviation of its true pixels, which a caller who shows such
        pictures should say.

        Raises:
            ValueError: as `FusMAEEncoder.forward`.
        """
        predicted: dict[str, Tensor] = {}
        for sensor, latents in self._latents(images, masks).items():
            image = images[sensor]
            visible, masked = masks.visible[sensor], masks.masked[sensor]
            pixels = self.decoders[sensor](
                latents, visible, masked, self._grid(image), predict_visible=True
            ).float()
            order = torch.cat([visible, masked], dim=1)[..., None].expand_as(pixels)
            pixels = torch.zeros_like(pixels).scatter(1, order, pixels)  # row by row again
            if self.config.normalise_target:
                mean, std = patch_statistics(patchify(image, self.config.patch_px).float())
                pixels = pixels * std + mean
            height, width = image.shape[2:]
            predicted[sensor] = unpatchify(pixels, self.config.patch_px, (height, width))
        return predicted

    def _latents(self, images: dict[str, Tensor], masks: Masks) -> dict[str, Tensor]:
        """Fused latents of the visible tokens, (B, Nv, D) by sensor, after XAttnDecoder.

        Eq. 8: the encoder's output is split by sensor and its global token dropped.
        """
        return self.xattn_decoder(self.encoder(images, masks.visible).tokens)

    def _grid(self, image: Tensor) -> tuple[int, int]:
        """Rows and columns of an image's token grid."""
        return image.shape[2] // self.config.patch_px, image.shape[3] // self.config.patch_px
