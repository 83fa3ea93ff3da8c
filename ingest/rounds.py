"""The blocks of a dataset, run in rounds until all are done; bad samples are left out."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

import numpy as np

from fusmae.sample import ShardLayout

from .convert import Job
from .engine import Executor
from .output_room import require_output_room
from .plan import Block
from .record import BlockRecord, forget_bad, read_bad, read_record, write_bad
from .request import Request
from .storage import Store
from .turn import take_turn


@dataclass(frozen=True)
class Tolerance:
    """What to do about bad samples: end the run at the first, or leave them out by name.

    `max_bad` is the largest share of all samples, 0 to 1, that may be left out.
    """

    quarantine: bool = False
    max_bad: float = 0.001


def run_rounds(
    store: Store,
    request: Request,
    executor: Executor,
    progress: Callable[[int, int], None],
    tolerance: Tolerance,
    expected: Mapping[str, str],
) -> tuple[list[BlockRecord], dict[str, str]]:
    """The records of all blocks, and the bad names with their reasons. `expected` is as in `Job`.

    A block with bad samples says which, and is planned again without them; so are the
    blocks that lend samples to it. That ends, since bad samples only become more.
    """
    bad = _still_bad(store, request)
    _refuse_too_many(store, len(bad), len(request.split_of), tolerance)
    while True:
        # Before the look at what is done: nothing of an earlier round changes after it.
        turn = take_turn(store)
        blocks = request.blocks(bad.keys())
        sizes = store.sizes()
        records = [read_record(store, block, sizes) for block in blocks]
        todo = [block for block, record in zip(blocks, records, strict=True) if record is None]
        if not todo:
            if not records:
                raise ValueError("every sample is bad; the first: {}: {}".format(*min(bad.items())))
            return [record for record in records if record], bad
        num_bad = len(bad)
        for found in convert_blocks(
            store, turn, request, todo, executor, progress, tolerance, expected
        ):
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


def allowed(total: int, tolerance: Tolerance) -> int:
    # 0.29 * 100 is a little less than 29.
    return math.floor(tolerance.max_bad * total + 1e-9) if tolerance.quarantine else 0


def _refuse_too_many(store: Store, num_bad: int, total: int, tolerance: Tolerance) -> None:
    if num_bad > allowed(total, tolerance):
        name, reason = min(read_bad(store).items())
        raise ValueError(
            f"{too_many_told(num_bad, total, tolerance)}; the first: {name}: {reason}; mend them, "
            f"or leave so many out: {way_out(num_bad, total, tolerance)} (there may be more)"
        )


def too_many_told(num_bad: int, total: int, tolerance: Tolerance) -> str:
    limit = f"--max-bad {tolerance.max_bad:g}" if tolerance.quarantine else "--on-error fail"
    most = allowed(total, tolerance)
    are = "is" if num_bad == 1 else "are"
    return f"{num_bad:,} of {total:,} samples {are} bad, more than {limit} allows ({most:,})"


def way_out(num_bad: int, total: int, tolerance: Tolerance) -> str:
    """The options that allow `num_bad`; the share is the least of two digits, such as 0.0013."""
    if num_bad <= allowed(total, Tolerance(True, tolerance.max_bad)):
        return "--on-error quarantine"
    share = Decimal(num_bad) / total
    unit = Decimal(1).scaleb(share.adjusted() - 1)
    return f"--on-error quarantine --max-bad {share.quantize(unit, ROUND_CEILING).normalize():f}"


def convert_blocks(
    store: Store,
    turn: str,
    request: Request,
    todo: Sequence[Block],
    executor: Executor,
    progress: Callable[[int, int], None],
    tolerance: Tolerance,
    expected: Mapping[str, str],
) -> Iterator[int]:
    """Run these blocks; yields the number of bad samples of each. `expected` is as in `Job`.

    Raises:
        ValueError: the output's disk has no room for them; a source is bad, see `convert`.
    """
    require_output_room(store, request, todo)
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
            expected,
        )
        for block in todo
    ]
    yield from executor(jobs, on_sample)
