import dataclasses

import pytest
import torch
from torch import Tensor

from fusmae.config import ModelConfig
from fusmae.model import FusMAE, Masks, draw_masks
from fusmae.model.patches import patchify, unpatchify

CONFIG = ModelConfig(
    masking="independent",
    image_px=16,
    patch_px=4,
    width=16,
    depth=2,
    heads=4,
    decoder_width=8,
    decoder_depth=1,
    decoder_heads=2,
)
TWO = {"s1": 2, "s2": 3}
SUBSETS = [{"s1": 2}, TWO, {"s1": 2, "s2": 3, "dem": 1}]


def images_of(channels: dict[str, int], size_px: int = 16) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        sensor: torch.randn(2, count, size_px, size_px, generator=generator)
        for sensor, count in channels.items()
    }


def masks_of(channels: dict[str, int], config: ModelConfig = CONFIG) -> Masks:
    return draw_masks(config, list(channels), 0, torch.arange(2))


def model_of(channels: dict[str, int], config: ModelConfig = CONFIG) -> FusMAE:
    torch.manual_seed(0)
    return FusMAE(config, channels)


def repainted(images: dict[str, Tensor], tokens: dict[str, Tensor]) -> dict[str, Tensor]:
    """The images with the pixels of `tokens` replaced."""
    changed = {}
    for sensor, image in images.items():
        pixels = patchify(image, 4)
        for b in range(len(image)):
            pixels[b, tokens[sensor][b]] += 5.0
        changed[sensor] = unpatchify(pixels, 4, (16, 16))
    return changed


@pytest.mark.parametrize("fusion", ["xae_xad", "xad"])
@pytest.mark.parametrize("channels", SUBSETS, ids=["one", "two", "three"])
def test_every_parameter_receives_a_gradient(channels: dict[str, int], fusion: str) -> None:
    config = dataclasses.replace(CONFIG, fusion=fusion)  # type: ignore[arg-type]
    model = model_of(channels, config)
    losses = model(images_of(channels), masks_of(channels))
    assert list(losses) == [*channels, "loss"]
    assert all(loss.shape == () and loss.dtype == torch.float32 for loss in losses.values())
    losses["loss"].backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # A context norm's bias shifts all keys alike, which softmax does not see, but the values
    # do not: no parameter is exempt.
    assert without == []


def test_the_total_is_the_plain_sum_of_the_sensors_losses() -> None:
    losses = model_of(TWO)(images_of(TWO), masks_of(TWO))
    assert losses["loss"].item() == pytest.approx((losses["s1"] + losses["s2"]).item(), rel=1e-6)


@pytest.mark.parametrize("normalise_target", [False, True])
def test_the_loss_is_that_of_the_reconstruction_on_masked_tokens(normalise_target: bool) -> None:
    config = dataclasses.replace(CONFIG, normalise_target=normalise_target)
    model, images, masks = model_of(TWO, config), images_of(TWO), masks_of(TWO)
    losses, predicted = model(images, masks), model.reconstruct(images, masks)
    for sensor, image in images.items():
        error = patchify(predicted[sensor], 4) - patchify(image, 4)
        if normalise_target:
            error = error / (patchify(image, 4).var(-1, keepdim=True) + 1e-6).sqrt()
        masked = torch.stack([error[b, masks.masked[sensor][b]] for b in range(2)])
        # The same float32 numbers summed in another order.
        assert losses[sensor].item() == pytest.approx(masked.square().mean().item(), rel=1e-5)


def test_the_loss_ignores_the_pixels_of_visible_tokens_as_targets() -> None:
    model, images, masks = model_of(TWO), images_of(TWO), masks_of(TWO)
    for embedding in model.encoder.patch_embed.values():
        # Blind the encoder: pixels can now reach the loss as targets only.
        torch.nn.init.zeros_(embedding.get_parameter("weight"))
    before = model(images, masks)
    visible_changed = model(repainted(images, masks.visible), masks)
    masked_changed = model(repainted(images, masks.masked), masks)
    for sensor in TWO:
        assert visible_changed[sensor].equal(before[sensor])
        assert not masked_changed[sensor].isclose(before[sensor])


@pytest.mark.parametrize("fusion", ["xae_xad", "xad"])
def test_no_prediction_depends_on_masked_pixels(fusion: str) -> None:
    config = dataclasses.replace(CONFIG, fusion=fusion)  # type: ignore[arg-type]
    model, images, masks = model_of(TWO, config), images_of(TWO), masks_of(TWO)
    before = model.reconstruct(images, masks)
    masked_changed = model.reconstruct(repainted(images, masks.masked), masks)
    visible_changed = model.reconstruct(repainted(images, masks.visible), masks)
    for sensor in TWO:
        assert masked_changed[sensor].equal(before[sensor])
        assert not visible_changed[sensor].equal(before[sensor])


@pytest.mark.parametrize("fusion", ["xae_xad", "xad"])
def test_each_sensor_is_reconstructed_from_the_other(fusion: str) -> None:
    config = dataclasses.replace(CONFIG, fusion=fusion)  # type: ignore[arg-type]
    model, images, masks = model_of(TWO, config), images_of(TWO), masks_of(TWO)
    before = model.reconstruct(images, masks)
    changed = model.reconstruct({**images, "s1": images["s1"] + 1.0}, masks)
    assert not changed["s2"].equal(before["s2"])


