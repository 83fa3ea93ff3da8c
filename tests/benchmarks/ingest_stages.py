"""Where ours spends its CPU time: the real functions, each wrapped in a clock.

    python tests/benchmarks/ingest_stages.py ARCHIVE OUT --format shards --format zarr

Runs `fusmae-ingest bigearthnet` in this process with one worker and prints JSON: CPU seconds
of each stage, without those of stages that it calls. The clocks cost about a microsecond a
call themselves, some 2 % of the whole; figures that are compared come from runs without.
"""

import argparse
import functools
import importlib
import inspect
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from real_content import S1_ROOT, S2_ROOT

# Blocks for every worker even in short runs; the default's 1,024 would leave one idle.
SAMPLES_PER_SHARD = "256"

# Stage -> what does it: `module:function`, `module:class.method`, or `module:*` for all public
# functions of a module. A name that is gone is an error: the table has to follow the code.
STAGES = {
    "list the archive": ("fusmae_ingest.bigearthnet_archive:scan_v1",),
    "index the tars": ("fusmae_ingest.archives:open_archive",),
    "read bytes": (
        "fusmae_ingest.patches:FolderPatch.load",
        "fusmae_ingest.tar_archive:TarPatch.load",
    ),
    "decode": ("fusmae_ingest.geotiff:decode_band",),
    "pair checks and facts": ("fusmae_ingest.bigearthnet_pair:read_pair",),
    "statistics": (
        "fusmae_ingest.statistics:Counter.add",
        "fusmae_ingest.statistics:Counter.partials",
        "fusmae_ingest.statistics:*",
    ),
    "tar headers and json": ("fusmae.sample:encode_parts",),
    "hash": ("fusmae_ingest.new_file:NewFile.write",),
    "write": (
        "fusmae_ingest.storage:_LocalSink.append",
        "fusmae_ingest.storage:_LocalSink.open",
        "fusmae_ingest.storage:_LocalSink.close",
    ),
    "footprints": ("fusmae_ingest.geotiff:footprints",),
    "zarr encode": ("fusmae_ingest.zarr_store:_compress",),
    "zarr metadata": ("fusmae_ingest.zarr_store:encode_group",),
    "finish": ("fusmae_ingest.finish:finish",),
}


class Clock:
    """CPU seconds of nested stages, each without the stages inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._running: list[str] = ["rest"]
        self._since = time.process_time()

    def wrap(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.enter(stage)
            try:
                return function(*args, **kwargs)
            finally:
                self.leave()

        return timed

    def enter(self, stage: str) -> None:
        self._charge()
        self._running.append(stage)

    def leave(self) -> None:
        self._charge()
        self._running.pop()

    def _charge(self) -> None:
        now = time.process_time()
        self.seconds[self._running[-1]] += now - self._since
        self._since = now


def install(clock: Clock) -> None:
    """Put clocks around every function of STAGES, wherever our modules hold it."""
    for stage, names in STAGES.items():
        for name in names:
            module_name, _, path = name.partition(":")
            module = importlib.import_module(module_name)
            for inner in public_functions(module) if path == "*" else [path]:
                replace_everywhere(clock, stage, module, inner)


def public_functions(module: ModuleType) -> list[str]:
    return [
        name
        for name, value in inspect.getmembers(module, inspect.isfunction)
        if value.__module__ == module.__name__ and not name.startswith("_")
    ]


def replace_everywhere(clock: Clock, stage: str, module: ModuleType, path: str) -> None:
    owner: Any = module
    *outer, last = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    function = getattr(owner, last)
    wrapped = clock.wrap(stage, function)
    setattr(owner, last, wrapped)
    # Modules that imported the function by name hold it themselves.
    for holder in [m for name, m in sys.modules.items() if name.startswith("fusmae")]:
        for held, value in list(vars(holder).items()):
            if value is function:
                setattr(holder, held, wrapped)


def measure(archive: Path, out: Path, formats: list[str], tars: bool) -> dict[str, float]:
    """CPU seconds by stage of one conversion; `start` is Python and its imports."""
    # numba is loaded by the first sample, else within the stage that counts it.
    import fusmae_ingest.counting  # noqa: F401
    from fusmae_ingest.bigearthnet import bigearthnet

    start = time.process_time()
    clock = Clock()
    install(clock)
    ending = ".tar" if tars else ""
    command = ["--s2", f"{archive / S2_ROOT}{ending}", "--s1", f"{archive / S1_ROOT}{ending}"]
    command += ["--out", str(out), "--samples-per-shard", SAMPLES_PER_SHARD]
    for name in formats:
        command += ["--format", name]
    clock.enter("rest")
    bigearthnet.main(command, standalone_mode=False)
    clock.leave()
    return {"start": start, **clock.seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--format", dest="formats", action="append", required=True)
    parser.add_argument("--tars", action="store_true", help="read the tars of both folders")
    options = parser.parse_args()
    seconds = measure(options.archive, options.out, options.formats, options.tars)
    print(json.dumps({"cpu_s": seconds}))


if __name__ == "__main__":
    main()
