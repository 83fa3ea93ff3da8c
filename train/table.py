"""Fill one of the paper's tables: pretrain or load every system, evaluate it, write the table."""

import hashlib
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from fusmae.evaluation.experiment import Experiment, Places, Step, load_experiment, slug, steps
from fusmae.evaluation.experiment_table import gather, markdown
from fusmae.manifest import MANIFEST_NAME
from fusmae.model.pretrained import WEIGHTS_NAME
from fusmae.training.durable import replace_file
from fusmae.training.record import git_commit

_SCRIPTS = Path(__file__).resolve().parent
_DONE = "steps.json"
_EXAMPLES = """
\b
Examples:
  # Table 1 on one's own BigEarthNet, with the checkpoints that one has
  python train/table.py train/tables/table1.toml --data bigearthnet=ben --out results/table1 \\
      --weights dino-mm=B14_vits8_dinomm_ep99.pth --launcher "deepspeed"
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
    metavar="KIND=FILE",
    help="A third-party checkpoint, or a TOML about it: docs/BACKBONES.md.",
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
        done = _read_done(out)
        left = [step for step in listed if not _is_done(step, done.get(step.name, {}))]
        if dry_run:
            for step in left:
                click.echo(_text(step))
            return
        console = Console(stderr=True)
        for number, step in enumerate(left, len(listed) - len(left) + 1):
            console.print(f"{number}/{len(listed)} {step.name}", highlight=False)
            done[step.name] = _run(step, out)
            _write(out / _DONE, done)
            _write_table(experiment.stem, loaded, places, chosen, done)
        page = _write_table(experiment.stem, loaded, places, chosen, done)
    except (ValueError, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    click.echo(page)


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(seed) for seed in text.split(","))
    except ValueError:
        raise click.UsageError(f"--seeds {text}: expected numbers, such as 0,1,2") from None


def _text(step: Step) -> str:
    return shlex.join(step.command)


def _read_done(out: Path) -> dict[str, Any]:
    """The steps that ended well: name -> command and wall time."""
    try:
        done: dict[str, Any] = json.loads((out / _DONE).read_text())
    except FileNotFoundError:
        return {}
    return done


def _is_done(step: Step, entry: dict[str, Any]) -> bool:
    """Whether a step has ended with its product, by this command on these recipes and data."""
    same = entry.get("command") == _text(step) and entry.get("inputs") == _inputs(step)
    return same and step.product.exists()


def _inputs(step: Step) -> dict[str, str]:
    """The sha256 of each file that the command names; of a folder, of what says all of it."""
    digests = {}
    for word in step.command:
        for path in (Path(word), Path(word) / MANIFEST_NAME, Path(word) / WEIGHTS_NAME):
            if path.is_file() and not path.is_relative_to(step.out):
                with path.open("rb") as file:
                    digests[str(path)] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _run(step: Step, out: Path) -> dict[str, Any]:
    """Run one step, everything it prints into its log.

    Raises:
        ValueError: it failed or was stopped; the message names the log and gives its last line.
    """
    log = out / "logs" / f"{slug(step.name)}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    start_s = time.monotonic()
    with log.open("wb") as sink:
        code = subprocess.run(step.command, stdout=sink, stderr=subprocess.STDOUT).returncode
    if code:
        lines = log.read_text(errors="replace").strip().splitlines() or ["it printed nothing"]
        raise ValueError(f"{step.name} ended with code {code}: {lines[-1]} ({log})")
    if not step.product.exists():
        raise ValueError(
            f"{step.name} was stopped before its end ({log}): the same command again goes on"
        )
    wall_s = round(time.monotonic() - start_s, 1)
    return {"command": _text(step), "inputs": _inputs(step), "wall_s": wall_s}


def _write(path: Path, table: dict[str, Any]) -> None:
    replace_file(path, (json.dumps(table, indent=1, ensure_ascii=False) + "\n").encode())


def _write_table(
    name: str, loaded: Experiment, places: Places, seeds: tuple[int, ...], done: dict[str, Any]
) -> str:
    table = {**gather(loaded, places.out, seeds, places.weights), "code": _describe_code()}
    table["wall_s"] = round(sum(step["wall_s"] for step in done.values()), 1)
    page = markdown(table, loaded)
    places.out.mkdir(parents=True, exist_ok=True)
    _write(places.out / f"{name}.json", table)
    replace_file(places.out / f"{name}.md", page.encode())
    return page


def _describe_code() -> dict[str, str | None]:
    """The commit, and the simulator's own hash: rows are compared on one simulator only."""
    root = _SCRIPTS.parent
    digest = hashlib.sha256()
    for path in sorted((root / "ingest").glob("simulat*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return {"git_commit": git_commit(), "simulator_sha256": digest.hexdigest()}


if __name__ == "__main__":
    main()
