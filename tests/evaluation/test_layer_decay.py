"""Each parameter once, with the rate of its layer."""

import dataclasses

import pytest

from fusmae.config import ModelConfig
from fusmae.evaluation.layer_decay import layer_groups, layer_of
from fusmae.model import FusMAEEncoder
from fusmae.model.classifier import FusMAEClassifier

CONFIG = ModelConfig(preset="tiny", image_px=8, patch_px=4, width=16, depth=3, heads=2)


def model_of(fusion: str) -> FusMAEClassifier:
    config = dataclasses.replace(CONFIG, fusion=fusion)  # type: ignore[arg-type]
    encoder = FusMAEEncoder(config, {"s1": 2, "s2": 3})
    return FusMAEClassifier(encoder, num_classes=5, pooling="mean_tokens")


def test_xattn_encoder_is_the_first_layer_and_both_embeddings_lie_below_it() -> None:
    model = model_of("xae_xad")
    expected = {
        "encoder.patch_embed.s1.weight": 0,
        "encoder.patch_embed.s2.bias": 0,
        "encoder.global_token": 0,
        "encoder.xattn.cross.attention.s1.q.weight": 1,
        "encoder.xattn.mlp.fc1.weight": 1,
        "encoder.blocks.0.attn.qkv.weight": 2,
        "encoder.blocks.1.mlp.fc2.bias": 3,
        "norm.weight": 4,
        "head.weight": 4,
    }
    assert set(expected) < {name for name, _ in model.named_parameters()}
    assert {name: layer_of(name, model) for name in expected} == expected


def test_without_xattn_encoder_the_first_block_is_the_first_layer() -> None:
    model = model_of("xad")
    assert layer_of("encoder.blocks.0.norm1.weight", model) == 1
    assert layer_of("encoder.blocks.2.norm1.weight", model) == 3


def test_late_fusions_encoders_are_layered_alike() -> None:
    model = model_of("late")
    assert layer_of("encoder.late.s1.blocks.0.norm1.weight", model) == 1
    assert layer_of("encoder.late.s2.blocks.2.norm1.weight", model) == 3
    assert layer_of("encoder.late.s2.global_token", model) == 0


@pytest.mark.parametrize("fusion", ["xae_xad", "xad", "late", "stack"])
def test_groups_hold_every_parameter_once_with_the_scale_of_its_layer(fusion: str) -> None:
    model = model_of(fusion)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen = []
    for group in layer_groups(model, weight_decay=0.05, layer_decay=0.5):
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen.append(name)
            assert group["lr_scale"] == 0.5 ** (4 - layer_of(name, model))
            matrix = parameter.ndim > 1 and not name.endswith(("bias", "token"))
            assert group["weight_decay"] == (0.05 if matrix else 0)
    assert sorted(seen) == sorted(names.values())
