"""How far long work is, on standard error: a bar on a terminal, else a plain line now and then."""

import threading
import time
from types import TracebackType

import click
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TextColumn

# Between two updates of the bar.
_PAUSE_S = 0.1
# Between two plain lines: a log of a day has 2,880.
LINE_EVERY_S = 30.0
# A speed over less time than this says nothing of the work.
_MEASURABLE_S = 1.0


class LongWork:
    """`with LongWork("Converting") as work: work.update(done, total)`, samples or bytes.

    Work that ends before it told anything leaves no trace.
    """

    def __init__(self, title: str, in_bytes: bool = False) -> None:
        self._title = title
        self._in_bytes = in_bytes
        # Done, total; and what was done at first, by an earlier run.
        self._now: tuple[int, int] | None = None
        self._first = 0
        self._next = 0.0
        self._end = threading.Event()
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[told]}"),
            console=console,
        )
        self._task = self._bar.add_task(title, total=None, told="")
        self._on_terminal = console.is_terminal and not console.is_dumb_terminal
        self._lines = threading.Thread(target=self._say_now_and_then, daemon=True)

    def __enter__(self) -> "LongWork":
        self._began = time.monotonic()
        if self._on_terminal:
            self._bar.start()
        else:
            self._lines.start()
        return self

    def update(self, done: int, total: int) -> None:
        if self._now is None:
            self._first = done
        self._now = done, total
        # Told after every sample, shown at the bar's own pace.
        if not self._on_terminal or (done < total and time.monotonic() < self._next):
            return
        self._next = time.monotonic() + _PAUSE_S
        self._bar.update(self._task, completed=done, total=total, told=self._told())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._on_terminal:
            self._bar.live.transient = self._now is None
            self._bar.stop()
            return
        self._end.set()
        self._lines.join()
        if self._now is not None:
            self._say()

    def _say_now_and_then(self) -> None:
        while not self._end.wait(LINE_EVERY_S):
            self._say()

    def _say(self) -> None:
        click.echo(f"{self._title}: {self._told()}", err=True)

    def _told(self) -> str:
        spent_s = time.monotonic() - self._began
        if self._now is None:
            return f"{duration(spent_s)} so far"
        return describe(*self._now, self._first, spent_s, self._in_bytes)


def describe(done: int, total: int, first: int, spent_s: float, in_bytes: bool) -> str:
    """How far work is, such as `1,024/354,196 (0 %), 850/s, 7 min left`.

    `first` was there when the work began `spent_s` seconds ago: it counts towards no speed. The
    first second, in which workers start, has none.
    """
    amount = f"{decimal(done)} of {decimal(total)}" if in_bytes else f"{done:,}/{total:,}"
    share = "" if done >= total else f" ({done / total:.0%})"
    if spent_s < _MEASURABLE_S:
        return f"{amount}{share}, {duration(spent_s)}"
    speed = (done - first) / spent_s
    if in_bytes:
        rate = f"{decimal(int(speed))}/s"
    else:
        rate = f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.1f}/s"
    if done >= total:
        return f"{amount}, {rate}, {duration(spent_s)}"
    left = f"{duration((total - done) / speed)} left" if speed else "no end in sight yet"
    return f"{amount}{share}, {rate}, {left}"


def duration(seconds: float) -> str:
    """Such as `45 s`, `7 min`, `3 h 05 min`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"
