"""An exported encoder for the real torchgeo and TerraTorch; `make test-toolboxes` installs them."""

from pathlib import Path

import pytest
import torch

from fusmae.config import ModelConfig
from fusmae.model import EncoderCard, FusMAEEncoder, save_encoder


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder of 2 + 3 bands and 4 blocks, random weights."""
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


@pytest.fixture
def stored() -> dict[str, torch.Tensor]:
    """Images in stored units, of the encoder's sensors."""
    draw = torch.Generator().manual_seed(1)
    return {
        "s1": -15 + 5 * torch.randn(2, 2, 32, 32, generator=draw),
        "s2": 500 + 300 * torch.randn(2, 3, 32, 32, generator=draw),
    }
