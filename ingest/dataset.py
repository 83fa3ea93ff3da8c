"""A dataset being made: its lock, its plan, its blocks, and then what `finish` adds.

Every step can be killed and run again.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusmae.manifest import (
    MANIFEST_NAME,
    Manifest,
    all_files,
)
from fusmae.sample import ShardLayout

from .convert import Job
from .engine import Executor
from .finish import QUARANTINE_NAME, finish
from .plan import Block, names_digest, plan_blocks
from .record import (
    BlockRecord,
    forget_bad,
    forget_records,
    read_bad,
    read_record,
    write_bad,
)
from .request import Request
from .storage import SCRATCH, UNNAMED, Store, manifest_of, write_file
from .turn import take_turn


@dataclass(frozen=True)
class Tolerance:
    """What to do about bad samples: end the run at the first, or leave them out by name.

    `max_bad` is the largest share of all samples, 0 to 1, that may be left out.
    """

    quarantine: bool = False
    max_bad: float = 0.001


def build(
    store: Store,
    request: Request,
    executor: Executor,
    progress: Callable[[int, int], None],
    tolerance: Tolerance,
) -> Manifest:
    """Make the dataset in `store`, or complete it, or find it complete; its manifest.

    `progress(done, total)` is called with numbers of samples.

    Raises:
        ValueError: a sample is bad, or too many are; the place holds something else or a
            dataset made with other options; another run is at work on it.
        OSError: a file cannot be written.
    """
    plan = _plan_table(request)
    if not store.exists(MANIFEST_NAME):
        # Another run may finish between any two of these looks.
        refuse_other_files(store)
        with store.locked():
            if not store.exists(MANIFEST_NAME):
                return _make(store, request, executor, progress, tolerance, plan)
    manifest = manifest_of(store)
    refuse_other_plan(store, plan_of(store, manifest), plan)
    refuse_damage(store, manifest)
    refuse_quarantine(store, manifest, tolerance)
    store.remove_folder(SCRATCH)
    return manifest


def _make(
    store: Store,
    request: Request,
    executor: Executor,
    progress: Callable[[int, int], None],
    tolerance: Tolerance,
    plan: dict[str, Any],
) -> Manifest:
    _write_or_check_plan(store, plan)
    store.remove_folder(UNNAMED)
    records, bad = _run(store, request, executor, progress, tolerance)
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
    if store.holds_other_files() and not store.exists(MANIFEST_NAME):
        raise ValueError(
            f"--out {store} is not empty and is not a dataset: give a new folder, or copy back its "
            f"{MANIFEST_NAME} if it was one"
        )


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


def refuse_other_plan(store: Store, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raises ValueError: a choice differs; each that does is named with both values.

    What `old` does not name was not recorded when it was written, and is not compared.
    """
    differing = sorted(key for key in old if old[key] != new.get(key))
    if differing:
        changes = ", ".join(f"{k}: {old[k]!r} then, {new.get(k)!r} now" for k in differing)
        raise ValueError(
            f"--out {store} was begun with other options ({changes}): "
            "use the same options to go on, or a new folder"
        )


def refuse_damage(store: Store, manifest: Manifest) -> None:
    """A finished dataset is not mended in place: what damaged it may have done more."""
    sizes = store.sizes()
    for file in all_files(manifest):
        if sizes.get(file.path) != file.bytes:
            raise ValueError(
                f"{store}/{file.path} is missing or not {file.bytes:,} bytes long: see "
                "fusmae-ingest verify, then copy it back, or remove the dataset and make it again"
            )


def refuse_quarantine(store: Store, manifest: Manifest, tolerance: Tolerance) -> None:
    """Raises ValueError: a finished dataset lacks more bad samples than are allowed now."""
    total = plan_of(store, manifest)["num_samples"]
    num_bad = total - sum(split.num_samples for split in manifest.splits.values())
    if num_bad > _allowed(total, tolerance):
        first = json.loads(store.read(QUARANTINE_NAME).splitlines()[0])
        _refuse_bad(num_bad, total, tolerance, first["key"], first["reason"])


