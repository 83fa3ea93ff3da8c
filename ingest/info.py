"""`fusmae-ingest info`: what a dataset holds, from its manifest alone."""

import json
from collections.abc import Iterator
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Column, Table

from fusmae.manifest import Manifest
from fusmae.sample import array_bytes

from .left_out import left_out_counts, left_out_told
from .storage import manifest_of, open_store

# Measured: pretraining ViT-B at 224 px, compiled, bfloat16, on one H200;
# tests/benchmarks/results/gpu_pretrain.json.
MEASURED_SAMPLES_PER_S = 5913

# More than any line has: what is no terminal gets no line folded.
_ENDLESS = 1000

_EXAMPLES = """
\b
Examples:
  fusmae-ingest info ben
  fusmae-ingest info s3://bucket/ben
  fusmae-ingest info ben --json | jq '.splits.train.samples'
"""


@click.command(epilog=_EXAMPLES)
@click.argument("dataset")
@click.option("--json", "as_json", is_flag=True, help="Print it as one JSON object.")
def info(dataset: str, as_json: bool) -> None:
    """Print what a dataset holds: splits, bands, classes.

    DATASET is a folder or a URL; its manifest alone is read.
    """
    manifest = manifest_of(open_store(dataset))
    told = summary(manifest)
    if as_json:
        click.echo(json.dumps(told, indent=1, ensure_ascii=False))
    else:
        _print(told, left_out_told(manifest))


def summary(manifest: Manifest) -> dict[str, Any]:
    """What `info` tells, of plain types; sizes in bytes, statistics in stored units.

    `sample_bytes` are the pixels of all arrays, `gpu_read_sample_bytes` those of
    `gpu_read_arrays`: the measurements, which pretraining reads, without class maps.
    `gpu_read_bytes_per_s` is what one GPU read from storage at `MEASURED_SAMPLES_PER_S`.
    `left_out` has samples by reason, as in `left_out_counts`. Class codes have no mean: it is None.
    """
    measured = [spec for spec in manifest.arrays if spec.is_measured]
    read_bytes = sum(array_bytes(spec) for spec in measured)
    return {
        "name": manifest.name,
        "format_version": manifest.format_version,
        "title": manifest.source["title"],
        "licence": manifest.source["licence"],
        "simulated": manifest.simulated,
        "split_rule": manifest.options["plan"]["split"],
        "seed": manifest.seed,
        "left_out": left_out_counts(manifest),
        "sample_bytes": sum(array_bytes(spec) for spec in manifest.arrays),
        "gpu_read_arrays": [spec.name for spec in measured],
        "gpu_read_sample_bytes": read_bytes,
        "gpu_read_bytes_per_s": read_bytes * MEASURED_SAMPLES_PER_S,
        "splits": {
            name: {
                "samples": split.num_samples,
                "shards": len(split.shards),
                "shard_bytes": sum(shard.bytes for shard in split.shards),
                "zarr_bytes": sum(file.bytes for file in split.zarr),
            }
            for name, split in manifest.splits.items()
        },
        "statistics_split": manifest.statistics_split,
        "bands": _bands(manifest),
        "label_sets": {name: list(classes) for name, classes in manifest.label_sets.items()},
        "class_counts": {
            name: {
                label: {split: s.class_counts[name][i] for split, s in manifest.splits.items()}
                for i, label in enumerate(classes)
            }
            for name, classes in manifest.counted_classes().items()
        },
    }


def _bands(manifest: Manifest) -> list[dict[str, Any]]:
    bands = []
    for spec in manifest.arrays:
        stats = manifest.statistics[spec.name]
        measured = spec.is_measured
        for i, band in enumerate(spec.bands):
            bands.append(
                {
                    "array": spec.name,
                    "sensor": spec.sensor,
                    "band": band.name,
                    "gsd_m": band.gsd_m,
                    "dtype": np.dtype(spec.dtype).name,
                    "unit": spec.unit,
                    "mean": stats.mean[i] if measured else None,
                    "std": stats.std[i] if measured else None,
                    "min": stats.min[i],
                    "max": stats.max[i],
                }
            )
    return bands


def _print(told: dict[str, Any], left_out: list[str]) -> None:
    """Boxes on a terminal, else lines of columns that nothing folds."""
    console = Console(highlight=False)
    plain = not console.is_terminal
    if plain:
        console.width = _ENDLESS
    for line in _lines(told, left_out):
        console.print(line, markup=False)
    tables = [_split_table(told), _band_table(told)]
    tables += [_class_table(told, name) for name in told["class_counts"]]
    for table in tables:
        if plain:
            table.box, table.pad_edge = None, False
            console.print()
        console.print(table)


def _lines(told: dict[str, Any], left_out: list[str]) -> Iterator[str]:
    yield f"{told['name']}, format {told['format_version']}"
    yield f"{told['title']}; licence {told['licence']}"
    if told["simulated"]:
        yield "Simulated: no pixel or label here was ever observed."
    yield f"Split rule {told['split_rule']}, seed {told['seed']}"
    yield f"Left out: {', '.join(left_out) or 'nothing'}"
    units = sorted({f"{entry['sensor']}: {entry['unit']}" for entry in told["bands"]})
    yield f"Statistics of the {told['statistics_split']} split; {'; '.join(units)}"
    for name, classes in told["label_sets"].items():
        yield f"Label set {name}: {len(classes)} classes"
    yield (
        f"One GPU reads {told['gpu_read_sample_bytes']:,} bytes x {MEASURED_SAMPLES_PER_S:,} "
        f"samples/s = {told['gpu_read_bytes_per_s'] / 1e9:.2f} GB/s of "
        f"{', '.join(told['gpu_read_arrays'])} (measured: ViT-B compiled on an H200)"
    )


def _table(*names: str, numbers: tuple[str, ...]) -> Table:
    columns = [Column(name, overflow="fold") for name in names]
    return Table(*columns, *(Column(name, justify="right") for name in numbers))


def _split_table(told: dict[str, Any]) -> Table:
    table = _table("split", numbers=("samples", "shards", "shard bytes", "zarr bytes"))
    for name, split in told["splits"].items():
        table.add_row(name, *(f"{number:,}" for number in split.values()))
    return table


def _band_table(told: dict[str, Any]) -> Table:
    table = _table("array", "band", "GSD", "dtype", numbers=("mean", "std", "min", "max"))
    for entry in told["bands"]:
        numbers = [entry[key] for key in ("mean", "std", "min", "max")]
        digits = 0 if entry["mean"] is None else 2
        shown = ["-" if number is None else f"{number:.{digits}f}" for number in numbers]
        table.add_row(entry["array"], entry["band"], f"{entry['gsd_m']} m", entry["dtype"], *shown)
    return table


def _class_table(told: dict[str, Any], name: str) -> Table:
    table = _table(name, numbers=tuple(told["splits"]))
    for label, counts in told["class_counts"][name].items():
        table.add_row(label, *(f"{number:,}" for number in counts.values()))
    return table
