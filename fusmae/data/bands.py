"""Which arrays hold the bands that are asked for."""

from collections.abc import Mapping, Sequence

from fusmae.manifest import Manifest
from fusmae.sensors import check_bands


def check_manifest(manifest: object) -> None:
    """Raises ValueError unless this is a `Manifest`."""
    if not isinstance(manifest, Manifest):
        raise ValueError(
            f"a dataset's Manifest is wanted, got {type(manifest).__name__}: give ds.manifest of "
            "an open dataset, or fusmae.manifest.read_manifest(FOLDER)"
        )


def arrays_for(manifest: Manifest, bands: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The names of the arrays that hold these bands (sensor -> band names), in stored order.

    Raises:
        ValueError: the dataset has no such sensor or band, `bands` is no such mapping or
            `manifest` none.
    """
    check_manifest(manifest)
    check_bands(bands)
    needed = {
        manifest.find_band(sensor, band)[0].name for sensor in bands for band in bands[sensor]
    }
    return tuple(spec.name for spec in manifest.arrays if spec.name in needed)
