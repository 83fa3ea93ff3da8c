"""Names and colours of land cover codes, as they are commonly drawn.

For pictures of class maps and their legends; the codes themselves are the dataset's pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from .simulated_classes import CLC_CODES


@dataclass(frozen=True)
class LandCoverClass:
    """A class's name and its colour, `#rrggbb`."""

    name: str
    colour: str


# MODIS Land Cover Type 1, the annual IGBP classification (Sulla-Menashe and Friedl 2018, MCD12
# user guide; colours of its page in the Earth Engine catalogue).
IGBP: dict[int, LandCoverClass] = {
    1: LandCoverClass("Evergreen needleleaf forest", "#05450a"),
    2: LandCoverClass("Evergreen broadleaf forest", "#086a10"),
    3: LandCoverClass("Deciduous needleleaf forest", "#54a708"),
    4: LandCoverClass("Deciduous broadleaf forest", "#78d203"),
    5: LandCoverClass("Mixed forest", "#009900"),
    6: LandCoverClass("Closed shrubland", "#c6b044"),
    7: LandCoverClass("Open shrubland", "#dcd159"),
    8: LandCoverClass("Woody savanna", "#dade48"),
    9: LandCoverClass("Savanna", "#fbff13"),
    10: LandCoverClass("Grassland", "#b6ff05"),
    11: LandCoverClass("Permanent wetland", "#27ff87"),
    12: LandCoverClass("Cropland", "#c24f44"),
    13: LandCoverClass("Urban and built-up", "#a5a5a5"),
    14: LandCoverClass("Cropland and natural vegetation mosaic", "#ff6d4c"),
    15: LandCoverClass("Snow and ice", "#69fff8"),
    16: LandCoverClass("Barren", "#f9ffa4"),
    17: LandCoverClass("Water", "#1c0dff"),
    255: LandCoverClass("Unclassified", "#000000"),
}

# Colours of the CORINE Land Cover legend (Copernicus Land Monitoring Service, clc_legend.csv),
# in the order of CLC_CODES.
# fmt: off
_CLC_COLOURS = (
    "#e6004d", "#ff0000", "#cc4df2", "#cc0000", "#e6cccc", "#e6cce6", "#a600cc", "#a64d00",
    "#ff4dff", "#ffa6ff", "#ffe6ff", "#ffffa8", "#ffff00", "#e6e600", "#e68000", "#f2a64d",
    "#e6a600", "#e6e64d", "#ffe6a6", "#ffe64d", "#e6cc4d", "#f2cca6", "#80ff00", "#00a600",
    "#4dff00", "#ccf24d", "#a6ff80", "#a6e64d", "#a6f200", "#e6e6e6", "#cccccc", "#ccffcc",
    "#000000", "#a6a6ff", "#4d4dff", "#ccccff", "#e6e6ff", "#a6a6e6", "#00ccf2", "#80f2e6",
    "#00ffa6", "#a6ffe6", "#e6f2ff",
)
# fmt: on

CLC: dict[int, LandCoverClass] = {
    **{
        code: LandCoverClass(name, colour)
        for (name, code), colour in zip(CLC_CODES.items(), _CLC_COLOURS, strict=True)
    },
    335: LandCoverClass("Glaciers and perpetual snow", "#a6e6cc"),
    999: LandCoverClass("No data", "#ffffff"),
}

# Bands of class codes that can be drawn, by name.
PALETTES: Mapping[str, Mapping[int, LandCoverClass]] = {"IGBP": IGBP, "CLC": CLC}

# A code that its legend does not know, and the codes of bands without a legend.
_UNKNOWN_COLOUR, _PLAIN_COLOUR = "#ff00ff", "#8a94a6"


def land_cover_class(band: str, code: int) -> LandCoverClass:
    """The class of a code of this band; one that is not known is called by its code."""
    known = PALETTES.get(band, {}).get(code)
    colour = _UNKNOWN_COLOUR if band in PALETTES else _PLAIN_COLOUR
    return known or LandCoverClass(f"code {code}", colour)
