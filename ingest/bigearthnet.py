"""`fusmae-ingest bigearthnet`: BigEarthNet-MM v1 and v2 archives to a dataset."""

import hashlib
import json
from dataclasses import fields
from pathlib import Path

import click

from fusmae.labels import LABEL_SETS
from fusmae.sensors import BIGEARTHNET_ARRAYS, CLC_MAP
from fusmae.splits import SPLITS

from . import plan
from .archives import (
    SOURCE_PATH,
    Spooling,
    delete_unpacked,
    is_unpacked,
    open_archive,
    spool_folder,
)
from .bigearthnet_archive import Pair, detect_version, scan_v1, scan_v2
from .bigearthnet_pair import read_pair
from .dataset import refuse_other_files
from .dataset_options import DatasetOptions, complete_dataset, dataset_options, make_dataset
from .facts import BIGEARTHNET_FACTS
from .origins import BIGEARTHNET_V1, BIGEARTHNET_V2, request_origin
from .progress import LongWork
from .request import Request
from .simulate import simulation_in, simulation_of
from .storage import open_store

_ARCHIVES = {"v1": BIGEARTHNET_V1, "v2": BIGEARTHNET_V2}

# v2 publishes its labels in the 19-class nomenclature only.
_STORED_LABELS = {"v1": ("bigearthnet-19", "bigearthnet-43"), "v2": ("bigearthnet-19",)}

_EXAMPLES = """
\b
Examples:
  fusmae-ingest bigearthnet --s2 BigEarthNet-v1.0 --s1 BigEarthNet-S1-v1.0 --out ben
  fusmae-ingest bigearthnet --s2 BigEarthNet-S2.tar.zst --s1 BigEarthNet-S1.tar.zst --out reben \\
      --metadata metadata.parquet --maps Reference_Maps.tar.zst --format shards --format zarr \\
      --metadata metadata_for_patches_with_snow_cloud_or_shadow.parquet
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
    help="v2: metadata.parquet; give the table of snow, cloud and shadow patches as a second.",
)
@click.option("--maps", type=SOURCE_PATH, help="v2: reference maps, likewise.")
@click.option(
    "--split",
    type=click.Choice(["google", "official", "v2"]),
    help="Split rule. Default: google (the Fus-MAE paper's) for v1, v2 for v2.",
)
@click.option(
    "--split-lists",
    type=SOURCE_PATH,
    help="Folder of the published v1 lists: official split, seasonal snow, cloud and shadow.",
)
@click.option("--exclude", default="", help="snow, cloud or snow,cloud: leave such patches out.")
@click.option(
    "--spool",
    type=SOURCE_PATH,
    help="Local folder for unpacked archives and their indexes. Default: OUT.spool.",
)
@click.option("--keep-spool", is_flag=True, help="Keep what was unpacked after success.")
@click.option("--any-archive", is_flag=True, help="Take archives that are not the published ones.")
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
) -> None:
    """Turn BigEarthNet-MM GeoTIFFs into WebDataset shards and zarr stores."""
    excluded = _excluded(exclude)
    # Before an archive of 60 GB is unpacked.
    refuse_other_files(open_store(options.out))
    spooling = Spooling(spool_folder(options.out, spool), keep_spool, not any_archive)
    given = {"--s2": s2, "--s1": s1, **({"--maps": maps} if maps else {})}
    known = {"exclude": sorted(excluded), "maps": maps is not None}
    known |= {"split": split} if split else {}
    if not all(is_unpacked(path, option, spooling) for option, path in given.items()):
        manifest = complete_dataset(options, known)
        if manifest:
            click.echo(f"{options.out}: already complete; no archive was unpacked again")
            return
    archives = {option: open_archive(path, option, spooling) for option, path in given.items()}
    optical, radar = archives["--s2"], archives["--s1"]
    version = detect_version(optical, radar)
    if version == "v1" and (metadata or maps):
        raise ValueError("--metadata and --maps belong to BigEarthNet v2; these folders are v1")
    rule = split or {"v1": "google", "v2": "v2"}[version]
    if rule == "v2" and version == "v1":
        raise ValueError("--split v2 needs BigEarthNet v2; v1 has google and official")
    if excluded and version == "v1" and split_lists is None:
        raise ValueError(
            "--exclude needs to know which patches have snow or cloud: give --split-lists"
        )
    if rule == "official" and split_lists is None:
        raise ValueError("--split official needs --split-lists, the folder of the published lists")
    simulation = simulation_of(s2.resolve().parent) or simulation_in(optical)
    with LongWork(f"Listing BigEarthNet {version}") as work:
        if version == "v1":
            pairs, absent = scan_v1(optical, radar, split_lists, work.update)
        else:
            clc = archives.get("--maps")
            pairs, absent = scan_v2(optical, radar, metadata, clc, split_lists)
    if absent:
        told = "S1 patches" if version == "v1" else "patches of the tables"
        click.echo(
            f"warning: {absent:,} {told} have no S2 patch in {s2}: is it complete?", err=True
        )
    chosen = choose(pairs, rule, excluded)
    if options.limit:
        chosen = plan.limit(chosen, options.limit, options.seed)
    if not chosen:
        raise ValueError("no pair is left after --split, --exclude and --limit")
    choices = {
        "split": rule,
        "exclude": sorted(excluded),
        "maps": maps is not None,
        "facts": facts_digest(pairs),
        "without_s2": absent,
    }
    request = Request(
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
        options=choices,
    )
    make_dataset(request, options, len(pairs) - len(chosen))
    for option, path in given.items():
        delete_unpacked(path, option, spooling)


def facts_digest(pairs: list[Pair]) -> str:
    """A sha256 of all that lists and tables say of the pairs, and of nothing about paths."""
    digest = hashlib.sha256()
    told = [field.name for field in fields(Pair) if field.name not in ("s2", "s1", "map")]
    for pair in sorted(pairs, key=lambda pair: pair.name):
        facts = [getattr(pair, name) for name in told]
        digest.update(json.dumps([*facts, pair.s1.name, pair.map is not None]).encode())
    return digest.hexdigest()


def _excluded(text: str) -> frozenset[str]:
    words = frozenset(word.strip() for word in text.split(",") if word.strip())
    unknown = words - {"snow", "cloud"}
    if unknown:
        raise click.UsageError(f"--exclude {text}: expected snow, cloud or snow,cloud")
    return words


def choose(pairs: list[Pair], rule: str, excluded: frozenset[str]) -> dict[str, str]:
    """The split of each pair that the rule covers and `excluded` does not take out."""
    split_of: dict[str, str] = {}
    for pair in pairs:
        flags = {"snow": pair.seasonal_snow, "cloud": pair.cloud_or_shadow}
        split = getattr(pair, f"split_{rule}")
        if split is not None and not any(flags[word] for word in excluded):
            split_of[pair.name] = split
    return split_of
