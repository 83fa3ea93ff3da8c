"""An export in the real torchgeo: its model API, its weights entries, its trainer."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fusmae

if importlib.util.find_spec("torchgeo") is None:
    pytest.skip("`make test-toolboxes` installs torchgeo", allow_module_level=True)

import fusmae.torchgeo_models as ours

# Bound here and not imported: torchvision imports only once the import above has repaired it.
torchgeo_models = importlib.import_module("torchgeo.models")
ClassificationTask = importlib.import_module("torchgeo.trainers").ClassificationTask


@pytest.fixture(scope="module")
def entry(export: Path) -> Any:
    return ours.register_encoder(export, "fusmae_noise")


def stacked(images: dict[str, Tensor]) -> Tensor:
    return torch.cat(list(images.values()), dim=1)


def test_torchgeo_lists_the_model_and_finds_its_weights_by_name(entry: Any) -> None:
    assert "fusmae_noise" in torchgeo_models.list_models()
    assert torchgeo_models.get_weight("fusmae_noise_Weights.ENCODER") is entry
    assert list(torchgeo_models.get_model_weights("fusmae_noise")) == [entry]
    assert entry.meta["bands"] == ("VV", "VH", "B02", "B03", "B04")
    assert entry.meta["in_chans"] == 5 and entry.meta["simulated"]


def test_transforms_and_model_give_the_features_of_load_encoder(
    entry: Any, export: Path, stored: dict[str, Tensor]
) -> None:
    model = torchgeo_models.get_model("fusmae_noise", weights=entry).eval()
    images = entry.transforms({"image": stacked(stored)})["image"]
    with torch.no_grad():
        features = model.forward_features(images)
        expected = fusmae.load_encoder(export).tokens(stored)
    # kornia and we divide in another order of float32 operations.
    torch.testing.assert_close(features[:, 1:17], expected["s1"], rtol=0, atol=2e-5)
    torch.testing.assert_close(features[:, 17:], expected["s2"], rtol=0, atol=2e-5)


def test_a_classification_task_starts_from_the_weights_or_from_random_ones(
    entry: Any, export: Path
) -> None:
    options = {"in_channels": 5, "task": "multilabel", "num_labels": 19, "loss": "bce"}
    loaded = ClassificationTask(model="fusmae_noise", weights=entry, **options).model
    named = ClassificationTask(model="fusmae_noise", weights=str(entry), **options).model
    drawn = ClassificationTask(model="fusmae_noise", weights=None, **options).model
    expected = fusmae.load_encoder(export).encoder.state_dict()
    for model in (loaded, named):
        state = model.encoder.state_dict()
        assert all(state[name].equal(tensor) for name, tensor in expected.items())
    key = "blocks.0.mlp.fc1.weight"
    assert not drawn.encoder.state_dict()[key].equal(expected[key])
    assert loaded(torch.zeros(2, 5, 32, 32)).shape == (2, 19)


@pytest.mark.parametrize("name", ["not a name", "class", "resnet18"])
def test_a_name_that_is_none_or_taken_is_refused(export: Path, name: str) -> None:
    with pytest.raises(ValueError, match="must be a Python identifier"):
        ours.register_encoder(export, name)
