"""What a person sees of a run: a progress bar on a terminal, plain lines elsewhere."""

from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class Monitor:
    """Shows losses, learning rate, speed and the time left; silent where `shown` is False."""

    def __init__(self, total_steps: int, first_step: int, shown: bool) -> None:
        self._console = Console(quiet=not shown)
        self._total = total_steps
        self._progress = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(bar_width=None),
            TextColumn("{task.description}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not shown or not self._console.is_terminal,
        )
        self._task = self._progress.add_task("", total=total_steps, completed=first_step)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """One line for the reader, above the bar."""
        # Nobody may read it (`| tee` has ended), or a full disk take no log; the run goes on.
        # rich makes SystemExit of a broken pipe, and is silent from then on.
        with suppress(SystemExit, OSError):
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def advance(self, step: int) -> None:
        """`step` updates are done."""
        self._progress.update(self._task, completed=step)

    def show(self, line: dict[str, Any], losses: list[str]) -> None:
        """Show a line of `metrics.jsonl`; `losses` are the names of its losses, in order."""
        numbers = "  ".join(f"{name} {line[name]:.4f}" for name in losses)
        text = f"{numbers}  lr {line['lr']:.2e}  {line['samples_per_s']:.0f} samples/s"
        text += f"  data wait {line['data_wait']:.1%}"
        text += f"  MFU {line['mfu']:.1%}" if "mfu" in line else ""
        self._progress.update(self._task, description=text)
        if self._progress.disable:
            left_s = (self._total - line["step"]) * line["step_s"]
            self.say(f"step {line['step']}/{self._total}  {text}  {_duration(left_s)} left")


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
