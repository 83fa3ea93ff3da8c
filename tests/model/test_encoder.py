import plain_algebra as plain
import pytest
import torch
from torch import Tensor

from fusmae.config import ModelConfig
from fusmae.model.encoder import FusMAEEncoder, XAttnEncoder
from fusmae.model.masking import draw_masks
from fusmae.model.patches import patchify, unpatchify

CHANNELS = {"s1": 2, "s2": 3}


def config(depth: int = 2, fusion: str = "xae_xad", masking: str = "independent") -> ModelConfig:
    """16 tokens a sensor, 4 of them visible."""
    return ModelConfig(
        fusion=fusion,  # type: ignore[arg-type]
        masking=masking,  # type: ignore[arg-type]
        image_px=16,
        patch_px=4,
        width=16,
        depth=depth,
        heads=4,
        decoder_width=8,
        decoder_depth=1,
        decoder_heads=2,
    )


def images_of(channels: dict[str, int], size_px: int = 16, batch: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        sensor: torch.randn(batch, count, size_px, size_px, generator=generator)
        for sensor, count in channels.items()
    }


def encoder_of(cfg: ModelConfig, channels: dict[str, int]) -> FusMAEEncoder:
    encoder = FusMAEEncoder(cfg, channels)
    plain.randomise(encoder, seed=0)
    return encoder


