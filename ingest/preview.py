"""`fusmae-ingest preview`: one page of pictures and charts to look at a dataset."""

import os
from pathlib import Path

import click

from fusmae.manifest import Manifest, read_manifest

_EXAMPLES = """
\b
Examples:
  fusmae-ingest preview ben --out ben.html
  fusmae-ingest preview ben --out test.html --split test --samples 60

Needs matplotlib: pip install 'fusmae[report]'.
"""


@click.command(epilog=_EXAMPLES)
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Page to make.")
@click.option(
    "--samples", type=click.IntRange(1), default=24, show_default=True, help="How many to show."
)
@click.option(
    "--split", help="Whose samples are shown. Default: the split of the statistics, mostly train."
)
def preview(dataset: Path, out: Path, samples: int, split: str | None) -> None:
    """Make one HTML page to look at a dataset: samples, classes, places, dates and values.

    The page holds its pictures and needs no other file, no network and no script. It is the
    same to the byte for the same dataset.
    """
    manifest = read_manifest(dataset)
    shown = split or manifest.statistics_split
    _refuse_empty(manifest, shown)
    if out.resolve().is_relative_to(dataset.resolve()):
        raise ValueError(
            f"--out {out} lies in the dataset, whose manifest lists all its files: "
            "give a path elsewhere"
        )
    try:
        from .preview_page import make_page
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package not in ("matplotlib", "PIL"):
            raise
        raise ValueError(f"preview needs {package}: pip install 'fusmae[report]'") from None
    _replace(out, make_page(dataset, manifest, shown, samples).encode())
    click.echo(f"{out}: open it in a browser")


def _refuse_empty(manifest: Manifest, split: str) -> None:
    if not manifest.split(split).num_samples:
        filled = [name for name, record in manifest.splits.items() if record.num_samples]
        raise ValueError(f"the split {split!r} has no samples; {filled} have")


def _replace(path: Path, data: bytes) -> None:
    """Write the page beside its name, then rename it: a page is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
