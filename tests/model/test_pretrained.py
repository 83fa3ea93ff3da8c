import dataclasses
import json
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from fusmae.config import Fusion, ModelConfig
from fusmae.model import EncoderCard, FusMAEEncoder, load_encoder, pretrained, save_encoder
from fusmae.sensor_config import SensorConfig

MODEL = ModelConfig(preset="tiny", image_px=32, patch_px=8, depth=2)
CARD = EncoderCard(
    model=MODEL,
    bands={"s2": ("B04", "B03", "B02"), "s1": ("VV", "VH")},
    mean={"s2": (590.0, 614.25, 429.1), "s1": (-12.6, -19.3)},
    std={"s2": (675.0, 582.0, 572.0), "s1": (5.1, 5.4)},
    resample="bilinear",
    dataset="BigEarthNet, simulated",
    simulated=True,
    licence="CDLA-Permissive-1.0",
)
WEIGHT = "blocks.0.attn.qkv.weight"


@pytest.fixture
def export(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    folder = tmp_path / "encoder"
    save_encoder(FusMAEEncoder(MODEL, CARD.channels), CARD, folder)
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    table = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in table.items() if value is not None}))


def edit_weights(folder: Path, changes: dict[str, torch.Tensor | None]) -> None:
    path = folder / "model.safetensors"
    weights = {**safetensors.torch.load_file(path), **changes}
    kept = {name: tensor for name, tensor in weights.items() if tensor is not None}
    safetensors.torch.save_file(kept, path)


def test_an_export_loads_bit_for_bit(export: Path) -> None:
    torch.manual_seed(0)
    encoder = FusMAEEncoder(MODEL, CARD.channels)
    torch.manual_seed(1)
    loaded, card = load_encoder(export)
    assert card == CARD
    assert list(card.bands) == ["s2", "s1"] == list(loaded.channels)
    expected = encoder.state_dict()
    assert list(loaded.state_dict()) == list(expected)
    for name, tensor in loaded.state_dict().items():
        assert tensor.equal(expected[name])
    images = {"s2": torch.randn(1, 3, 32, 32), "s1": torch.randn(1, 2, 32, 32)}
    assert loaded.pool(loaded(images)).equal(encoder.pool(encoder(images)))


def test_an_export_is_two_files_and_its_weights_are_no_pickle(export: Path) -> None:
    assert sorted(path.name for path in export.iterdir()) == ["config.json", "model.safetensors"]
    weights = safetensors.torch.load_file(export / "model.safetensors")
    assert set(weights) == set(FusMAEEncoder(MODEL, CARD.channels).state_dict())


