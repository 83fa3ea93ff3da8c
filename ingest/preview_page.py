"""The preview page of a dataset as one HTML text, pictures included; no script, no network."""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from fusmae.manifest import Manifest

from .landcover_colours import land_cover_class
from .preview_charts import class_counts, class_figure, map_figure, month_figure, season_figure
from .preview_histograms import code_figure, histogram_figure, read_histograms
from .preview_pictures import (
    View,
    class_bands,
    draw,
    draw_classes,
    png,
    stretch_in_words,
    views,
)
from .preview_samples import ShownSample, centres, read_samples, read_table
from .preview_style import GENERATOR, STYLE
from .preview_text import left_out_table, sample_facts, split_table
from .storage import LocalStore
from .verify_block import check_file
from .wording import plural

_SIMULATED = (
    '<p class="simulated"><strong>SIMULATED</strong> No pixel, label, place or date in this '
    "dataset was ever observed.</p>\n"
)


def make_page(root: Path, manifest: Manifest, split: str, count: int) -> str:
    """The page of the dataset in `root`, with `count` samples of `split`, or all that it has.

    Raises:
        ValueError: a file of the dataset is missing, or not as the manifest says.
    """
    _refuse_changed_tables(root, manifest)
    table = read_table(root)
    sections = [
        _header(manifest),
        f"<h2>Splits</h2>\n{split_table(manifest)}",
        left_out_table(root, manifest),
        _contact_sheet(root, manifest, table, split, count),
        _class_section(manifest, table),
        _place_section(manifest, table),
        _histogram_section(root, manifest),
    ]
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">{GENERATOR}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(manifest.name)}: preview</title><style>{STYLE}</style></head>\n"
        f"<body><main>\n{''.join(sections)}</main></body></html>\n"
    )


def _refuse_changed_tables(root: Path, manifest: Manifest) -> None:
    """Raises ValueError: a table is not what was written. Pixels are for `verify` to compare."""
    store = LocalStore(str(root))
    for file in manifest.files:
        told = check_file(store, file) if file.path.endswith((".parquet", ".jsonl")) else None
        if told:
            raise ValueError(f"{told}; see fusmae-ingest verify {root}")


def _header(manifest: Manifest) -> str:
    source = manifest.source
    total = manifest.num_samples
    bands = "; ".join(f"{spec.long_name}: {', '.join(spec.band_names)}" for spec in manifest.arrays)
    facts = {
        "Source": f"{source['title']}, {source['url']}",
        "Processing": source["processing"],
        "Arrays": bands,
        "Licence": source["licence"],
        "Citation": source["citation"],
        "Samples": f"{total:,}",
        "Split rule": f"{manifest.options['plan']['split']}, order by seed {manifest.seed}",
        "Format": f"{manifest.format_version}",
    }
    rows = "".join(f"<dt>{k}</dt><dd>{html.escape(str(v))}</dd>" for k, v in facts.items())
    banner = _SIMULATED if manifest.simulated else ""
    return f"{banner}<h1>{html.escape(manifest.name)}</h1>\n<dl>{rows}</dl>\n"


def _contact_sheet(root: Path, manifest: Manifest, table: pa.Table, split: str, count: int) -> str:
    shown = views(manifest)
    maps = list(class_bands(manifest))
    columns = [view.title for view in shown] + [
        f"{spec.band_names[band]} land cover" for spec, band in maps
    ]
    codes: dict[str, set[int]] = {spec.band_names[band]: set() for spec, band in maps}
    articles = []
    for sample in read_samples(root, manifest, table, split, count):
        pictures = [_picture(view.title, png(draw(view, sample.arrays))) for view in shown]
        for spec, band in maps:
            name, pixels = spec.band_names[band], sample.arrays[spec.name][band]
            codes[name] |= set(np.unique(pixels).tolist())
            picture = png(draw_classes(name, pixels))
            pictures.append(_picture(f"{name} land cover", picture, "classes"))
        articles.append(_article(manifest, sample, pictures))
    total = manifest.splits[split].num_samples
    number = f"{len(articles):,} of the {total:,}" if len(articles) < total else f"The {total:,}"
    heads = "".join(f"<span>{html.escape(title)}</span>" for title in ("", *columns))
    return (
        f"<h2>{number} {plural(total, 'sample')} of the {html.escape(split)} split</h2>\n"
        f"{_stretch_note(manifest, shown)}{_legends(codes)}"
        f'<div class="sheet" style="--pictures: {len(columns)}">\n'
        f'<div class="heads" aria-hidden="true">{heads}</div>\n{"".join(articles)}</div>\n'
    )


