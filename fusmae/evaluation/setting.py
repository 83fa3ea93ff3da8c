"""What both protocols, probe and fine-tuning, need to know of a dataset and an encoder's card."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fusmae.config import DataConfig, build
from fusmae.data import Preprocess
from fusmae.evaluation.images import describe_images, make_preprocess
from fusmae.evaluation.labelled import (
    LabelChoice,
    LabelledSplit,
    classes_of,
    few_labels_warning,
    read_splits,
)
from fusmae.evaluation.overlap import find_overlap
from fusmae.evaluation.recipes import FinetuneRecipe, ProbeRecipe
from fusmae.evaluation.results import describe_task, provenance
from fusmae.evaluation.tasks import Task, make_task
from fusmae.manifest import Manifest, read_manifest
from fusmae.model import EncoderCard


@dataclass(frozen=True)
class Setting:
    """A dataset's splits and labels, and its images as an encoder of `card` wants them.

    `splits` are train, val and test; `overlap` is what pretraining has seen of test, None where
    its data are not given.
    """

    dataset: Path
    manifest: Manifest
    card: EncoderCard
    data: DataConfig
    task: Task
    splits: list[LabelledSplit]
    preprocess: Preprocess
    recipe: ProbeRecipe | FinetuneRecipe
    overlap: dict[str, Any] | None
    device: torch.device

    def describe(self, encoder: str) -> dict[str, Any]:
        """What a result says of its setting, JSON-ready."""
        recipe = self.recipe
        return {
            "seed": recipe.seed,
            **describe_task(self.task, recipe.label_set, self.splits, self.manifest),
            "images": describe_images(self.manifest, self.card, self.preprocess, recipe.statistics),
            "overlap": self.overlap,
            **provenance(self.manifest, encoder, self.device),
        }


def open_setting(
    dataset: Path,
    card: EncoderCard,
    bands: dict[str, tuple[str, ...]],
    recipe: ProbeRecipe | FinetuneRecipe,
    choice: LabelChoice,
    pretraining_data: Sequence[Path],
) -> Setting:
    """Read what a run of `recipe` on these bands needs; on the GPU if there is one.

    Very few labels are told on stderr.

    Raises:
        ValueError: the dataset lacks a split, a band, the label set or a label, it is not the
            one that was pretrained on, or a number of the recipe does not fit the encoder.
    """
    manifest = read_manifest(dataset)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    overlap = find_overlap(card, pretraining_data, dataset, recipe.test_split)
    data = build(DataConfig, {"bands": bands, "resample": card.resample})
    task = make_task(recipe.task, classes_of(manifest, recipe.label_set), recipe.smoothing)
    names = (recipe.train_split, recipe.val_split, recipe.test_split)
    splits = read_splits(dataset, names, task, recipe.label_set, choice)
    if warning := few_labels_warning(splits[0], task):
        Console(stderr=True, soft_wrap=True).print(f"warning: {warning}", highlight=False)
    preprocess = make_preprocess(manifest, card, data, recipe.statistics, recipe.image_px)
    return Setting(
        dataset,
        manifest,
        card,
        data,
        task,
        splits,
        preprocess.to(device),
        recipe,
        overlap,
        device,
    )