def test_xattn_encoder_equals_eqs_2_to_5_in_plain_algebra() -> None:
    xattn = XAttnEncoder(["s1", "s2"], config()).double()
    plain.randomise(xattn, seed=0)
    weights = dict(xattn.state_dict())
    x, y = torch.randn(2, 5, 16).double(), torch.randn(2, 7, 16).double()
    ca_x = plain.cross_attention(x, y, plain.under(weights, "cross.attention.s1"), heads=4)
    ca_y = plain.cross_attention(y, x, plain.under(weights, "cross.attention.s2"), heads=4)
    z = torch.cat([x, y], dim=1) + torch.cat([ca_x, ca_y], dim=1)
    z = z + plain.mlp(plain.norm(z, plain.under(weights, "norm")), plain.under(weights, "mlp"))
    # float64, values up to some 1e2: rounding stays below 1e-11.
    torch.testing.assert_close(xattn({"s1": x, "s2": y}), z, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("fusion", ["xae_xad", "xad"])
@pytest.mark.parametrize("masking", ["consistent", "independent"])
def test_masked_pixels_do_not_reach_the_encoder(fusion: str, masking: str) -> None:
    cfg = config(fusion=fusion, masking=masking)
    encoder = encoder_of(cfg, CHANNELS)
    images = images_of(CHANNELS)
    masks = draw_masks(cfg, list(CHANNELS), 0, torch.arange(2))
    changed = {}
    for sensor, image in images.items():
        pixels = patchify(image, 4)
        for b in range(2):
            pixels[b, masks.masked[sensor][b]] = float("nan")
        changed[sensor] = unpatchify(pixels, 4, (16, 16)).requires_grad_()
    before, after = encoder(images, masks.visible), encoder(changed, masks.visible)
    assert after.global_token.equal(before.global_token)
    for sensor in CHANNELS:
        assert after.tokens[sensor].equal(before.tokens[sensor])
    total = after.global_token.square().sum()
    (total + sum(x.square().sum() for x in after.tokens.values())).backward()
    for sensor in CHANNELS:
        gradient = changed[sensor].grad
        assert gradient is not None
        by_token = patchify(gradient, 4)
        for b in range(2):
            assert not by_token[b, masks.masked[sensor][b]].any()
            assert by_token[b, masks.visible[sensor][b]].abs().sum(dim=1).min() > 0


def dependence(fusion: str, sensor: str, index: int) -> dict[str, list[int]]:
    """The tokens on whose pixels the `index`-th visible token of `sensor` depends after block 1."""
    cfg = config(depth=1, fusion=fusion)
    encoder = encoder_of(cfg, CHANNELS)
    images = {name: x.requires_grad_() for name, x in images_of(CHANNELS, batch=1).items()}
    visible = draw_masks(cfg, list(CHANNELS), 0, torch.arange(1)).visible
    token = encoder(images, visible).tokens[sensor][0, index]
    # Random weights of the sum, since a norm makes plain sums independent of its input.
    gradients = torch.autograd.grad((token * torch.randn(16)).sum(), list(images.values()))
    return {
        name: patchify(gradient, 4)[0].abs().sum(dim=1).nonzero().flatten().tolist()
        for name, gradient in zip(images, gradients, strict=True)
    }


@pytest.mark.parametrize("index", range(4))
def test_with_xae_a_token_leaves_block_1_knowing_itself_and_the_other_sensor(index: int) -> None:
    visible = draw_masks(config(), list(CHANNELS), 0, torch.arange(1)).visible
    s1, s2 = (visible[sensor][0].tolist() for sensor in CHANNELS)
    assert s1 != s2
    assert dependence("xae_xad", "s2", index) == {"s1": s1, "s2": [s2[index]]}
    assert dependence("xae_xad", "s1", index) == {"s1": [s1[index]], "s2": s2}


def test_with_xad_a_token_leaves_block_1_knowing_all_visible_tokens() -> None:
    visible = draw_masks(config(), list(CHANNELS), 0, torch.arange(1)).visible
    expected = {sensor: visible[sensor][0].tolist() for sensor in CHANNELS}
    assert dependence("xad", "s2", 1) == expected
    assert dependence("xad", "s1", 2) == expected


def test_the_global_token_enters_after_xae_but_before_block_1_of_xad() -> None:
    images = images_of(CHANNELS)
    for fusion, takes_part in (("xae_xad", False), ("xad", True)):
        encoder = encoder_of(config(depth=1, fusion=fusion), CHANNELS)
        before = encoder(images)
        encoder.global_token.data += 1.0
        after = encoder(images)
        assert not after.global_token.equal(before.global_token)
        assert after.tokens["s2"].equal(before.tokens["s2"]) is not takes_part


def test_the_context_of_one_of_three_sensors_is_the_other_two_concatenated() -> None:
    xattn = XAttnEncoder(["a", "b", "c"], config()).double()
    plain.randomise(xattn, seed=0)
    weights = dict(xattn.state_dict())
    tokens = {name: torch.randn(2, n, 16).double() for name, n in (("a", 3), ("b", 4), ("c", 5))}
    fused = []
    for name, x in tokens.items():
        context = torch.cat([y for other, y in tokens.items() if other != name], dim=1)
        w = plain.under(weights, f"cross.attention.{name}")
        fused.append(x + plain.cross_attention(x, context, w, heads=4))
    z = torch.cat(fused, dim=1)
    z = z + plain.mlp(plain.norm(z, plain.under(weights, "norm")), plain.under(weights, "mlp"))
    torch.testing.assert_close(xattn(tokens), z, rtol=1e-12, atol=1e-11)


def test_an_absent_sensor_takes_only_its_cross_attention_with_it() -> None:
    encoder = encoder_of(config(depth=2), CHANNELS).double()
    weights = dict(encoder.state_dict())
    image = images_of(CHANNELS)["s2"].double()
    kernel = weights["patch_embed.s2.weight"].flatten(1)
    x = patchify(image, 4) @ kernel.T + weights["patch_embed.s2.bias"] + encoder.positions.table
    w = plain.under(weights, "xattn")
    x = x + plain.mlp(plain.norm(x, plain.under(w, "norm")), plain.under(w, "mlp"))
    x = torch.cat([x, weights["global_token"].expand(2, 1, 16)], dim=1)
    x = plain.block(x, plain.under(weights, "blocks.0"), heads=4)
    output = encoder({"s2": image})
    assert list(output.tokens) == ["s2"]
    torch.testing.assert_close(output.tokens["s2"], x[:, :16], rtol=1e-11, atol=1e-10)
    torch.testing.assert_close(output.global_token, x[:, 16], rtol=1e-11, atol=1e-10)


def test_three_sensors_with_one_absent_equal_the_model_of_the_other_two() -> None:
    three = encoder_of(config(), {"s1": 2, "s2": 3, "dem": 1})
    two = FusMAEEncoder(config(), CHANNELS)
    two.load_state_dict({k: v for k, v in three.state_dict().items() if "dem" not in k})
    images = images_of(CHANNELS)
    for ours, expected in zip(
        three(images).tokens.values(), two(images).tokens.values(), strict=True
    ):
        assert ours.equal(expected)


def test_all_tokens_visible_equals_no_mask() -> None:
    encoder = encoder_of(config(), CHANNELS)
    images = images_of(CHANNELS)
    every = {sensor: torch.arange(16).expand(2, 16) for sensor in CHANNELS}
    assert encoder(images, every).global_token.equal(encoder(images).global_token)


def test_order_of_the_given_images_does_not_matter() -> None:
    encoder = encoder_of(config(), CHANNELS)
    images = images_of(CHANNELS)
    output = encoder(dict(reversed(images.items())))
    assert list(output.tokens) == ["s1", "s2"]
    assert output.global_token.equal(encoder(images).global_token)


def test_another_image_size_gives_its_own_token_grid() -> None:
    encoder = encoder_of(config(), CHANNELS)
    generator = torch.Generator().manual_seed(0)
    images = {s: torch.randn(2, c, 24, 20, generator=generator) for s, c in CHANNELS.items()}
    output = encoder(images)
    assert output.tokens["s1"].shape == (2, 30, 16)
    # The weights know no size: an encoder made for this width of grid agrees.
    wide = FusMAEEncoder(ModelConfig(**{**vars(encoder.config), "image_px": 24}), CHANNELS)
    wide.load_state_dict(encoder.state_dict())
    assert wide(images).global_token.equal(output.global_token)


def test_pool_is_the_mean_over_all_sensor_tokens_without_the_global_one() -> None:
    encoder = encoder_of(config(), CHANNELS)
    output = encoder(images_of(CHANNELS))
    expected = (output.tokens["s1"].sum(1) + output.tokens["s2"].sum(1)) / 32
    # Sums of 32 float32 numbers of size 1 to 100 in another order.
    torch.testing.assert_close(encoder.pool(output), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({}, "no image was given"),
        ({"s3": torch.zeros(1, 2, 16, 16)}, "unknown sensor 's3'"),
        ({"s1": torch.zeros(1, 3, 16, 16)}, r"'s1' are .*\(1, 3, 16, 16\), expected .*B, 2, H, W"),
        ({"s1": torch.zeros(1, 2, 16, 18)}, "multiples of 4"),
        ({"s1": torch.zeros(2, 16, 16)}, "expected floats"),
        ({"s1": torch.zeros(1, 2, 16, 16, dtype=torch.uint16)}, "uint16"),
    ],
)
def test_wrong_images_are_refused_by_name(images: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FusMAEEncoder(config(), CHANNELS)(images)


def test_a_sensor_without_visible_tokens_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'s1' has an image but no `visible`"):
        FusMAEEncoder(config(), CHANNELS)(images_of(CHANNELS), {"s2": torch.zeros(2, 1).long()})


def test_a_model_without_sensors_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one sensor"):
        FusMAEEncoder(config(), {})
