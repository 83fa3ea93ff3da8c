"""`fusmae-ingest bigearthnet`: BigEarthNet-MM v1 and v2 archives to a dataset."""

from pathlib import Path

import click

from fusmae.labels import LABEL_SETS
from fusmae.manifest import Manifest
from fusmae.sensors import BIGEARTHNET_ARRAYS, CLC_MAP
from fusmae.splits import SPLITS

from . import plan
from .archive_note import describe, is_noted, read_note, write_note
from .archives import (
    Spooling,
    delete_unpacked,
    is_unpacked,
    open_archive,
    refuse_lack_of_room,
    refuse_out_place,
    refuse_spool_place,
    say_idle,
    spool_folder,
)
from .bigearthnet_archive import Pair, detect_version, scan_v1
from .bigearthnet_checks import Asked, check_early, recorded, split_rule
from .bigearthnet_choice import choose, facts_digest, say_unlisted
from .bigearthnet_pair import read_pair
from .bigearthnet_tables import LISTS, LISTS_URL, V2_TABLE
from .bigearthnet_v2 import scan_v2
from .dataset import refuse_other_files, refuse_other_plan, refuse_other_run
from .dataset_options import (
    DatasetOptions,
    check_scheduler,
    complete_dataset,
    contents_told,
    dataset_options,
    effective_limit,
    make_dataset,
)
from .facts import BIGEARTHNET_FACTS
from .options import SOURCE_PATH
from .origins import BIGEARTHNET_V1, BIGEARTHNET_V2, request_origin
from .patches import Archive
from .progress import LongWork
from .request import Request
from .simulate import simulation_in, simulation_of
from .spool import TAR_NAME
from .storage import open_store
from .wording import say

_ARCHIVES = {"v1": BIGEARTHNET_V1, "v2": BIGEARTHNET_V2}

# So many absent patches are named.
_NUM_NAMED = 3

# v2 publishes its labels in the 19-class nomenclature only.
_STORED_LABELS = {"v1": ("bigearthnet-19", "bigearthnet-43"), "v2": ("bigearthnet-19",)}

_EXAMPLES = """
\b
Examples:
  fusmae-ingest bigearthnet --s2 BigEarthNet-v1.0 --s1 BigEarthNet-S1-v1.0 --out ben
  fusmae-ingest bigearthnet --s2 BigEarthNet-S2.tar.zst --s1 BigEarthNet-S1.tar.zst \\
      --metadata metadata.parquet \\
      --metadata metadata_for_patches_with_snow_cloud_or_shadow.parquet \\
      --maps Reference_Maps.tar.zst --out reben --format shards --format zarr
  fusmae-ingest bigearthnet ... --split official --split-lists lists/ --exclude snow,cloud
  fusmae-ingest bigearthnet ... --out s3://bucket/ben --scheduler tcp://host:8786

A run that was stopped, even by SIGKILL, goes on where it was when started again.
"""


@click.command(epilog=_EXAMPLES)
@click.option(
    "--s2",
    type=SOURCE_PATH,
    required=True,
    help="S2 patches: the archive as published (.tar.gz, .tar.zst), a .tar, or a folder.",
)
@click.option("--s1", type=SOURCE_PATH, required=True, help="S1 patches, in the same ways.")
@click.option(
    "--metadata",
    type=SOURCE_PATH,
    multiple=True,
    help="v2: metadata.parquet; give --metadata again for the table of snow, cloud and shadow.",
)
@click.option("--maps", type=SOURCE_PATH, help="v2: reference maps, given as --s2 is.")
@click.option(
    "--split",
    type=click.Choice(["google", "official", "v2"]),
    help="Split rule. Default: google (the Fus-MAE paper's) for v1, v2 for v2.",
)
@click.option(
    "--split-lists",
    type=SOURCE_PATH,
    help=f"Folder of the published v1 lists, {', '.join(LISTS)}, each as it is, .gz or .bz2; they "
    f"lie beside the v1 archives at {LISTS_URL}. With v2's {V2_TABLE} there, too, v1 samples know "
    "their split of v2.",
)
@click.option("--exclude", default="", help="snow, cloud or snow,cloud: leave such patches out.")
@click.option(
    "--spool",
    type=SOURCE_PATH,
    help="Local folder for unpacked archives and their indexes. Default: OUT.spool.",
)
@click.option(
    "--keep-spool",
    is_flag=True,
    help="Keep what was unpacked, for the next run and for verify --source.",
)
@click.option(
    "--any-archive",
    is_flag=True,
    help="Take an archive of a published name whose md5 is another, such as one packed anew.",
)
@click.option(
    "--partial",
    is_flag=True,
    help="Leave out pairs without an S2 patch: the S2 archive is a part of the published one.",
)
@dataset_options
def bigearthnet(
    options: DatasetOptions,
    s2: Path,
    s1: Path,
    metadata: tuple[Path, ...],
    maps: Path | None,
    split: str | None,
    split_lists: Path | None,
    exclude: str,
    spool: Path | None,
    keep_spool: bool,
    any_archive: bool,
    partial: bool,
) -> None:
    """Make a dataset of BigEarthNet-MM: shards, zarr or both."""
    given = {"--s2": s2, "--s1": s1, **({"--maps": maps} if maps else {})}
    asked = Asked(given, metadata, split, split_lists, _excluded(exclude), partial)
    store = open_store(options.out)
    folder = spool_folder(options.out, spool)
    # Before an archive of 60 GB is unpacked.
    refuse_out_place(options.out, given.items())
    refuse_other_files(store)
    refuse_other_run(store)
    if spool is not None or any(path.is_file() for path in given.values()):
        refuse_spool_place(folder, [*given.items(), ("--out", options.out)])
    check_scheduler(options)
    version = check_early(asked)
    idle = {"--keep-spool": keep_spool, "--any-archive": any_archive, "--spool": spool}
    say_idle(idle, given.values())
    with Spooling(folder, keep_spool, not any_archive) as spooling:
        whole = all(is_unpacked(path, option, spooling) for option, path in given.items())
        there = None if whole else _complete(options, asked, version, spooling)
        if there is not None:
            told = f"already complete, {contents_told(there)}"
            click.echo(f"{options.out}: {told}; no archive was unpacked again")
            # What a run was killed at: the dataset was whole, and not all of these were gone.
            for option, path in given.items():
                if spooling.of(option).is_dir():
                    delete_unpacked(path, option, spooling)
            return
        all_shards = "shards" in options.formats and options.limit is None
        refuse_lack_of_room(given.items(), spooling, store if all_shards else None)
        archives = {option: open_archive(path, option, spooling) for option, path in given.items()}
        make_dataset(_request(options, asked, archives), options)
        for option, path in given.items():
            delete_unpacked(path, option, spooling)
        write_note(folder, store, given)
    if folder.is_dir():
        click.echo(f"{folder} keeps {_kept(folder)} for the next run; it may be removed")


