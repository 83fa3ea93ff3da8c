"""Published checkpoints, by names and shapes: loaded, run, and checked against plain algebra."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fusmae.evaluation.backbones import Backbone, open_backbone
from fusmae.evaluation.backbones.dino_mm import to_bytes
from fusmae.evaluation.backbones.imagenet import inflate
from fusmae.evaluation.backbones.vit import stretch_positions
from fusmae.evaluation.layer_decay import layer_groups, layer_of
from fusmae.model.classifier import FusMAEClassifier
from fusmae.torchvision_repair import repair_torchvision

# `tests` is not installed, so its files reach each other by relative imports alone.
from .published import (
    MAP,
    S2,
    SATVIT,
    TIMM,
    block,
    dino_mm_checkpoint,
    imagenet_vit,
    linear,
    norm,
    patches,
    satvit_state,
    satvit_toml,
)


@pytest.fixture(scope="module")
def dino_mm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dino") / "B14_vits8_dinomm_ep99.pth"
    torch.save(dino_mm_checkpoint(), path)
    return path


def images_of(backbone: Backbone, size_px: int, *sensors: str) -> dict[str, Tensor]:
    """One image a sensor, in deviations."""
    generator = torch.Generator().manual_seed(7)
    return {
        sensor: torch.randn(1, len(backbone.card.bands[sensor]), size_px, size_px).normal_(
            generator=generator
        )
        for sensor in sensors
    }


@torch.inference_mode()
def test_dino_mm_is_its_teacher_in_plain_algebra(dino_mm: Path) -> None:
    backbone = open_backbone(f"dino-mm:{dino_mm}")
    assert backbone.card.channels == {"s1": 2, "s2": 12}
    images = images_of(backbone, 24, "s1", "s2")
    output = backbone.pretrained(images)
    w = {
        name.removeprefix("backbone."): tensor
        for name, tensor in dino_mm_checkpoint()["teacher"].items()  # type: ignore[attr-defined]
    }
    levels = {sensor: to_bytes(sensor, image) for sensor, image in images.items()}
    # Upstream's order: the 12 bands of S2, then VH and VV.
    stacked = torch.cat([levels["s2"], levels["s1"]], dim=1)
    assert backbone.card.bands["s1"] == ("VH", "VV")
    positions = stretch_positions(w["pos_embed"][:, 1:], 3, 3)
    kernel = {"p.weight": w["patch_embed.proj.weight"].flatten(1)}
    tokens = linear(patches(stacked, 8), kernel, "p") + w["patch_embed.proj.bias"] + positions
    x = torch.cat([w["cls_token"] + w["pos_embed"][:, :1], tokens], dim=1)
    for i in range(12):
        x = block(x, w, f"blocks.{i}", TIMM, heads=6, eps=1e-6)
    x = norm(x, w, "norm", 1e-6)
    # float32 through 12 layers.
    torch.testing.assert_close(output.global_token, x[:, 0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(output.tokens["stack"], x[:, 1:], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        backbone.pretrained.pool(output), x[:, 1:].mean(1), atol=1e-4, rtol=1e-3
    )


@torch.inference_mode()
def test_dino_mm_without_a_sensor_has_zeros_after_its_normalisation(dino_mm: Path) -> None:
    backbone = open_backbone(f"dino-mm:{dino_mm}")
    encoder: Any = backbone.pretrained
    images = images_of(backbone, 16, "s2")
    assert encoder.fill_absent(images) is images and not encoder.skips_absent
    alone = encoder(images).global_token
    levels = torch.cat([to_bytes("s2", images["s2"]), torch.zeros(1, 2, 16, 16)], dim=1)
    tokens = encoder.embed(levels, range(14))
    z = torch.cat([encoder.cls_token, tokens], dim=1)
    for part in encoder.blocks:
        z = part(z)
    torch.testing.assert_close(alone, encoder.norm(z)[:, 0])


def test_dino_mms_levels_are_numpys() -> None:
    rng = np.random.default_rng(3)
    mean, std = -19.22, 5.42
    stored = rng.normal(mean, 0.6 * std, (2, 1, 30, 30)).astype(np.float32)

    def level(image: np.ndarray) -> np.ndarray:
        low, high = mean - 2 * std, mean + 2 * std
        return np.clip((image - low) / (high - low) * 255, 0, 255).astype(np.uint8)

    clipped = np.stack([np.clip(i, *np.quantile(i, [0.01, 0.99])) for i in stored])
    deviations = torch.from_numpy((stored - mean) / std)
    for sensor, expected in (("s1", level(clipped)), ("s2", level(stored))):
        got = to_bytes(sensor, deviations) * 255
        # Rounding may put a pixel that lies on a level's edge into its neighbour.
        difference = np.abs(got.numpy() - expected.astype(np.float32))
        assert difference.max() <= 1.001 and (difference > 0.5).mean() < 1e-3
    assert not np.array_equal(level(clipped), level(stored))


@pytest.mark.parametrize(
    ("version", "patch_px", "decoder"), [("satvit-v1", 16, 384), ("satvit-v2", 8, 512)]
)
@torch.inference_mode()
def test_satvit_is_its_encoder_in_plain_algebra(
    tmp_path: Path, version: str, patch_px: int, decoder: int
) -> None:
    w = satvit_state(15, patch_px, decoder)
    backbone = open_backbone(satvit_toml(tmp_path, version, w, MAP))
    size_px = 2 * patch_px
    images = images_of(backbone, size_px, "s1", "s2")
    output = backbone.pretrained(images)
    (vv, vh), bands = images["s1"].unbind(1), images["s2"]
    assert backbone.card.bands == {"s1": ("VV", "VH"), "s2": S2}
    stacked = torch.cat([bands, torch.stack([vv, vh, vv], dim=1)], dim=1)
    x = linear(patches(stacked, patch_px), w, "linear_input")
    x = x + stretch_positions(w["pos_embed"], 2, 2)
    for i in range(12):
        x = block(x, w, f"encoder.layers.{i}", SATVIT, heads=12, eps=1e-5)
    x = norm(x, w, "encoder.norm_out", 1e-5)
    torch.testing.assert_close(output.tokens["stack"], x, rtol=1e-3, atol=1e-4)
    assert output.global_token.shape == (1, 0) and backbone.poolings == ("mean_tokens",)


@torch.inference_mode()
def test_a_channel_that_is_left_out_counts_as_zeros(tmp_path: Path) -> None:
    state = satvit_state(15, 16, 384)
    without = open_backbone(satvit_toml(tmp_path, "satvit-v1", state, (*S2, "VV", "VH", "-")))
    images = images_of(without, 16, "s1", "s2")
    state["linear_input.weight"][:, 14 * 256 :] = 0
    zero = open_backbone(satvit_toml(tmp_path, "satvit-v1", {"mae_model": state}, MAP))
    given, expected = (b.pretrained(images).tokens["stack"] for b in (without, zero))
    torch.testing.assert_close(given, expected)


@torch.inference_mode()
def test_a_grey_image_has_the_tokens_that_timm_gives_it(tmp_path: Path) -> None:
    repair_torchvision()
    import timm

    weights = imagenet_vit()
    torch.save(weights, tmp_path / "vit.pth")
    backbone = open_backbone(f"imagenet:{tmp_path / 'vit.pth'}")
    model = timm.create_model("vit_base_patch16_224").eval()
    model.load_state_dict(weights)
    grey = torch.randn(1, 1, 224, 224, generator=torch.Generator().manual_seed(1))
    expected = model.forward_features(grey.expand(-1, 3, -1, -1))
    for sensors in (("s1",), ("s1", "s2")):
        counts = {sensor: backbone.card.channels[sensor] for sensor in sensors}
        output = backbone.pretrained({s: grey.expand(-1, n, -1, -1) for s, n in counts.items()})
        torch.testing.assert_close(output.global_token, expected[:, 0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(output.tokens["stack"], expected[:, 1:], rtol=1e-3, atol=1e-4)
    # Skipping scales the kernels of two bands to the whole; zeros leave them their seventh.
    encoder: Any = backbone.pretrained
    image = {"s1": grey[..., :16, :16].expand(-1, 2, -1, -1)}
    assert encoder.skips_absent and list(encoder.fill_absent(image)) == ["s1", "s2"]
    bias = encoder.patch_bias + stretch_positions(encoder.pos_embed, 1, 1)
    skipped = encoder.embed(image["s1"], [0, 1]) - bias
    stacked = torch.cat(list(encoder.fill_absent(image).values()), dim=1)
    torch.testing.assert_close(encoder.embed(stacked, range(14)) - bias, skipped / 7)


def test_colours_keep_their_kernels_and_other_bands_have_the_mean() -> None:
    kernel = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(5))
    inflated = inflate(kernel, ("VV", "B02", "B03", "B04", "B08"))
    red, green, blue = kernel.unbind(1)
    mean = (red + green + blue) / 3
    for got, expected in zip(inflated.unbind(1), (mean, blue, green, red, mean), strict=True):
        torch.testing.assert_close(got, expected)


def cubic_matrix(num: int, side: int) -> np.ndarray:
    """(num, side): Keys' cubic convolution with a = -0.75, edges repeated, at DINO's places."""

    def weight(x: float) -> float:
        x, a = abs(x), -0.75
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    matrix = np.zeros((num, side))
    for row in range(num):
        place = (row + 0.5) * side / (num + 0.1) - 0.5
        for column in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            matrix[row, min(max(column, 0), side - 1)] += weight(place - column)
    return matrix


def test_positions_are_bit_for_bit_at_their_own_size_and_dinos_at_others() -> None:
    learned = torch.randn(1, 28 * 28, 6, generator=torch.Generator().manual_seed(2))
    assert torch.equal(stretch_positions(learned, 28, 28), learned)
    grid = learned.double().numpy().reshape(28, 28, 6)
    for rows, cols in ((14, 14), (15, 30)):
        rows_of, cols_of = cubic_matrix(rows, 28), cubic_matrix(cols, 28)
        expected = np.einsum("ri,cj,ijd->rcd", rows_of, cols_of, grid).reshape(1, -1, 6)
        np.testing.assert_allclose(stretch_positions(learned, rows, cols), expected, atol=1e-4)


def test_random_weights_follow_the_seed_alone(dino_mm: Path) -> None:
    backbone = open_backbone(f"dino-mm:{dino_mm}")
    state = torch.random.get_rng_state()
    first, again, other = (backbone.random(seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    for name in ("patch_weight", "cls_token", "pos_embed", "blocks.11.mlp.fc2.weight"):
        assert not torch.equal(first[name], other[name])
        assert not torch.equal(first[name], backbone.pretrained.state_dict()[name])


def test_layers_of_a_published_model_have_their_rates(dino_mm: Path) -> None:
    encoder = open_backbone(f"dino-mm:{dino_mm}").pretrained
    model = FusMAEClassifier(encoder, 19, "global_token")
    expected = {
        "encoder.patch_weight": 0,
        "encoder.pos_embed": 0,
        "encoder.cls_token": 0,
        "encoder.blocks.0.attn.qkv.weight": 1,
        "encoder.blocks.11.mlp.fc2.bias": 12,
        "encoder.norm.weight": 13,
        "head.weight": 13,
    }
    assert {name: layer_of(name, model) for name in expected} == expected
    decays = {
        id(parameter): group["weight_decay"]
        for group in layer_groups(model, weight_decay=0.05, layer_decay=0.65)
        for parameter in group["params"]
    }
    named = dict(model.named_parameters())
    assert len(decays) == len(named)
    assert decays[id(named["encoder.pos_embed"])] == 0.0
    assert decays[id(named["encoder.patch_weight"])] == 0.05
