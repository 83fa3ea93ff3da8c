"""`RUN/metrics.jsonl`: one JSON object a line, and the means that stand in it."""

import errno
import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusmae.training.durable import replace_file

METRICS = "metrics.jsonl"


class MetricsWriter:
    """Appends lines to `RUN/metrics.jsonl`, each in one write, so no reader sees half of one."""

    def __init__(self, path: Path, resumed_step: int) -> None:
        """Continue a file after `resumed_step`: later lines, which will be made again, go.

        Args:
            path: the file; it need not exist.
            resumed_step: updates made so far, 0 for a new run.
        """
        kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= resumed_step]
        replace_file(path, b"".join(kept))
        self._path = path

    def write(self, line: dict[str, Any]) -> None:
        """Raises OSError where there is no room; no part of the line is then left."""
        data = json.dumps(line).encode() + b"\n"
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        try:
            written = os.write(descriptor, data)
            if written < len(data):
                os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)


def _whole_lines(path: Path) -> list[bytes]:
    """The file's lines less a last one that a kill cut short."""
    if not path.exists():
        return []
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


@dataclass
class Means:
    """Means over the steps since the last line. A checkpoint keeps the sums, so that a run
    resumed between two lines writes the same next line as an undisturbed one.

    A sensor's loss is averaged over the steps that had the sensor: `absent` counts the others.
    """

    count: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    absent: dict[str, int] = field(default_factory=dict)

    def add(self, values: dict[str, float], absent: Iterable[str] = ()) -> None:
        """A step's values; `absent` names those that this step has none of."""
        self.count += 1
        for name in absent:
            self.absent[name] = self.absent.get(name, 0) + 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def take(self) -> dict[str, float]:
        """The means since the last call; starts over. At least one `add` came before."""
        means = {
            name: total / (self.count - self.absent.get(name, 0))
            for name, total in self.sums.items()
        }
        self.count, self.sums, self.absent = 0, {}, {}
        return means


class Stopwatch:
    """Speed since the last reading, on the wall clock of this rank."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._waited_s = 0.0
        self._samples = 0
        self._steps = 0

    def add(self, samples: int, waited_s: float) -> None:
        """Count one step's samples, of all ranks, and the seconds it waited for them."""
        self._steps += 1
        self._samples += samples
        self._waited_s += waited_s

    def skip(self, seconds: float) -> None:
        """Leave out time that was not spent on training."""
        self._start += seconds

    def read(self) -> dict[str, float]:
        """Samples a second, seconds a step, and the fraction of them spent waiting for data.

        Starts over. At least one `add` came before.
        """
        now = time.perf_counter()
        elapsed = now - self._start
        speed = {
            "samples_per_s": self._samples / elapsed,
            "step_s": elapsed / self._steps,
            "data_wait": self._waited_s / elapsed,
        }
        self._start, self._waited_s, self._samples, self._steps = now, 0.0, 0, 0
        return speed
