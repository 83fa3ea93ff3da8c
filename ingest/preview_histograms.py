"""Charts of the preview page that show the values of each band, one figure an array."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fusmae.manifest import Manifest
from fusmae.sensors import ArraySpec

from .landcover_colours import land_cover_class
from .preview_charts import WIDTH_IN, bars, colour_of, draw_legend, figure_png, percent
from .preview_pictures import Unit, unit_of

# Bars over the range that a panel shows.
_BARS = 120
# A panel shows p1 to p99 and this share of that width on the left and on the right.
_MARGINS = (0.15, 0.45)
_MARKS = (("p1", "--"), ("p50", "-"), ("p99", "--"))

# Left edge, width and count of a band's bins, in stored units.
Bins = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.int64]]


def read_histograms(root: Path, manifest: Manifest) -> pa.Table | None:
    """histograms.parquet of a dataset; None where it, of format 1.0, has none.

    Raises:
        ValueError: the file is missing or not readable.
    """
    path = root / "histograms.parquet"
    if path.name not in {file.path for file in manifest.files}:
        return None
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"cannot read {path}: {error}; see fusmae-ingest verify {root}") from None


def histogram_figure(manifest: Manifest, spec: ArraySpec, table: pa.Table) -> bytes:
    """A PNG with a panel a band: shares of pixels by value, and three percentiles.

    Of measured arrays only. The split of the manifest's statistics is filled, others are lines.
    """
    columns = _columns(len(spec.bands))
    lines = -(-len(spec.bands) // columns)
    figure = Figure(figsize=(WIDTH_IN, 0.3 + 2.35 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat[len(spec.bands) :]:
        axes.set_visible(False)
    for band, axes in enumerate(grid.flat[: len(spec.bands)]):
        _panel(axes, manifest, spec, band, table)
    draw_legend(figure, grid.flat[0].get_legend_handles_labels()[0])
    return figure_png(figure)


def _columns(num_bands: int) -> int:
    """Panels in a line: one line up to four bands, else as many as leave the fewest gaps."""
    return num_bands if num_bands <= 4 else 3 if num_bands <= 6 else 5


def _panel(axes: Axes, manifest: Manifest, spec: ArraySpec, band: int, table: pa.Table) -> None:
    unit, name = unit_of(spec), spec.band_names[band]
    bins = {split: _bins(table, split, spec.name, name) for split in manifest.splits}
    bins = {split: found for split, found in bins.items() if len(found[0])}
    basis = manifest.statistics_split
    edges = _edges(bins[basis])
    for split, (left, width, count) in bins.items():
        bars, _ = np.histogram(left + width / 2, bins=edges, weights=count / count.sum())
        colour, shown = colour_of(manifest, split), edges * unit.scale
        axes.stairs(
            100 * bars,
            shown,
            fill=split == basis,
            color=colour,
            alpha=0.45 if split == basis else 0.9,
            linewidth=1.2,
            label=split,
            zorder=1 if split == basis else 2,
        )
    _mark(axes, manifest, spec, band, unit)
    axes.set_xlim(edges[0] * unit.scale, edges[-1] * unit.scale)
    axes.set_ylim(bottom=0)
    # More numbers, as long as those of a narrow range are, would run into each other.
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.set_xlabel(unit.name, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.yaxis.set_major_formatter("{x:g} %")
    axes.spines[["top", "right"]].set_visible(False)


def _mark(axes: Axes, manifest: Manifest, spec: ArraySpec, band: int, unit: Unit) -> None:
    """The panel's title, and lines at the percentiles with their values in the title."""
    entry = spec.bands[band]
    wavelength = f", {entry.wavelength_nm:.0f} nm" if entry.wavelength_nm else ""
    title = f"{entry.name}{wavelength}, {entry.gsd_m} m"
    stats = manifest.statistics[spec.name]
    told = []
    for name, style in _MARKS if stats.percentiles else ():
        value = stats.percentiles[name][band]
        axes.axvline(value * unit.scale, color="#1c2430", linewidth=1, linestyle=style, zorder=3)
        told.append(f"{name} {unit.text(value)}")
    axes.set_title(title, fontsize=9.5, fontweight="bold", loc="left", pad=16)
    axes.annotate(
        "   ".join(told),
        (0, 1),
        xytext=(0, 4),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=8,
        color="#55617a",
    )


def _bins(table: pa.Table, split: str, array: str, band: str) -> Bins:
    chosen = (("split", split), ("array", array), ("band", band))
    for column, value in chosen:
        table = table.filter(pc.equal(table[column], value))
    left, width, count = (table[name].to_numpy() for name in ("left", "width", "count"))
    return left, width, count


def _edges(bins: Bins) -> npt.NDArray[np.float64]:
    """Edges of a panel's bars, in stored units: each bar holds the same number of bins.

    Other widths would draw a comb: some bars would hold one integer more than their neighbours.
    """
    left, width, count = bins
    share = np.cumsum(count) / count.sum()
    low, high = (left[np.searchsorted(share, at)] for at in (0.01, 0.99))
    step = float(width[0])
    spread = max(high - low, step)
    low = max(low - _MARGINS[0] * spread, left[0])
    high = min(high + _MARGINS[1] * spread, left[-1] + step)
    bar = step * max(1, round((high - low) / step / _BARS))
    # From a bin's edge: the bins' middles then lie well inside of the bars.
    first = left[np.searchsorted(left, low)]
    edges: npt.NDArray[np.float64] = first + bar * np.arange(
        max(1, np.ceil((high - first) / bar)) + 1
    )
    return edges


def code_figure(manifest: Manifest, spec: ArraySpec, table: pa.Table) -> bytes:
    """A PNG with a panel a band of class codes: the share of pixels of each code."""
    basis = manifest.statistics_split
    found = [_bins(table, basis, spec.name, name) for name in spec.band_names]
    lines = max(len(left) for left, _, _ in found)
    figure = Figure(figsize=(WIDTH_IN, 0.7 + 0.28 * lines), layout="constrained")
    grid = figure.subplots(1, len(found), squeeze=False)
    for axes, name, (left, _, count) in zip(grid.flat, spec.band_names, found, strict=True):
        classes = [land_cover_class(name, int(code)) for code in left]
        colours = [entry.colour for entry in classes]
        texts = [percent(share) for share in (count / count.sum()).tolist()]
        bars(axes, [entry.name for entry in classes], {"share": (count, colours)}, texts)
        # Panels side by side have bars alike.
        axes.set_ylim(lines - 0.4, -0.6)
        axes.set_title(f"{name}, {spec.gsd_m} m", fontsize=9.5, fontweight="bold", loc="left")
    return figure_png(figure)
