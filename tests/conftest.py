"""Fixtures that several folders of tests share."""

from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_v1() -> Path:
    """A folder with six real BigEarthNet v1 pairs in the archive's own layout."""
    return _real("bigearthnet-v1")


@pytest.fixture(scope="session")
def name_lists() -> Path:
    """A folder with the published BigEarthNet name lists and tables."""
    return _real("lists")


def _real(name: str) -> Path:
    if not (DATA / name).is_dir():
        pytest.skip(f"needs the real sample data in {DATA / name}")
    return DATA / name


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder of 2 + 3 bands and 4 blocks, random weights."""
    import torch  # here, because the tests of ingest are to run without it

    from fusmae.config import ModelConfig
    from fusmae.model import EncoderCard, FusMAEEncoder, save_encoder

    model = ModelConfig(preset="tiny", image_px=32, patch_px=8)
    card = EncoderCard(
        model=model,
        bands={"s1": ("VV", "VH"), "s2": ("B02", "B03", "B04")},
        mean={"s1": (-12.0, -19.0), "s2": (430.0, 614.0, 590.0)},
        std={"s1": (5.0, 5.5), "s2": (572.0, 582.0, 675.0)},
        resample="bilinear",
        dataset="noise",
        simulated=True,
        licence="CC0-1.0",
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("export")
    save_encoder(FusMAEEncoder(model, card.channels), card, folder)
    return folder
