"""`fusmae-ingest sen12ms`: a SEN12MS archive to a dataset."""

from pathlib import Path
from typing import Any

import click

from fusmae.labels import LABEL_SETS
from fusmae.sensors import SEN12MS_LC, SEN12MS_S1, SEN12MS_S2
from fusmae.splits import SPLITS

from . import plan
from .archives import refuse_out_place
from .dataset import refuse_other_files, refuse_other_run
from .dataset_options import (
    DatasetOptions,
    check_scheduler,
    dataset_options,
    effective_limit,
    make_dataset,
)
from .facts import SEN12MS_FACTS, SEN12MS_LC_FACTS
from .options import SOURCE_PATH
from .origins import SEN12MS, request_origin
from .progress import LongWork
from .request import Request
from .sen12ms_archive import KNOWN_BAD, Triplet, choose, read_names, scan
from .sen12ms_sample import read_triplet
from .simulate import simulation_of
from .storage import open_store
from .wording import LEAVE_OUT, counted, say

_LABEL_SET = "sen12ms-igbp10"

# Of a sha256, as a message names it.
_DIGITS = 16

_LC_PROCESSING = " MODIS MCD12Q1 land cover of 2016, from 500 m to the 10 m grid."

# What `fusmae.splits.sen12ms_split` gives each split.
_SHARES = {
    "train": "it gets the scenes that are neither val nor test",
    "val": "it gets a tenth of the scenes, by a hash of their names",
    "test": "it gets the held-out scenes or listed patches",
}

_EXAMPLES = """
\b
Examples:
  fusmae-ingest sen12ms --root SEN12MS --out sen12ms
  fusmae-ingest sen12ms --root SEN12MS --out sen12ms --no-lc --format shards --format zarr
  fusmae-ingest sen12ms --root SEN12MS --out sen12ms --split my_test_list.txt

A run that was stopped, even by SIGKILL, goes on where it was when started again.
"""


@click.command(epilog=_EXAMPLES)
@click.option(
    "--root",
    type=SOURCE_PATH,
    required=True,
    help="Folder that holds ROIs1158_spring and the other seasons.",
)
@click.option(
    "--split",
    default="official",
    show_default=True,
    help="official (the authors' hold-out scenes), or a text file of test patches, one name such "
    "as ROIs1158_spring_s2_124_p100.tif a line. Validation scenes are drawn from the others by a "
    "hash of their names.",
)
@click.option("--no-lc", is_flag=True, help="Do without land cover, and so without labels.")
@dataset_options
def sen12ms(options: DatasetOptions, root: Path, split: str, no_lc: bool) -> None:
    """Make a dataset of SEN12MS: shards, zarr or both."""
    test_names = None if split == "official" else read_names(Path(split))
    refuse_out_place(options.out, [("--root", root)])
    refuse_other_files(open_store(options.out))
    refuse_other_run(open_store(options.out))
    check_scheduler(options)
    if not root.is_dir():
        what = "is a file: extract it, and" if root.exists() else "does not exist:"
        raise ValueError(f"--root {root} {what} give the folder that holds the seasons")
    simulation = simulation_of(root)
    # Workers of a cluster stand in other folders.
    root = root.absolute()
    with LongWork("Listing SEN12MS"):
        triplets, missing = scan(root, with_lc=not no_lc)
    if missing:
        _report_missing(missing, len(triplets), options)
    if test_names is not None:
        _report_absent(split, test_names, root, triplets)
    chosen = choose(triplets, test_names)
    rule = {"split": "official"}
    if test_names is not None:
        _warn_of_cut_scenes(split, chosen)
        # Of a list only what it does here, so that one with patches of elsewhere is the same.
        listed = {name: told for name, told in chosen.items() if told == "test"}
        rule = {"split": "list", "split_list": plan.names_digest(listed)[:_DIGITS]}
    left_out = {}
    if len(chosen) < len(triplets):
        left_out["known_bad"] = len(triplets) - len(chosen)
        say(f"left out: {KNOWN_BAD}, published with NaN in its S1")
    limit = effective_limit(options, len(chosen))
    if limit:
        left_out["limit"] = len(chosen) - limit
        chosen = plan.limit(chosen, limit, options.seed)
    if not chosen:
        raise ValueError(f"--root {root}: no triplet is left")
    _say_empty(chosen, limit)
    request = Request(
        **request_origin("sen12ms", _archive(with_lc=not no_lc), simulation),
        arrays=(SEN12MS_S1, SEN12MS_S2, *(() if no_lc else (SEN12MS_LC,))),
        label_sets={} if no_lc else {_LABEL_SET: LABEL_SETS[_LABEL_SET]},
        facts=(*SEN12MS_FACTS, *(() if no_lc else SEN12MS_LC_FACTS)),
        split_of=chosen,
        splits=SPLITS,
        sources={triplet.name: triplet for triplet in triplets if triplet.name in chosen},
        places=(str(root),),
        read=read_triplet,
        formats=frozenset(options.formats),
        samples_per_shard=options.samples_per_shard,
        seed=options.seed,
        options={
            **rule,
            "lc": not no_lc,
            "limit": limit,
            "left_out": left_out,
        },
    )
    make_dataset(request, options)


