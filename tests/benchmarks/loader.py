"""Shuffled batches from a hot cache, a cold one, too little memory and a store: ours and peers.

    python tests/benchmarks/loader.py --out tests/benchmarks/results/loader.json

Makes the same samples once in each system's format (`loader_data.py`), then runs every system
in a process of its own, on 1 and on 2 cores, rounds interleaved. A digest over all pixels of an
epoch must equal that of the pixels as they were generated. README.md explains the figures.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import machine
from loader_data import SAMPLE_BYTES, SAMPLES_PER_SHARD, disk_bytes, prepare
from loader_disk import sequential_mb_a_s
from loader_remote import compare as compare_remote
from loader_remote import present as present_remote
from loader_run import MEMORY, SYSTEMS
from loader_systems import BATCH, OURS, PEERS
from memory_limit import CannotLimitError, memory_limit, num_killed, peak_bytes, run_inside

from fusmae.torchvision_repair import repair_torchvision

HERE = Path(__file__).parent
PACKAGES = ("numpy", "torch", "webdataset", "mosaicml-streaming", "litdata", "rasterio")
LIMIT_BYTES = 512 << 20
# Ten seconds and more an epoch.
SLOW_A_S = 300

Table = dict[str, Any]


@dataclass(frozen=True)
class Case:
    system: str
    workers: int
    cores: int

    @property
    def name(self) -> str:
        what = "threads" if self.system in OURS or self.system in THREADED else "processes"
        how = f"{self.workers} {what}" if self.workers else "in process"
        return f"{self.system}, {how} @ {self.cores}"


THREADED = ("ours with mmap", "memcpy")
# 0 workers: all in the one process, which for some peers is the fastest way.
HOT = [
    *(Case("ours", threads, 1) for threads in (1, 2)),
    *(Case("ours", threads, 2) for threads in (1, 2, 4)),
    Case("ours, window of 4 shards", 2, 2),
    *(Case("ours, many shards", threads, 2) for threads in (2, 4)),
    Case("ours by ds.stream", 2, 2),
    Case("ours with mmap", 1, 1),
    Case("ours with mmap", 2, 2),
    Case("ours with a ring shared by processes", 2, 2),
    Case("ours with DataLoader processes", 2, 2),
    Case("memcpy", 1, 1),
    Case("memcpy", 2, 2),
    *(Case(peer, workers, cores) for peer in PEERS for workers, cores in ((0, 1), (2, 2))),
    # A third way for those that one process may serve best.
    *(Case(peer, 0, 2) for peer in PEERS if not SYSTEMS[peer].slow),
]
OTHERS = (Case("webdataset", 2, 2), Case("mosaicml", 2, 2))
LITDATA = tuple(Case("litdata, LITDATA_BATCH_DECODE=0", workers, 2) for workers in (0, 2))
COLD = [*(Case("ours", threads, 2) for threads in (1, 2, 4, 8))]
COLD += [Case("ours, window of 4 shards", 2, 2), Case("ours with mmap", 2, 2)]
COLD += [*OTHERS, *LITDATA, Case("rasterio files", 2, 2)]
LIMITED = [*COLD[:6], Case("webdataset, small buffer", 1, 2), *OTHERS, *LITDATA]


def command_of(case: Case, data: Path, *more: str) -> list[str]:
    command = [sys.executable, "-W", "ignore", str(HERE / "loader_run.py"), case.system, str(data)]
    return [*command, "--workers", str(case.workers), "--cores", str(case.cores), *more]


def result_of(name: str, done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What a run has printed last.

    Raises:
        RuntimeError: it failed; the message is the end of what it printed.
    """
    if done.returncode:
        raise RuntimeError(f"{name} ended with {done.returncode}: {done.stderr[-2000:]}")
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{name}: {told}", file=sys.stderr)
    return told


def run(case: Case, data: Path, *more: str) -> dict[str, Any]:
    command = command_of(case, data, *more)
    return result_of(case.name, subprocess.run(command, capture_output=True, text=True))


