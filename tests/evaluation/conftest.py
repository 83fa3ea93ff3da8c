"""A tiny dataset and a tiny encoder for the tests of probes and report pages."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fusmae.config import ModelConfig
from fusmae.data import Preprocess
from fusmae.labels import IGBP_10
from fusmae.manifest import MANIFEST_NAME, read_manifest, to_json
from fusmae.model import EncoderCard, FusMAEEncoder, save_encoder
from fusmae.sensors import SEN12MS_LC, SEN12MS_S1, SEN12MS_S2

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


@pytest.fixture(scope="session")
def sen12ms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SEN12MS's arrays at 16 px, 40 / 19 / 23 samples; every seventh has no class.

    Its label sets are those of `fusmae-ingest sen12ms`: several classes and a single one.
    """
    specs = tuple(replace(spec, size_px=16) for spec in (SEN12MS_S1, SEN12MS_S2, SEN12MS_LC))
    folder = tmp_path_factory.mktemp("sen12ms")
    write_tiny_dataset(folder, {"train": (25, 15), "val": (19,), "test": (23,)}, specs)
    rows = []
    for number, row in enumerate(pq.read_table(folder / "samples.parquet").to_pylist()):
        name = None if number % 7 == 0 else IGBP_10[number % 10]
        labels = [] if name is None else [name]
        facts = {"key": row["key"], "split": row["split"]}
        rows.append(facts | {"labels_sen12ms_igbp10": labels, "label_single": name})
    pq.write_table(pa.Table.from_pylist(rows), folder / "samples.parquet")
    manifest = replace(read_manifest(folder), label_sets={"sen12ms-igbp10": IGBP_10})
    (folder / MANIFEST_NAME).write_text(to_json(manifest))
    return folder
