"""Figures of the report page, each as the bytes of a PNG."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from fusmae.evaluation.reconstruction import Reconstruction
from fusmae.sensors import REFLECTANCE_SCALE, dataset_sensor

Image = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]

# Masked pixels; a colour that neither land nor a grey radar image has.
_HIDDEN = (0.80, 0.84, 0.93)
_COLUMNS = ("Input", "Masked input", "Reconstruction", "Reconstruction,\nvisible pixels pasted in")
_UNNORMALISED = (
    *_COLUMNS[:2],
    "Reconstruction, unnormalised:\neach token's true mean and\nstandard deviation given",
    "Unnormalised,\nvisible pixels pasted in",
)
_DPI = 130
# Shares of an input's pixels that may be darker or brighter than what is shown.
_STRETCH = (1, 99)
LINE_COLOURS = ("#1f5fa8", "#c2571a", "#3d8a4d", "#7a4fa3", "#a3833a", "#4a5568")


@dataclass(frozen=True)
class View:
    """Bands of one sensor as a picture: three as red, green and blue, one as grey.

    `scale` turns stored units into `unit`. With `joint` the bands share one stretch, which
    keeps natural colours; without, each has its own, since near infrared outshines the rest.
    """

    title: str
    sensor: str
    bands: tuple[str, ...]
    scale: float
    unit: str
    decimals: int
    joint: bool


VIEWS = (
    View("True colour", "s2", ("B04", "B03", "B02"), REFLECTANCE_SCALE, "reflectance", 3, True),
    View("False colour", "s2", ("B08", "B04", "B03"), REFLECTANCE_SCALE, "reflectance", 3, False),
    View("Radar backscatter", "s1", ("VV",), 1.0, "dB", 1, True),
)


def available_views(bands: dict[str, tuple[str, ...]]) -> list[View]:
    """The views whose bands (sensor -> band names) the model has, all in one sensor.

    Where that is a group of the view's sensor, such as `s2_10m`, the view is the group's.
    """
    return [
        replace(view, sensor=sensor)
        for view in VIEWS
        for sensor, names in bands.items()
        if dataset_sensor(sensor) == view.sensor and set(view.bands) <= set(names)
    ]


def sample_figure(
    reconstruction: Reconstruction,
    row: int,
    bands: dict[str, tuple[str, ...]],
    unnormalised: bool = False,
) -> bytes:
    """A sample's views, one a line: input, masked input, reconstruction, and with pixels pasted.

    The four pictures of a line share one stretch, taken from the input; it is printed beside
    the line. `unnormalised` says in the titles that each token has its true mean and deviation.
    """
    views = available_views(bands)
    layout = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    figure = Figure(figsize=(9.6, 0.5 + 1.97 * len(views)), layout=layout)
    grid = figure.subplots(len(views), len(_COLUMNS), squeeze=False)
    for line, view in zip(grid, views, strict=True):
        channels = [bands[view.sensor].index(band) for band in view.bands]
        truth = reconstruction.truth[view.sensor][row, channels].numpy() * view.scale
        predicted = reconstruction.predicted[view.sensor][row, channels].numpy() * view.scale
        hidden = reconstruction.masked[view.sensor][row].numpy()
        _draw_line(figure, line, view, truth, predicted, hidden)
    for axes, title in zip(grid[0], _UNNORMALISED if unnormalised else _COLUMNS, strict=True):
        axes.set_title(title, fontsize=10)
    return as_png(figure)


def _draw_line(
    figure: Figure,
    line: Sequence[Axes],
    view: View,
    truth: Image,
    predicted: Image,
    hidden: Mask,
) -> None:
    """One view: `truth` and `predicted` (bands, S, S) in the view's unit, `hidden` (S, S)."""
    low, high = _stretch(truth, view)
    pasted = np.where(hidden, predicted, truth)
    for axes, image, cover in zip(
        line, (truth, truth, predicted, pasted), (None, hidden, None, None), strict=True
    ):
        axes.imshow(_colours(image, low, high, cover), interpolation="nearest")
        without_frame(axes)
    names = [", ".join(view.bands)] if view.joint else view.bands
    ranges = [
        f"{name}: {lowest:.{view.decimals}f} to {highest:.{view.decimals}f}"
        for name, lowest, highest in zip(names, low.flat, high.flat, strict=True)
    ]
    text = "\n".join([view.title, *ranges, view.unit])
    line[0].set_ylabel(text, fontsize=9, rotation=0, ha="right", va="center", labelpad=8)


def view_colours(view: View, pixels: Image) -> Image:
    """A sensor's (bands of the view, S, S) in stored units as RGB (S, S, 3)."""
    image = pixels * view.scale
    return _colours(image, *_stretch(image, view), None)


def _stretch(image: Image, view: View) -> tuple[Image, Image]:
    """What is shown darkest and brightest, (bands or 1, 1, 1) each."""
    axis = (0, 1, 2) if view.joint else (1, 2)
    low, high = np.percentile(image, _STRETCH, axis=axis, keepdims=True)
    return low, high


def without_frame(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _colours(image: Image, low: Image, high: Image, cover: Mask | None) -> Image:
    """(bands, S, S) as RGB (S, S, 3), `low` at 0 and `high` at 1; covered pixels hidden."""
    shown = np.clip((image - low) / np.maximum(high - low, 1e-6), 0, 1).transpose(1, 2, 0)
    rgb = np.broadcast_to(shown, (*shown.shape[:2], 3)).copy()
    if cover is not None:
        rgb[cover] = _HIDDEN
    return rgb


Curve = tuple[Sequence[int], Sequence[float]]


def loss_figure(train: Mapping[str, Curve], val: Mapping[str, Curve]) -> bytes:
    """Losses by name over the optimiser's steps: train as lines, val dashed in the same colour."""
    figure = Figure(figsize=(9.6, 3.2), layout="constrained")
    axes = figure.subplots()
    for (name, curve), colour in zip(train.items(), LINE_COLOURS, strict=False):
        axes.plot(*curve, label=name, color=colour, linewidth=1.6)
        if name in val:
            label = f"{name}, val"
            axes.plot(*val[name], label=label, color=colour, linewidth=1.2, ls="--", marker=".")
    axes.set_xlabel("step")
    axes.set_ylabel("loss over masked tokens")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return as_png(figure)


def as_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # Without the software's version, which would change the bytes from release to release.
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()
