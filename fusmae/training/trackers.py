"""Where a run's numbers go: `RUN/metrics.jsonl`, and TensorBoard and Weights & Biases if asked for.

All of them are rank 0's. None of them may end a run: what fails is told.
"""

import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fusmae.config import PretrainRecipe, RunConfig, as_table
from fusmae.training.metrics import METRICS, MetricsWriter
from fusmae.training.record import RUN_RECORD

Write = Callable[[dict[str, Any]], None]

TENSORBOARD = "tensorboard"


class Trackers:
    """Writes each line of metrics to all places; rank 0 only."""

    def __init__(self, run: Path, recipe: PretrainRecipe, step: int, say: Callable[[str], None]):
        """Continue the records of `run`, which has its run.json, after `step` updates.

        Raises:
            ValueError: Weights & Biases does not let the run in.
        """
        self._say = say
        self._writers: dict[str, Write] = {METRICS: MetricsWriter(run / METRICS, step).write}
        if recipe.run.tensorboard:
            self._writers["TensorBoard"] = _tensorboard(run / TENSORBOARD, step)
        if recipe.run.wandb:
            self._writers["Weights & Biases"] = _wandb(run, recipe)

    def write(self, line: dict[str, Any]) -> None:
        """Record a line, which has its "step"; a place that fails is told and asked again."""
        for name, write in self._writers.items():
            try:
                write(line)
            # The packages raise what they like, and a full disk is an OSError.
            except Exception as error:
                reason = str(error).partition("\n")[0] or type(error).__name__
                self._say(f"warning: step {line['step']} is missing in {name}: {reason}")


def check_trackers(config: RunConfig) -> None:
    """Raises ValueError if a package that the recipe asks for is not installed."""
    for name, is_wanted in (("tensorboard", config.tensorboard), ("wandb", bool(config.wandb))):
        if is_wanted and importlib.util.find_spec(name) is None:
            raise ValueError(
                f"run.{name} needs the package {name}, which is not installed: "
                f"pip install 'fusmae[{name}]'"
            )


def scalars(line: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a line by name, "val/loss" for one within "val"."""
    for name, value in line.items():
        if isinstance(value, dict):
            yield from ((f"{name}/{inner}", number) for inner, number in scalars(value))
        elif isinstance(value, (int, float)) and name != "step":
            yield name, float(value)


def _tensorboard(folder: Path, step: int) -> Write:
    from torch.utils.tensorboard import SummaryWriter

    # What a killed run has logged after `step` will be logged again.
    writer: Any = SummaryWriter(folder, purge_step=step + 1)

    def write(line: dict[str, Any]) -> None:
        for name, value in scalars(line):
            writer.add_scalar(name, value, line["step"])
        writer.flush()

    return write


def _wandb(run: Path, recipe: PretrainRecipe) -> Write:
    import wandb

    first_start = json.loads((run / RUN_RECORD).read_text())["starts"][0]
    try:
        tracked: Any = wandb.init(
            project=recipe.run.wandb,
            name=run.name,
            dir=run,
            # The same after each resumption, and another one for another run.
            id=hashlib.sha256(json.dumps(first_start).encode()).hexdigest()[:16],
            resume="allow",
            config=as_table(recipe),
            settings=wandb.Settings(console="off"),  # it would record the progress bar
        )
    except wandb.Error as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"run.wandb = {recipe.run.wandb!r}: {reason}; run `wandb login`, set "
            'WANDB_MODE=offline, or run.wandb = ""'
        ) from None

    def write(line: dict[str, Any]) -> None:
        # Of a step that is made again, Weights & Biases keeps the first line, which is equal.
        tracked.log(dict(scalars(line)), step=line["step"])

    return write
