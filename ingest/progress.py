"""The progress bar of long work, on standard error."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# Between two updates of the bar.
_PAUSE_S = 0.1


class SampleProgress:
    """`with SampleProgress("Converting") as progress: progress.update(done, total)`."""

    def __init__(self, title: str) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task(title, total=None, rate="")
        self._first: int | None = None
        self._next = 0.0

    def __enter__(self) -> "SampleProgress":
        self._bar.start()
        return self

    def update(self, done: int, total: int) -> None:
        # Told after every sample, shown at the bar's own pace.
        if done < total and time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _PAUSE_S
        # What an earlier run did does not count towards this run's speed.
        self._first = done if self._first is None else self._first
        elapsed = self._bar.tasks[self._task].elapsed or 0.0
        rate = f"{(done - self._first) / elapsed:,.0f}/s" if elapsed > 0.5 else ""
        self._bar.update(self._task, completed=done, total=total, rate=rate)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
