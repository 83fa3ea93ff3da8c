"""A pretrained encoder to take away: images in the units that a dataset stores, features out.

`fusmae.load_encoder` makes one. It needs torch and safetensors, no dataset and no GPU.
"""

# B batch, C channels, H x W pixels, N tokens of one sensor on a grid of h x w, D width
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusmae.model.band_selection import choose_bands, select_bands
from fusmae.model.encoder import EncoderOutput, FusMAEEncoder
from fusmae.model.hub import fetch_folder
from fusmae.model.levels import run_with_levels
from fusmae.model.pretrained import EncoderCard
from fusmae.model.pretrained import load_encoder as load_folder

Images = Mapping[str, Tensor]


class PretrainedEncoder(nn.Module):
    """An encoder with its normalisation, for any of its sensors and any image size.

    Every method takes `images`: sensor -> (B, C, H, W) of any real dtype, in stored units (dB,
    reflectance * 10000), channels in the order of `bands`; on any device. Sensors that are left
    out are absent, not zeros. Sizes that are no multiple of the token are resampled to the nearest
    one; a larger image has more tokens, whose positions are computed by the formula of the smaller
    ones (`fusmae.model.positions`). A token covers `patch_px` pixels of what is given: where
    training resampled 120 px to 224, give `size_px=224`, or a token is 1.9 times as wide.

    Gradients flow: wrap calls in `torch.inference_mode()` to have features only.
    """

    def __init__(self, encoder: FusMAEEncoder, card: EncoderCard, size_px: int | None) -> None:
        """`size_px`: the side to which every image is resampled; None keeps their sizes.

        Raises:
            ValueError: `size_px` is not a multiple of the patch.
        """
        super().__init__()
        if size_px is not None and (size_px < 1 or size_px % card.model.patch_px):
            raise ValueError(
                f"size_px = {size_px} must be a multiple of the encoder's patch of "
                f"{card.model.patch_px} px; it was trained on {card.model.image_px} px"
            )
        self.encoder = encoder
        self.card = card
        self.size_px = size_px
        for sensor in card.bands:
            for name, values in (("mean", card.mean), ("std", card.std)):
                column = torch.tensor(values[sensor]).view(-1, 1, 1)
                self.register_buffer(f"{sensor}_{name}", column, persistent=False)

    @property
    def bands(self) -> dict[str, tuple[str, ...]]:
        """Each sensor's bands in the order of the channels that are expected."""
        return self.card.bands

    @property
    def width(self) -> int:
        """D, the number of features."""
        return self.card.model.width

    @property
    def device(self) -> torch.device:
        return next(self.encoder.parameters()).device

    def pooled(self, images: Images) -> Tensor:
        """The mean over the tokens of all sensors given, (B, D): one vector an image."""
        return self.encoder.pool(self(images))

    def global_token(self, images: Images) -> Tensor:
        """The global token, (B, D)."""
        return self(images).global_token

    def tokens(self, images: Images) -> dict[str, Tensor]:
        """The tokens of each sensor, row by row, (B, N, D); of `stack` fusion all in one."""
        return self(images).tokens

    def levels(self, images: Images, blocks: Sequence[int]) -> list[dict[str, Tensor]]:
        """Feature maps of each sensor, (B, D, h, w), after each of these blocks, in their order.

        Blocks are numbered from 1 to `card.model.depth`, XAttnEncoder is block 1.

        Raises:
            ValueError: there is no such block; else as `forward`.
        """
        return run_with_levels(self.encoder, self._prepare(images), blocks)[0]

    def forward(self, images: Images) -> EncoderOutput:
        """Tokens by sensor and the global token.

        Raises:
            ValueError: no image, an unknown sensor, an image that is no tensor (B, C, H, W), or
                sensors of different B.
        """
        output: EncoderOutput = self.encoder(self._prepare(images))
        return output

    def _prepare(self, images: Images) -> dict[str, Tensor]:
        """Normalised float32 images on the encoder's device, sides multiples of the token."""
        if not isinstance(images, Mapping):
            raise ValueError(
                f"images are a {type(images).__name__}, expected a dict of each sensor's, of "
                f"{list(self.bands)}"
            )
        prepared: dict[str, Tensor] = {}
        for sensor, image in images.items():
            if sensor not in self.bands:
                raise ValueError(f"unknown sensor {sensor!r}; known: {list(self.bands)}")
            if not isinstance(image, Tensor):
                raise ValueError(
                    f"images of sensor {sensor!r} are a {type(image).__name__}, expected a tensor: "
                    "torch.from_numpy of an array"
                )
            if image.ndim != 4 or image.shape[1] != len(self.bands[sensor]):
                raise ValueError(
                    f"images of sensor {sensor!r} are {tuple(image.shape)}, expected (B, "
                    f"{len(self.bands[sensor])}, H, W) of {', '.join(self.bands[sensor])}"
                )
            pixels = image.to(self.device).to(torch.float32)
            normalised = (pixels - self._column(sensor, "mean")) / self._column(sensor, "std")
            prepared[sensor] = self._resample(sensor, normalised)
        counts = {sensor: len(image) for sensor, image in prepared.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"the sensors' images differ in number: {counts}")
        if prepared and self.card.model.fusion == "stack":
            return self.encoder.fill_absent(prepared)
        return prepared

    def _column(self, sensor: str, name: str) -> Tensor:
        return self.get_buffer(f"{sensor}_{name}")

    def _resample(self, sensor: str, image: Tensor) -> Tensor:
        model = self.card.model
        patch_px = model.patch_px_of(sensor)
        if self.size_px is None:
            size = [max(1, round(side / patch_px)) * patch_px for side in image.shape[2:]]
        else:
            size = [self.size_px // model.patch_px * patch_px] * 2
        if list(image.shape[2:]) == size:
            return image
        method = "nearest" if model.num_classes_of(sensor) else self.card.resample
        corners = None if method == "nearest" else False
        return F.interpolate(image, size, mode=method, align_corners=corners)


def load_encoder(
    source: str | Path,
    *,
    sensors: Sequence[str] | None = None,
    bands: Mapping[str, Sequence[str]] | None = None,
    size_px: int | None = None,
    device: torch.device | str = "cpu",
) -> PretrainedEncoder:
    """A pretrained encoder with its normalisation, in evaluation mode and float32.

    Args:
        source: an exported folder, `RUN/encoder`, or `hf://owner/name`, with `@revision` if
            another than the newest is meant. Only safetensors and json are read.
        sensors: the sensors to keep; None for all. Any of those kept may be absent from a call.
        bands: sensor -> the bands that its images will have, in that order; for a sensor that is
            not named, all of the encoder's in theirs. Only the patch embedding depends on them:
            leaving a band out is the same as giving its mean everywhere.
        size_px: resample every image to this side, such as `card.model.image_px`, on which it was
            trained; None keeps the images' own sizes.
        device: where it is wanted.

    Raises:
        ValueError: the encoder cannot be had or is broken, or has no such sensor or band.
    """
    encoder, card = load_folder(fetch_folder(source))
    chosen = choose_bands(card, sensors, bands or {})
    if chosen != card.bands:
        encoder, card = select_bands(encoder, card, chosen)
    return PretrainedEncoder(encoder, card, size_px).to(device).eval()
