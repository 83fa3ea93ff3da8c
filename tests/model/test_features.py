"""The encoder that is taken away: right numbers for any sensors, bands and sizes."""

import dataclasses
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fusmae
from fusmae.config import Fusion, ModelConfig, SensorConfig
from fusmae.model import EncoderCard, FusMAEEncoder, save_encoder
from fusmae.model.positions import sincos_2d

from .tiny_card import TINY_CARD

MODEL = ModelConfig(preset="tiny", image_px=16, patch_px=4, width=16, depth=3, heads=2)
CARD = dataclasses.replace(TINY_CARD, model=MODEL)
FUSIONS = typing.get_args(Fusion)


def export(folder: Path, model: ModelConfig = MODEL, card: EncoderCard = CARD) -> FusMAEEncoder:
    torch.manual_seed(0)
    card = dataclasses.replace(card, model=model)
    encoder = FusMAEEncoder(model, card.channels).eval()
    save_encoder(encoder, card, folder)
    return encoder


def stored(size: int = 16, rows: int | None = None) -> dict[str, Tensor]:
    """Images in stored units: dB, and reflectance * 10000 as the dataset's uint16."""
    generator = torch.Generator().manual_seed(3)
    shape = (rows or size, size)
    s1 = torch.randn(2, 2, *shape, generator=generator) * 5 - 15
    s2 = torch.randint(0, 3000, (2, 3, *shape), generator=generator)
    return {"s1": s1, "s2": s2.to(torch.uint16)}


def normalised(images: dict[str, Tensor]) -> dict[str, Tensor]:
    column = lambda values: torch.tensor(values).view(-1, 1, 1)  # noqa: E731
    return {s: (x.float() - column(CARD.mean[s])) / column(CARD.std[s]) for s, x in images.items()}


@pytest.mark.parametrize("sensors", [("s1",), ("s2",), ("s1", "s2")])
def test_features_are_the_plain_encoders_on_normalised_images(
    tmp_path: Path, sensors: tuple[str, ...]
) -> None:
    plain = export(tmp_path)
    images = {sensor: stored()[sensor] for sensor in sensors}
    encoder = fusmae.load_encoder(tmp_path)
    with torch.inference_mode():
        output = plain(normalised(images))
        assert encoder.pooled(images).equal(plain.pool(output))
        assert encoder.global_token(images).equal(output.global_token)
        for sensor, tokens in encoder.tokens(images).items():
            assert tokens.equal(output.tokens[sensor])
    assert encoder.pooled(images).requires_grad and not encoder.training
    assert encoder.width == 16 and encoder.bands == CARD.bands


@pytest.mark.parametrize("fusion", FUSIONS)
def test_fewer_bands_and_sensors_equal_their_means_in_the_others_places(
    tmp_path: Path, fusion: Fusion
) -> None:
    """A band at its mean is zero, and so adds nothing to an embedding."""
    export(tmp_path, dataclasses.replace(MODEL, fusion=fusion))
    images = stored()
    some = fusmae.load_encoder(tmp_path, bands={"s2": ["B04", "B02"]})
    assert some.bands == {"s1": ("VV", "VH"), "s2": ("B04", "B02")}
    filled = images["s2"].float()
    filled[:, 1] = CARD.mean["s2"][1]
    whole = fusmae.load_encoder(tmp_path).pooled({**images, "s2": filled})
    chosen = some.pooled({"s1": images["s1"], "s2": images["s2"][:, [2, 0]]})
    # The same products, summed in another order.
    torch.testing.assert_close(chosen, whole, rtol=1e-4, atol=1e-5)
    alone = fusmae.load_encoder(tmp_path, sensors=["s1"])
    expected = fusmae.load_encoder(tmp_path).pooled({"s1": images["s1"]})
    torch.testing.assert_close(alone.pooled({"s1": images["s1"]}), expected, rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in alone.parameters()) < sum(p.numel() for p in some.parameters())


