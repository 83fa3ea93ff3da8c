"""What an encoder of two sensors with 2 + 3 bands says of itself, for tests of several folders."""

from fusmae.config import ModelConfig
from fusmae.model import EncoderCard

TINY_CARD = EncoderCard(
    model=ModelConfig(preset="tiny", image_px=32, patch_px=8),
    bands={"s1": ("VV", "VH"), "s2": ("B02", "B03", "B04")},
    mean={"s1": (-12.0, -19.0), "s2": (430.0, 614.0, 590.0)},
    std={"s1": (5.0, 5.5), "s2": (572.0, 582.0, 675.0)},
    resample="bilinear",
    dataset="noise",
    simulated=True,
    licence="CC0-1.0",
)
