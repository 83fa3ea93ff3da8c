"""An exported encoder as a torchgeo model and its weights entry.

torchgeo's models take one image of stacked channels, normalised by the transforms of the entry.
`register_encoder` makes both of a folder; torchgeo and kornia are needed here only.
"""

import keyword
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusmae.model.encoder import FusMAEEncoder
from fusmae.model.hub import fetch_folder
from fusmae.model.pretrained import EncoderCard, load_encoder
from fusmae.timm_models import build_model, in_channel_order
from fusmae.torchvision_repair import repair_torchvision

repair_torchvision()

import kornia.augmentation as K  # noqa: E402
import torchgeo.models.api as torchgeo_api  # noqa: E402
from timm.models import register_model  # noqa: E402
from torchvision.models import Weights, WeightsEnum  # noqa: E402

__all__ = ["FusMAEWeights", "register_encoder"]


class FusMAEWeights(WeightsEnum):
    """Weights of exported encoders; a member for each is made by `register_encoder`."""

    def get_state_dict(self, *args: Any, **options: Any) -> dict[str, Tensor]:
        """The weights by the names of the timm model, read from safetensors, never pickle."""
        encoder, _ = load_encoder(fetch_folder(self.url))
        return {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}


def register_encoder(source: str | Path, name: str) -> WeightsEnum:
    """Make an encoder known to timm and torchgeo as the model `name`; its weights entry.

    `torchgeo.models.get_model(name, weights=entry)` and torchgeo's tasks
    (`ClassificationTask(model=name, weights=entry, in_channels=entry.meta["in_chans"])`) then take
    it. Images are the sensors' channels one after another in the order of `entry.meta["bands"]`;
    `entry.transforms` normalises a batch in stored units (dB, reflectance * 10000).

    Args:
        source: an exported folder, `RUN/encoder`, or `hf://owner/name`.
        name: a Python identifier that timm has no model of.

    Raises:
        ValueError: the encoder cannot be had or stacked, or the name is taken or no identifier.
    """
    if not name.isidentifier() or keyword.iskeyword(name) or name in torchgeo_api._model:
        raise ValueError(f"name = {name!r} must be a Python identifier that no model has yet")
    encoder, card = load_encoder(fetch_folder(source))
    build_model(name, encoder, card, {})  # refuses here what it would refuse later

    def make(pretrained: bool = False, **options: Any) -> nn.Module:
        if pretrained:
            return build_model(name, load_encoder(fetch_folder(source))[0], card, options)
        return build_model(name, FusMAEEncoder(card.model, card.channels), card, options)

    def make_with_weights(weights: WeightsEnum | None = None, **options: Any) -> nn.Module:
        """torchgeo's way of saying which weights; the others are random."""
        return make(pretrained=weights is not None, **options)

    make.__name__ = name
    register_model(make)
    members = FusMAEWeights(f"{name}_Weights", {"ENCODER": _describe(source, name, card)})
    entry: WeightsEnum = members["ENCODER"]
    torchgeo_api._model[name] = make_with_weights
    torchgeo_api._model_weights[name] = torchgeo_api._model_weights[make_with_weights] = members
    return entry


def _describe(source: str | Path, name: str, card: EncoderCard) -> Weights:
    """What torchgeo's entries tell, with the keys that it uses, and the data's licence."""
    bands = in_channel_order(card, card.bands)
    mean, std = (torch.tensor(in_channel_order(card, n)) for n in (card.mean, card.std))
    return Weights(
        url=str(source),
        transforms=K.AugmentationSequential(K.Normalize(mean, std), data_keys=None),
        meta={
            "dataset": card.dataset,
            "in_chans": len(bands),
            "model": name,
            "publication": "https://arxiv.org/abs/2401.02764",
            "repo": None,
            "ssl_method": "fus-mae",
            "bands": bands,
            "sensors": card.bands,
            "licence": card.licence,
            "simulated": card.simulated,
        },
    )