def test_a_larger_image_has_more_tokens_whose_positions_are_computed(tmp_path: Path) -> None:
    plain = export(tmp_path)
    images = stored(size=24, rows=32)  # 8 x 6 tokens; trained on 4 x 4
    encoder = fusmae.load_encoder(tmp_path)
    tokens = encoder.tokens(images)
    assert {sensor: x.shape for sensor, x in tokens.items()} == dict.fromkeys(images, (2, 48, 16))
    with torch.no_grad():
        torch.testing.assert_close(tokens["s2"], plain(normalised(images)).tokens["s2"])
    table = plain.positions(8, 6, torch.float32)
    assert table.equal(sincos_2d(8, 6, 16))
    corner = table.view(8, 6, 16)[:4, :4].reshape(16, 16)
    assert corner.equal(plain.positions(4, 4, torch.float32))  # the trained ones, unchanged


@pytest.mark.parametrize(("given", "used"), [((17, 17), (16, 16)), ((23, 30), (24, 32))])
def test_a_size_that_is_no_multiple_is_resampled_to_the_nearest(
    tmp_path: Path, given: tuple[int, int], used: tuple[int, int]
) -> None:
    plain = export(tmp_path)
    images = {"s1": stored(size=given[1], rows=given[0])["s1"]}
    expected = F.interpolate(normalised(images)["s1"], used, mode="bilinear", align_corners=False)
    with torch.no_grad():
        torch.testing.assert_close(
            fusmae.load_encoder(tmp_path).tokens(images)["s1"], plain({"s1": expected}).tokens["s1"]
        )


def test_size_px_brings_every_image_to_one_size(tmp_path: Path) -> None:
    export(tmp_path)
    encoder = fusmae.load_encoder(tmp_path, size_px=16)
    assert encoder.tokens(stored(size=12))["s2"].shape == (2, 16, 16)
    assert encoder.tokens(stored(size=40))["s2"].shape == (2, 16, 16)
    assert encoder.pooled({"s1": stored(8)["s1"], "s2": stored(16)["s2"]}).shape == (2, 16)
    with pytest.raises(ValueError, match=r"size_px = 18 must be a multiple of .* 4 px"):
        fusmae.load_encoder(tmp_path, size_px=18)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_levels_are_the_blocks_outputs_as_maps(tmp_path: Path, fusion: Fusion) -> None:
    plain = export(tmp_path, dataclasses.replace(MODEL, fusion=fusion))
    encoder = fusmae.load_encoder(tmp_path)
    images = stored(size=24, rows=16)
    first, last = encoder.levels(images, [1, 3])
    for sensor, tokens in encoder.tokens(images).items():
        assert last[sensor].shape == (2, 16, 4, 6)
        assert last[sensor].flatten(2).transpose(1, 2).equal(tokens)
        assert not first[sensor].equal(last[sensor])
    # A network cut after its first block, from the same weights, ends in the first level.
    cut = dataclasses.replace(MODEL, fusion=fusion, depth=1)
    short = FusMAEEncoder(cut, CARD.channels)
    weights = plain.state_dict()
    short.load_state_dict({name: weights[name] for name in short.state_dict()})
    with torch.no_grad():
        for sensor, tokens in short(normalised(images)).tokens.items():
            torch.testing.assert_close(first[sensor].flatten(2).transpose(1, 2), tokens)
    assert not any(module._forward_hooks for module in encoder.modules())
    for wrong in ([0], [4], []):
        with pytest.raises(ValueError, match="blocks must be numbers from 1 to 3"):
            encoder.levels(images, wrong)


