"""A dataset being made: its lock, its plan, its blocks, and then what `finish` adds.

Every step can be killed and run again.
"""

import json
from collections.abc import Callable
from typing import Any

from fusmae.manifest import MANIFEST_NAME, Manifest

from .begun import refuse_other_archives
from .engine import Executor
from .finish import QUARANTINE_NAME, finish
from .layout import LOCK, SCRATCH, UNNAMED
from .mend import (
    lost_blocks,
    lost_files,
    lost_its_manifest,
    mend_blocks,
    prepare_rebuild,
    refuse_other_dataset,
)
from .plan import names_digest
from .record import forget_bad, forget_records
from .request import Request
from .rounds import Tolerance, allowed, run_rounds, too_many_told, way_out
from .samples_table import TABLE_NAME
from .storage import LocalStore, Store, manifest_of, read_json_object, write_file


def build(
    store: Store,
    request: Request,
    executor: Executor,
    progress: Callable[[int, int], None],
    tolerance: Tolerance,
) -> Manifest:
    """Make the dataset in `store`, or complete or mend it, or find it complete; its manifest.

    `progress(done, total)` is called with numbers of samples.

    Raises:
        ValueError: a sample is bad, or too many are; the place holds something else or a
            dataset made with other options; another run is at work on it.
        OSError: a file cannot be written.
    """
    plan = _plan_table(request)
    manifest = _complete(store, plan, tolerance)
    if manifest is None:
        refuse_other_files(store)
        if lost_its_manifest(store):
            refuse_other_dataset(store, request)
        with store.locked():
            # Another run may have ended between any two of these looks.
            manifest = _complete(store, plan, tolerance)
            return manifest or _make(store, request, executor, progress, tolerance, plan)
    store.remove_folder(SCRATCH)
    return manifest


def _complete(store: Store, plan: dict[str, Any], tolerance: Tolerance) -> Manifest | None:
    """The manifest, where it is there and all files that it lists.

    Raises:
        ValueError: the dataset was made with other options, or lacks too many bad samples.
    """
    if not store.exists(MANIFEST_NAME):
        return None
    manifest = manifest_of(store)
    refuse_other_plan(store, plan_of(store, manifest), plan)
    if lost_files(store, manifest):
        return None
    refuse_quarantine(store, manifest, tolerance)
    return manifest


def _make(
    store: Store,
    request: Request,
    executor: Executor,
    progress: Callable[[int, int], None],
    tolerance: Tolerance,
    plan: dict[str, Any],
) -> Manifest:
    # Of a finished dataset, too: a mend that is killed must not be gone on with as another one.
    _write_or_check_plan(store, plan)
    expected: dict[str, str] = {}
    if store.exists(MANIFEST_NAME):
        manifest = manifest_of(store)
        lost = lost_files(store, manifest)
        blocks = lost_blocks(store, request, manifest, lost)
        if blocks is not None:
            refuse_quarantine(store, manifest, tolerance)
            mend_blocks(store, request, manifest, blocks, executor, progress)
            store.remove_folder(SCRATCH)
            return manifest
        expected = prepare_rebuild(store, request, manifest, lost)
    else:
        # What a finished one holds has sums in its manifest.
        refuse_other_archives(store, request)
    store.remove_folder(UNNAMED)
    records, bad = run_rounds(store, request, executor, progress, tolerance, expected)
    manifest = finish(store, request, records, bad, plan)
    store.remove_folder(SCRATCH)
    return manifest


def _plan_table(request: Request) -> dict[str, Any]:
    """The choices that two runs on one folder must agree on."""
    return {
        "name": request.name,
        "formats": sorted(request.formats),
        "samples_per_shard": request.samples_per_shard,
        "seed": request.seed,
        "num_samples": len(request.split_of),
        "samples": names_digest(request.split_of),
        **request.options,
    }


