"""Every fusion variant, with one, two, three and four sensors, against plain algebra."""

import dataclasses
import typing

import plain_algebra as plain
import pytest
import torch
from torch import Tensor

from fusmae.config import Fusion, ModelConfig
from fusmae.model import FusMAE, FusMAEEncoder, Masks, draw_masks
from fusmae.model.patches import patchify, unpatchify
from fusmae.model.positions import sincos_2d
from fusmae.sensor_config import SensorConfig

FUSIONS: tuple[Fusion, ...] = typing.get_args(Fusion)
NUM_CLASSES = 5
LAND_COVER = {"lc": SensorConfig(loss="cross_entropy", num_classes=NUM_CLASSES)}
# Bands of 10, 20 and 60 m over the same ground: tokens of 12, 6 and 2 px.
BY_RESOLUTION = {"s2_20m": SensorConfig(patch_px=6), "s2_60m": SensorConfig(patch_px=2)}

CASES: dict[str, tuple[dict[str, int], int, dict[str, SensorConfig]]] = {
    "one": ({"s2": 3}, 4, {}),
    "two": ({"s1": 2, "s2": 3}, 4, {}),
    "three, one a class map": ({"s1": 2, "s2": 3, "lc": 1}, 4, LAND_COVER),
    "four, three of them of one sensor": (
        {"s1": 1, "s2_10m": 2, "s2_20m": 3, "s2_60m": 1},
        12,
        BY_RESOLUTION,
    ),
}


def every(*cases: str) -> list[tuple[Fusion, str, str]]:
    """(fusion, masking, case), all that exist: `stack` has one mask and one token size."""
    return [
        (fusion, masking, case)
        for fusion in FUSIONS
        for masking in ("consistent", "independent")
        for case in cases or CASES
        if fusion != "stack" or (masking == "consistent" and "four" not in case)
    ]


def config_of(fusion: Fusion, masking: str, case: str) -> ModelConfig:
    """16 tokens a sensor, 4 of them visible."""
    _, patch_px, sensors = CASES[case]
    return ModelConfig(
        fusion=fusion,
        masking=masking,  # type: ignore[arg-type]
        image_px=4 * patch_px,
        patch_px=patch_px,
        width=16,
        depth=3,
        heads=4,
        decoder_width=8,
        decoder_depth=1,
        decoder_heads=2,
        sensors=sensors,
    )


def images_of(config: ModelConfig, channels: dict[str, int]) -> dict[str, Tensor]:
    """Two samples; pixels of a class map are one of its classes or, one in six, none."""
    generator = torch.Generator().manual_seed(1)
    images = {}
    for sensor, size in config.sizes_px(channels).items():
        shape = (2, channels[sensor], size, size)
        if config.num_classes_of(sensor):
            images[sensor] = torch.randint(-1, NUM_CLASSES, shape, generator=generator).float()
        else:
            images[sensor] = torch.randn(shape, generator=generator)
    return images


def masks_of(config: ModelConfig, channels: dict[str, int]) -> Masks:
    return draw_masks(config, list(channels), 0, torch.arange(2))


def made(fusion: Fusion, masking: str, case: str) -> tuple[FusMAE, dict[str, Tensor], Masks]:
    config, channels = config_of(fusion, masking, case), CASES[case][0]
    model = FusMAE(config, channels)
    plain.randomise(model, seed=0)
    return model, images_of(config, channels), masks_of(config, channels)


def pick(x: Tensor, tokens: Tensor) -> Tensor:
    """Rows (B, K, V) of (B, N, V)."""
    return torch.stack([x[b, tokens[b]] for b in range(len(x))])


def plain_model(
    model: FusMAE, images: dict[str, Tensor], masks: Masks
) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
    """Latents, global token, and predictions (B, K, V) of the masked tokens, by plain algebra."""
    config, weights = model.config, dict(model.state_dict())
    grid = sincos_2d(4, 4, 16).double()
    values, places = {}, {}
    for sensor, image in images.items():
        pixels = patchify(image, config.patch_px_of(sensor))
        if config.num_classes_of(sensor):  # as MAE would see a picture of 0 and 1 for each class
            pixels = torch.cat([(pixels == k).double() for k in range(NUM_CLASSES)], dim=-1)
        values[sensor] = pick(pixels, masks.visible[sensor])
        places[sensor] = grid[masks.visible[sensor]]
    w = plain.under(weights, "encoder")
    latents, global_token = plain.encoder(config.fusion, values, places, w, heads=4)
    fused, names = list(latents.values()), list(latents)
    if config.fusion in ("xae_xad", "xad"):
        fused = plain.xattn_decoder(fused, names, plain.under(weights, "xattn_decoder"), heads=4)
    predictions = {}
    for name, z in zip(names, fused, strict=True):
        sensors = list(images) if name == "stack" else [name]
        everything = plain.light_decoder(
            z,
            masks.visible[sensors[0]],
            sincos_2d(4, 4, 8).double(),
            plain.under(weights, f"decoders.{name}"),
            heads=2,
        )
        for sensor in sensors:
            size = values[sensor].shape[-1]
            predictions[sensor] = pick(everything[..., :size], masks.masked[sensor])
            everything = everything[..., size:]
        assert everything.shape[-1] == 0
    return latents, global_token, predictions


