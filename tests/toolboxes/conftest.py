"""Images for the real torchgeo and TerraTorch, which `make test-toolboxes` installs."""

import pytest
import torch


@pytest.fixture
def stored() -> dict[str, torch.Tensor]:
    """Images in stored units, of the encoder's sensors."""
    draw = torch.Generator().manual_seed(1)
    return {
        "s1": -15 + 5 * torch.randn(2, 2, 32, 32, generator=draw),
        "s2": 500 + 300 * torch.randn(2, 3, 32, 32, generator=draw),
    }
