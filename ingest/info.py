"""`fusmae-ingest info`: what a dataset holds, from its manifest alone."""

import click
import numpy as np
from rich.console import Console
from rich.table import Column, Table

from fusmae.manifest import Manifest
from fusmae.sample import array_bytes

from .storage import manifest_of, open_store

# What config A of the pretraining benchmark aims at: ViT-B, 224 px and patches of 16, one H200.
TARGET_SAMPLES_PER_S = 6600


@click.command(
    epilog="\b\nExamples:\n  fusmae-ingest info ben\n  fusmae-ingest info s3://bucket/ben\n"
)
@click.argument("dataset")
def info(dataset: str) -> None:
    """Print what a dataset holds: splits, bands, classes.

    DATASET is a folder or a URL; its manifest alone is read.
    """
    manifest = manifest_of(open_store(dataset))
    console = Console()
    console.print(f"[bold]{manifest.name}[/bold], format {manifest.format_version}")
    console.print(f"{manifest.source['title']}; licence {manifest.source['licence']}")
    if manifest.simulated:
        console.print("[bold]Simulated: no pixel or label here was ever observed.[/bold]")
    console.print(f"Split rule {manifest.options['plan']['split']}, seed {manifest.seed}")
    console.print(_split_table(manifest))
    console.print(_bandwidth(manifest))
    console.print(_band_table(manifest))
    for name, classes in manifest.label_sets.items():
        console.print(f"Label set {name}: {len(classes)} classes")
    for name, classes in manifest.counted_classes().items():
        console.print(_class_table(manifest, name, classes))


def _table(*names: str | Column, numbers: tuple[str, ...]) -> Table:
    return Table(*names, *(Column(name, justify="right") for name in numbers))


def _split_table(manifest: Manifest) -> Table:
    table = _table("split", numbers=("samples", "shards", "shard bytes", "zarr bytes"))
    for name, split in manifest.splits.items():
        table.add_row(
            name,
            f"{split.num_samples:,}",
            f"{len(split.shards):,}",
            f"{sum(shard.bytes for shard in split.shards):,}",
            f"{sum(file.bytes for file in split.zarr):,}",
        )
    table.caption = f"{_pixel_bytes(manifest):,} bytes of pixels a sample"
    return table


def _pixel_bytes(manifest: Manifest) -> int:
    return sum(array_bytes(spec) for spec in manifest.arrays)


def _bandwidth(manifest: Manifest) -> str:
    """What storage must deliver to one GPU, and how long an epoch of the largest split is then."""
    pixels = _pixel_bytes(manifest)
    bytes_per_s = pixels * TARGET_SAMPLES_PER_S
    name, split = max(manifest.splits.items(), key=lambda item: item[1].num_samples)
    return (
        f"One GPU reads {pixels:,} bytes x {TARGET_SAMPLES_PER_S:,} samples/s = "
        f"{bytes_per_s / 1e9:.2f} GB/s (the rate aimed at for ViT-B, 224 px, patch 16, on one "
        f"H200);\nan epoch of {name} is {split.num_samples * pixels / 1e9:.4g} GB, "
        f"{split.num_samples / TARGET_SAMPLES_PER_S:.3g} s at that rate"
    )


def _class_table(manifest: Manifest, name: str, classes: tuple[str, ...]) -> Table:
    table = _table(name, numbers=tuple(manifest.splits))
    counts = [split.class_counts[name] for split in manifest.splits.values()]
    for label, *numbers in zip(classes, *counts, strict=True):
        table.add_row(label, *(f"{number:,}" for number in numbers))
    table.caption = "samples of each split that hold the class"
    return table


def _band_table(manifest: Manifest) -> Table:
    band = Column("band", overflow="fold")
    table = _table("array", band, "GSD", "dtype", numbers=("mean", "std", "min", "max"))
    for spec in manifest.arrays:
        stats = manifest.statistics[spec.name]
        dtype = np.dtype(spec.dtype).name
        for i, entry in enumerate(spec.bands):
            numbers = [stats.mean[i], stats.std[i], stats.min[i], stats.max[i]]
            told = [f"{number:.2f}" for number in numbers]
            if spec.sensor not in ("s1", "s2"):
                # Class codes have no mean.
                told = ["", "", *(f"{number:.0f}" for number in numbers[2:])]
            table.add_row(spec.name, entry.name, f"{entry.gsd_m} m", dtype, *told)
    units = "; ".join(sorted({f"{spec.sensor}: {spec.unit}" for spec in manifest.arrays}))
    table.caption = f"statistics of the {manifest.statistics_split} split; {units}"
    return table
