"""`fusmae-ingest simulate`: archives in a genuine layout with pixels that nobody observed."""

import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import click

from .progress import SampleProgress
from .simulated_archive import SCRATCH, write_patch, write_tables
from .simulated_names import MAX_PATCHES
from .worker_process import follow_parent

# What marks a finished simulated archive. Until then its facts stand under the second name.
SIMULATED_NAME = "SIMULATED.json"
_UNFINISHED_NAME = ".SIMULATED.json.unfinished"

# Raised whenever the same seed gives other bytes.
SIMULATOR_VERSION = 1

# Patches that a worker makes between two reports.
_CHUNK = 32


@click.group()
def simulate() -> None:
    """Write a simulated archive of real GeoTIFFs, for demos and tests."""


@simulate.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Archive to make.")
@click.option("--patches", type=click.IntRange(1, MAX_PATCHES), required=True)
@click.option("--seed", type=click.IntRange(0), required=True)
@click.option("--version", type=click.Choice(["v1", "v2"]), default="v1", show_default=True)
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True)
def bigearthnet(out: Path, patches: int, seed: int, version: str, workers: int) -> None:
    """BigEarthNet-MM pairs: every pixel, label, place and date is simulated.

    A run that was stopped, even by SIGKILL, goes on where it was when started again.
    """
    marker = _facts(version, patches, seed)
    if not _begin(out, marker):
        click.echo(f"{out} already holds this simulated archive")
        return
    rows = []
    with SampleProgress("Simulating") as progress:
        progress.update(0, patches)
        write = partial(_write_patches, out, version, seed)
        for done in _run(write, patches, workers):
            rows += done
            progress.update(len(rows), patches)
    if version == "v2":
        write_tables(out, rows)
    shutil.rmtree(out / SCRATCH, ignore_errors=True)
    (out / _UNFINISHED_NAME).rename(out / SIMULATED_NAME)
    click.echo(f"{out}: {patches:,} simulated patches in the layout of BigEarthNet {version}")


def _facts(version: str, patches: int, seed: int) -> dict[str, Any]:
    return {
        "simulated": True,
        "statement": "Every pixel, label, place and date in this archive is simulated by "
        "fusmae-ingest simulate. Nothing here was observed by a satellite.",
        "layout": f"BigEarthNet-MM {version}",
        "version": version,
        "patches": patches,
        "seed": seed,
        "simulator_version": SIMULATOR_VERSION,
    }


def _begin(out: Path, marker: dict[str, Any]) -> bool:
    """Claim the folder for these options; False if the archive is already complete.

    Raises:
        ValueError: the folder holds another simulated archive, or anything else.
    """
    finished, unfinished = out / SIMULATED_NAME, out / _UNFINISHED_NAME
    for path in (finished, unfinished):
        if path.exists():
            there = json.loads(path.read_text())
            differing = [key for key in marker if there.get(key) != marker[key]]
            if differing:
                facts = ", ".join(f"{key} = {there.get(key)}" for key in differing)
                raise ValueError(f"{out} holds a simulated archive with {facts}: use another --out")
            shutil.rmtree(out / SCRATCH, ignore_errors=True)
            return path == unfinished
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not an empty folder: use another --out")
    out.mkdir(parents=True, exist_ok=True)
    claim = out / f"{SCRATCH}-claim"
    claim.write_text(json.dumps(marker, indent=2) + "\n")
    claim.rename(unfinished)
    return True


def _write_patches(out: Path, version: str, seed: int, indices: range) -> list[dict[str, Any]]:
    return [write_patch(out, version, seed, index) for index in indices]


def _run(
    write: Callable[[range], list[dict[str, Any]]], patches: int, workers: int
) -> Iterator[list[dict[str, Any]]]:
    """The table rows of each chunk as it is done, in any order.

    Raises:
        OSError: a file cannot be written.
        RuntimeError: a worker process died.
    """
    chunks = [range(i, min(i + _CHUNK, patches)) for i in range(0, patches, _CHUNK)]
    if workers == 1 or len(chunks) == 1:
        yield from map(write, chunks)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        min(workers, len(chunks)), mp_context=context, initializer=follow_parent
    )
    try:
        for future in as_completed([pool.submit(write, chunk) for chunk in chunks]):
            yield future.result()
    except BrokenProcessPool:
        raise RuntimeError(
            "a worker process died (out of memory, or killed): run the same command again to go on"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
