"""What the protocols need to know of a row of the tables, whoever made its weights."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from fusmae.evaluation.recipes import FinetuneRecipe, ProbeRecipe
from fusmae.model import EncoderCard
from fusmae.model.classifier import Pooling
from fusmae.model.interface import ImageEncoder

Recipe = TypeVar("Recipe", ProbeRecipe, FinetuneRecipe)


@dataclass(frozen=True)
class Backbone:
    """An encoder with all that is special to it.

    `card` has the bands by sensor, the sizes and the statistics that normalise them; with
    `own_statistics` off these are unknown (NaN), and the dataset's are used. `poolings` are
    those that it has, the headline of frozen features first. `channels` are the bands of the
    weights' stacked channels, none where sensors have embeddings of their own. `files` are
    those that were read. `tuned` says by what `pretrained` was fine-tuned since, "" by nothing.
    """

    name: str
    label: str
    card: EncoderCard
    poolings: tuple[Pooling, ...]
    normalisation: str
    absent_sensor: str
    files: tuple[Path, ...]
    pretrained: ImageEncoder
    make_random: Callable[[], ImageEncoder]
    channels: tuple[str, ...] = ()
    own_statistics: bool = True
    tuned: str = ""

    def random(self, seed: int) -> ImageEncoder:
        """The same architecture with weights that are a pure function of the seed."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.make_random()

    def fit(self, recipe: Recipe) -> Recipe:
        """The recipe with the dataset's statistics where the weights come without any."""
        return recipe if self.own_statistics else dataclasses.replace(recipe, statistics="dataset")

    def check_pooling(self, pooling: Pooling) -> None:
        """Raises ValueError if the encoder has no such pooling."""
        if pooling not in self.poolings:
            raise ValueError(f"{self.label} has no {pooling}: set pooling={self.poolings[0]}")

    @property
    def options(self) -> dict[str, Any]:
        """What decides a result besides the files' hashes; nothing for ours."""
        return {"backbone": self.name, "channels": self.channels} if self.channels else {}

    def describe(self) -> dict[str, Any]:
        """For the readers of a result, JSON-ready."""
        model = self.card.model
        return {
            "name": self.name,
            "label": self.label,
            "bands": self.card.bands,
            "channels": self.channels,
            "image_px": model.image_px,
            "patch_px": model.patch_px,
            "poolings": self.poolings,
            "normalisation": self.normalisation,
            "absent_sensor": self.absent_sensor,
            "licence": self.card.licence,
            "simulated": self.card.simulated,
            "tuned": self.tuned,
        }
