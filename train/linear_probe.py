"""Linear or kNN probe of a frozen encoder (Fus-MAE, IGARSS 2024, sec. 4): one run, one score."""

import sys
from pathlib import Path
from typing import get_args

import click

from fusmae.config import load_recipe
from fusmae.data import locate_dataset
from fusmae.evaluation.features import FeatureKind
from fusmae.evaluation.overlap import describe_overlap
from fusmae.evaluation.recipes import ProbeRecipe
from fusmae.evaluation.results import RESULT_NAME
from fusmae.evaluation.runs import Head, ProbeOptions, run_probe
from fusmae.evaluation.tasks import summary
from fusmae.set_option import set_option

_EXAMPLES = """
\b
Examples:
  # SAR and optics, 1 % of the labels
  python train/linear_probe.py --recipe train/recipes/probe.toml --data DATASET \\
      --pretrained RUN/encoder --sensors s1,s2 --fraction 0.01 --out OUT/both
\b
  # the same encoder, never trained: what pretraining has to beat
  python train/linear_probe.py --recipe train/recipes/probe.toml --data DATASET \\
      --pretrained RUN/encoder --features random --sensors s1,s2 --fraction 0.01 \\
      --out OUT/both-random
\b
  # SEN12MS: 10 epochs, batch 256, a cross entropy with smoothed labels
  python train/linear_probe.py --recipe train/recipes/probe_sen12ms.toml --data SEN12MS \\
      --pretrained RUN/encoder --sensors s1,s2 --out OUT/sen12ms
\b
  # a published model in its place (docs/BACKBONES.md)
  python train/linear_probe.py ... --pretrained dino-mm:B14_vits8_dinomm_ep99.pth --out OUT/dino
\b
  # all results as one table
  python -m fusmae.evaluation.tables OUT
"""


@click.command(epilog=_EXAMPLES)
@click.option("--recipe", required=True, type=click.Path(path_type=Path), help="TOML file.")
@click.option("--data", required=True, help="Dataset: a folder or a URL, such as s3://bucket/ben.")
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    default=Path.home() / ".cache" / "fusmae",
    envvar="FUSMAE_CACHE",
    help="Local folder for shards of a dataset at a URL; $FUSMAE_CACHE or ~/.cache/fusmae.",
)
@click.option(
    "--pretrained",
    required=True,
    help="Exported encoder folder; or a published model, NAME:FILE or a TOML (docs/BACKBONES.md).",
)
@click.option("--sensors", required=True, help="Which sensors to show it: s1, s2 or s1,s2.")
@click.option(
    "--fraction",
    default=1.0,
    show_default=True,
    help="Part of the train labels to use, 0.01 = 1 %.",
)
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    help="Instead of --fraction: a file of sample keys, such as another run's labels_used.txt.",
)
@click.option(
    "--head",
    type=click.Choice(get_args(Head)),
    default="linear",
    show_default=True,
    help="A linear layer, or the votes of the nearest labelled samples (k of the recipe).",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the result.")
@click.option(
    "--features",
    type=click.Choice(get_args(FeatureKind)),
    default="pretrained",
    show_default=True,
    help="The encoder's; the same architecture's with random weights; or no encoder at all.",
)
@click.option(
    "--pretraining-data",
    multiple=True,
    help="Dataset of the pretraining, to count the test samples that it holds; may be repeated.",
)
@click.option("--seed", type=int, help="Instead of the recipe's: labels drawn, batches, weights.")
@set_option
def main(
    recipe: Path,
    data: str,
    cache: Path,
    pretrained: str,
    sensors: str,
    fraction: float,
    labels: Path | None,
    head: Head,
    out: Path,
    features: FeatureKind,
    pretraining_data: tuple[str, ...],
    seed: int | None,
    overrides: tuple[str, ...],
) -> None:
    """Classify by frozen features and write the scores to OUT/metrics.json.

    The learning rate is chosen on the val split; the test split is scored once. A result of
    the same options that is already in OUT is kept.
    """
    if seed is not None:
        overrides = (*overrides, f"seed={seed}")
    try:
        loaded = load_recipe(ProbeRecipe, recipe, overrides)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    names = tuple(name.strip() for name in sensors.split(","))
    try:
        dataset = locate_dataset(data, cache)
        pretraining = tuple(locate_dataset(path, cache) for path in pretraining_data)
        options = ProbeOptions(
            dataset, pretrained, names, fraction, features, loaded, head, labels, pretraining
        )
        result, computed = run_probe(options, out)
    except (ValueError, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    score = result["results"][result["headline"]]
    simulated = ", simulated data" if result["simulated"] else ""
    chosen = f"learning rate {score['lr']:g}" if head == "linear" else f"k = {score['k']}"
    click.echo(
        f"{out / RESULT_NAME}: {'written' if computed else 'already there, kept as it is'}\n"
        f"{features} features of {'+'.join(result['options']['sensors'])}, {head} head: "
        f"{summary(score)} on {result['num_test']:,} test samples{simulated}; "
        f"{result['num_labels']:,} labelled samples, {100 * result['fraction']:.3g} % of the train "
        f"split; {chosen}\n{describe_overlap(result.get('overlap'))}"
    )


if __name__ == "__main__":
    main()
