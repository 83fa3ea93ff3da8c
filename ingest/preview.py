"""`fusmae-ingest preview`: one page of pictures and charts to look at a dataset."""

import os
from pathlib import Path

import click
from click.core import ParameterSource

from fusmae.manifest import Manifest

from .options import NamedPath
from .preview_style import GENERATOR
from .storage import LocalStore, manifest_of, naming, refuse_inside_dataset
from .wording import say

_HEAD_BYTES = 1024

_EXAMPLES = """
\b
Examples:
  fusmae-ingest preview ben                  # makes ben.html
  fusmae-ingest preview ben --out test.html --split test --samples 60

\b
Needs matplotlib: pip install 'fusmae[report]'.
"""


@click.command(epilog=_EXAMPLES)
@click.argument("dataset", type=NamedPath())
@click.option(
    "--out",
    type=NamedPath(),
    help="HTML file to make; an older preview is replaced. In a folder, which is there or is given "
    "with / at its end, DATASET.html. Default: DATASET.html beside DATASET.",
)
@click.option(
    "--samples", type=click.IntRange(1), default=24, show_default=True, help="How many to show."
)
@click.option(
    "--split",
    help="Split to show samples of. Default: the one that statistics are of, mostly train.",
)
def preview(dataset: str, out: str | None, samples: int, split: str | None) -> None:
    """Make one HTML page to look at a dataset in a browser.

    DATASET is a folder. Pictures of samples with their labels, places and dates; charts of
    classes, places, months and band values. The page holds its pictures and needs no other file,
    no network and no script. It is the same to the byte for the same dataset.
    """
    if "://" in dataset:
        raise ValueError(
            f"{dataset} is a URL, and preview reads a folder: copy the dataset here, or mount it"
        )
    if out is not None and "://" in out:
        raise ValueError(f"--out {out} is a URL, and preview writes a file here: give a path")
    root = Path(dataset)
    # `.` and `..` are no names to put an ending to.
    default = Path(f"{root.resolve() if root.name in ('', '..') else root}.html")
    page = _page(out, default)
    manifest = manifest_of(LocalStore(dataset))
    shown = split or manifest.statistics_split
    _refuse_empty(manifest, shown)
    if page.resolve() != default.resolve():
        refuse_inside_dataset(page)
    _refuse_other_files(page)
    try:
        from .preview_page import make_page
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package not in ("matplotlib", "PIL"):
            raise
        raise ValueError(f"preview needs {package}: pip install 'fusmae[report]'") from None
    there = manifest.splits[shown].num_samples
    asked = click.get_current_context().get_parameter_source("samples")
    if samples > there and asked is ParameterSource.COMMANDLINE:
        say(f"note: --samples {samples:,}: {shown} has {there:,}; all are shown")
    _replace(page, make_page(root, manifest, shown, samples).encode())
    click.echo(f"{page}: open it in a browser")


def _page(out: str | None, default: Path) -> Path:
    if out is None:
        return default
    in_folder = out.endswith("/") or Path(out).is_dir()
    return Path(out, default.name) if in_folder else Path(out)


def _refuse_empty(manifest: Manifest, split: str) -> None:
    if not manifest.split(split).num_samples:
        filled = [name for name, record in manifest.splits.items() if record.num_samples]
        raise ValueError(f"the split {split!r} has no samples; {filled} have")


def _refuse_other_files(out: Path) -> None:
    """Raises ValueError where `out` is there and no page of this verb."""
    if not out.exists():
        return
    if not out.is_file():
        what = "a folder" if out.is_dir() else "no file that can be replaced"
        raise ValueError(f"--out {out} is {what}: give the name of an HTML file")
    with out.open("rb") as file:
        if GENERATOR.encode() not in file.read(_HEAD_BYTES):
            raise ValueError(
                f"--out {out} is there and is no page of preview: give another name, or remove it"
            )


def _replace(path: Path, data: bytes) -> None:
    """Write the page beside its name, then rename it: a page is whole or not there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