def _say_empty(chosen: dict[str, str], limit: int | None) -> None:
    """Say which splits have no samples, and why."""
    scenes = len({name.rpartition("_p")[0] for name in chosen})
    more = "a larger --limit" if limit else "more scenes"
    for split in SPLITS:
        if split not in chosen.values():
            say(
                f"note: {split} is empty: {_SHARES[split]} ({counted(scenes, 'scene')} here); "
                f"{more} may fill it"
            )


def _archive(with_lc: bool) -> dict[str, Any]:
    return {**SEN12MS, "processing": SEN12MS["processing"] + _LC_PROCESSING * with_lc}


def _report_absent(split: str, names: set[str], root: Path, triplets: list[Triplet]) -> None:
    """Say how many listed patches the archive lacks.

    Raises:
        ValueError: it lacks them all, so that nothing would be in test.
    """
    absent = sorted(names - {triplet.name for triplet in triplets})
    if len(absent) == len(names):
        named = f"none of its {len(names):,} patches" if names else "it names no patch, so none"
        raise ValueError(
            f"--split {split}: {named} is in --root {root}: give a list of this archive"
        )
    if absent:
        say(
            f"warning: {len(absent):,} of the {len(names):,} patches of --split {split} are not in "
            f"{root}; the first: {absent[0]}"
        )


def _warn_of_cut_scenes(split: str, split_of: dict[str, str]) -> None:
    """Say which scenes are in test and in another split: their patches share pixels."""
    scenes: dict[str, set[str]] = {}
    for name, told in split_of.items():
        scenes.setdefault(name.rpartition("_p")[0], set()).add(told)
    cut = sorted(scene for scene, splits in scenes.items() if {"test"} < splits)
    if cut:
        say(
            f"warning: --split {split} cuts {counted(len(cut), 'scene')}, in test and in train or "
            f"val: patches side by side overlap by half, so test pixels are there too; the first: "
            f"{cut[0]}"
        )


def _report_missing(missing: list[Path], num_triplets: int, options: DatasetOptions) -> None:
    """End the run, or let quarantine leave out the triplets by name when they are read.

    Raises:
        ValueError: files are missing and the run does not go on without them.
    """
    lc = sum(path.parent.name.startswith("lc_") for path in missing)
    told = f"{missing[0]} is missing (files missing in all: {len(missing):,}, land cover: {lc:,})"
    if lc == len(missing) and (lc == num_triplets or options.on_error == "fail"):
        raise ValueError(f"{told}, all of land cover: extract it, or give --no-lc to do without")
    if options.on_error == "fail":
        instead = "; --no-lc does without land cover" if lc else ""
        raise ValueError(f"{told}: extract them, {LEAVE_OUT}{instead}")
    say(f"warning: {told}")