def test_groups_with_smaller_tokens_and_class_maps_come_along(tmp_path: Path) -> None:
    sensors = {
        "s2_20m": SensorConfig(patch_px=2),
        "lc": SensorConfig(loss="cross_entropy", num_classes=5),
    }
    model = dataclasses.replace(MODEL, sensors=sensors)
    bands = {"s1": ("VV",), "s2_20m": ("B11", "B12"), "lc": ("IGBP",)}
    numbers = {sensor: (0.0,) * len(names) for sensor, names in bands.items()}
    ones = {sensor: (1.0,) * len(names) for sensor, names in bands.items()}
    card = dataclasses.replace(CARD, bands=bands, mean=numbers, std=ones)
    plain = export(tmp_path, model, card)
    encoder = fusmae.load_encoder(tmp_path, bands={"s2_20m": ["B12"]}, size_px=16)
    images = {
        "s2_20m": torch.randn(2, 1, 8, 8),
        "lc": torch.randint(-1, 5, (2, 1, 32, 32)),
    }
    with torch.no_grad():
        zeros = torch.zeros(2, 1, 8, 8)
        nearest = F.interpolate(images["lc"].float(), (16, 16), mode="nearest")
        expected = plain({"s2_20m": torch.cat([zeros, images["s2_20m"]], 1), "lc": nearest})
    torch.testing.assert_close(
        encoder.tokens(images)["s2_20m"], expected.tokens["s2_20m"], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sensors": ["s3"]}, r"no sensor \['s3'\]; it has \['s1', 's2'\]"),
        ({"sensors": []}, "no sensor"),
        ({"bands": {"s2": ["B02", "B10"]}}, "B02, B03, B04; got B02, B10"),
        ({"bands": {"s2": ["B02", "B02"]}}, "each once"),
        ({"bands": {"s2": []}}, "each once"),
        ({"sensors": ["s1"], "bands": {"s2": ["B02"]}}, r"bands of \['s2'\] are given"),
    ],
)
def test_sensors_and_bands_that_it_lacks_are_refused(
    tmp_path: Path, options: dict, message: str
) -> None:
    export(tmp_path)
    with pytest.raises(ValueError, match=message):
        fusmae.load_encoder(tmp_path, **options)


def test_images_that_do_not_fit_are_refused_by_sensor(tmp_path: Path) -> None:
    export(tmp_path)
    encoder = fusmae.load_encoder(tmp_path)
    with pytest.raises(ValueError, match=r"'s2' are \(2, 2, 8, 8\), expected .* B02, B03, B04"):
        encoder.pooled({"s2": torch.zeros(2, 2, 8, 8)})
    with pytest.raises(ValueError, match="unknown sensor 's3'"):
        encoder.pooled({"s3": torch.zeros(2, 2, 8, 8)})
    with pytest.raises(ValueError, match="no image was given"):
        encoder.pooled({})


def test_a_pickle_is_never_read(tmp_path: Path) -> None:
    export(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(ValueError, match="cannot read the weights"):
        fusmae.load_encoder(tmp_path)


@pytest.mark.gpu
def test_features_on_a_gpu_are_those_of_the_cpu(tmp_path: Path) -> None:
    export(tmp_path)
    cpu = fusmae.load_encoder(tmp_path).pooled(stored())
    gpu = fusmae.load_encoder(tmp_path, device="cuda").pooled(stored()).cpu()
    torch.testing.assert_close(cpu, gpu, rtol=1e-3, atol=1e-4)


def test_load_encoder_is_lazy_and_needs_neither_dataset_nor_hub(tmp_path: Path) -> None:
    export(tmp_path)
    heavy = ("numpy", "torch")
    absent = ("pyarrow", "timm", "deepspeed", "torchvision", "huggingface_hub", "fusmae.data")
    code = (
        f"import sys, fusmae\nprint([m for m in {heavy} if m in sys.modules])\n"
        f"fusmae.load_encoder({str(tmp_path)!r})\n"
        f"print([m for m in {absent} if m in sys.modules])\n"
        "try:\n    fusmae.nothing\nexcept AttributeError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"], done.stderr
    assert "has no attribute 'nothing'" in done.stdout
    assert {"load_encoder", "push_to_hub"} <= set(dir(fusmae))


def test_images_of_another_kind_or_number_are_refused_in_words(tmp_path: Path) -> None:
    export(tmp_path)
    encoder = fusmae.load_encoder(tmp_path)
    s2 = torch.zeros(2, 3, 8, 8)
    with pytest.raises(ValueError, match="images are a Tensor, expected a dict of each sensor's"):
        encoder.pooled(s2)
    with pytest.raises(ValueError, match="'s2' are a ndarray, expected a tensor"):
        encoder.pooled({"s2": s2.numpy()})
    with pytest.raises(ValueError, match="the sensors' images differ in number"):
        encoder.pooled({"s1": torch.zeros(1, len(encoder.bands["s1"]), 8, 8), "s2": s2})
