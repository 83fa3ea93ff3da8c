"""The GeoCroissant 1.0 part of croissant.json: bands, resolution, place and time.

http://mlcommons.org/croissant/geo/1.0, section "GeoCroissant Properties".
"""

from collections.abc import Sequence
from typing import Any

from fusmae.sensors import ArraySpec, Band

from .coverage import Coverage


def geography(arrays: Sequence[ArraySpec], coverage: Coverage) -> dict[str, Any]:
    """The properties of a whole dataset: all its bands, the ground and the days it covers."""
    west, south, east, north = coverage.bbox
    table: dict[str, Any] = {
        "spatialCoverage": {
            "@type": "sc:Place",
            # South-west, then north-east corner, latitude before longitude.
            "geo": {"@type": "sc:GeoShape", "box": f"{south} {west} {north} {east}"},
        },
        # The specification wants one text. Samples lie in UTM zones of their own: all zones
        # are named here, and each sample's is the field `samples/crs`.
        "geocr:coordinateReferenceSystem": ", ".join(coverage.crs),
        **band_properties([band for spec in arrays for band in spec.bands]),
    }
    if coverage.first is not None:
        table["temporalCoverage"] = f"{coverage.first}/{coverage.last}"
    return table


def band_properties(bands: Sequence[Band]) -> dict[str, Any]:
    """Resolution, names in their order, and centre wavelengths of the bands that have one."""
    gsd_m = sorted({band.gsd_m for band in bands})
    interval = {"minValue": gsd_m[0], "maxValue": gsd_m[-1]}
    properties: dict[str, Any] = {
        "geocr:spatialResolution": {
            "@type": "sc:QuantitativeValue",
            **({"value": gsd_m[0]} if len(gsd_m) == 1 else interval),
            "unitText": "m",
        },
        "geocr:bandConfiguration": {
            "@type": "geocr:BandConfiguration",
            "geocr:totalBands": len(bands),
            "geocr:bandNameList": [band.name for band in bands],
        },
    }
    spectral = [_spectral_band(band) for band in bands if band.wavelength_nm is not None]
    if spectral:
        properties["geocr:spectralBandMetadata"] = spectral
    return properties


def _spectral_band(band: Band) -> dict[str, Any]:
    return {
        "@type": "geocr:SpectralBand",
        "name": band.name,
        "geocr:centerWavelength": {
            "@type": "sc:QuantitativeValue",
            "value": band.wavelength_nm,
            "unitText": "nm",
        },
    }
