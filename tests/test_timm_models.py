"""Fus-MAE in the real timm: its registry, its conventions, its layer-wise rates."""

from pathlib import Path

import pytest
import torch

import fusmae
import fusmae.timm_models
from fusmae.config import ModelConfig

# Bound here and not imported: timm imports only once the import above has repaired torchvision.
timm = pytest.importorskip("timm")
resolve_data_config = pytest.importorskip("timm.data").resolve_data_config
create_optimizer_v2 = pytest.importorskip("timm.optim").create_optimizer_v2

SMALL = {"img_size": 32, "patch_size": 8}


def test_every_size_is_registered_and_base_is_vit_b() -> None:
    names = ["fusmae_base", "fusmae_large", "fusmae_small", "fusmae_tiny"]
    assert timm.list_models("fusmae*") == names
    model = timm.create_model("fusmae_base")
    assert model.num_features == 768 and model.num_classes == 0
    assert model.pretrained_cfg["input_size"] == (14, 224, 224)
    assert model.encoder.config == ModelConfig(preset="base")


def test_a_model_gives_scores_features_and_another_head() -> None:
    model = timm.create_model("fusmae_tiny", num_classes=19, **SMALL).eval()
    x = torch.randn(2, 14, 32, 32)
    features = model.forward_features(x)
    assert features.shape == (2, 1 + 2 * 16, 128)
    output = model.encoder({"s1": x[:, :2], "s2": x[:, 2:]})
    assert features[:, 0].equal(output.global_token) and features[:, 1:17].equal(
        output.tokens["s1"]
    )
    assert model(x).equal(model.forward_head(features)) and model(x).shape == (2, 19)
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.equal(model.fc_norm(features[:, 1:].mean(dim=1)))
    model.reset_classifier(0, global_pool="token")
    assert model(x).equal(model.fc_norm(output.global_token))
    assert model(torch.randn(2, 14, 64, 48)).shape == (2, 128)  # any size of whole tokens


@pytest.mark.parametrize("fusion", ["xae_xad", "late", "stack"])
def test_features_only_gives_maps_of_blocks(fusion: str) -> None:
    options = {**SMALL, "fusion": fusion}
    model = timm.create_model("fusmae_tiny", features_only=True, out_indices=(0, 3), **options)
    maps = model(torch.randn(2, 14, 32, 64))
    width = 128 if fusion == "stack" else 256  # the sensors' maps side by side
    assert [x.shape for x in maps] == [(2, width, 4, 8)] * 2
    assert model.feature_info.channels() == [width] * 2
    assert model.feature_info.reduction() == [8, 8]
    whole = timm.create_model("fusmae_tiny", **options)
    final, (last,) = whole.forward_intermediates(torch.randn(2, 14, 32, 32), indices=1)
    first_sensor = last[:, :128].flatten(2).transpose(1, 2)
    assert final[:, 1:17].equal(first_sensor)


def test_an_export_brings_weights_bands_and_normalisation(export: Path) -> None:
    model = timm.create_model("fusmae_tiny", pretrained=True, encoder=export, num_classes=3).eval()
    loaded = fusmae.load_encoder(export)
    for name, weight in loaded.encoder.state_dict().items():
        assert model.encoder.state_dict()[name].equal(weight)
    config = resolve_data_config({}, model=model)
    assert config["input_size"] == (5, 32, 32) and config["crop_pct"] == 1
    assert config["mean"] == (-12.0, -19.0, 430.0, 614.0, 590.0)
    assert config["std"][2:] == (572.0, 582.0, 675.0)
    stored = {"s1": torch.randn(1, 2, 32, 32), "s2": torch.randn(1, 3, 32, 32)}
    column = lambda values: torch.tensor(values).view(-1, 1, 1)  # noqa: E731
    x = (torch.cat(list(stored.values()), 1) - column(config["mean"])) / column(config["std"])
    expected = loaded.pooled(stored)
    torch.testing.assert_close(model.forward_features(x)[:, 1:].mean(1), expected)


@pytest.mark.parametrize("fusion", ["xae_xad", "xad", "late"])
def test_timms_layer_decay_rises_from_the_embeddings_to_the_head(fusion: str) -> None:
    model = timm.create_model("fusmae_tiny", num_classes=2, fusion=fusion, **SMALL)
    optimizer = create_optimizer_v2(model, opt="adamw", weight_decay=0.05, layer_decay=0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scale, decay = {}, {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            scale[names[id(parameter)]] = group["lr_scale"]
            decay[names[id(parameter)]] = group["weight_decay"]
    assert set(scale) == set(names.values())
    inner = "encoder.late.s2.blocks" if fusion == "late" else "encoder.blocks"
    order = ["encoder.patch_embed.s2.weight", f"{inner}.0.norm1.weight"]
    order += [f"{inner}.1.mlp.fc1.weight", "fc_norm.weight"]
    if fusion == "xae_xad":
        order.insert(1, "encoder.xattn.mlp.fc1.weight")
    scales = [scale[name] for name in order]
    assert scales == sorted(set(scales)) and scale["head.weight"] == 1
    token = next(name for name in names.values() if name.endswith("global_token"))
    assert decay[token] == 0 and decay["head.weight"] == 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pretrained": True}, "no weights of its own: give encoder="),
        ({"in_chans": 3}, r"in_chans = 3, but the sensors have .*give channels="),
        ({"global_pool": "max"}, "must be avg, token or empty"),
        ({"img_size": (32, 64)}, "must be square"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        timm.create_model("fusmae_tiny", **{**SMALL, **options})


def test_an_export_of_another_size_is_refused(export: Path) -> None:
    with pytest.raises(ValueError, match="this encoder is fusmae_tiny, not fusmae_base"):
        timm.create_model("fusmae_base", encoder=export)
    with pytest.raises(ValueError, match="itself says its patch_size: leave"):
        timm.create_model("fusmae_tiny", encoder=export, patch_size=16)


def test_other_channels_are_counted_by_sensor() -> None:
    model = timm.create_model("fusmae_tiny", channels={"s2": 4}, in_chans=4, **SMALL)
    assert model(torch.randn(1, 4, 32, 32)).shape == (1, 128)
    with pytest.raises(ValueError, match="expected the channels of"):
        model(torch.randn(1, 3, 32, 32))
