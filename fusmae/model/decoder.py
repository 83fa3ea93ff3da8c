"""The decoders: XAttnDecoder (Eqs. 10-11 of Fus-MAE), then a light decoder per sensor.

Without XAttnDecoder (`fusion` other than `xae_xad` and `xad`) the latents go straight to the
light decoders.
"""

# B batch, N all tokens of one sensor, Nv visible ones, D encoder width, E decoder width
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fusmae.config import ModelConfig
from fusmae.model.attention import Block, CrossSensorAttention, Mlp, layer_norm, xavier_linear
from fusmae.model.encoder import TOKEN_STD
from fusmae.model.positions import SinCosPositions


class XAttnDecoder(nn.Module):
    """XAttnDecoder, at the encoder's width, with a CA and an MLP for each sensor.

    Eq. 10: z_x + CA(z_x, z_y); Eq. 11: z + MLP(z). Pre-norm is OUR choice.
    """

    def __init__(self, sensors: Sequence[str], config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.cross = CrossSensorAttention(sensors, width, config.heads)
        self.norm = nn.ModuleDict({sensor: layer_norm(width) for sensor in sensors})
        self.mlp = nn.ModuleDict({sensor: Mlp(width, config.mlp_ratio) for sensor in sensors})

    def forward(self, latents: dict[str, Tensor]) -> dict[str, Tensor]:
        """(B, Nv, D) by sensor, without the global token, to the same shapes."""
        return {
            sensor: z + self.mlp[sensor](self.norm[sensor](z))
            for sensor, z in self.cross(latents).items()
        }


class SensorDecoder(nn.Module):
    """One sensor's decoder: latents of its visible tokens to pixels of its tokens.

    As in MAE: projection, mask tokens, positions, blocks, norm, prediction. Attention does
    not mind the order of tokens, so visible tokens come first and mask tokens after, each
    with its own position: nothing is scattered into place, forward or backward.
    """

    def __init__(self, num_values: int, config: ModelConfig) -> None:
        """`num_values` are predicted for each token: C * P * P for C channels."""
        super().__init__()
        width = config.decoder_width
        side = config.image_px // config.patch_px
        self.positions = SinCosPositions(side, side, width)
        self.embed = xavier_linear(config.width, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        nn.init.normal_(self.mask_token, std=TOKEN_STD)
        self.blocks = nn.ModuleList(
            Block(width, config.decoder_heads, config.mlp_ratio)
            for _ in range(config.decoder_depth)
        )
        self.norm = layer_norm(width)
        self.predict = xavier_linear(width, num_values)

    def forward(
        self,
        latents: Tensor,
        visible: Tensor,
        masked: Tensor,
        grid: tuple[int, int],
        predict_visible: bool = False,
    ) -> Tensor:
        """Predicted values of the masked tokens, (B, N - Nv, num_values), in `masked`'s order.

        Args:
            latents: (B, Nv, D), in the order of `visible`.
            visible: (B, Nv) int64 token numbers.
            masked: (B, N - Nv) int64 token numbers.
            grid: rows and columns of the token grid.
            predict_visible: predict the visible tokens too, ahead of the masked ones.
        """
        positions = self.positions(*grid, self.mask_token.dtype)
        x = self.embed(latents)
        seen = x + positions[visible]
        hidden = self.mask_token + positions[masked]
        x = torch.cat([seen, hidden.to(seen.dtype)], dim=1)  # (B, N, E)
        for block in self.blocks:
            x = block(x)
        if not predict_visible:
            x = x[:, visible.shape[1] :]
        return self.predict(self.norm(x))
