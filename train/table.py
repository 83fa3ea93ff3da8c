"""Fill one of the paper's tables: pretrain or load every system, evaluate it, write the table."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import click
from rich.console import Console

from fusmae.evaluation.experiment import Experiment, load_experiment, slug
from fusmae.evaluation.experiment_done import (
    STEPS_NAME,
    Attempt,
    commits_of,
    is_done,
    read_done,
)
from fusmae.evaluation.experiment_page import markdown
from fusmae.evaluation.experiment_steps import (
    Places,
    Step,
    check_datasets,
    check_weights,
    lacking_weights,
    steps,
)
from fusmae.evaluation.experiment_table import gather
from fusmae.training.durable import replace_file

_SCRIPTS = Path(__file__).resolve().parent
# A rank that is asked to stop saves and ends within 30 s, and so much longer on a slow disk.
_STOPPED_S = 90
_EXAMPLES = """
\b
Examples:
  # Table 1 on one's own BigEarthNet, with the checkpoints that one has
  python train/table.py train/tables/table1.toml --data bigearthnet=ben --out results/table1 \\
      --weights dino-mm=B14_vits8_dinomm_ep99.pth --launcher "deepspeed"
\b
  # Table 2 with the encoders of Table 1
  python train/table.py train/tables/table2.toml --data bigearthnet=ben --data sen12ms=SEN12MS \\
      --weights fus-mae-xad=results/table1/pretraining/fus-mae-xad/seed-{seed}/encoder \\
      --weights fus-mae-xae-d=results/table1/pretraining/fus-mae-xae-d/seed-{seed}/encoder \\
      --out results/table2
\b
  # what would be run
  python train/table.py train/tables/table1.toml --data bigearthnet=ben --out OUT --dry-run
"""


def _pairs(what: str, given: tuple[str, ...]) -> dict[str, str]:
    """`NAME=VALUE` options as a dictionary; raises click.UsageError."""
    split = [text.partition("=") for text in given]
    wrong = [text for text, (name, equals, value) in zip(given, split, strict=True) if not value]
    if wrong:
        raise click.UsageError(f"--{what} {wrong[0]}: expected NAME=PATH")
    return {name: value for name, _, value in split}


@click.command(epilog=_EXAMPLES)
@click.argument("experiment", type=click.Path(path_type=Path))
@click.option("--data", multiple=True, metavar="NAME=PATH", help="Each dataset that it names.")
@click.option(
    "--weights",
    multiple=True,
    metavar="NAME=PATH",
    help="A third-party checkpoint, or a TOML about it: docs/BACKBONES.md. Or an encoder of ours "
    "instead of its pretraining, by its row: fus-mae-xad=RUN/encoder; {seed} stands for the seed.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of all runs.")
@click.option("--seeds", help="Instead of the experiment's: 0,1,2.")
@click.option(
    "--launcher",
    default="deepspeed",
    show_default=True,
    help='What starts a pretraining, such as "deepspeed --num_accelerators 2".',
)
@click.option("--dry-run", is_flag=True, help="Print the commands that are still to be run.")
def main(
    experiment: Path,
    data: tuple[str, ...],
    weights: tuple[str, ...],
    out: Path,
    seeds: str | None,
    launcher: str,
    dry_run: bool,
) -> None:
    """Run what EXPERIMENT (a file of train/tables/) lists, and write OUT/NAME.json and .md.

    Stopped at any time, the same command goes on where it was. A step that fails ends it with
    the step's log; the table is written after every step from what there is.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        loaded = load_experiment(experiment)
        chosen = _seeds(seeds) if seeds else loaded.seeds
        places = Places(
            home=experiment.parent,
            scripts=_SCRIPTS,
            out=out,
            data=_pairs("data", data),
            weights=_pairs("weights", weights),
            launcher=tuple(shlex.split(launcher)),
            python=sys.executable,
        )
        listed = steps(loaded, places, chosen)
        done = read_done(out)
        left = [step for step in listed if not is_done(step, done.get(step.name, {}))]
        if left:
            check_datasets(places)
            check_weights(loaded, places, chosen)
        console = Console(stderr=True, soft_wrap=True)
        if left and (lacking := lacking_weights(loaded, places)):
            console.print(f"no numbers without weights: {', '.join(lacking)}", highlight=False)
        if dry_run:
            console.print(f"{len(left)} of {len(listed)} steps are left", highlight=False)
            for step in left:
                click.echo(shlex.join((*step.launcher, *step.command)))
            return
        for number, step in enumerate(left, len(listed) - len(left) + 1):
            console.print(f"{number}/{len(listed)} {step.name}", highlight=False)
            _attempt(step, out, done)
            _write_table(experiment.stem, loaded, places, chosen, listed, done)
        page = _write_table(experiment.stem, loaded, places, chosen, listed, done)
    except (ValueError, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    click.echo(page)


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(seed) for seed in text.split(","))
    except ValueError:
        raise click.UsageError(f"--seeds {text}: expected numbers, such as 0,1,2") from None