def _kept(folder: Path) -> str:
    if any(folder.glob(f"*/{TAR_NAME}")):
        return "what was unpacked"
    return "a note on the archives" + (" and indexes" if any(folder.glob("*/")) else "")


def _complete(
    options: DatasetOptions, asked: Asked, version: str | None, spooling: Spooling
) -> Manifest | None:
    """The manifest where the dataset is whole, as far as that shows without an archive.

    Raises:
        ValueError: it was made with other options or from other archives.
    """
    known = recorded(asked)
    if version is not None:
        known |= {"split": split_rule(asked, version), "name": f"bigearthnet-{version}"}
    manifest = complete_dataset(options, known)
    if manifest is not None:
        store = open_store(options.out)
        noted, now = read_note(spooling.folder, store), describe(asked.archives)
        if noted and not is_noted(noted, now):
            refuse_other_plan(store, {k: told for k, told in noted[-1].items() if k in now}, now)
    return manifest


def _request(options: DatasetOptions, asked: Asked, archives: dict[str, Archive]) -> Request:
    """What to make of the archives."""
    optical, maps = archives["--s2"], archives.get("--maps")
    version = detect_version(optical, archives["--s1"])
    rule = split_rule(asked, version)
    pairs, num_absent = _scan(asked, archives, version, options.on_error == "quarantine")
    if asked.split_lists is not None:
        say_unlisted(pairs, asked.split_lists)
    chosen, left_out = choose(pairs, rule, asked.excluded)
    limit = effective_limit(options, len(chosen))
    if limit:
        left_out["limit"] = len(chosen) - limit
        chosen = plan.limit(chosen, limit, options.seed)
    if not chosen:
        raise ValueError("no pair is left after --split, --exclude and --limit")
    for split in SPLITS:
        if split not in chosen.values():
            say(f"note: {split} is empty by the rule {rule}")
    told = {
        "split": rule,
        "limit": limit,
        "facts": facts_digest(pairs),
        "without_s2": num_absent,
        "left_out": left_out,
    }
    s2 = asked.archives["--s2"]
    simulation = simulation_of(s2.resolve().parent) or simulation_in(optical)
    return Request(
        **request_origin(f"bigearthnet-{version}", _ARCHIVES[version], simulation),
        arrays=(*BIGEARTHNET_ARRAYS, *((CLC_MAP,) if maps else ())),
        label_sets={name: LABEL_SETS[name] for name in _STORED_LABELS[version]},
        facts=BIGEARTHNET_FACTS,
        split_of=chosen,
        splits=SPLITS,
        sources={pair.name: pair for pair in pairs if pair.name in chosen},
        places=tuple(place for archive in archives.values() for place in archive.places()),
        read=read_pair,
        formats=frozenset(options.formats),
        samples_per_shard=options.samples_per_shard,
        seed=options.seed,
        options=told | recorded(asked),
    )


def _scan(
    asked: Asked, archives: dict[str, Archive], version: str, tolerant: bool
) -> tuple[list[Pair], int]:
    """The pairs, and the number of those whose S2 patch is not there.

    Raises:
        ValueError: there are such without `--partial`; or an archive or a table is broken.
    """
    optical, radar, lists = archives["--s2"], archives["--s1"], asked.split_lists
    with LongWork(f"Listing BigEarthNet {version}") as work:
        if version == "v1":
            pairs, absent = scan_v1(optical, radar, lists, tolerant, work.update)
        else:
            maps = archives.get("--maps")
            pairs, absent = scan_v2(optical, radar, asked.metadata, maps, lists, work.update)
    if absent:
        kind = "S1 patches" if version == "v1" else "patches of the tables"
        first = ", ".join(absent[:_NUM_NAMED])
        told = f"{kind} without an S2 patch in {optical}: {len(absent):,}; the first: {first}"
        if not asked.partial:
            raise ValueError(f"{told}; complete the archive, or leave them out with --partial")
        say(f"warning: {told}")
    elif asked.partial:
        say(f"note: --partial does nothing here: no S2 patch is missing in {optical}")
    return pairs, len(absent)


def _excluded(text: str) -> frozenset[str]:
    words = frozenset(word.strip() for word in text.split(",") if word.strip())
    unknown = words - {"snow", "cloud"}
    if unknown:
        raise click.UsageError(f"--exclude {text}: expected snow, cloud or snow,cloud")
    return words