def summary(case: Case, runs: list[dict[str, Any]], data: Path, digest: int) -> dict[str, Any]:
    system = SYSTEMS[case.system]
    speeds = [run["samples_a_s"] for run in runs]
    table = {
        "samples_a_s": machine.spread(speeds, 1),
        "load": [run["load"] for run in runs],
        "mb_a_s": round(machine.spread(speeds)["median"] * SAMPLE_BYTES / 1e6, 1),
        "rounds": len(runs),
        "shuffle": system.shuffle,
        "disk_mb": round(disk_bytes(data / system.stored) / 1e6, 1),
        "samples_an_epoch": sorted({run["samples"] for run in runs}),
    }
    if "cpu_us" in runs[0]:
        table["cpu_us"] = machine.spread([run["cpu_us"] for run in runs], 1)
        table |= {name: machine.spread([run[name] for run in runs], 1)["median"] for name in MEMORY}
        table["pixels"] = "all" if {run["digest"] for run in runs} == {digest} else "NOT all"
    if "cached_before" in runs[0]:
        table["cached_before"] = max(run["cached_before"] for run in runs)
    return table


def interleaved(
    cases: list[Case], rounds: int, once: Callable[[Case], dict[str, Any] | None]
) -> dict[Case, list[dict[str, Any]]]:
    """The results of each case; a case is dropped, with what it has, where `once` gives None.

    What takes long is measured once: it need not be known to the percent.
    """
    runs: dict[Case, list[dict[str, Any]]] = {case: [] for case in cases}
    left = list(cases)
    for _ in range(rounds):
        for case in list(left):
            result = once(case)
            if result is not None:
                runs[case].append(result)
            if result is None or SYSTEMS[case.system].slow or result["samples_a_s"] < SLOW_A_S:
                left.remove(case)
    return runs


def compare_hot(cases: list[Case], data: Path, options: argparse.Namespace, digest: int) -> Table:
    seconds = str(options.seconds)
    runs = interleaved(cases, options.rounds, lambda case: run(case, data, "--seconds", seconds))
    return {case.name: summary(case, runs[case], data, digest) for case in cases}


def compare_cold(cases: list[Case], data: Path, rounds: int, digest: int) -> Table:
    rates = []

    def once(case: Case) -> dict[str, Any]:
        if case == cases[0]:
            rates.append(sequential_mb_a_s(data / "dataset"))
        return run(case, data, "--cold")

    runs = interleaved(cases, rounds, once)
    return {
        "sequential_read_mb_a_s": machine.spread(rates, 1),
        "systems": {case.name: summary(case, runs[case], data, digest) for case in cases},
    }


def compare_limited(cases: list[Case], data: Path, rounds: int, digest: int) -> Table:
    """Each system where the set is larger than memory and page cache together may be."""
    peaks: dict[Case, float] = defaultdict(float)
    killed = set()

    def once(case: Case) -> dict[str, Any] | None:
        with memory_limit(LIMIT_BYTES) as group:
            done = run_inside(group, command_of(case, data, "--evict", "--seconds", "1"))
            peaks[case] = max(peaks[case], round(peak_bytes(group) / 2**20, 1))
            if num_killed(group):
                killed.add(case)
                return None
        return result_of(f"{case.name}, limited", done)

    try:
        runs = interleaved(cases, rounds, once)
    except CannotLimitError as error:
        return {"not measured": str(error)}
    systems = {
        case.name: {"killed": "by the kernel, for want of memory"}
        if case in killed
        else summary(case, runs[case], data, digest) | {"peak_with_page_cache_mib": peaks[case]}
        for case in cases
    }
    return {"limit_mib": LIMIT_BYTES >> 20, "systems": systems}


def truncated(data: Path, scratch: Path) -> dict[str, str]:
    """How each way of reading ends on a shard that is cut short while it is open."""
    ends = {}
    for how in ("preadv", "mmap"):
        copy = scratch / how
        shutil.copytree(data / "dataset", copy)
        command = [sys.executable, str(HERE / "loader_truncated.py"), how, str(copy)]
        done = subprocess.run(command, capture_output=True, text=True)
        died = signal.Signals(-done.returncode).name if done.returncode < 0 else ""
        ends[how] = f"killed by {died}" if died else done.stdout.strip()
        shutil.rmtree(copy)
    return ends


