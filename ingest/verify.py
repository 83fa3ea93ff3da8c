"""`fusmae-ingest verify`: every byte and every sample of a dataset against its manifest."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click

from fusmae.manifest import MANIFEST_NAME, FileRecord, Manifest, all_files

from .archives import Spooling, refuse_spool_place, spool_folder
from .options import SOURCE_PATH, workers_option
from .pool import run_in_order
from .progress import LongWork
from .storage import Store, manifest_of, open_store
from .verify_block import check_file
from .verify_samples import SourceCheck, num_blocks, sample_problems
from .verify_source import forget_sources, open_sources
from .wording import counted, say

Progress = Callable[[int, int], None]

_EXAMPLES = """
\b
Examples:
  fusmae-ingest verify ben --workers 8
  fusmae-ingest verify ben --source BigEarthNet-S2-v1.0.tar --source BigEarthNet-S1-v1.0.tar
  fusmae-ingest verify reben --source BigEarthNet-S2.tar.zst --source BigEarthNet-S1.tar.zst \\
      --source Reference_Maps.tar.zst
  fusmae-ingest verify sen12ms --source SEN12MS --samples 1000
"""


@click.command(epilog=_EXAMPLES)
@click.argument("dataset")
@workers_option
@click.option(
    "--source",
    "sources",
    type=SOURCE_PATH,
    multiple=True,
    help="Archive that the dataset was made from, as given to --s2, --s1, --maps or --root; give "
    "--source for each. Its GeoTIFFs are read again, by rasterio, and compared.",
)
@click.option(
    "--samples",
    type=click.IntRange(1),
    help="Compare so many samples with --source, evenly spaced. Default: all.",
)
@click.option(
    "--spool",
    type=SOURCE_PATH,
    help="Local folder to unpack compressed sources in; what ingest has kept there is used. "
    "Default: DATASET.spool.",
)
def verify(
    dataset: str,
    workers: int,
    sources: tuple[Path, ...],
    samples: int | None,
    spool: Path | None,
) -> None:
    """Re-read a whole dataset; exit code 1 if anything differs.

    DATASET is a folder or a URL. Compared with its manifest: sizes and sha256 of all files;
    every sample's key, shapes, facts and place in the index; zarr pixels equal to the shards';
    counts and statistics of the manifest from tables and pixels.
    """
    for option, value in (("--samples", samples), ("--spool", spool)):
        if value is not None and not sources:
            raise click.UsageError(f"{option} belongs to --source, which is not given")
    store = open_store(dataset)
    manifest = manifest_of(store)
    folder = spool_folder(dataset, spool)
    if any(path.is_file() for path in sources):
        given = [("--source", path) for path in sources]
        refuse_spool_place(folder, [*given, ("the dataset", dataset)])
    spooling = Spooling(folder, keep=False, check_md5=False)
    check = None
    with spooling:
        if sources:
            check = SourceCheck(open_sources(sources, spooling, manifest), samples)
        with LongWork("Verifying") as progress:
            problems = list(find_problems(store, manifest, progress.update, workers, check))
        forget_sources(spooling)
    for problem in problems:
        say(problem)
    if problems:
        num = counted(len(problems), "problem")
        raise ValueError(f"{dataset} has {num}, listed above{_advice(store, manifest, problems)}")
    total = manifest.num_samples
    compared = f", {len(check.places(total)):,} compared with their sources" if check else ""
    click.echo(f"{dataset}: {counted(total, 'sample')} verified{compared}")


def _advice(store: Store, manifest: Manifest, problems: Sequence[str]) -> str:
    """How to mend files, where some are damaged or missing."""
    named = {problem.partition(": ")[0] for problem in problems}
    paths = (MANIFEST_NAME, *(file.path for file in all_files(manifest)))
    if not any(f"{store}/{path}" in named for path in paths):
        return ""
    return (
        "; to mend it, remove the damaged files and give the command that made the dataset again: "
        "it makes what is missing, the same to the byte"
    )


def find_problems(
    store: Store,
    manifest: Manifest,
    progress: Progress,
    workers: int = 1,
    sources: SourceCheck | None = None,
) -> Iterator[str]:
    """A line for everything about the dataset that is not as its manifest says.

    `progress(done, total)` counts files, and blocks of samples, which are a shard each.

    Raises:
        OSError: the place cannot be listed.
    """
    shards = {shard.path for split in manifest.splits.values() for shard in split.shards}
    files: list[FileRecord] = []
    tars: list[FileRecord] = []
    for file in all_files(manifest):
        (tars if file.path in shards else files).append(file)
    done, total = itertools.count(1), len(files) + num_blocks(manifest)

    progress(0, total)

    def tick() -> None:
        progress(next(done), total)

    early = list(_listing_problems(store, [*files, *tars]))
    early += _hash_problems(store, files, tick, workers)
    yield from early
    if not early:
        yield from sample_problems(store, manifest, tick, workers, sources)
        return
    # What samples are cannot be told from files that are not what was written.
    yield from _hash_problems(store, tars, tick, workers)
    if sources:
        yield f"{store}: damaged, so nothing was compared with --source: mend it first"


def _listing_problems(store: Store, files: Sequence[FileRecord]) -> Iterator[str]:
    there, known = store.sizes(), {file.path for file in files} | {MANIFEST_NAME}
    yield from (f"{store}/{file.path}: missing" for file in files if file.path not in there)
    yield from (f"{store}/{p}: not in the manifest; remove it" for p in there if p not in known)


def _hash_problems(
    store: Store, files: Sequence[FileRecord], tick: Callable[[], None], workers: int
) -> Iterator[str]:
    for problem in run_in_order(check_file, [(store, file) for file in files], workers):
        tick()
        if problem:
            yield problem
