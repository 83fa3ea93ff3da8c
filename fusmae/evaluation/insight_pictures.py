"""Figures of the report page on what an encoder has inside: attention and embeddings."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from fusmae.evaluation.attention import BlockAttention
from fusmae.evaluation.embedding import Embedding
from fusmae.evaluation.pictures import LINE_COLOURS, View, as_png, view_colours, without_frame
from fusmae.evaluation.token_maps import TokenMap

_MARK = "#ff2d95"
_GREY = "#c9cfda"
_NUM_CLASSES = 12
_COLUMNS = 4


def share_figure(blocks: Sequence[BlockAttention], depth: int) -> bytes:
    """Attention to other sensors by block, a line for each sensor's queries; uniform dashed."""
    figure = Figure(figsize=(9.6, 3.2), layout="constrained")
    axes = figure.subplots()
    numbers = [block.block for block in blocks]
    for sensor, colour in zip(blocks[0].others, LINE_COLOURS, strict=False):
        shares = [100 * block.others[sensor] for block in blocks]
        label = f"tokens of {sensor.upper()}"
        axes.plot(numbers, shares, label=label, color=colour, linewidth=1.6, marker="o")
        uniform = [100 * block.uniform[sensor] for block in blocks]
        axes.plot(numbers, uniform, color=colour, linewidth=1.2, ls="--")
    axes.plot([], [], color="#55617a", linewidth=1.2, ls="--", label="if uniform")
    axes.set_xlabel("block")
    axes.set_xlim(0.5, depth + 0.5)
    axes.set_ylabel("attention to other sensors, %")
    axes.set_ylim(0, 100)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return as_png(figure)


def map_figure(
    maps: Sequence[TokenMap], row: int, pixels: dict[str, Tensor], views: dict[str, View]
) -> bytes:
    """One sample's token maps, a line for each pair of sensors.

    The query's image with its token marked, the other sensor's image with the same place marked,
    and what the token attends to there, where sensors meet (`token_maps`). `pixels` are
    (B, bands of the view, S, S) in stored units, by sensor like `views`.
    """
    pairs = list(dict.fromkeys((one.query, one.key) for one in maps))
    layers = list(dict.fromkeys(one.layer for one in maps))
    layout = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.12)
    figure = Figure(figsize=(9.6, 0.4 + 2.6 * len(pairs)), layout=layout)
    grid = figure.subplots(len(pairs), 2 + len(layers), squeeze=False)
    for line, (query, key) in zip(grid, pairs, strict=True):
        mine = [one for one in maps if (one.query, one.key) == (query, key)]
        shape = mine[0].times_uniform.shape[1:]
        for axes, sensor, title in ((line[0], query, "token of"), (line[1], key, "looks at")):
            image = view_colours(views[sensor], pixels[sensor][row].numpy())
            axes.imshow(image, extent=(0, shape[1], shape[0], 0), interpolation="nearest")
            axes.set_title(f"{title} {sensor.upper()}", fontsize=10)
            _mark(axes, mine[0].token, solid=sensor == query)
        for axes, one in zip(line[2:], mine, strict=True):
            values = one.times_uniform[row].numpy()
            extent = (0, shape[1], shape[0], 0)
            axes.imshow(values, extent=extent, cmap="viridis", vmin=0, interpolation="nearest")
            axes.set_title(one.layer, fontsize=10)
            axes.set_xlabel(
                f"0 to {values.max():.1f} × uniform, mean {values.mean():.2f}", fontsize=8
            )
            _mark(axes, one.token, solid=False)
    return as_png(figure)


def _mark(axes: Axes, token: tuple[int, int], solid: bool) -> None:
    """A frame around the token in row and column `token`; axes count tokens."""
    style = "-" if solid else ":"
    place = (token[1], token[0])
    axes.add_patch(Rectangle(place, 1, 1, fill=False, edgecolor=_MARK, linewidth=1.8, ls=style))
    without_frame(axes)


def embedding_figure(embedding: Embedding) -> bytes:
    """The plane once for each of the commonest classes: its samples in colour over all others.

    A sample may have several classes, which one picture with a colour a class would hide.
    """
    counts = embedding.has.sum(0)
    shown = [c for c in np.argsort(-counts, kind="stable") if 0 < counts[c] < len(embedding.has)]
    shown = shown[:_NUM_CLASSES]
    lines = max(1, -(-len(shown) // _COLUMNS))
    figure = Figure(figsize=(9.6, 2.4 * lines), layout="constrained")
    grid = figure.subplots(lines, _COLUMNS, squeeze=False)
    for axes in grid.flat[len(shown) :]:
        axes.set_axis_off()
    for axes, number in zip(grid.flat, shown, strict=False):
        has = embedding.has[:, number]
        axes.scatter(*embedding.points[~has].T, s=12, color=_GREY, linewidths=0)
        axes.scatter(*embedding.points[has].T, s=16, color=LINE_COLOURS[0], linewidths=0)
        name = textwrap.shorten(embedding.classes[number], 52, placeholder="…")
        axes.set_title(f"{textwrap.fill(name, 27)}\n{counts[number]} samples", fontsize=8.5)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color(_GREY)
    return as_png(figure)
