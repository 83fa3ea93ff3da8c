"""Fine-tune a pretrained encoder on labels (Fus-MAE, IGARSS 2024, sec. 4): one run, one score."""

import sys
from pathlib import Path
from typing import get_args

import click

from fusmae.config import load_recipe
from fusmae.data import locate_dataset
from fusmae.evaluation.finetune_runs import FinetuneOptions, Init, run_finetune
from fusmae.evaluation.overlap import describe_overlap
from fusmae.evaluation.recipes import FinetuneRecipe
from fusmae.evaluation.results import RESULT_NAME
from fusmae.evaluation.tasks import summary
from fusmae.set_option import set_option

_EXAMPLES = """
\b
Examples:
  # SAR and optics, all labels
  python train/finetune.py --recipe train/recipes/finetune.toml --data DATASET \\
      --pretrained RUN/encoder --sensors s1,s2 --out OUT/both
\b
  # SAR alone, 1 % of the labels, rates that fall towards the pixels, one rate of the grid
  python train/finetune.py --recipe train/recipes/finetune.toml --data DATASET \\
      --pretrained RUN/encoder --sensors s1 --fraction 0.01 --out OUT/s1 \\
      --set layer_decay=0.65 --set "lrs=[3e-4]"
\b
  # the row of the global token
  python train/finetune.py ... --out OUT/global --set pooling=global_token
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
    "--init",
    type=click.Choice(get_args(Init)),
    default="pretrained",
    show_default=True,
    help="Start from the encoder's weights, or from random ones: what pretraining has to beat.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the result.")
@click.option(
    "--pretraining-data",
    multiple=True,
    help="Dataset of the pretraining, to count the test samples that it holds; may be repeated.",
)
@click.option("--seed", type=int, help="Instead of the recipe's: labels drawn, batches, head.")
@set_option
def main(
    recipe: Path,
    data: str,
    cache: Path,
    pretrained: str,
    sensors: str,
    fraction: float,
    labels: Path | None,
    init: Init,
    out: Path,
    pretraining_data: tuple[str, ...],
    seed: int | None,
    overrides: tuple[str, ...],
) -> None:
    """Train the whole network on labels; scores go to OUT/metrics.json, weights beside it.

    Every rate of the recipe is tried, the val split chooses one, and the test split is scored
    once. A result of the same options that is already in OUT is kept.
    """
    if seed is not None:
        overrides = (*overrides, f"seed={seed}")
    try:
        loaded = load_recipe(FinetuneRecipe, recipe, overrides)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    names = tuple(name.strip() for name in sensors.split(","))
    try:
        dataset = locate_dataset(data, cache)
        pretraining = tuple(locate_dataset(path, cache) for path in pretraining_data)
        options = FinetuneOptions(
            dataset, pretrained, names, fraction, init, loaded, labels, pretraining
        )
        result, computed = run_finetune(options, out)
    except (ValueError, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    score = result["results"][result["headline"]]
    simulated = ", simulated data" if result["simulated"] else ""
    click.echo(
        f"{out / RESULT_NAME}: {'written' if computed else 'already there, kept as it is'}\n"
        f"fine-tuned on {'+'.join(result['options']['sensors'])} from {init} weights: "
        f"{summary(score)} on {result['num_test']:,} test samples{simulated}; "
        f"{result['num_labels']:,} labelled samples, {100 * result['fraction']:.3g} % of the train "
        f"split; learning rate {score['lr']:g}\n{describe_overlap(result['overlap'])}"
    )


if __name__ == "__main__":
    main()
