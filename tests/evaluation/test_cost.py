"""What an encoder costs: parameters counted, operations from the sizes of its products."""

import dataclasses
from pathlib import Path

import pytest
import torch

from fusmae.config import Fusion
from fusmae.evaluation.backbones import open_backbone
from fusmae.evaluation.cost import encoder_cost
from fusmae.model import EncoderCard, FusMAEEncoder, save_encoder

from .published import imagenet_vit


def linear(tokens: int, inputs: int, outputs: int) -> int:
    return 2 * tokens * inputs * outputs


def block(tokens: int, width: int) -> int:
    """q, k, v and projection, an MLP of four times the width, scores and weighted sum."""
    return 12 * linear(tokens, width, width) + 4 * tokens * tokens * width


@pytest.mark.parametrize("fusion", ["none", "xae_xad", "late", "stack"])
def test_cost_of_ours_is_that_of_its_products(
    card: EncoderCard, tmp_path: Path, fusion: Fusion
) -> None:
    """9 tokens of 16 pixels a sensor, 2 and 7 bands, width 16, 2 blocks; nothing is masked."""
    card = dataclasses.replace(card, model=dataclasses.replace(card.model, fusion=fusion))
    encoder = FusMAEEncoder(card.model, card.channels)
    save_encoder(encoder, card, tmp_path)
    backbone = open_backbone(tmp_path)
    one, both = (encoder_cost(backbone, dict.fromkeys(s, 12)) for s in (["s2"], ["s1", "s2"]))
    assert one["parameters"] == sum(p.numel() for p in encoder.parameters())
    embedding = linear(9, 9 * 16, 16)  # of all bands
    # q and projection of 9 tokens and k and v of the other 9, twice; one MLP on all 18.
    crossed = 2 * (4 * linear(9, 16, 16) + 4 * 9 * 9 * 16) + 8 * linear(18, 16, 16)
    expected = {
        "none": 2 * block(19, 16),
        "xae_xad": crossed + block(19, 16),
        "late": 4 * block(10, 16),
        "stack": 2 * block(10, 16),
    }[fusion]
    assert both["forward_flops"] == embedding + expected
    assert one["forward_flops"] < both["forward_flops"] or fusion == "stack"


def test_cost_of_vit_b_is_the_published_one(tmp_path: Path) -> None:
    """86 M parameters and 17.6 G multiply-adds with attention: timm's table of vit_base_patch16."""
    torch.save(imagenet_vit(), tmp_path / "vit.pth")
    cost = encoder_cost(open_backbone(f"imagenet:{tmp_path / 'vit.pth'}"), {"s1": 224, "s2": 224})
    # 14 bands instead of 3, no head of 1,000 classes.
    assert cost["parameters"] == 86_567_656 + 11 * 256 * 768 - 769_000 - 768
    more = linear(196, 11 * 256, 768)
    assert cost["forward_flops"] - more == pytest.approx(2 * 17.56e9, rel=0.01)