@pytest.mark.parametrize(("fusion", "masking", "case"), every())
def test_the_model_equals_plain_algebra_from_pixels_to_losses(
    fusion: Fusion, masking: str, case: str
) -> None:
    model, images, masks = made(fusion, masking, case)
    model, images = model.double(), {sensor: image.double() for sensor, image in images.items()}
    latents, global_token, predictions = plain_model(model, images, masks)
    output = model.encoder(images, masks.visible)
    assert list(output.tokens) == list(latents)
    for name, expected in latents.items():
        # float64 with values up to some 1e2: rounding stays below 1e-10.
        torch.testing.assert_close(output.tokens[name], expected, rtol=1e-11, atol=1e-10)
    torch.testing.assert_close(output.global_token, global_token, rtol=1e-11, atol=1e-10)

    losses = model(images, masks)
    assert list(losses) == [*images, "loss"]
    for sensor, prediction in predictions.items():
        target = pick(
            patchify(images[sensor], model.config.patch_px_of(sensor)), masks.masked[sensor]
        )
        if model.config.num_classes_of(sensor):
            logits = prediction.unflatten(-1, (NUM_CLASSES, -1))  # (B, K, classes, P * P)
            logs = logits - logits.exp().sum(dim=2, keepdim=True).log()
            chosen = logs.gather(2, target[:, :, None].clamp(min=0).long()).squeeze(2)
            expected = -chosen[target >= 0].mean()
        else:
            expected = (prediction - target).square().mean()
        # The model takes its losses in float32.
        assert losses[sensor].item() == pytest.approx(expected.item(), rel=1e-6)
    total = sum(losses[sensor].item() for sensor in images)
    assert losses["loss"].item() == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize(("fusion", "masking", "case"), every())
def test_masked_tokens_reach_neither_the_encoder_nor_a_prediction(
    fusion: Fusion, masking: str, case: str
) -> None:
    model, images, masks = made(fusion, masking, case)
    hidden = {}
    for sensor, image in images.items():
        patch_px = model.config.patch_px_of(sensor)
        pixels = patchify(image, patch_px)
        for b in range(2):
            pixels[b, masks.masked[sensor][b]] = float("nan")
        hidden[sensor] = unpatchify(pixels, patch_px, (image.shape[2], image.shape[3]))
    before, after = model.encoder(images, masks.visible), model.encoder(hidden, masks.visible)
    assert after.global_token.equal(before.global_token)
    assert all(after.tokens[name].equal(x) for name, x in before.tokens.items())
    seen, unseen = model.reconstruct(images, masks), model.reconstruct(hidden, masks)
    assert all(unseen[sensor].equal(image) for sensor, image in seen.items())
    assert {s: x.shape for s, x in seen.items()} == {s: x.shape for s, x in images.items()}


@pytest.mark.parametrize(("fusion", "masking", "case"), every())
def test_every_parameter_receives_a_gradient(fusion: Fusion, masking: str, case: str) -> None:
    model, images, masks = made(fusion, masking, case)
    model(images, masks)["loss"].backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize(("fusion", "masking", "case"), every())
def test_the_order_of_the_sensors_means_nothing(fusion: Fusion, masking: str, case: str) -> None:
    """But to the weights of `stack`, whose channels go with it."""
    model, images, masks = made(fusion, masking, case)
    channels = CASES[case][0]
    turned = FusMAE(model.config, dict(reversed(channels.items())))
    weights = model.state_dict()
    if fusion == "stack":
        planes = list(model.encoder.planes.values())
        for name, dim, size in (
            ("encoder.patch_embed.stack.weight", 1, 1),
            ("decoders.stack.predict.weight", 0, 16),
            ("decoders.stack.predict.bias", 0, 16),
        ):
            parts = weights[name].split([count * size for count in planes], dim=dim)
            weights[name] = torch.cat(parts[::-1], dim=dim)
    turned.load_state_dict(weights)
    expected, got = (
        model.double()(images_to(images), masks),
        turned.double()(images_to(images), masks),
    )
    assert list(got) == [*reversed(channels), "loss"]
    for name, loss in expected.items():
        assert got[name].item() == pytest.approx(loss.item(), rel=1e-6)  # float32 losses


def images_to(images: dict[str, Tensor]) -> dict[str, Tensor]:
    return {sensor: image.double() for sensor, image in images.items()}


@pytest.mark.parametrize("fusion", [f for f in FUSIONS if f != "stack"])
def test_an_absent_sensor_leaves_the_model_of_the_others(fusion: Fusion) -> None:
    case = "three, one a class map"
    model, images, masks = made(fusion, "independent", case)
    others = {sensor: CASES[case][0][sensor] for sensor in ("s1", "s2")}
    smaller = FusMAE(dataclasses.replace(model.config, sensors={}), others)
    smaller.load_state_dict(
        {name: w for name, w in model.state_dict().items() if ".lc" not in name}
    )
    given = {sensor: images[sensor] for sensor in others}
    assert all(
        loss.equal(smaller(given, masks)[name]) for name, loss in model(given, masks).items()
    )