def test_a_batch_is_its_samples() -> None:
    model, images, masks = model_of(TWO), images_of(TWO), masks_of(TWO)
    whole = model.reconstruct(images, masks)
    for b in range(2):
        one = Masks(
            {s: t[b : b + 1] for s, t in masks.visible.items()},
            {s: t[b : b + 1] for s, t in masks.masked.items()},
        )
        alone = model.reconstruct({s: x[b : b + 1] for s, x in images.items()}, one)
        for sensor in TWO:
            # float32 matrix products may block differently for another batch size.
            torch.testing.assert_close(
                alone[sensor], whole[sensor][b : b + 1], rtol=1e-4, atol=1e-5
            )


def test_an_absent_sensor_leaves_the_loss_of_the_other() -> None:
    losses = model_of(TWO)({"s2": images_of(TWO)["s2"]}, masks_of(TWO))
    assert list(losses) == ["s2", "loss"]
    assert losses["loss"].equal(losses["s2"])


def test_another_image_size_trains_with_masks_of_that_size() -> None:
    larger = dataclasses.replace(CONFIG, image_px=24)
    model, masks = model_of(TWO), masks_of(TWO, larger)
    images = images_of(TWO, size_px=24)
    assert model(images, masks)["loss"].isfinite()
    assert model.reconstruct(images, masks)["s2"].shape == (2, 3, 24, 24)


def test_bf16_autocast_gives_nearly_the_float32_loss_and_float32_gradients() -> None:
    model, images, masks = model_of(TWO), images_of(TWO), masks_of(TWO)
    expected = model(images, masks)["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(images, masks)
    losses["loss"].backward()
    # bfloat16 keeps 8 bits: each prediction is off by some 0.4 % of its size, at random.
    assert losses["loss"].item() == pytest.approx(expected.item(), rel=5e-3)
    assert losses["loss"].dtype == torch.float32
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("cast_buffers", [True, False])
def test_bf16_parameters_take_float32_images(cast_buffers: bool) -> None:
    model, images, masks = model_of(TWO), images_of(TWO), masks_of(TWO)
    expected = model(images, masks)["loss"].item()
    if cast_buffers:
        model.bfloat16()
    for parameter in model.parameters():  # DeepSpeed's bf16 casts these only
        parameter.data = parameter.data.bfloat16()
    loss = model(images, masks)["loss"]
    assert loss.dtype == torch.float32
    # As above, and the residual stream is rounded too.
    assert loss.item() == pytest.approx(expected, rel=2e-2)


def test_the_model_compiles_as_one_graph() -> None:
    model, images, masks = model_of(TWO), images_of(TWO), masks_of(TWO)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert compiled(images, masks)["loss"].equal(model(images, masks)["loss"])


def test_masks_of_one_step_do_not_recompile_for_the_next() -> None:
    model, images = model_of(TWO), images_of(TWO)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    compiled(images, masks_of(TWO))
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled(images, draw_masks(CONFIG, list(TWO), 0, torch.arange(2, 4)))


def test_base_is_a_vit_b_with_a_cross_attention_block() -> None:
    with torch.device("meta"):
        model = FusMAE(ModelConfig(preset="base", fusion="xad"), {"s2": 3})
    blocks = sum(p.numel() for p in model.encoder.blocks.parameters())
    assert blocks == 85_054_464  # the 12 blocks of timm's vit_base_patch16_224
    embedding = sum(p.numel() for p in model.encoder.patch_embed.parameters())
    assert embedding == 590_592  # its RGB patch embedding


def test_initial_weights_are_xavier_uniform_with_q_k_and_v_apart() -> None:
    model = FusMAE(ModelConfig(preset="tiny"), TWO)
    bound = (6 / (128 + 128)) ** 0.5
    block = model.encoder.blocks[0]
    for matrix in block.get_parameter("attn.qkv.weight").chunk(3):
        assert 0.99 * bound < matrix.abs().max().item() <= bound
    biases = [p for n, p in model.named_parameters() if n.endswith("bias")]
    assert not any(p.any() for p in biases)
    tokens = torch.cat(
        [model.encoder.global_token.flatten()]
        + [d.get_parameter("mask_token").flatten() for d in model.decoders.values()]
    )
    # 256 normal deviates: the standard error of their deviation is 4.4 %.
    assert tokens.std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.gpu
def test_forward_and_backward_on_the_gpu_do_not_wait_for_the_host() -> None:
    model = model_of(TWO).cuda()
    images = {sensor: image.cuda() for sensor, image in images_of(TWO).items()}
    positions = torch.arange(2).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            losses = model(images, draw_masks(CONFIG, list(TWO), 0, positions))
        losses["loss"].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = model_of(TWO)(images_of(TWO), masks_of(TWO))["loss"].item()
    assert losses["loss"].item() == pytest.approx(expected, rel=5e-3)
