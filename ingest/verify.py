"""`fusmae-ingest verify`: every byte and every sample of a dataset against its manifest."""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click

from fusmae.manifest import MANIFEST_NAME, FileRecord, Manifest, all_files

from .archives import Spooling, refuse_spool_place, spool_folder
from .layout import SCRATCH
from .options import SOURCE_PATH, workers_option
from .pool import run_in_order
from .progress import LongWork
from .storage import Store, manifest_of, open_store, read_json_object
from .verify_block import check_file
from .verify_samples import SourceCheck, num_blocks, sample_problems
from .verify_source import forget_sources, open_sources
from .wording import counted, say

Progress = Callable[[int, int], None]

# What the mirror of a URL has beside the dataset's files (docs/REMOTE.md): its URL, where it was
# made, and a lock; and beside shards those that are being fetched, or why they could not be.
_ORIGIN, _MADE_AT, _LOCK = "origin.json", "cached-at", "lock"
_UNFETCHED = (".part", ".bad")

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

    DATASET is a folder or a URL, but no http:// one, which does not list its files. Compared with
    its manifest: sizes and sha256 of all files; every sample's key, shapes, facts and place in the
    index; zarr pixels equal to the shards'; counts and statistics of the manifest from tables and
    pixels. Of the mirror of a URL that lacks some: sizes and sha256 of the files that are here.
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
    lacking, check = _lacking(store, manifest), None
    if lacking and sources:
        raise ValueError(
            f"{dataset} lacks {counted(len(lacking), 'file')} of {_origin(store)}, and only a "
            "whole dataset is compared with --source: give the one that this is a mirror of"
        )
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
    if lacking:
        here = counted(len(all_files(manifest)) - len(lacking), "file")
        click.echo(
            f"{dataset}: sizes and sha256 of {here} verified; {len(lacking):,} are only at "
            f"{_origin(store)}"
        )
        return
    total = manifest.num_samples
    compared = f", {len(check.places(total)):,} compared with their sources" if check else ""
    click.echo(f"{dataset}: {counted(total, 'sample')} verified{compared}")


def _advice(store: Store, manifest: Manifest, problems: Sequence[str]) -> str:
    """How to mend files, where some are damaged or missing."""
    named = {problem.partition(": ")[0] for problem in problems}
    paths = (MANIFEST_NAME, *(file.path for file in all_files(manifest)))
    if not any(f"{store}/{path}" in named for path in paths):
        return ""
    if origin := _origin(store):
        return f"; to mend it, remove the damaged files and read {origin}, or copy them from there"
    return (
        "; to mend it, remove the damaged files and give the command that made the dataset again: "
        "it makes what is missing, the same to the byte"
    )


def _origin(store: Store) -> str:
    """The URL that a mirror, or a copy of one, is of; "" for another dataset."""
    return str((read_json_object(store, _ORIGIN) or {}).get("url", ""))


def _lacking(store: Store, manifest: Manifest) -> set[str]:
    """The files that a mirror has not fetched; of a dataset, and of its copy, they are missing."""
    place = os.fsencode(Path(str(store)).resolve())
    if not (store.exists(_MADE_AT) and store.read(_MADE_AT) == place and _origin(store)):
        return set()
    return {file.path for file in all_files(manifest)} - set(store.sizes())


def find_problems(
    store: Store,
    manifest: Manifest,
    progress: Progress,
    workers: int = 1,
    sources: SourceCheck | None = None,
) -> Iterator[str]:
    """A line for everything about the dataset that is not as its manifest says.

    Of a mirror that lacks files: for those that are here, and by size and sha256 alone.

    `progress(done, total)` counts files, and blocks of samples, which are a shard each.

    Raises:
        OSError: the place cannot be listed.
    """
    shards = {shard.path for split in manifest.splits.values() for shard in split.shards}
    files: list[FileRecord] = []
    tars: list[FileRecord] = []
    lacking = _lacking(store, manifest)
    for file in all_files(manifest):
        if file.path not in lacking:
            (tars if file.path in shards else files).append(file)
    done = itertools.count(1)
    total = len(files) + (len(tars) if lacking else num_blocks(manifest))

    progress(0, total)

    def tick() -> None:
        progress(next(done), total)

    early = list(_listing_problems(store, [*files, *tars]))
    early += _hash_problems(store, files, tick, workers)
    yield from early
    if not (early or lacking):
        yield from sample_problems(store, manifest, tick, workers, sources)
        return
    # What samples are cannot be told from files that are not what was written.
    yield from _hash_problems(store, tars, tick, workers)
    if sources:
        yield f"{store}: damaged, so nothing was compared with --source: mend it first"


def _listing_problems(store: Store, files: Sequence[FileRecord]) -> Iterator[str]:
    there, known = store.sizes(), {file.path for file in files} | {MANIFEST_NAME}
    if _origin(store):
        known |= {_ORIGIN, _MADE_AT, _LOCK, *(p for p in there if p.endswith(_UNFETCHED))}
    yield from (f"{store}/{file.path}: missing" for file in files if file.path not in there)
    # What a run that mends the dataset has at hand, or left when it was refused, harms nobody.
    others = (p for p in there if p not in known and not p.startswith(f"{SCRATCH}/"))
    yield from (f"{store}/{p}: not in the manifest; remove it" for p in others)


def _hash_problems(
    store: Store, files: Sequence[FileRecord], tick: Callable[[], None], workers: int
) -> Iterator[str]:
    for problem in run_in_order(check_file, [(store, file) for file in files], workers):
        tick()
        if problem:
            yield problem