def test_stack_refuses_to_skip_a_sensor_and_takes_its_mean_instead() -> None:
    model, images, _ = made("stack", "consistent", "three, one a class map")
    encoder, given = model.encoder, {"s2": images["s2"]}
    with pytest.raises(ValueError, match=r"'stack' cannot skip sensor 's1', 'lc'.*fill_absent"):
        encoder(given)
    filled = encoder.fill_absent(given)
    assert list(filled) == ["s1", "s2", "lc"]
    assert not filled["s1"].any()
    assert (filled["lc"] == -1).all()
    # Of the weights only s2's have a say: the others' channels are zero.
    embed = encoder.patch_embed["stack"]
    weight = embed.get_parameter("weight")
    before = encoder(filled).tokens["stack"]
    weight.data[:, :2] += 1.0
    weight.data[:, 5:] += 1.0
    assert encoder(filled).tokens["stack"].equal(before)


def test_fill_absent_fits_each_sensors_own_pixels() -> None:
    model, images, _ = made("xae", "independent", "four, three of them of one sensor")
    filled = model.encoder.fill_absent({"s2_20m": images["s2_20m"]})
    assert {s: x.shape for s, x in filled.items()} == {s: x.shape for s, x in images.items()}
    assert filled["s2_20m"] is images["s2_20m"]


def test_sensors_meet_in_all_variants_but_late() -> None:
    for fusion in FUSIONS:
        model, images, masks = made(fusion, "consistent", "two")
        before = model.reconstruct(images, masks)["s2"]
        after = model.reconstruct({**images, "s1": images["s1"] + 1.0}, masks)["s2"]
        assert after.equal(before) is (fusion == "late"), fusion


def test_each_encoder_of_late_is_a_joint_one_of_its_sensor() -> None:
    model, images, masks = made("late", "independent", "two")
    output = model.encoder(images, masks.visible)
    global_tokens = []
    for sensor, count in CASES["two"][0].items():
        alone = FusMAEEncoder(dataclasses.replace(model.config, fusion="none"), {sensor: count})
        weights = model.encoder.state_dict()
        own = {n: w for n, w in weights.items() if n.startswith(f"patch_embed.{sensor}.")}
        alone.load_state_dict(own | plain.under(weights, f"late.{sensor}"))
        expected = alone({sensor: images[sensor]}, masks.visible)
        assert output.tokens[sensor].equal(expected.tokens[sensor])
        global_tokens.append(expected.global_token)
    assert output.global_token.equal(torch.stack(global_tokens).mean(0))


@pytest.mark.parametrize(("first", "second"), [("xae_xad", "xae"), ("xad", "none")])
def test_xad_is_all_that_two_variants_differ_in(first: Fusion, second: Fusion) -> None:
    names = [set(made(fusion, "consistent", "two")[0].state_dict()) for fusion in (first, second)]
    assert {name.partition(".")[0] for name in names[0] - names[1]} == {"xattn_decoder"}
    assert names[1] <= names[0]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_class_map_is_reconstructed_as_its_likeliest_class(fusion: Fusion) -> None:
    model, images, masks = made(fusion, "consistent", "three, one a class map")
    model, images = model.double(), images_to(images)
    _, _, predictions = plain_model(model, images, masks)
    expected = predictions["lc"].unflatten(-1, (NUM_CLASSES, -1)).argmax(dim=2)
    got = pick(patchify(model.reconstruct(images, masks)["lc"], 4), masks.masked["lc"])
    assert got.dtype == torch.float32
    assert got.long().equal(expected)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_variant_compiles_as_one_graph(fusion: Fusion) -> None:
    model, images, masks = made(fusion, "consistent", "three, one a class map")
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert compiled(images, masks)["loss"].equal(model(images, masks)["loss"])


@pytest.mark.parametrize("fusion", FUSIONS)
def test_bf16_parameters_take_bf16_images_with_a_class_map(fusion: Fusion) -> None:
    """DeepSpeed's own bf16: parameters and images; class numbers stay whole."""
    torch.manual_seed(0)
    config, channels = (
        config_of(fusion, "consistent", "three, one a class map"),
        CASES["three, one a class map"][0],
    )
    model, images, masks = (
        FusMAE(config, channels),
        images_of(config, channels),
        masks_of(config, channels),
    )
    expected = model(images, masks)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    losses = model({sensor: image.bfloat16() for sensor, image in images.items()}, masks)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        # 8 bits a number, and the residual stream is rounded too.
        assert loss.item() == pytest.approx(expected[name].item(), rel=2e-2)


def test_a_class_map_of_several_channels_is_refused() -> None:
    config = config_of("xad", "consistent", "three, one a class map")
    with pytest.raises(ValueError, match="'lc' is a class map of 1 channel, got 4"):
        FusMAEEncoder(config, {"s1": 2, "lc": 4})