def _attempt(step: Step, out: Path, done: dict[str, Any]) -> None:
    """Run one step and keep in `done`, and on disk, how long all attempts at it took.

    Raises:
        ValueError: as `_run`.
    """
    attempt = Attempt(step, done.get(step.name, {}))
    start_s = time.monotonic()
    unfinished = True
    try:
        _run(step, out)
        unfinished = False
    finally:
        done[step.name] = attempt.entry(time.monotonic() - start_s, unfinished)
        _write(out / STEPS_NAME, done)


def _run(step: Step, out: Path) -> None:
    """Run one step, everything it prints into its log.

    Raises:
        ValueError: it failed or was stopped; the message names the log and gives its last error.
    """
    log = out / "logs" / f"{slug(step.name)}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as sink:
        code = _wait_for(with_free_port((*step.launcher, *step.command)), sink)
    if code:
        lines = log.read_text(errors="replace").strip().splitlines() or ["it printed nothing"]
        # A launcher has its own last words, which say less.
        errors = [line for line in lines if line.lower().startswith("error:")]
        raise ValueError(f"{step.name} ended with code {code}: {(errors or lines)[-1]} ({log})")
    if not step.product.exists():
        raise ValueError(
            f"{step.name} was stopped before its end ({log}): the same command again goes on"
        )


def _wait_for(command: tuple[str, ...], sink: BinaryIO) -> int:
    """Run a command to its end, its exit code; when this process is stopped, stop it first.

    A launcher's ranks outlive it while they save, so the whole session is told and waited for: the
    same command again finds nobody in its folders.
    """
    process = subprocess.Popen(
        command, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        return process.wait()
    except BaseException:  # Ctrl-C, or SIGTERM's SystemExit
        until = time.monotonic() + _STOPPED_S
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
            while time.monotonic() < until:
                process.poll()
                os.killpg(process.pid, 0)
                time.sleep(0.1)
        raise


def with_free_port(command: tuple[str, ...]) -> tuple[str, ...]:
    """The command with a port of its own for DeepSpeed's launcher, unless it names one.

    Its default is one for all, so that a second run on the machine would fail. No part of what a
    step is known by.
    """
    places = [place for place, word in enumerate(command, 1) if Path(word).name == "deepspeed"]
    if not places or any("--master_port" in word for word in command):
        return command
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    return (*command[: places[0]], f"--master_port={port}", *command[places[0] :])


def _write(path: Path, table: dict[str, Any]) -> None:
    replace_file(path, (json.dumps(table, indent=1, ensure_ascii=False) + "\n").encode())


def _write_table(
    name: str,
    loaded: Experiment,
    places: Places,
    seeds: tuple[int, ...],
    listed: list[Step],
    done: dict[str, Any],
) -> str:
    entries = [done[step.name] for step in listed if step.name in done]
    table = gather(loaded, places.out, seeds, places.weights)
    table["wall_s"] = round(sum(entry["wall_s"] for entry in entries), 1)
    table["commits"] = sorted({commit for entry in entries for commit in commits_of(entry)})
    page = markdown(table, loaded)
    places.out.mkdir(parents=True, exist_ok=True)
    _write(places.out / f"{name}.json", table)
    replace_file(places.out / f"{name}.md", page.encode())
    return page


if __name__ == "__main__":
    main()
