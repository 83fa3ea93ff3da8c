"""The picture page of a run: what the model fills in, where it looks, how it sorts the samples.

python -m fusmae.evaluation.report RUN
"""

import html
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.progress import track
from torch import Tensor

from fusmae.config import ModelConfig
from fusmae.evaluation.pictures import available_views, sample_figure
from fusmae.evaluation.reconstruction import (
    BATCH,
    BandError,
    Pretrained,
    band_errors,
    dataset_of,
    load_pretrained,
    reconstruct,
    squared_errors,
)
from fusmae.evaluation.report_sections import (
    attention_section,
    embedding_section,
    figure_html,
    loss_section,
)
from fusmae.manifest import Manifest, read_manifest
from fusmae.sensors import REFLECTANCE_SCALE, dataset_sensor
from fusmae.training.durable import replace_file

PAGE_NAME = "report.html"
# Samples shown, and samples over which the errors are taken.
_NUM_SHOWN = 4
_NUM_MEASURED = 256
_MASKING = {
    "consistent": "the same squares hidden in all sensors",
    "independent": "each sensor with squares of its own hidden",
}

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2430; background: #f4f6f9; margin: 0; }
main { max-width: 1000px; margin: 0 auto; padding: 2rem 1.5rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
p { max-width: 70ch; }
.badge { background: #b4470f; color: #fff; border-radius: 4px; padding: .1rem .5rem;
  font-size: .85rem; font-weight: 600; vertical-align: middle; white-space: nowrap; }
figure { background: #fff; border: 1px solid #dde3ec; border-radius: 8px; margin: 0 0 1.2rem;
  padding: 1rem; }
figure img { width: 100%; height: auto; display: block; }
figcaption, .note { color: #55617a; font-size: .88rem; }
table { border-collapse: collapse; background: #fff; border: 1px solid #dde3ec; }
th, td { padding: .25rem .9rem; text-align: right; border-bottom: 1px solid #eef1f6;
  font-variant-numeric: tabular-nums; }
th { font-weight: 600; } th:first-child, td:first-child { text-align: left; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1.2rem; margin: 1rem 0; }
dt { color: #55617a; } dd { margin: 0; overflow-wrap: anywhere; }
"""


def make_report(run: Path, dataset: Path, split: str) -> str:
    """The page of a run as HTML, pictures included; needs no other file and no network.

    Raises:
        ValueError: `run` is no run of this dataset, has no checkpoint or shows no band that
            a picture needs, or the dataset has no such split.
    """
    manifest = read_manifest(dataset)
    pretrained = load_pretrained(run, dataset)
    bands = pretrained.recipe.data.bands
    if not available_views(bands):
        raise ValueError(f"{run} has none of the bands that a picture needs: {bands}")
    sections = [
        _header(pretrained, manifest, run),
        loss_section(run, pretrained.recipe),
        _reconstructions(pretrained, manifest, dataset, split),
        attention_section(pretrained, dataset, split),
        embedding_section(pretrained, manifest, dataset, split, _NUM_MEASURED),
    ]
    title = f"Fus-MAE: {run.name}"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><main>\n{''.join(sections)}</main></body></html>\n"
    )


def _header(pretrained: Pretrained, manifest: Manifest, run: Path) -> str:
    model = pretrained.recipe.model
    badge = ' <span class="badge">simulated data</span>' if manifest.simulated else ""
    facts = {
        "Run": f"{run}, weights after step {pretrained.step:,}",
        "Dataset": manifest.name + (", simulated: no satellite has seen it" * manifest.simulated),
        "Model": f"{model.preset}, {model.fusion}, {model.image_px} px in tokens of "
        f"{model.patch_px} px",
        "Masking": f"{100 * model.mask_ratio:g} %, {_MASKING[model.masking]}",
    }
    rows = "".join(f"<dt>{k}</dt><dd>{html.escape(v)}</dd>" for k, v in facts.items())
    return f"<h1>What Fus-MAE has learned{badge}</h1>\n<dl>{rows}</dl>\n"


def _reconstructions(pretrained: Pretrained, manifest: Manifest, dataset: Path, split: str) -> str:
    """Pictures of the first samples, and the errors over more of them."""
    model, bands = pretrained.recipe.model, pretrained.recipe.data.bands
    num_samples = min(_NUM_MEASURED, manifest.split(split).num_samples)
    batches = track(
        reconstruct(pretrained, dataset, split, num_samples),
        "Reconstructing",
        total=-(-num_samples // BATCH),
        console=Console(stderr=True),
    )
    pictures: list[str] = []
    sums: dict[str, Tensor] = {}
    for part in batches:
        for row in range(min(len(part.keys), _NUM_SHOWN - len(pictures))):
            picture = sample_figure(part, row, bands, model.normalise_target)
            pictures.append(figure_html(picture, f"Sample {part.keys[row]}"))
        for sensor, added in squared_errors(part).items():
            sums[sensor] = sums[sensor] + added if sensor in sums else added
    samples = _sample_section(model, split, pictures)
    # With normalised targets a picture's brightness and contrast are the true ones, token by
    # token: an error of it would be no prediction's.
    if model.normalise_target:
        return samples
    measured = {s: names for s, names in bands.items() if not model.num_classes_of(s)}
    return samples + _error_section(band_errors(sums, measured), split, num_samples)


def _sample_section(model: ModelConfig, split: str, pictures: list[str]) -> str:
    leak = (
        "<p class='note'>This model predicts each token up to its mean and standard deviation; "
        "the pictures take those two numbers from the true pixels, so they flatter it, and this "
        "page gives no table of errors.</p>\n"
        if model.normalise_target
        else ""
    )
    return (
        f"<h2>Samples of the {html.escape(split)} split</h2>\n"
        "<p>The model sees only the uncovered squares of the second column, in all sensors at "
        "once, and predicts every pixel (third column). Its loss counts covered squares alone, "
        "so what it draws elsewhere means nothing: the fourth column shows the true pixels "
        "there. The four pictures of a line share one stretch, taken from the input and "
        "printed at the left.</p>\n" + leak + "".join(pictures)
    )


def _error_section(errors: list[BandError], split: str, num_samples: int) -> str:
    rows = []
    for error in errors:
        optical = dataset_sensor(error.sensor) != "s1"
        scale, unit, digits = (REFLECTANCE_SCALE, "reflectance", 4) if optical else (1.0, "dB", 2)
        rows.append(
            f"<tr><td>{html.escape(error.sensor.upper())} {html.escape(error.band)}</td>"
            f"<td>{error.rmse * scale:.{digits}f}</td>"
            f"<td>{error.visible_mean * scale:.{digits}f}</td><td>{unit}</td></tr>\n"
        )
    return (
        "<h2>Error on masked pixels</h2>\n"
        f"<p>Root mean square over {num_samples:,} samples of the {html.escape(split)} split, on "
        "the model's grid. Beside the model: filling each sample with the mean of its visible "
        "pixels.</p>\n<table><tr><th>Band</th><th>Fus-MAE</th><th>Mean of visible pixels</th>"
        f"<th>Unit</th></tr>\n{''.join(rows)}</table>\n"
    )


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--data", type=click.Path(path_type=Path), help="Dataset folder; the run's own if not given."
)
@click.option(
    "--out", type=click.Path(path_type=Path), help=f"The page; RUN/{PAGE_NAME} if not given."
)
@click.option("--split", default="val", show_default=True, help="Whose samples are shown.")
def main(run: Path, data: Path | None, out: Path | None, split: str) -> None:
    """Make one HTML page of pictures from the newest checkpoint of RUN."""
    page = out or run / PAGE_NAME
    try:
        text = make_report(run, data or dataset_of(run), split)
        page.parent.mkdir(parents=True, exist_ok=True)
        replace_file(page, text.encode())
    except (ValueError, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    click.echo(str(page))


if __name__ == "__main__":
    main()
