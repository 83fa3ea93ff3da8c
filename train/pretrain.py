"""Pretrain Fus-MAE. `deepspeed train/pretrain.py --help` shows how.

Everything that can be wrong with the files is found before any rank waits for another;
then comes one training loop.
"""

import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import click
import torch

from fusmae.evaluation.online import Online
from fusmae.model import draw_masks, draw_sensors
from fusmae.set_option import set_option
from fusmae.training.checkpoint import find_checkpoint, newest_state, read_weights
from fusmae.training.dry_run import describe_trial, name_of
from fusmae.training.engine import Engine, join_ranks
from fusmae.training.export import export_encoder
from fusmae.training.ledger import Ledger, StepResult
from fusmae.training.metrics import METRICS, Means, Stopwatch, has_line
from fusmae.training.monitor import Monitor
from fusmae.training.ranks import RankError, StopRequest, on_this_rank
from fusmae.training.run import Run, check_same_run, check_unused, is_complete, read_run
from fusmae.training.run_lock import run_lock
from fusmae.training.saving import Saver
from fusmae.training.skips import Skips
from fusmae.training.start import begin, build, next_batch, restore, state_of
from fusmae.training.trackers import Trackers
from fusmae.training.trial import Trial, check_memory, short_run
from fusmae.training.validation import Validation

EXAMPLES = """
\b
Examples:
  deepspeed train/pretrain.py --recipe train/recipes/paper.toml \\
      --data DATASET --out RUN --deepspeed_config ds_configs/zero1_autocast.json
\b
  # the same run again, from its newest checkpoint, on any number of GPUs
  deepspeed train/pretrain.py ... --out RUN --resume auto
\b
  # two ranks without a GPU, another learning rate
  OMP_NUM_THREADS=1 deepspeed --num_accelerators 2 train/pretrain.py \\
      --recipe train/recipes/tiny.toml --data DATASET --out RUN \\
      --deepspeed_config ds_configs/cpu.json --set optim.lr=1e-3
\b
  # a mixture: as many datasets as the recipe has [[data.sources]], in their order
  deepspeed train/pretrain.py --recipe RECIPE --data BIGEARTHNET --data SEN12MS ...
\b
  # what a run will take: steps, hours, memory, disk; nothing is written into RUN
  deepspeed train/pretrain.py ... --out RUN --dry-run
\b
  # one rank, without the launcher
  python train/pretrain.py --recipe train/recipes/tiny.toml --data DATASET --out RUN \\
      --deepspeed_config ds_configs/cpu.json
"""


