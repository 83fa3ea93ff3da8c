"""README.md of a dataset: what it is, where it is from, what it holds; for people and for the hub.

The front matter is that of Hugging Face dataset cards (hub docs, "Dataset Cards"); all of it is
made from the manifest, so equal datasets have equal cards.
"""

import json
from collections.abc import Sequence

from fusmae.manifest import Manifest

from .card_features import features_yaml
from .card_reading import reading_text
from .croissant import summary
from .facts import Fact
from .left_out import left_out_told

_PERCENTILES = ("p2", "p98")


def card_text(manifest: Manifest, facts: Sequence[Fact]) -> str:
    """The card. `manifest.files` holds what was written before it; `facts` as in KEY.json."""
    parts = [
        _front_matter(manifest, facts),
        f"# {manifest.name}",
        _simulated(manifest),
        summary(manifest),
        _source(manifest),
        _splits(manifest),
        *_classes(manifest),
        _bands(manifest),
        _left_out(manifest),
        "## Read it",
        reading_text(manifest).rstrip(),
        "`dataset.json` lists every file with its size and sha256, and all statistics. "
        "Check them with `fusmae-ingest verify .`",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(manifest: Manifest, facts: Sequence[Fact]) -> str:
    """YAML; free text stands in JSON's quotes."""
    has_shards = any(split.shards for split in manifest.splits.values())
    has_zarr = any(split.zarr for split in manifest.splits.values())
    tags = ["earth-observation", "remote-sensing", "sentinel-1", "sentinel-2", "sar"]
    tags += ["multispectral", *["webdataset"] * has_shards, *["zarr"] * has_zarr, "croissant"]
    tags += ["simulated"] * manifest.simulated
    tasks = ["image-feature-extraction", *["image-classification"] * bool(manifest.label_sets)]
    lines = [
        "---",
        f"pretty_name: {json.dumps(manifest.source['title'], ensure_ascii=False)}",
        f"license: {manifest.source['licence_id']}",
        *(["library_name: webdataset"] if has_shards else []),
        f"size_categories: [{size_category(manifest.num_samples)}]",
        f"task_categories: [{', '.join(tasks)}]",
        f"tags: [{', '.join(tags)}]",
        *_configs(manifest, has_shards),
        *(features_yaml(manifest, facts, "shards") if has_shards else []),
        "---",
    ]
    return "\n".join(lines)


def _configs(manifest: Manifest, has_shards: bool) -> list[str]:
    """What `datasets.load_dataset` loads: the shards by split, else the table of samples.

    Not both: the library reads all configs of a dataset with the reader of the first.
    """
    if not has_shards:
        return [
            "configs:",
            "- config_name: samples",
            "  data_files:",
            "  - split: samples",
            "    path: samples.parquet",
        ]
    lines = ["configs:", "- config_name: shards", "  data_files:"]
    for name, split in manifest.splits.items():
        if split.shards:
            lines += [f"  - split: {name}", f"    path: shards/{name}/*.tar"]
    return lines


def size_category(num_samples: int) -> str:
    """Hugging Face's name of a number of samples: `n<1K`, `1K<n<10K`, ..., `1M<n<10M`."""
    bounds = ("1K", "10K", "100K", "1M", "10M")
    for i, upper in enumerate(bounds):
        if num_samples < 10 ** (3 + i):
            return f"{bounds[i - 1]}<n<{upper}" if i else f"n<{upper}"
    return "10M<n<100M"


def _simulated(manifest: Manifest) -> str:
    if not manifest.simulated:
        return ""
    return (
        "> **SIMULATED DATA.** Simulated by `fusmae-ingest simulate`: no pixel, label, place or "
        "date here was ever observed. Good for demos and tests; no result on it says anything "
        "about the Earth."
    )


def _source(manifest: Manifest) -> str:
    source = manifest.source
    genuine = "The genuine archive" if manifest.simulated else "Archive"
    return "\n".join(
        [
            "## Source, licence and citation",
            "",
            f"- {genuine}: <{source['url']}>",
            f"- Processing level: {source['processing']}",
            f"- Licence: [{source['licence']}]({source['licence_url']})",
            f"- {'Whose layout this is' if manifest.simulated else 'Cite'}: {source['citation']}",
            "",
            "```bibtex",
            source["bibtex"].rstrip(),
            "```",
        ]
    )


def _splits(manifest: Manifest) -> str:
    rows = [
        (name, f"{split.num_samples:,}", f"{len(split.shards):,}", "yes" if split.zarr else "no")
        for name, split in manifest.splits.items()
    ]
    rule = manifest.options["plan"].get("split")
    text = f"Split rule: {rule}. " if rule else ""
    return (
        "## Splits\n\n"
        f"{text}Samples stand in random order, by the seed {manifest.seed}.\n\n"
        + _table(("split", "samples", "shards", "zarr"), rows)
    )


def _classes(manifest: Manifest) -> list[str]:
    """A table for each label set: how many samples of each split hold each class."""
    parts = []
    for name, classes in manifest.counted_classes().items():
        counts = [split.class_counts[name] for split in manifest.splits.values()]
        rows = [
            (label, *(f"{n:,}" for n in numbers))
            for label, *numbers in zip(classes, *counts, strict=True)
        ]
        label_set, _, column = name.partition("/")
        told = f"one class a sample, `{column}` of {label_set}" if column else label_set
        parts.append(f"### Samples that hold each class: {told}")
        parts.append(_table(("class", *manifest.splits), rows))
    return parts


def _bands(manifest: Manifest) -> str:
    rows = []
    for spec in manifest.arrays:
        stats = manifest.statistics[spec.name]
        for i, band in enumerate(spec.bands):
            wavelength = "" if band.wavelength_nm is None else f"{band.wavelength_nm:g} nm"
            numbers = [stats.min[i], *(stats.percentiles[p][i] for p in _PERCENTILES), stats.max[i]]
            rows.append(
                (
                    *(spec.name, band.name, f"{band.gsd_m} m", wavelength, spec.unit),
                    # Codes of classes have no mean.
                    *(
                        f"{x:.3f}" if spec.is_measured else "-"
                        for x in (stats.mean[i], stats.std[i])
                    ),
                    *(f"{number:g}" for number in numbers),
                )
            )
    header = ("array", "band", "GSD", "centre", "unit", "mean", "std", "min", "p2", "p98", "max")
    shapes = [f"`{s.name}` {s.shape} {s.dtype}: {s.long_name}." for s in manifest.arrays]
    return (
        "## Bands\n\n"
        + "\n".join(f"- {shape}" for shape in shapes)
        + f"\n\nStatistics are those of the {manifest.statistics_split} split, in stored units; "
        "p2 and p98 are percentiles.\n\n" + _table(header, rows)
    )


def _left_out(manifest: Manifest) -> str:
    told = left_out_told(manifest)
    lines = [f"- {reason}." for reason in told] or ["Nothing that the archive held."]
    return "\n".join(["## Left out", "", *lines])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