def test_an_interrupted_export_is_not_taken_for_a_complete_one(
    export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = pretrained._write_atomically

    def die_at_config(path: Path, data: bytes) -> None:
        if path.name == "config.json":
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr(pretrained, "_write_atomically", die_at_config)
    with pytest.raises(KeyboardInterrupt):
        save_encoder(FusMAEEncoder(MODEL, CARD.channels), CARD, export)
    with pytest.raises(ValueError, match=r"config\.json: No such file.*a finished export"):
        load_encoder(export)


def test_the_card_says_what_was_trained_on_and_an_older_one_does_not(export: Path) -> None:
    told = dataclasses.replace(
        CARD, split="train", split_rule="google", manifest_sha256=("ab" * 32, "cd" * 32)
    )
    save_encoder(FusMAEEncoder(MODEL, CARD.channels), told, export)
    assert load_encoder(export)[1] == told
    # Releases of before `tuned_on` read what says nothing of it.
    assert "tuned_on" not in (export / "config.json").read_text()
    tuned = dataclasses.replace(told, tuned_on="20 samples with labels")
    save_encoder(FusMAEEncoder(MODEL, CARD.channels), tuned, export)
    assert load_encoder(export)[1] == tuned
    nothing = dict.fromkeys(("split", "split_rule", "manifest_sha256", "tuned_on"))
    edit_config(export, **nothing)
    assert load_encoder(export)[1] == CARD


@pytest.mark.parametrize("fusion", typing.get_args(Fusion))
def test_every_variant_saves_and_loads_bit_for_bit(fusion: Fusion, tmp_path: Path) -> None:
    """With a class map, and bands of Sentinel-2 as a group with smaller tokens."""
    sensors = {"lc": SensorConfig(loss="cross_entropy", num_classes=17)}
    if fusion != "stack":
        sensors["s2_20m"] = SensorConfig(patch_px=4)
    model = dataclasses.replace(MODEL, fusion=fusion, sensors=sensors)
    bands = {"s1": ("VV", "VH"), "s2_20m": ("B11",), "lc": ("IGBP",)}
    numbers = {sensor: (1.0,) * len(names) for sensor, names in bands.items()}
    card = dataclasses.replace(CARD, model=model, bands=bands, mean=numbers, std=numbers)
    encoder = FusMAEEncoder(model, card.channels)
    save_encoder(encoder, card, tmp_path)
    loaded, read = load_encoder(tmp_path)
    assert read == card
    images = {
        sensor: torch.ones(1, card.channels[sensor], size, size)
        for sensor, size in model.sizes_px(bands).items()
    }
    assert loaded.pool(loaded(images)).equal(encoder.pool(encoder(images)))


@pytest.mark.parametrize(
    ("saved", "said"), [("xad", "none"), ("xae", "xae_xad"), ("late", "stack"), ("xad", "late")]
)
def test_weights_of_another_fusion_are_refused_by_name(
    saved: Fusion, said: Fusion, tmp_path: Path
) -> None:
    """Also where names and shapes of the weights are the same."""
    model = dataclasses.replace(MODEL, fusion=saved)
    card = dataclasses.replace(CARD, model=model)
    save_encoder(FusMAEEncoder(model, card.channels), card, tmp_path)
    table = json.loads((tmp_path / "config.json").read_text())
    edit_config(tmp_path, model={**table["model"], "fusion": said})
    with pytest.raises(
        ValueError, match=rf"weights of fusion '{saved}', config.json says '{said}'"
    ):
        load_encoder(tmp_path)


def test_an_export_from_before_there_were_variants_loads(export: Path) -> None:
    edit_weights(export, {})  # written without a name of the fusion
    table = json.loads((export / "config.json").read_text())
    del table["model"]["sensors"]
    edit_config(export, model=table["model"])
    loaded, card = load_encoder(export)
    assert card == CARD
    assert loaded.config == MODEL


def test_an_export_replaces_an_older_one(export: Path) -> None:
    encoder = FusMAEEncoder(MODEL, CARD.channels)
    save_encoder(encoder, CARD, export)
    loaded, _ = load_encoder(export)
    assert loaded.state_dict()[WEIGHT].equal(encoder.state_dict()[WEIGHT])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({WEIGHT: None}, rf"model\.safetensors .*missing {WEIGHT}"),
        ({"head.bias": torch.zeros(3)}, r"model\.safetensors .*unexpected head\.bias"),
        ({WEIGHT: torch.zeros(2, 2)}, rf"{WEIGHT} is \(2, 2\), expected \(384, 128\)"),
    ],
)
def test_wrong_weights_are_refused_by_key_and_file(
    export: Path, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    edit_weights(export, changes)
    with pytest.raises(ValueError, match=message):
        load_encoder(export)


@pytest.mark.parametrize("damage", [b"", b"\x80\x04not safetensors"])
def test_a_broken_weights_file_is_refused_by_name(export: Path, damage: bytes) -> None:
    (export / "model.safetensors").write_bytes(damage)
    with pytest.raises(ValueError, match=r"cannot read the weights .*model\.safetensors"):
        load_encoder(export)


def test_a_truncated_weights_file_is_refused_by_name(export: Path) -> None:
    path = export / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"cannot read the weights .*model\.safetensors"):
        load_encoder(export)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "not the card of a fusmae-encoder"),
        ({"format_version": 2}, "format_version 2, this release reads 1"),
        ({"licence": None, "mean": None}, "lacks mean, licence"),
        ({"licens": "x"}, "unknown key licens; did you mean licence"),
        ({"simulated": "yes"}, "simulated = 'yes' is not of type bool"),
        ({"std": {"s2": [1.0], "s1": [1.0, 1.0]}}, "std has .*'s2': 1"),
        ({"model": {"preset": "huge"}}, "'huge' is not one of"),
    ],
)
def test_a_wrong_card_is_refused_by_file_and_key(
    export: Path, changes: dict[str, Any], message: str
) -> None:
    edit_config(export, **changes)
    with pytest.raises(ValueError, match=rf"config\.json.*{message}"):
        load_encoder(export)


@pytest.mark.parametrize("text", ["", "{", "[]", "\udcff"])
def test_a_config_that_is_no_json_object_is_refused_by_file(export: Path, text: str) -> None:
    (export / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"config\.json is not"):
        load_encoder(export)


def test_a_card_of_another_model_is_not_saved(tmp_path: Path) -> None:
    other = ModelConfig(preset="tiny", image_px=32, patch_px=8, depth=3)
    with pytest.raises(ValueError, match="the card describes"):
        save_encoder(FusMAEEncoder(other, CARD.channels), CARD, tmp_path)
    with pytest.raises(ValueError, match="the card describes"):
        save_encoder(FusMAEEncoder(MODEL, {"s1": 2, "s2": 3}), CARD, tmp_path)
    assert not list(tmp_path.iterdir())


def test_importing_the_model_imports_no_training_or_raster_library() -> None:
    heavy = "deepspeed rasterio zarr torchvision timm fusmae.data fusmae.training"
    code = (
        "import sys, fusmae.model;"
        f"print([name for name in {heavy.split()!r} if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
