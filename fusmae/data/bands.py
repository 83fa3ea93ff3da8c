"""Which arrays hold the bands that are asked for, and whether it is asked as it should be."""

from collections.abc import Mapping, Sequence

from fusmae.manifest import Manifest


def check_bands(bands: Mapping[str, Sequence[str]]) -> None:
    """Raises ValueError unless this maps sensors to band names, at least one each."""
    example = "such as {'s1': ['VV', 'VH'], 's2': ['B04']}"
    if not isinstance(bands, Mapping):
        raise ValueError(f"bands = {bands!r} must map a sensor to its band names, {example}")
    for sensor, names in bands.items():
        if isinstance(names, str) or not isinstance(names, Sequence):
            raise ValueError(f"bands[{sensor!r}] = {names!r} must be a list of names, {example}")
        if not names:
            raise ValueError(f"bands[{sensor!r}] names no band: leave {sensor!r} out")
    if not bands:
        raise ValueError(f"bands = {{}} names no band: it must, {example}")


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
