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
from fusmae.model.losses import masked_cross_entropy, masked_mse, patch_statistics
from fusmae.model.masking import Masks
from fusmae.model.patches import gather_patches, patchify, unpatchify


class FusMAE(nn.Module):
    """Encoder, XAttnDecoder where `config.fusion` has it, and a light decoder a sensor.

    With `stack` fusion one decoder predicts all sensors' pixels. In every variant a sensor's
    loss is its own, and they are summed.

    Args:
        config: the model's shape; presets in `fusmae.config`.
        channels: each sensor's channel count, in the model's order.
    """

    def __init__(self, config: ModelConfig, channels: Mapping[str, int]) -> None:
        """Raises ValueError if `channels` is empty, or not 1 for a class map."""
        super().__init__()
        self.config = config
        self.encoder = FusMAEEncoder(config, channels)
        self.xattn_decoder = XAttnDecoder(list(channels), config) if config.has_xad else None
        # Values that a decoder predicts for a token: a sensor's pixels, or a score a class.
        self._num_values = {
            sensor: count * config.patch_px_of(sensor) ** 2
            for sensor, count in self.encoder.planes.items()
        }
        self.decoders = nn.ModuleDict(
            {
                name: SensorDecoder(sum(self._num_values[s] for s in sensors), config)
                for name, sensors in self.encoder.members.items()
            }
        )

    def forward(self, images: dict[str, Tensor], masks: Masks) -> dict[str, Tensor]:
        """Each sensor's loss under its name and their sum under "loss", float32 scalars.

        Args:
            images: as `FusMAEEncoder.forward` takes them.
            masks: the tokens that the encoder sees, and those on which the loss is taken.

        Raises:
            ValueError: as `FusMAEEncoder.forward`.
        """
        losses: dict[str, Tensor] = {}
        for sensor, prediction in self._predict(images, masks).items():
            patch_px = self.config.patch_px_of(sensor)
            target = gather_patches(images[sensor], patch_px, masks.masked[sensor])
            num_classes = self.config.num_classes_of(sensor)
            losses[sensor] = (
                masked_cross_entropy(prediction, target, num_classes)
                if num_classes
                else masked_mse(prediction, target, self.config.normalise_target)
            )
        losses["loss"] = torch.stack(list(losses.values())).sum()
        return losses

    @torch.no_grad()
    def reconstruct(self, images: dict[str, Tensor], masks: Masks) -> dict[str, Tensor]:
        """Predicted images, (B, C, H, W) float32 by sensor, every token predicted.

        Of a class map, each pixel's likeliest class. With `normalise_target` the model predicts
        no absolute values: each token is given the mean and standard deviation of its true
        pixels, which a caller who shows such pictures should say.

        Raises:
            ValueError: as `FusMAEEncoder.forward`.
        """
        predicted: dict[str, Tensor] = {}
        for sensor, values in self._predict(images, masks, predict_visible=True).items():
            image, patch_px = images[sensor], self.config.patch_px_of(sensor)
            num_classes = self.config.num_classes_of(sensor)
            pixels = values.float()
            if num_classes:
                pixels = pixels.view(*pixels.shape[:2], num_classes, -1).argmax(dim=2).float()
            order = torch.cat([masks.visible[sensor], masks.masked[sensor]], dim=1)
            order = order[..., None].expand_as(pixels)
            pixels = torch.zeros_like(pixels).scatter(1, order, pixels)  # row by row again
            if self.config.normalise_target and not num_classes:
                mean, std = patch_statistics(patchify(image, patch_px).float())
                pixels = pixels * std + mean
            height, width = image.shape[2:]
            predicted[sensor] = unpatchify(pixels, patch_px, (height, width))
        return predicted

    def _predict(
        self, images: dict[str, Tensor], masks: Masks, predict_visible: bool = False
    ) -> dict[str, Tensor]:
        """The values of the masked tokens, (B, N - Nv, C * P * P) by sensor, or of all tokens."""
        predictions: dict[str, Tensor] = {}
        for name, latents in self._latents(images, masks).items():
            sensors = self.encoder.members[name]
            values = self.decoders[name](
                latents,
                masks.visible[sensors[0]],
                masks.masked[sensors[0]],
                self._grid(sensors[0], images[sensors[0]]),
                predict_visible,
            )
            parts = values.split([self._num_values[sensor] for sensor in sensors], dim=-1)
            predictions.update(zip(sensors, parts, strict=True))
        return predictions

    def _latents(self, images: dict[str, Tensor], masks: Masks) -> dict[str, Tensor]:
        """Latents of the visible tokens, (B, Nv, D) by sensor, after XAttnDecoder if any.

        Eq. 8: the encoder's output is split by sensor and its global token dropped.
        """
        latents = self.encoder(images, masks.visible).tokens
        return latents if self.xattn_decoder is None else self.xattn_decoder(latents)

    def _grid(self, sensor: str, image: Tensor) -> tuple[int, int]:
        """Rows and columns of an image's token grid."""
        patch_px = self.config.patch_px_of(sensor)
        return image.shape[2] // patch_px, image.shape[3] // patch_px
