"""What a pass through a system's encoder costs, whoever made it."""

from collections.abc import Mapping

import torch
from torch.utils.flop_counter import FlopCounterMode

from fusmae.evaluation.backbones import Backbone


def encoder_cost(backbone: Backbone, size_px: Mapping[str, int]) -> dict[str, int]:
    """`parameters` of the encoder, and `forward_flops` of one sample, nothing masked.

    `size_px` has the side of each sensor's image; the other sensors are absent. Operations are
    those of matrix products, attention included, 2 for each multiplication with its addition.
    """
    # Without memory, and with attention as the products that it consists of.
    with torch.device("meta"), torch.inference_mode():
        encoder = backbone.make_random()
        channels = backbone.card.channels
        images = {s: torch.empty(1, channels[s], side, side) for s, side in size_px.items()}
        with FlopCounterMode(display=False) as counter:
            encoder(images if encoder.skips_absent else encoder.fill_absent(images))
    return {
        "parameters": sum(parameter.numel() for _, parameter in encoder.named_parameters()),
        "forward_flops": counter.get_total_flops(),
    }
