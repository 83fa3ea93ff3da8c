"""What a benchmark's JSON says beside its figures: the machine, versions, spread of rounds."""

import json
import os
import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def describe(*packages: str) -> dict[str, Any]:
    """The processor, its cores that this process may use, and versions; no names, no clock.

    Ends the benchmark where one of the packages is not installed.
    """
    missing = [name for name in packages if not find_spec(name)]
    if missing:
        needed = " ".join(missing)
        raise SystemExit(f"error: this benchmark needs {needed}: pip install {needed}")
    model = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "load_at_start": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "versions": {name: version(name) for name in packages},
    }


def spread(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Median, least and greatest of the rounds."""
    return {
        "median": round(statistics.median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
    }


def write(path: Path, report: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
