"""`fusmae-ingest simulate`: archives in a genuine layout with pixels that nobody observed."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from .bigearthnet_archive import parse_json, read_json
from .options import NamedPath, workers_option
from .patches import Archive
from .pool import run_tasks
from .progress import LongWork
from .simulated_archive import SCRATCH, write_patch, write_tables
from .simulated_names import MAX_PATCHES
from .simulated_sen12ms import write_triplet
from .wording import counted

# What marks a finished simulated archive. Until then its facts stand under the second name.
SIMULATED_NAME = "SIMULATED.json"
UNFINISHED_NAME = ".SIMULATED.json.unfinished"

# Raised whenever the same seed gives other bytes.
SIMULATOR_VERSION = 1
# The day that the version's bytes were settled; in metadata that asks for a day of publication.
SIMULATOR_RELEASED = "2026-11-24"

# Patches that a worker makes between two reports.
_CHUNK = 32


@click.group()
def simulate() -> None:
    """Write an archive of simulated images, for demos and tests.

    The files are GeoTIFFs in the layout of the genuine archive; what they show was never observed.
    """


def simulation_of(archive: Path) -> dict[str, Any] | None:
    """What a simulated archive says of itself; None for a folder without the signature.

    Raises:
        ValueError: the archive is simulated, but not finished, or its signature is not JSON.
    """
    if (archive / UNFINISHED_NAME).exists():
        raise ValueError(
            f"{archive} is a simulated archive that is not finished: run fusmae-ingest simulate "
            "again with the same options"
        )
    marker = archive / SIMULATED_NAME
    return read_json(marker) if marker.exists() else None


def simulation_in(archive: Archive) -> dict[str, Any] | None:
    """What an archive's own copy of the signature says; None if it has none."""
    data = archive.top_file(SIMULATED_NAME)
    return None if data is None else parse_json(data, f"{SIMULATED_NAME} in {archive}")


_BIGEARTHNET_EXAMPLES = """
\b
Examples, each with what reads it:
  fusmae-ingest simulate bigearthnet --out archive --patches 2000 --workers 2
  fusmae-ingest bigearthnet --s2 archive/BigEarthNet-v1.0 --s1 archive/BigEarthNet-S1-v1.0 \\
      --out ben
  fusmae-ingest simulate bigearthnet --out archive2 --patches 2000 --version v2
  fusmae-ingest bigearthnet --s2 archive2/BigEarthNet-S2 --s1 archive2/BigEarthNet-S1 \\
      --metadata archive2/metadata.parquet \\
      --metadata archive2/metadata_for_patches_with_snow_cloud_or_shadow.parquet \\
      --maps archive2/Reference_Maps --out reben
"""

_SEN12MS_EXAMPLES = """
\b
Example, then what reads it:
  fusmae-ingest simulate sen12ms --out SEN12MS --patches 200 --workers 2
  fusmae-ingest sen12ms --root SEN12MS --out sen12ms
"""

_OUT = click.option(
    "--out",
    type=NamedPath(path_type=Path),
    required=True,
    help="Folder to make the archive in; new or empty.",
)
_SEED = click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="The same seed and number make the same bytes.",
)


@simulate.command(epilog=_BIGEARTHNET_EXAMPLES)
@_OUT
@click.option(
    "--patches", type=click.IntRange(1, MAX_PATCHES), required=True, help="Number of S1/S2 pairs."
)
@click.option(
    "--version",
    type=click.Choice(["v1", "v2"]),
    default="v1",
    show_default=True,
    help="Layout: v1, or v2 (reBEN) with tables and reference maps.",
)
@_SEED
@workers_option
def bigearthnet(out: Path, patches: int, seed: int, version: str, workers: int) -> None:
    """Pairs in the layout of BigEarthNet-MM.

    Every pixel, label, place and date is simulated.

    A run that was stopped, even by SIGKILL, goes on where it was when started again.
    """
    marker = _facts(f"BigEarthNet-MM {version}", patches, seed) | {"version": version}
    with _locked(out):
        if not _begin(out, marker):
            click.echo(f"{out} already holds this simulated archive")
            return
        rows = _write(_write_patches, (out, version, seed), patches, workers)
        if version == "v2":
            write_tables(out, rows)
        _finish(out)
    click.echo(f"{out}: {patches:,} simulated patches in the layout of BigEarthNet {version}")


