"""The parts of a run, made, restored and recorded, and what goes from them into a checkpoint."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from fusmae.config import as_table
from fusmae.data import MixedBatch, MixedPreprocess, MixtureLoader
from fusmae.model import FusMAE
from fusmae.training.checkpoint import (
    find_checkpoint,
    read_state,
    remove_leftovers,
    restore_checkpoint,
)
from fusmae.training.engine import Engine, compile_model
from fusmae.training.metrics import Means
from fusmae.training.monitor import Monitor
from fusmae.training.ranks import on_this_rank
from fusmae.training.record import describe_start, write_record
from fusmae.training.run import Run, check_same_run
from fusmae.training.source import make_preprocess, open_stream, save_subsets
from fusmae.training.trackers import Trackers


def build(run: Run, device: torch.device) -> tuple[Engine, MixedPreprocess, MixtureLoader]:
    """The model under DeepSpeed, what makes its input on the device, and the stream of samples."""
    recipe = run.recipe
    torch.manual_seed(recipe.seed)  # the same initial weights on every rank
    model = FusMAE(recipe.model, run.channels)
    if recipe.run.compile:
        compile_model(model)
    engine = Engine(model, recipe.optim, run.plan)
    with on_this_rank(run.ranks.rank):
        threads = recipe.run.read_threads
        micro_batch = run.plan.micro_batch
        loader = open_stream(run.sources, recipe.seed, run.ranks, micro_batch, device, threads)
    preprocess = make_preprocess(run.sources, recipe.model.sizes_px(recipe.data.bands))
    if recipe.run.compile:
        for one in preprocess.sources:
            compile_model(one)
    return engine, preprocess.to(device), loader


class Restored(NamedTuple):
    """Where a run goes on: updates made, the means under way, and its last skipped steps."""

    step: int
    means: Means
    skips_in_a_row: int


def restore(run: Run, engine: Engine, loader: MixtureLoader) -> Restored:
    """Restore the newest whole checkpoint, if there is one.

    Raises:
        ValueError: it is of another run.
        RankError: this rank cannot read it.
    """
    with on_this_rank(run.ranks.rank):
        found = find_checkpoint(run.out) if run.ranks.rank == 0 else None
    checkpoint = engine.gather_over_ranks(found)[0]
    if checkpoint is None:
        return Restored(0, Means(), 0)
    with on_this_rank(run.ranks.rank):
        state = read_state(checkpoint)
    check_same_run(run, state)
    with on_this_rank(run.ranks.rank):
        restore_checkpoint(checkpoint, engine)
        loader.load_state_dict(state["loader"])
    skips_in_a_row = state.get("skips_in_a_row", 0)  # earlier releases did not keep it
    return Restored(state["step"], Means(**state["means"]), skips_in_a_row)


def begin(run: Run, step: int, monitor: Monitor) -> Trackers:
    """Make the run's folder, record this start, and open its metrics; rank 0 only."""
    run.out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(run.out)
    start = describe_start(run.ranks.world_size, step, run.plan.config)
    write_record(run.out, as_table(run.recipe), run.dataset, start)
    save_subsets(run.sources, run.out)
    return Trackers(run.out, run.recipe, step, monitor.say)


def next_batch(batches: Iterator[MixedBatch], rank: int) -> MixedBatch:
    """The next micro-batch; what goes wrong here, goes wrong on this rank alone."""
    with on_this_rank(rank):
        return next(batches)


def state_of(
    run: Run, loader: MixtureLoader, step: int, means: Means, skips_in_a_row: int
) -> dict[str, Any]:
    """What a checkpoint keeps besides weights and moments."""
    return {
        "step": step,
        "loader": loader.state_dict(),
        "means": dataclasses.asdict(means),
        "skips_in_a_row": skips_in_a_row,
        "recipe": as_table(run.recipe),
        "dataset": run.dataset,
    }
