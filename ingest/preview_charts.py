"""Charts of the preview page about its samples: classes, places, dates. Each a PNG."""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fusmae.labels import label_column
from fusmae.manifest import Manifest

# Inches; the page shows them about 1,300 px wide.
WIDTH_IN = 12.8
_DPI = 120
_SPLIT_COLOURS = ("#1f5fa8", "#c2571a", "#3d8a4d", "#7a4fa3")
_NAME_CHARACTERS = 46

Counts = npt.NDArray[np.int64]


def colour_of(manifest: Manifest, split: str) -> str:
    """The colour of a split, the same in all charts."""
    return _SPLIT_COLOURS[list(manifest.splits).index(split) % len(_SPLIT_COLOURS)]


def figure_png(figure: Figure) -> bytes:
    """The bytes of a figure, the same from release to release of matplotlib's version number."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def filled_splits(manifest: Manifest) -> list[str]:
    """The splits that have samples."""
    return [name for name, split in manifest.splits.items() if split.num_samples]


def class_counts(manifest: Manifest, table: pa.Table, label_set: str) -> dict[str, Counts]:
    """Split -> samples that bear each class of a label set, in the order of the classes."""
    counts = {}
    for split in filled_splits(manifest):
        values = table.filter(pc.equal(table["split"], split))[label_column(label_set)]
        found = pc.value_counts(pc.list_flatten(values)).to_pylist()
        number = {entry["values"]: entry["counts"] for entry in found}
        classes = manifest.label_sets[label_set]
        counts[split] = np.array([number.get(name, 0) for name in classes], np.int64)
    return counts


def class_figure(
    manifest: Manifest, names: Sequence[str], counts: Mapping[str, Counts], num_samples: int
) -> bytes:
    """A bar a class, its splits one after another; shares are of all `num_samples`."""
    figure = Figure(figsize=(WIDTH_IN, 0.8 + 0.3 * len(names)), layout="constrained")
    axes = figure.subplots()
    parts = {split: (values, colour_of(manifest, split)) for split, values in counts.items()}
    totals = sum(counts.values(), np.zeros(len(names), np.int64))
    texts = [f"{n:,} ({percent(n / num_samples)})" if n else "0" for n in totals.tolist()]
    bars(axes, names, parts, texts)
    draw_legend(figure, axes.get_legend_handles_labels()[0])
    return figure_png(figure)


def bars(
    axes: Axes,
    names: Sequence[str],
    parts: Mapping[str, tuple[Counts, str | Sequence[str]]],
    texts: Sequence[str],
) -> None:
    """Horizontal bars, the first at the top, each of its parts one after another.

    Args:
        axes: where to draw.
        names: of the bars.
        parts: name -> a length for each bar; a colour, or one for each bar.
        texts: what stands at the end of each bar.
    """
    ends = np.zeros(len(names))
    places = np.arange(len(names))
    for part, (lengths, colour) in parts.items():
        axes.barh(
            places,
            lengths,
            left=ends,
            color=colour,
            height=0.72,
            label=part,
            edgecolor="#55617a",
            linewidth=0.3,
        )
        ends += lengths
    for place, (end, text) in enumerate(zip(ends.tolist(), texts, strict=True)):
        axes.text(end, place, f" {text}", va="center", fontsize=7.5, color="#55617a")
    wrapped = [textwrap.fill(name, _NAME_CHARACTERS) for name in names]
    axes.set_yticks(places, wrapped, fontsize=8, linespacing=1.05)
    axes.set_ylim(len(names) - 0.4, -0.6)
    # Room for the longest bar's text, also in a narrow panel.
    axes.set_xlim(0, 1.25 * max(ends.max(), 1))
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def percent(share: float) -> str:
    """A share as a percentage of two digits, and something where there is something."""
    if 0 < share < 0.001:
        return "< 0.1 %"
    return f"{100 * share:.{0 if share >= 0.0995 else 1}f} %"


def map_figure(
    manifest: Manifest, splits: npt.NDArray[Any], points: npt.NDArray[np.float64]
) -> bytes:
    """The footprints' middles in longitude and latitude with a graticule, coloured by split.

    Args:
        manifest: the dataset's.
        splits: the split of each sample, shape (samples,).
        points: longitude and latitude in degrees, shape (samples, 2).
    """
    figure = Figure(figsize=(7.4, 5.4), layout="constrained")
    axes = figure.subplots()
    # In a mixed order, so that where splits lie close no split hides the others.
    order = np.random.default_rng(0).permutation(len(points))
    lon, lat = points[order].T
    colours = np.empty((len(points), 4))
    for split in filled_splits(manifest):
        colours[splits == split] = to_rgba(colour_of(manifest, split), alpha=0.7)
    # A few dots are large and have a rim, so that they are seen, also one upon the other.
    size = float(np.clip(4000 / len(points), 0.5, 110))
    rim = 0.8 if size > 20 else 0
    axes.scatter(lon, lat, s=size, c=colours[order], linewidths=rim, edgecolors="white")
    _frame(axes, points)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: _degrees(value, "E", "W"))
    axes.yaxis.set_major_formatter(lambda value, _: _degrees(value, "N", "S"))
    axes.grid(color="#cdd5e1", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_facecolor("#f8fafc")
    axes.tick_params(labelsize=8)
    dots = [
        Line2D([], [], marker="o", linestyle="", color=colour_of(manifest, split), label=split)
        for split in filled_splits(manifest)
    ]
    draw_legend(figure, dots)
    return figure_png(figure)


def _frame(axes: Axes, points: npt.NDArray[np.float64]) -> None:
    """Limits about all points: two degrees at least, and no more than twice as wide as high."""
    low, high = points.min(axis=0), points.max(axis=0)
    middle = (low + high) / 2
    # A degree of longitude is shorter than one of latitude by the cosine of the latitude.
    shrink = max(math.cos(math.radians(middle[1])), 0.1)
    half_lon, half_lat = np.maximum(0.55 * (high - low), 1.0)
    half_lon, half_lat = max(half_lon, half_lat / shrink / 2), max(half_lat, half_lon * shrink / 2)
    axes.set_xlim(max(middle[0] - half_lon, -180), min(middle[0] + half_lon, 180))
    axes.set_ylim(max(middle[1] - half_lat, -90), min(middle[1] + half_lat, 90))
    axes.set_aspect(1 / shrink)


def draw_legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """Names of the splits above a chart, where they hide nothing."""
    figure.legend(
        handles=handles, loc="outside upper right", ncols=len(handles), frameon=False, fontsize=9
    )


def _degrees(value: float, positive: str, negative: str) -> str:
    side = positive if value > 0 else negative if value < 0 else ""
    return f"{abs(value):g}°{side}"


def month_figure(
    manifest: Manifest, splits: npt.NDArray[Any], times: npt.NDArray[np.datetime64]
) -> bytes:
    """Samples by month of acquisition, every month from the first to the last."""
    months = times.astype("datetime64[M]")
    axis = np.arange(months.min(), months.max() + 1)
    rows = {
        split: np.searchsorted(axis, months[splits == split]) for split in filled_splits(manifest)
    }
    counts = {split: np.bincount(places, minlength=len(axis)) for split, places in rows.items()}
    return _columns_figure(manifest, [str(month) for month in axis], counts)


def season_figure(manifest: Manifest, splits: npt.NDArray[Any], seasons: npt.NDArray[Any]) -> bytes:
    """Samples by the season that the archive sorts them into."""
    names = sorted(set(seasons))
    counts = {
        split: np.array([np.sum(seasons[splits == split] == name) for name in names])
        for split in filled_splits(manifest)
    }
    return _columns_figure(manifest, [name.replace("_", "\n") for name in names], counts)


def _columns_figure(
    manifest: Manifest, names: Sequence[str], counts: Mapping[str, Counts]
) -> bytes:
    figure = Figure(figsize=(5.4, 5.4), layout="constrained")
    axes = figure.subplots()
    places, start = np.arange(len(names)), np.zeros(len(names))
    for split, values in counts.items():
        axes.bar(
            places, values, bottom=start, color=colour_of(manifest, split), label=split, width=0.8
        )
        start += values
    # At most a dozen names, evenly.
    step = -(-len(names) // 12)
    axes.set_xticks(places[::step], names[::step], fontsize=8)
    if len(names) > 5:
        axes.tick_params(axis="x", rotation=60)
    # Bars of few names are no wider than those of four.
    margin = max(0.7, (4.4 - len(names)) / 2 + 0.5)
    axes.set_xlim(-margin, len(names) - 1 + margin)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.tick_params(labelsize=8)
    axes.set_ylabel("samples", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    draw_legend(figure, axes.get_legend_handles_labels()[0])
    return figure_png(figure)