@simulate.command(epilog=_SEN12MS_EXAMPLES)
@_OUT
@click.option("--patches", type=click.IntRange(1), required=True, help="Number of triplets.")
@_SEED
@workers_option
def sen12ms(out: Path, patches: int, seed: int, workers: int) -> None:
    """Triplets in the layout of SEN12MS.

    Every pixel, class and place is simulated.

    A run that was stopped, even by SIGKILL, goes on where it was when started again.
    """
    with _locked(out):
        if not _begin(out, _facts("SEN12MS", patches, seed)):
            click.echo(f"{out} already holds this simulated archive")
            return
        _write(_write_triplets, (out, seed), patches, workers)
        _finish(out)
    click.echo(f"{out}: {counted(patches, 'simulated triplet')} in the layout of SEN12MS")


def _write(
    task: Callable[..., list[Any]], arguments: tuple[Any, ...], patches: int, workers: int
) -> list[Any]:
    """Run `task(*arguments, indices)` over all patches, with progress; what it returned."""
    rows: list[Any] = []
    with LongWork("Simulating") as progress:
        progress.update(0, patches)
        chunks = [range(i, min(i + _CHUNK, patches)) for i in range(0, patches, _CHUNK)]
        for done in run_tasks(task, [(*arguments, chunk) for chunk in chunks], workers):
            rows += done
            progress.update(len(rows), patches)
    return rows


def _finish(out: Path) -> None:
    """Sign the archive: from here on it is complete."""
    shutil.rmtree(out / SCRATCH, ignore_errors=True)
    for folder in sorted(path for path in out.iterdir() if path.is_dir()):
        # So that a tar of one of the folders says so too.
        shutil.copyfile(out / UNFINISHED_NAME, folder / SIMULATED_NAME)
    (out / UNFINISHED_NAME).rename(out / SIMULATED_NAME)


def _facts(layout: str, patches: int, seed: int) -> dict[str, Any]:
    return {
        "simulated": True,
        "statement": "Every pixel, label, place and date in this archive is simulated by "
        "fusmae-ingest simulate. Nothing here was observed by a satellite.",
        "layout": layout,
        "patches": patches,
        "seed": seed,
        "simulator_version": SIMULATOR_VERSION,
        "simulator_sha256": simulator_sha256(),
    }


def simulator_sha256() -> str:
    """The sha256 over the simulator's files: what is compared on simulated data has one."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("simulat*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the folder itself, so that nothing has to be written that is no part of the archive.

    Raises:
        ValueError: another run holds it.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is not an empty folder: use another --out")
    out.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out, os.O_RDONLY)
    try:
        # The operating system lets go of it even after SIGKILL.
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another run is writing {out}: wait for it, or stop it") from None
        except OSError as error:
            if error.errno != errno.EBADF:  # NFS locks no folders
                raise
        yield
    finally:
        os.close(descriptor)


def _begin(out: Path, marker: dict[str, Any]) -> bool:
    """Claim the folder for these options; False if the archive is already complete.

    Raises:
        ValueError: the folder holds another simulated archive, or anything else.
    """
    finished, unfinished = out / SIMULATED_NAME, out / UNFINISHED_NAME
    for path in (finished, unfinished):
        if path.exists():
            there = read_json(path)
            # Of a finished archive it may be another, or none: it tells what made the archive.
            told = marker.keys() - ({"simulator_sha256"} if path == finished else set())
            differing = [key for key in marker if key in told and there.get(key) != marker[key]]
            if differing:
                facts = ", ".join(f"{key} = {there.get(key)}" for key in differing)
                raise ValueError(f"{out} holds a simulated archive with {facts}: use another --out")
            shutil.rmtree(out / SCRATCH, ignore_errors=True)
            return path == unfinished
    if any(out.iterdir()):
        raise ValueError(f"{out} is not an empty folder: use another --out")
    claim = out / f"{SCRATCH}-claim"
    claim.write_text(json.dumps(marker, indent=2) + "\n")
    claim.rename(unfinished)
    return True


def _write_patches(out: Path, version: str, seed: int, indices: range) -> list[dict[str, Any]]:
    return [write_patch(out, version, seed, index) for index in indices]


def _write_triplets(out: Path, seed: int, indices: range) -> list[str]:
    return [write_triplet(out, seed, index) for index in indices]