def _write_or_check_plan(store: Store, plan: dict[str, Any]) -> None:
    path = f"{SCRATCH}/plan.json"
    try:
        old = json.loads(store.read(path)) if store.exists(path) else None
    except ValueError:
        old = None
    if isinstance(old, dict) and old:
        refuse_other_plan(store, old, plan)
    else:
        # None yet, or cut short, so that nobody knows what is beside it was made with.
        forget_records(store)
        forget_bad(store)
        write_file(store, path, json.dumps(plan).encode())


def _run(
    store: Store,
    request: Request,
    executor: Executor,
    progress: Callable[[int, int], None],
    tolerance: Tolerance,
) -> tuple[list[BlockRecord], dict[str, str]]:
    """The records of all blocks, and the bad names with their reasons.

    A block with bad samples says which, and is planned again without them; so are the
    blocks that lend samples to it. That ends, since bad samples only become more.
    """
    bad = _still_bad(store, request)
    _refuse_too_many(store, len(bad), len(request.split_of), tolerance)
    while True:
        # Before the look at what is done: nothing of an earlier round changes after it.
        turn = take_turn(store)
        blocks = plan_blocks(
            request.split_of, request.splits, request.samples_per_shard, request.seed, bad.keys()
        )
        sizes = store.sizes()
        records = [read_record(store, block, sizes) for block in blocks]
        todo = [block for block, record in zip(blocks, records, strict=True) if record is None]
        if not todo:
            if not records:
                raise ValueError("every sample is bad; the first: {}: {}".format(*min(bad.items())))
            return [record for record in records if record], bad
        num_bad = len(bad)
        for found in _convert(store, turn, request, todo, executor, progress, tolerance):
            num_bad += found
            store.require_lock()
            _refuse_too_many(store, num_bad, len(request.split_of), tolerance)
        bad |= read_bad(store)
        _refuse_too_many(store, len(bad), len(request.split_of), tolerance)


def _still_bad(store: Store, request: Request) -> dict[str, str]:
    """What an earlier run found bad and is bad still: files may have been mended since."""
    noted = read_bad(store)
    forget_bad(store)
    bad: dict[str, str] = {}
    rows = {spec.name: np.empty(spec.shape, spec.dtype) for spec in request.arrays}
    for name in noted:
        try:
            request.read(request.sources[name], rows)
        except ValueError as error:
            bad[name] = str(error)
    if bad:
        write_bad(store, bad)
    return bad


def _allowed(total: int, tolerance: Tolerance) -> int:
    # 0.29 * 100 is a little less than 29.
    return math.floor(tolerance.max_bad * total + 1e-9) if tolerance.quarantine else 0


def _refuse_too_many(store: Store, num_bad: int, total: int, tolerance: Tolerance) -> None:
    if num_bad > _allowed(total, tolerance):
        _refuse_bad(num_bad, total, tolerance, *min(read_bad(store).items()))


def _refuse_bad(num_bad: int, total: int, tolerance: Tolerance, name: str, reason: str) -> None:
    limit = f"--max-bad {tolerance.max_bad:g}" if tolerance.quarantine else "--on-error fail"
    raise ValueError(
        f"{num_bad:,} of {total:,} samples are bad, more than {limit} allows; "
        f"the first: {name}: {reason}"
    )


def _convert(
    store: Store,
    turn: str,
    request: Request,
    todo: Sequence[Block],
    executor: Executor,
    progress: Callable[[int, int], None],
    tolerance: Tolerance,
) -> Iterator[int]:
    """Run these blocks; yields the number of bad samples of each."""
    total = len(request.split_of)
    done = total - sum(len(block.names) for block in todo)
    progress(done, total)

    def on_sample(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    jobs = [
        Job(
            store,
            turn,
            request.name,
            block,
            tuple(request.sources[name] for name in block.names),
            request.places,
            request.read,
            ShardLayout(request.arrays),
            request.samples_per_shard,
            request.formats,
            tolerance.quarantine,
        )
        for block in todo
    ]
    yield from executor(jobs, on_sample)
