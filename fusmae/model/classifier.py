"""An encoder with a classification head, for fine-tuning."""

# B batch, C channels, H x W pixels, D width, K classes
from typing import Literal

import torch
from torch import Tensor, nn

from fusmae.model.attention import layer_norm
from fusmae.model.interface import ImageEncoder

Pooling = Literal["mean_tokens", "global_token"]

# MAE's head starts this close to 0 (facebookresearch/mae, main_finetune.py): the first steps then
# do not push noise into the encoder.
_HEAD_STD = 2e-5


class FusMAEClassifier(nn.Module):
    """Encoder, pooling, LayerNorm and a linear layer; OUR choice, the paper prints no head.

    As in MultiMAE's fine-tuning the pooled tokens are normed, since the encoder ends without a
    norm. `pooling` is the mean over the tokens of all sensors present, or the global token.
    """

    encoder: ImageEncoder

    def __init__(self, encoder: ImageEncoder, num_classes: int, pooling: Pooling) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        self.norm = layer_norm(encoder.config.width)
        self.head = nn.Linear(encoder.config.width, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=_HEAD_STD)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: dict[str, Tensor]) -> Tensor:
        """Images (B, C, H, W) by sensor to scores (B, K); absent sensors are left out."""
        output = self.encoder(images)
        if self.pooling == "global_token":
            pooled = output.global_token
        else:
            pooled = self.encoder.pool(output)
        return self.head(self.norm(pooled))

    def head_weights(self) -> dict[str, Tensor]:
        """The weights that are not the encoder's, on the CPU."""
        return {
            name: tensor.detach().cpu().contiguous().to(torch.float32)
            for name, tensor in self.state_dict().items()
            if not name.startswith("encoder.")
        }