def _article(manifest: Manifest, sample: ShownSample, pictures: Iterable[str]) -> str:
    return (
        f'<article class="sample">{sample_facts(manifest, sample.row)}{"".join(pictures)}'
        "</article>\n"
    )


def _picture(title: str, image: bytes, kind: str = "view") -> str:
    text = html.escape(title)
    return (
        f'<figure class="{kind}"><img alt="{text}" src="{_source(image)}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def _source(image: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def _stretch_note(manifest: Manifest, shown: Sequence[View]) -> str:
    """What the pictures show and between which values, with units."""
    rows = "".join(
        f"<dt>{html.escape(view.title)}</dt><dd>{html.escape(view.caption)}</dd>" for view in shown
    )
    return (
        "<p>Drawn evenly over the split's random order. All samples share one stretch, so their "
        "brightness can be compared: from black to full brightness, the "
        f"{html.escape(stretch_in_words(manifest))}.</p>\n"
        f'<dl class="stretch">{rows}</dl>\n'
    )


def _legends(codes: Mapping[str, Iterable[int]]) -> str:
    """The colours of the class codes that the sheet shows."""
    lines = []
    for band, present in codes.items():
        entries = "".join(
            f'<li><i style="background: {found.colour}"></i>{html.escape(found.name)}</li>'
            for found in (land_cover_class(band, code) for code in sorted(present))
        )
        lines.append(f'<ul class="legend"><li>{html.escape(band)}:</li>{entries}</ul>\n')
    return "".join(lines)


def _class_section(manifest: Manifest, table: pa.Table) -> str:
    parts = []
    for name, classes in manifest.label_sets.items():
        counts = class_counts(manifest, table, name)
        picture = class_figure(manifest, classes, counts, len(table))
        caption = (
            f"{name}: samples of each class over all splits, and their share of the "
            f"{len(table):,} samples. A sample may bear several classes, or none."
        )
        parts.append(_chart(picture, caption))
    return f"<h2>Classes</h2>\n{''.join(parts)}" if parts else ""


def _place_section(manifest: Manifest, table: pa.Table) -> str:
    splits, points = table["split"].to_numpy(), centres(table)
    charts = [
        _chart(map_figure(manifest, splits, points), "Middles of the samples' footprints.", 58)
    ]
    if "time_s2" in table.column_names:
        times = table["time_s2"].to_numpy()
        caption = "Samples by month of the Sentinel-2 image."
        charts.append(_chart(month_figure(manifest, splits, times), caption, 42))
    elif "season" in table.column_names:
        seasons = table["season"].to_numpy()
        caption = "Samples by the archive's seasons; it tells no dates."
        charts.append(_chart(season_figure(manifest, splits, seasons), caption, 42))
    return f'<h2>Where and when</h2>\n<div class="pair">{"".join(charts)}</div>\n'


def _histogram_section(root: Path, manifest: Manifest) -> str:
    table = read_histograms(root, manifest)
    if table is None:
        return "<h2>Values</h2>\n<p>This dataset, of an older format, has no histograms.</p>\n"
    parts = []
    for spec in manifest.arrays:
        if spec.is_measured:
            picture = histogram_figure(manifest, spec, table)
            caption = (
                f"{spec.long_name}: shares of pixels by value, each split by itself. Lines at "
                f"p1, p50 and p99 of the {manifest.statistics_split} split; what lies far beyond "
                "is not drawn."
            )
        else:
            picture = code_figure(manifest, spec, table)
            caption = (
                f"{spec.long_name}: shares of pixels of the {manifest.statistics_split} split."
            )
        parts.append(_chart(picture, caption))
    return f"<h2>Values</h2>\n{''.join(parts)}"


def _chart(image: bytes, caption: str, percent: int = 100) -> str:
    """A chart in a frame that takes so much of the page's width."""
    text = html.escape(caption)
    return (
        f'<figure class="chart" style="flex: {percent}"><img alt="{text}" src="{_source(image)}">'
        f"<figcaption>{text}</figcaption></figure>\n"
    )