def refuse_other_files(store: Store) -> None:
    """Raises ValueError: the place holds something, and no dataset, not even one begun."""
    known = (MANIFEST_NAME, TABLE_NAME)
    if store.holds_other_files() and not any(store.exists(name) for name in known):
        raise ValueError(
            f"--out {store} is not empty and is not a dataset: give a new folder, or copy back its "
            f"{MANIFEST_NAME} if it was one"
        )


def refuse_other_run(store: Store) -> None:
    """Look for another run's lock before long work; `build` takes it.

    Only in a folder: in an object store a look at a lock that is not renewed takes a while.

    Raises:
        ValueError: another run is writing the dataset.
    """
    if isinstance(store, LocalStore) and store.exists(LOCK):
        with store.locked():
            pass


def plan_of(store: Store, manifest: Manifest) -> dict[str, Any]:
    """The choices that a finished dataset was made with: see `_plan_table`.

    Raises:
        ValueError: its manifest does not record them.
    """
    plan = manifest.options.get("plan")
    if not isinstance(plan, dict) or not {"name", "num_samples"} <= plan.keys():
        raise ValueError(
            f"{store}/{MANIFEST_NAME} does not say with which options it was made, under "
            "options.plan: give a new folder"
        )
    return plan


# What the plan calls the options. What it says beyond them follows from the options and archives.
_OPTIONS = {
    "split": "--split",
    "exclude": "--exclude",
    "limit": "--limit",
    "seed": "--seed",
    "formats": "--format",
    "samples_per_shard": "--samples-per-shard",
    "maps": "--maps",
    "lc": "land cover (--no-lc)",
    "metadata": "--metadata",
    "split_lists": "--split-lists",
    "split_list": "test patches of --split",
    "--s2": "--s2",
    "--s1": "--s1",
    "--maps": "--maps",
    "name": "archive",
    "num_samples": "samples in all",
}
# Of these the plan keeps a digest, which tells a reader nothing.
_DIGESTS = ("metadata", "split_lists", "split_list")


def refuse_other_plan(store: Store, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raises ValueError: a choice differs; each option that does is named with both values.

    What `old` does not name was not recorded when it was written, and is not compared.
    """
    differing = [key for key in old if old[key] != new.get(key)]
    if not differing:
        return
    named = [key for key in _OPTIONS if key in differing]
    # Where an option differs, the number of samples mostly does too.
    options = [key for key in named if key != "num_samples"] or named
    changes = ", ".join(
        f"{_OPTIONS[key]}: {_in_words(key, old[key])} then, {_in_words(key, new.get(key))} now"
        for key in options
    )
    changes = (
        changes or "the archives, or what tables or lists say of their samples, are others now"
    )
    raise ValueError(
        f"--out {store} was begun with other options or archives ({changes}): use the same to go "
        "on, or a new folder"
    )


def _in_words(key: str, value: Any) -> str:
    if value is None or value == []:
        return "none"
    if isinstance(value, bool):
        return "with" if value else "without"
    if key in _DIGESTS:
        return f"contents {'+'.join(value) if isinstance(value, list) else value}"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def refuse_quarantine(store: Store, manifest: Manifest, tolerance: Tolerance) -> None:
    """Raises ValueError: a finished dataset lacks more bad samples than are allowed now."""
    total = plan_of(store, manifest)["num_samples"]
    num_bad = total - manifest.num_samples
    if num_bad > allowed(total, tolerance):
        first = json.loads(store.read(QUARANTINE_NAME).splitlines()[0])
        raise ValueError(
            f"{too_many_told(num_bad, total, tolerance)}; the first: {first['key']}: "
            f"{first['reason']}; {store} was finished without them: to take it as it is, give "
            f"{way_out(num_bad, total, tolerance)}; to take mended samples in, a new --out"
        )


def _write_or_check_plan(store: Store, plan: dict[str, Any]) -> None:
    path = f"{SCRATCH}/plan.json"
    old = read_json_object(store, path)
    if old:
        refuse_other_plan(store, old, plan)
    else:
        # None yet, or cut short, so that nobody knows what is beside it was made with.
        forget_records(store)
        forget_bad(store)
        write_file(store, path, json.dumps(plan).encode())