def ratios(hot: dict[str, dict[str, Any]], cores: int) -> dict[str, Any]:
    """Ours over the peers, medians, each by its best case with so many cores.

    `by_default` is ours with 2 threads, as the trainer has them.
    """

    def best(figure: str, systems: set[str]) -> tuple[float, str]:
        found = [
            (result[figure]["median"], name)
            for name, result in hot.items()
            if name.endswith(f"@ {cores}") and name.rsplit(", ", 1)[0] in systems
        ]
        return (max if figure == "samples_a_s" else min)(found)

    table: dict[str, Any] = {}
    for label, systems in (("best peer", set(PEERS)), ("webdataset", {"webdataset"})):
        for figure in ("samples_a_s", "cpu_us"):
            (mine, _), (theirs, name) = best(figure, {"ours"}), best(figure, systems)
            usual = hot[f"ours, 2 threads @ {cores}"][figure]["median"]
            ratio, by_default = (
                value / theirs if figure == "samples_a_s" else theirs / value
                for value in (mine, usual)
            )
            table[f"{figure}, {label}"] = {
                "ratio": round(ratio, 2),
                "by_default": round(by_default, 2),
                "peer": name,
            }
    return table


def present(cases: list[Case]) -> list[Case]:
    return [case for case in cases if find_spec(SYSTEMS[case.system].package) is not None]


def describe() -> dict[str, Any]:
    described = machine.describe()
    for package in PACKAGES:
        try:
            described["versions"][package] = version(package)
        except PackageNotFoundError:
            described["versions"][package] = "absent"
    return described


def measure(data: Path, options: argparse.Namespace) -> Iterator[Table]:
    """The parts of the report, each as soon as it is known."""
    cases = [case for case in present(HOT) if case.system in (options.only or SYSTEMS)]
    truth = prepare(data, options.samples, {SYSTEMS[case.system].stored for case in cases})
    digest = truth["digest"]
    yield {"content": truth["content"]}
    hot = compare_hot(cases, data, options, digest)
    yield {"hot": hot}
    if options.only:
        return
    yield {"ratios": {f"{cores} cores": ratios(hot, cores) for cores in (1, 2)}}
    with tempfile.TemporaryDirectory() as scratch:
        yield {"truncated_shard": truncated(data, Path(scratch))}
    yield {"cold": compare_cold(present(COLD), data, options.rounds, digest)}
    yield {"limited": compare_limited(present(LIMITED), data, options.rounds, digest)}
    yield {"remote": compare_remote(data, present_remote(data), options.rounds, digest)}


def configuration(options: argparse.Namespace) -> Table:
    return {
        "samples": options.samples,
        "sample_bytes": SAMPLE_BYTES,
        "batch": BATCH,
        "samples_per_shard": SAMPLES_PER_SHARD,
        "rounds": options.rounds,
        "timed_seconds": options.seconds,
        "cpu_us": "user and system time of all processes, a sample",
        "memory": "anonymous and shared, of all processes; no page cache, no libraries' code",
        "OMP_NUM_THREADS": 1,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="timed, at least, in a run")
    parser.add_argument("--data", type=Path, help="keep the samples here, and use them again")
    parser.add_argument("--only", nargs="+", choices=SYSTEMS, help="these systems, hot cache")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    # LitData and MosaicML import torchvision, see there.
    repair_torchvision()
    # With more, torch.stack's threads wait for each other: peers lose up to three quarters.
    os.environ["OMP_NUM_THREADS"] = "1"
    report: Table = {"benchmark": "loader", "machine": describe(), "config": configuration(options)}
    with tempfile.TemporaryDirectory() as folder:
        for part in measure(options.data or Path(folder), options):
            report |= part
            machine.write(options.out, report)
    print(json.dumps(report.get("ratios", report["hot"]), indent=1))


if __name__ == "__main__":
    main()
