"""A tiny dataset and a tiny encoder for the tests of probes and report pages."""

from pathlib import Path

import pytest
import torch

from fusmae.config import ModelConfig
from fusmae.data import Preprocess
from fusmae.manifest import read_manifest
from fusmae.model import EncoderCard, FusMAEEncoder, save_encoder

# `tests` is not installed, so its files reach each other by relative imports alone.
from ..data.tiny_dataset import write_tiny_dataset  # noqa: TID252

# The dataset's S1 and 10 m bands have 12 px: 9 tokens of 4 px a sensor.
MODEL = ModelConfig(preset="tiny", image_px=12, patch_px=4, width=16, depth=2, heads=2)
BANDS = {"s1": ("VV", "VH"), "s2": ("B02", "B03", "B04", "B08", "B8A", "B11", "B01")}


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 train samples in 2 shards, 19 val and 23 test ones; pixels are noise."""
    folder = tmp_path_factory.mktemp("dataset")
    return write_tiny_dataset(folder, {"train": (25, 15), "val": (19,), "test": (23,)})


@pytest.fixture(scope="session")
def card(dataset: Path) -> EncoderCard:
    manifest = read_manifest(dataset)
    preprocess = Preprocess(manifest, BANDS, MODEL.image_px)
    return EncoderCard(
        MODEL, BANDS, preprocess.mean, preprocess.std, "bilinear", "tiny", True, "CC0-1.0"
    )


@pytest.fixture(scope="session")
def encoder(card: EncoderCard, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported encoder whose weights are those of seed 12345, unlike any recipe's seed."""
    folder = tmp_path_factory.mktemp("run") / "encoder"
    torch.manual_seed(12345)
    save_encoder(FusMAEEncoder(card.model, card.channels), card, folder)
    return folder
