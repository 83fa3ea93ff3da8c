"""The progress bar of long work, on standard error."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

# Between two updates of the bar.
_PAUSE_S = 0.1


class LongWork:
    """`with LongWork("Converting") as work: work.update(done, total)`, samples or bytes."""

    def __init__(self, title: str, in_bytes: bool = False) -> None:
        self._in_bytes = in_bytes
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn() if in_bytes else MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task(title, total=None, rate="")
        self._first: int | None = None
        self._next = 0.0

    def __enter__(self) -> "LongWork":
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
        speed = (done - self._first) / max(elapsed, 0.5)
        rate = f"{speed / 1e6:,.0f} MB/s" if self._in_bytes else f"{speed:,.0f}/s"
        self._bar.update(self._task, completed=done, total=total, rate=rate)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