@click.command(epilog=EXAMPLES)
@click.option("--recipe", type=click.Path(path_type=Path), required=True, help="TOML file.")
@click.option(
    "--data",
    required=True,
    multiple=True,
    help="Dataset: a folder or a URL, such as s3://bucket/ben; one for each source of a mixture.",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    default=Path.home() / ".cache" / "fusmae",
    envvar="FUSMAE_CACHE",
    help="Local folder for shards of a dataset at a URL; $FUSMAE_CACHE or ~/.cache/fusmae.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
@click.option(
    "--deepspeed_config",
    "ds_config",
    type=click.Path(path_type=Path),
    required=True,
    help="DeepSpeed json: micro-batch, ZeRO stage, precision, offload.",
)
@click.option(
    "--resume",
    type=click.Choice(["auto"]),
    help="Continue from the newest checkpoint in --out, or start if there is none.",
)
@set_option
@click.option(
    "--dry-run",
    is_flag=True,
    help="Check everything, make a few steps, print what the run will take; --out stays as it is.",
)
@click.option("--local_rank", type=int, hidden=True, help="Given by the deepspeed launcher.")
def pretrain(
    recipe: Path,
    data: tuple[str, ...],
    cache: Path,
    out: Path,
    ds_config: Path,
    resume: str | None,
    overrides: tuple[str, ...],
    dry_run: bool,
    local_rank: int | None,
) -> None:
    """Pretrain Fus-MAE on a dataset of fusmae-ingest, or on a mixture of several.

    Writes checkpoints, metrics.jsonl and run.json into --out, and at the end the encoder
    into --out/encoder. SIGTERM, SIGUSR1 and Ctrl-C save a checkpoint and exit with 0.
    """
    run = read_run(recipe, data, cache, out, ds_config, overrides)
    online_of(run, torch.device("cpu")).check()
    if resume is None:
        check_unused(out)
    elif is_complete(run):
        if run.ranks.rank == 0:
            click.echo(f"{out} is complete: {run.encoder}")
        return
    if dry_run:
        try_out(run)
        return
    with run_lock(out) if run.ranks.rank == 0 else nullcontext():
        train(run)


def try_out(run: Run) -> None:
    """Say what the run will take, by a few steps of it.

    Raises:
        ValueError: the run in `run.out` is another one, or a micro-batch does not fit into a GPU.
        RankError: this rank cannot read its samples, or is out of memory.
    """
    state = newest_state(run.out)
    if state is not None:
        check_same_run(run, state)
    device = join_ranks(run.ranks, run.recipe.run.deterministic)
    short = short_run(run)
    engine, preprocess, loader = build(short, device)
    batches = iter(loader)
    trial = Trial(short, engine, preprocess, lambda: next_batch(batches, run.ranks.rank))
    timing, memory = trial.time(), trial.memory()
    if run.ranks.rank == 0:
        click.echo("\n".join(describe_trial(run, timing, memory, name_of(device))))
    torch.distributed.destroy_process_group()
    check_memory(run, memory)


def train(run: Run) -> None:
    """Train to the end of the schedule, or until asked to stop, and export the encoder.

    The loop does not wait for the device. Losses, norms, skipped steps and requests to stop are
    read every few steps, as `Ledger` says, and before a line is logged or a checkpoint saved.

    Raises:
        ValueError: the run in `run.out` is another one, or too many steps in a row were skipped.
        RankError: this rank cannot read its samples or the checkpoint, or is out of memory.
    """
    recipe, plan, total_steps = run.recipe, run.plan, run.schedule.total_steps
    is_first = run.ranks.rank == 0
    stop = StopRequest().requested
    device = join_ranks(run.ranks, recipe.run.deterministic)
    engine, preprocess, loader = build(run, device)
    step, means, in_a_row = restore(run, engine, loader)
    sensors = list(recipe.data.bands)
    limit = recipe.run.max_skips_in_a_row
    skips = Skips(run.out, run.sources, limit, step, in_a_row, writes=is_first)
    validation = None
    if recipe.run.validate_every_steps:
        with on_this_rank(run.ranks.rank):
            validation = Validation(recipe, run.sources, run.ranks, plan.micro_batch, device)
    online = online_of(run, device)
    batches = iter(loader)

    # ------------------------------------------------------------------ the training loop
    with (
        Monitor(total_steps, step, shown=is_first) as monitor,
        Saver(run.out, engine, recipe.run, run.ranks.rank, monitor.say) as saver,
    ):
        metrics = begin(run, step, monitor) if is_first else None
        stopping = bool(step) and not catch_up(
            run, engine, step, stop, validation, online, metrics, monitor
        )
        watch, ledger = Stopwatch(device), Ledger()
        while step < total_steps and not stopping:
            losses, sample_ids = [], []
            replaced = -loader.num_replaced
            shown = draw_sensors(sensors, recipe.model.sensor_dropout, recipe.seed, step)
            for _ in range(plan.accumulation):
                with watch.waiting():
                    batch = next_batch(batches, run.ranks.rank)
                images = preprocess(batch.parts)
                masks = draw_masks(recipe.model, sensors, recipe.seed, batch.positions)
                images = {sensor: images[sensor] for sensor in shown}
                losses.append(engine.forward_backward(images, masks))
                sample_ids.append(batch.sample_ids)
            rate = run.schedule.rate(step)
            update = engine.update(rate)
            step += 1
            ledger.add(step, losses, update, sample_ids, replaced + loader.num_replaced)
            watch.add(recipe.optim.global_batch, run.flops_of(shown))
            monitor.advance(step)
            logging = run.is_due(recipe.run.log_every_steps, step)
            validating = run.is_due(recipe.run.validate_every_steps, step)
            saving = run.is_save_due(step)
            looking = online.is_due(step)
            if logging or validating or saving or looking or ledger.is_due:
                results, stopping, save_due = ledger.read(engine, stop(), saver.is_due)
                saving = saving or save_due
                for result in results:
                    count(result, means, skips, sensors)
                stopping = stopping or skips.are_too_many
            # On every rank: its events pile up until they are read.
            speed = watch.read() if logging else {}
            if metrics and logging:
                line: dict[str, Any] = {"step": step, "samples": step * recipe.optim.global_batch}
                skipped, taken = means.skipped, means.take()
                norm = results[-1].norm if math.isfinite(results[-1].norm) else None
                line |= taken | {"lr": rate, "grad_norm": norm} | speed
                line |= {"skipped": skipped} if skipped else {}
                line |= {"failed_saves": saver.num_failed} if saver.num_failed else {}
                metrics.write(line)
                monitor.show(line, list(taken))
            # Who is asked to stop has seconds: what is left out here, `catch_up` makes.
            if validation and validating and not stopping:
                with watch.apart():
                    stopping = not validation.log(engine, step, stop, metrics, monitor.say)
            if stopping or saving or looking:
                saver.save(state_of(run, loader, step, means, skips.in_a_row))
            if looking and not stopping:
                with watch.apart():
                    if metrics:
                        online.look(saver.weights, step, stop, metrics.write, monitor.say)
                    stopping = engine.is_any(stop())
        if skips.are_too_many:
            monitor.say("too many skipped steps in a row: the run is saved and ends")
        saver.finish()
        skips.check(step)
        if stopping:
            monitor.say(f"asked to stop: saved step {step}; go on with --resume auto")
    # -------------------------------------------------------------------------------------

    if is_first and step == total_steps and not stopping:
        export_encoder(run)
        click.echo(f"{total_steps} steps done: {run.encoder}")
    engine.barrier()
    torch.distributed.destroy_process_group()


def catch_up(
    run: Run,
    engine: Engine,
    step: int,
    stop: Callable[[], bool],
    validation: Validation | None,
    online: Online,
    metrics: Trackers | None,
    monitor: Monitor,
) -> bool:
    """Validate and look after the step that a stopped run goes on from, unless that was done.

    False if asked to stop meanwhile, the same on every rank.
    """
    if validation and run.is_due(run.recipe.run.validate_every_steps, step):
        made = has_line(run.out / METRICS, step, "val") if metrics else False
        is_made = engine.gather_over_ranks(made)[0]  # rank 0's, which has the lines
        if not is_made and not validation.log(engine, step, stop, metrics, monitor.say):
            return False
    checkpoint = find_checkpoint(run.out) if metrics and online.is_due(step) else None
    if metrics and checkpoint:
        weights = read_weights(checkpoint)
        online.look(weights, step, stop, metrics.write, monitor.say, missing_only=True)
    return not engine.is_any(stop())


def online_of(run: Run, device: torch.device) -> Online:
    """What looks at the run's weights every few epochs, by its first dataset."""
    source, config = run.sources[0], run.recipe.run
    picture_steps, probe_steps = map(
        run.steps_of, (config.picture_every_epochs, config.probe_every_epochs)
    )
    return Online(
        run.recipe, source.path, source.manifest, run.out, device, picture_steps, probe_steps
    )


def count(result: StepResult, means: Means, skips: Skips, sensors: list[str]) -> None:
    """Add a step to the means, or to the skipped ones."""
    skips.add(result)
    if result.bad_rows is not None:
        means.skip()
        return
    replaced = {"replaced": float(result.replaced)} if result.replaced else {}
    means.add(result.losses | replaced, absent=set(sensors) - set(result.losses))


def main() -> None:
    """Run the command; each error is one line, exit code 2 for usage, else 1.

    The first rank of each machine tells it, since machines may see other files, or the rank that
    has met it alone.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    try:
        pretrain(standalone_mode=False)
    except click.ClickException as error:
        fail(local_rank, error.format_message(), error.exit_code)
    except RankError as error:
        fail(0, str(error), 1)
    except ValueError as error:
        fail(local_rank, str(error), 1)
    except OSError as error:
        fail(local_rank, f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)
    except torch.cuda.OutOfMemoryError as error:
        reason = str(error).partition(". ")[0]
        told = "lower train_micro_batch_size_per_gpu; --dry-run tells the largest that fits"
        fail(0, f"rank {os.environ.get('RANK', 0)}: {reason}: {told}", 1)
    except RuntimeError as error:
        if "EADDRINUSE" in str(error):
            port = os.environ.get("MASTER_PORT", "")
            told = "of another run, or of one that still saves: give the launcher another one"
            fail(local_rank, f"port {port} is in use, {told} (deepspeed --master_port N)", 1)
        if "Connection closed by peer" not in str(error):
            raise
        fail(local_rank, "another rank has ended, see its message", 1)


def fail(local_rank: int, message: str, code: int) -> NoReturn:
    """Say what was wrong and exit: the first rank of a machine at once, the others only after it.

    At the first exit the launcher kills all other ranks, and the message with them.
    """
    if local_rank == 0:
        click.echo(f"error: {message}", err=True)
    else:
        time.sleep(5)
    sys.exit(code)


if __name__ == "__main__":
    main()
