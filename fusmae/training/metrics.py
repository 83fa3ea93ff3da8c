"""`RUN/metrics.jsonl`: one JSON object a line, and the means that stand in it."""

import errno
import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fusmae.training.durable import replace_file

METRICS = "metrics.jsonl"


class MetricsWriter:
    """Appends lines, each with its "step", to a file of a run, each in one write: none is torn."""

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


def has_line(path: Path, step: int, key: str) -> bool:
    """Whether a file of metrics has a line of that step with that key."""
    return any(line["step"] == step and key in line for line in read_metrics(path))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of metrics, less a last one that a kill cut short; none without it."""
    return [json.loads(line) for line in _whole_lines(path)]


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
    Steps that were skipped count in `skipped` alone.
    """

    count: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    absent: dict[str, int] = field(default_factory=dict)
    skipped: int = 0

    def add(self, values: dict[str, float], absent: Iterable[str] = ()) -> None:
        """A step's values; `absent` names those that this step has none of."""
        self.count += 1
        for name in absent:
            self.absent[name] = self.absent.get(name, 0) + 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def skip(self) -> None:
        """A step that came to nothing."""
        self.skipped += 1

    def take(self) -> dict[str, float]:
        """The means since the last call, without any where all steps were skipped; starts over."""
        means = {
            name: total / (self.count - self.absent.get(name, 0))
            for name, total in self.sums.items()
        }
        self.count, self.sums, self.absent, self.skipped = 0, {}, {}, 0
        return means


# Dense bfloat16 products, operations a second, by the datasheets of the SXM versions. Others, and
# parts of a GPU, have other peaks; of what is not listed no share of the peak is told.
_PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}
_OTHER_VERSIONS = {"PCIE", "NVL", "MIG"}


def peak_flops(gpu: str) -> float | None:
    """The peak of a GPU with this name, as torch tells it; None where it is not known."""
    words = set(re.split(r"[^A-Z0-9]+", gpu.upper()))
    if words & _OTHER_VERSIONS:
        return None
    return next((peak for name, peak in _PEAK_FLOPS.items() if name in words), None)


class Stopwatch:
    """Speed since the last reading, of this rank.

    On a GPU the wait for data is the time for which the GPU had nothing to do: between the end of
    a step's work and the arrival of the next samples, by events in its stream. The host, which
    runs ahead, waits longer without harm. On a CPU it is the host's wait.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._peak = peak_flops(torch.cuda.get_device_name(device)) if self._on_gpu else None
        self._reset()

    def _reset(self) -> None:
        self._start = time.perf_counter()
        self._waited_s = 0.0
        self._waits: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._samples = self._steps = self._flops = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """What is done inside is waiting for data."""
        if self._on_gpu:
            before = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            after = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            before.record()
            yield
            after.record()
            self._waits.append((before, after))
        else:
            asked = time.perf_counter()
            yield
            self._waited_s += time.perf_counter() - asked

    def add(self, samples: int, flops: int) -> None:
        """Count one step: its samples, of all ranks, and this rank's operations."""
        self._steps += 1
        self._samples += samples
        self._flops += flops

    @contextmanager
    def apart(self) -> Iterator[None]:
        """What is done inside is not training, and its time is left out."""
        started = time.perf_counter()
        yield
        self._start += time.perf_counter() - started

    def read(self) -> dict[str, float]:
        """Samples a second, seconds a step, and the fraction of them spent waiting for data.

        On a GPU, 10^12 operations a second of one GPU, too, and their share of its peak where
        that is known. Starts over. At least one `add` came before, and the device is done.
        """
        elapsed = time.perf_counter() - self._start
        waited_s = self._waited_s
        waited_s += sum(before.elapsed_time(after) for before, after in self._waits) / 1e3
        speed = {
            "samples_per_s": self._samples / elapsed,
            "step_s": elapsed / self._steps,
            "data_wait": waited_s / elapsed,
        }
        if self._on_gpu:
            speed["tflops"] = self._flops / elapsed / 1e12
        if self._peak:
            speed["mfu"] = self._flops / elapsed / self._peak
        self._reset()
        return speed
