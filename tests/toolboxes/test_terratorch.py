"""An export as a backbone in the real TerraTorch: its registry, its decoders, its tasks."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fusmae

if importlib.util.find_spec("terratorch") is None:
    pytest.skip("`make test-toolboxes` installs TerraTorch", allow_module_level=True)

import fusmae.terratorch_models as ours

# Bound here and not imported: torchvision imports only once the import above has repaired it.
registry = importlib.import_module("terratorch.registry").BACKBONE_REGISTRY
EncoderDecoderFactory = importlib.import_module("terratorch.models").EncoderDecoderFactory


def build(export: Path, **options: Any) -> Any:
    return registry.build("fusmae", encoder=str(export), **{"blocks": [1, 2, 3, 4], **options})


def test_the_registry_builds_maps_of_blocks_that_are_those_of_load_encoder(
    export: Path, stored: dict[str, Tensor]
) -> None:
    assert isinstance(build(export), ours.FusMAEBackbone)
    expected = fusmae.load_encoder(export).levels(stored, [1, 2, 3, 4])
    both = build(export, merge="concat", normalise=True)
    assert both.out_channels == [256] * 4
    for level, ours_level in zip(expected, both(stored), strict=True):
        assert ours_level.equal(torch.cat([level["s1"], level["s2"]], dim=1))
    mean = build(export, normalise=True)
    assert mean.out_channels == [128] * 4
    assert mean(stored)[3].equal(torch.stack([expected[3]["s1"], expected[3]["s2"]]).mean(dim=0))


def test_normalised_images_give_what_stored_ones_do(
    export: Path, stored: dict[str, Tensor]
) -> None:
    card = fusmae.load_encoder(export).card
    normalised = {
        sensor: (image - torch.tensor(card.mean[sensor])[:, None, None])
        / torch.tensor(card.std[sensor])[:, None, None]
        for sensor, image in stored.items()
    }
    for one, other in zip(
        build(export)(normalised), build(export, normalise=True)(stored), strict=True
    ):
        assert one.equal(other)


def test_sensors_and_bands_are_chosen_and_an_absent_sensor_is_skipped(
    export: Path, stored: dict[str, Tensor]
) -> None:
    only = build(export, modalities=["s2"], bands={"s2": ["B04", "B02"]}, normalise=True)
    assert only(stored["s2"][:, [2, 0]])[0].shape == (2, 128, 4, 4)
    s2 = {"s2": stored["s2"]}
    expected = fusmae.load_encoder(export).levels(s2, [1, 2, 3, 4])
    assert build(export, normalise=True)(s2)[3].equal(expected[3]["s2"])
    with pytest.raises(ValueError, match=r"needs all of \['s1', 's2'\], given: \['s2'\]"):
        build(export, merge="concat")(s2)


@pytest.mark.parametrize("decoder", ["UperNetDecoder", "FCNDecoder"])
def test_a_segmentation_model_trains_on_both_sensors(
    export: Path, stored: dict[str, Tensor], decoder: str
) -> None:
    model = EncoderDecoderFactory().build_model(
        task="segmentation",
        backbone="fusmae",
        backbone_encoder=str(export),
        backbone_blocks=[1, 2, 3, 4],
        backbone_normalise=True,
        decoder=decoder,
        decoder_channels=32,
        num_classes=5,
    )
    output = model(stored).output
    assert output.shape == (2, 5, 32, 32)
    output.square().mean().backward()
    assert all(
        p.grad is not None for p in model.encoder.pretrained.encoder.patch_embed.parameters()
    )


def test_a_unet_takes_one_sensor_of_a_size_that_is_padded(export: Path) -> None:
    model = EncoderDecoderFactory().build_model(
        task="segmentation",
        backbone="fusmae",
        backbone_pretrained=True,
        backbone_encoder=str(export),
        backbone_modalities=["s2"],
        backbone_blocks=[1, 2, 3, 4],
        necks=[{"name": "LearnedInterpolateToPyramidal"}],
        decoder="UNetDecoder",
        decoder_channels=[64, 32, 16, 8],
        num_classes=5,
    )
    assert model(torch.randn(2, 3, 40, 36)).output.shape == (2, 5, 40, 36)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"pretrained": False}, "no random weights"),
        ({"drop_path": 0.1}, r"unknown options \['drop_path'\]"),
        ({"blocks": [12]}, "give some of 1 to 4"),
        ({"merge": "max"}, "merge = 'max' must be mean or concat"),
    ],
)
def test_what_it_cannot_do_is_refused(export: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ours.fusmae(str(export), **options)
