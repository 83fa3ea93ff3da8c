"""What an encoder is to whoever probes or fine-tunes it, ours or another's."""

# B batch, C channels, H x W pixels, N tokens, D width
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from fusmae.config import ModelConfig
from fusmae.model.encoder import EncoderOutput


class ImageEncoder(Protocol):
    """Images (B, C, H, W) by sensor, in deviations from each band's mean, to features.

    Every implementation is an nn.Module. The rows of `blocks` in its parameters' names are
    `blocks.0` and so on; a norm after the last one is called `norm`.
    """

    config: ModelConfig

    @property
    def skips_absent(self) -> bool:
        """Whether leaving a sensor out is something else than filling it with zeros.

        Where it is not, images go through `fill_absent` first.
        """

    def __call__(self, images: dict[str, Tensor]) -> EncoderOutput:
        """Tokens (B, N, D) by name; the global token (B, D), or (B, 0) where there is none."""

    def pool(self, output: EncoderOutput) -> Tensor:
        """The mean over all tokens, (B, D)."""

    def fill_absent(self, images: dict[str, Tensor]) -> dict[str, Tensor]:
        """The images with zeros in place of absent sensors, where zeros change anything."""

    def to(self, device: torch.device) -> Self: ...

    def eval(self) -> Self: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> object: ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
