"""What the archive verbs have in common: the options of the dataset to make, and making it."""

import functools
import shlex
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import click
from click.core import ParameterSource

from fusmae.manifest import MANIFEST_NAME, Manifest

from .dataset import build, plan_of, refuse_other_plan, refuse_quarantine
from .engine import executor
from .left_out import left_out_counts, left_out_told
from .mend import lost_files, lost_its_manifest
from .options import workers_option
from .progress import LongWork
from .request import Request
from .rounds import Tolerance
from .storage import Store, manifest_of, open_store
from .wording import counted, say


@dataclass(frozen=True)
class DatasetOptions:
    """The shared options as given; `quarantine` and `max_bad` as in `rounds.Tolerance`."""

    out: str
    formats: tuple[str, ...]
    samples_per_shard: int
    workers: int
    scheduler: str | None
    seed: int
    limit: int | None
    on_error: str
    max_bad: float


_OPTIONS = (
    click.option(
        "--out", required=True, help="Dataset to make: a folder, or a URL such as s3://bucket/ben."
    ),
    click.option(
        "--format",
        "formats",
        type=click.Choice(["shards", "zarr"]),
        multiple=True,
        default=("shards",),
        show_default=True,
        help="What to write; may be given twice.",
    ),
    click.option(
        "--samples-per-shard",
        type=click.IntRange(1),
        default=1024,
        show_default=True,
        help="Samples of a tar, and of a shard of the zarr arrays.",
    ),
    workers_option,
    click.option(
        "--scheduler",
        help="A Dask scheduler, tcp://host:8786: its workers convert instead of processes here.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Of the samples' order, and of the draw of --limit.",
    ),
    click.option("--limit", type=click.IntRange(1), help="A uniform draw of so many samples only."),
    click.option(
        "--on-error",
        type=click.Choice(["fail", "quarantine"]),
        default="fail",
        show_default=True,
        help="A bad sample ends the run, or is left out and named in quarantine.jsonl.",
    ),
    click.option(
        "--max-bad",
        type=click.FloatRange(0, 1),
        default=0.001,
        show_default=True,
        help="The largest share of samples that quarantine may leave out: 0.001 is one in 1,000.",
    ),
)


def dataset_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the shared options to a verb, which gets them as one argument `options`."""

    @functools.wraps(function)
    def gathered(**given: Any) -> None:
        shared = {field.name: given.pop(field.name) for field in fields(DatasetOptions)}
        _refuse_idle(click.get_current_context(), shared)
        function(options=DatasetOptions(**shared), **given)

    for option in reversed(_OPTIONS):
        gathered = option(gathered)
    return gathered


def _refuse_idle(context: click.Context, shared: dict[str, Any]) -> None:
    """Raises click.UsageError: an option is given that another one leaves without effect."""

    def given(name: str) -> bool:
        return context.get_parameter_source(name) is ParameterSource.COMMANDLINE

    if given("max_bad") and shared["on_error"] != "quarantine":
        raise click.UsageError("--max-bad belongs to --on-error quarantine, which is not given")
    if given("workers") and shared["scheduler"] is not None:
        raise click.UsageError(
            "--workers are processes here, and --scheduler converts on its own workers: give one"
        )


def check_scheduler(options: DatasetOptions) -> None:
    """Look for the scheduler before long work, if one is asked for.

    Raises:
        ValueError: none answers at its address.
    """
    if options.scheduler is not None:
        # Imports distributed, which only this needs.
        from .cluster import check_scheduler as check

        check(options.scheduler)


def effective_limit(options: DatasetOptions, count: int) -> int | None:
    """`--limit`, or None where it takes all `count` samples; says so where it is above that."""
    if options.limit is None or options.limit < count:
        return options.limit
    if options.limit > count:
        click.echo(f"note: --limit {options.limit:,}: there are {count:,} samples; all are taken")
    return None


def complete_dataset(options: DatasetOptions, known: dict[str, Any]) -> Manifest | None:
    """The manifest where `--out` is complete, with all files that the manifest lists.

    `known` are options of the archive's verb.

    What the dataset has no record of, since it was made before there was one, is not compared.

    Raises:
        ValueError: it was made with other options.
    """
    store = open_store(options.out)
    if not store.exists(MANIFEST_NAME):
        return None
    manifest = manifest_of(store)
    plan = plan_of(store, manifest)
    limit = options.limit
    if plan.get("limit") is None and limit is not None and limit >= plan["num_samples"]:
        limit = None
    mine = known | {
        "formats": sorted(set(options.formats)),
        "samples_per_shard": options.samples_per_shard,
        "seed": options.seed,
        "limit": limit,
    }
    # Whether an archive is a simulated one shows only when it is unpacked.
    if mine.get("name") == plan["name"].removeprefix("simulated-"):
        del mine["name"]
    if "limit" not in plan and limit is not None:
        mine["num_samples"] = limit
    refuse_other_plan(store, {key: plan[key] for key in mine if key in plan}, mine)
    if lost_files(store, manifest):
        return None
    refuse_quarantine(store, manifest, tolerance_of(options))
    return manifest


def tolerance_of(options: DatasetOptions) -> Tolerance:
    """What the options say of bad samples."""
    return Tolerance(options.on_error == "quarantine", options.max_bad)


def make_dataset(request: Request, options: DatasetOptions) -> None:
    """Build with a progress bar and say what was made and what was left out.

    Raises:
        ValueError, OSError: as `dataset.build`.
    """
    tolerance = tolerance_of(options)
    store = open_store(options.out)
    state = _state_told(store)
    run = executor(options.workers, options.scheduler)
    with LongWork("Converting") as progress:
        manifest = build(store, request, run, progress.update, tolerance)
    click.echo(f"{options.out}: {state}, {contents_told(manifest)}")
    first, basis = next(iter(manifest.splits)), manifest.statistics_split
    if basis != first:
        say(f"warning: {first} is empty, so statistics, thus normalisation, are those of {basis}")
    if "bad" in left_out_counts(manifest):
        click.echo(
            f"What is bad: {options.out}/quarantine.jsonl; to take mended samples in, ingest to a "
            "new --out"
        )
    click.echo(f"Check it with: fusmae-ingest verify {shlex.quote(options.out)}")


def _state_told(store: Store) -> str:
    """What the end of the run will call the dataset; says at once what it has lost."""
    if not store.exists(MANIFEST_NAME):
        if lost_its_manifest(store):
            say(f"{store} has lost its {MANIFEST_NAME}: it is made again")
        return "written"
    lost = lost_files(store, manifest_of(store))
    if not lost:
        return "already complete"
    say(
        f"{store}: missing or of a wrong size, so made again: {lost[0]}"
        + (f" and {len(lost) - 1:,} more" if lost[1:] else "")
    )
    return "mended"


def contents_told(manifest: Manifest) -> str:
    """Such as `24 samples in 3 shards; left out: 70 by --limit 24`."""
    samples = counted(manifest.num_samples, "sample")
    num_shards = sum(len(split.shards) for split in manifest.splits.values())
    held = f"{samples} in {counted(num_shards, 'shard')}" if num_shards else samples
    left_out = left_out_told(manifest)
    return f"{held}; left out: {', '.join(left_out)}" if left_out else f"{held}; nothing left out"
