"""GeoTIFF to dataset: ours, the field's rasterio loop and a stand-in for rico-hdl, in one run.

    python tests/benchmarks/ingest.py --out tests/benchmarks/results/ingest.json

Makes an archive of `--pairs` pairs with real content in the genuine BigEarthNet v1 layout, then
runs every system on it, each in a process of its own, at 1 and 2 workers, rounds interleaved.
CPU time is user and system time of the process and all its children. `cpu_ms_a_pair` and
`pairs_a_s` count everything; `..._without_start` take off what the same command needs for a
handful of pairs, so that starting Python does not weigh on a short run.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
from ingest_stages import SAMPLES_PER_SHARD
from real_content import REAL_V1, S1_ROOT, S2_ROOT, read_pairs, write_archive

HERE = Path(__file__).parent
# A handful of pairs: what a system's start costs.
START_PAIRS = 6
# What is written, and whether it is read from the tars of the two folders.
OURS = {
    "ours, shards": (("shards",), False),
    "ours, shards and zarr": (("shards", "zarr"), False),
    "ours, shards, from tars": (("shards",), True),
    "ours, shards and zarr, from tars": (("shards", "zarr"), True),
}
PEERS = {
    "rasterio loop": "rasterio-loop",
    "stand-in for rico-hdl": "rico-hdl-stand-in",
    # No peer: what nobody gets below.
    "bare bytes": "bare-bytes",
}
SYSTEMS = (*OURS, *PEERS)


@dataclass(frozen=True)
class Run:
    """One run of one system: CPU and wall seconds, bytes on disk."""

    cpu_s: float
    wall_s: float
    out_bytes: int


def command_of(system: str, archive: Path, out: Path, workers: int) -> list[str]:
    if system in PEERS:
        peer = [sys.executable, str(HERE / "peers.py"), PEERS[system], str(archive), str(out)]
        return [*peer, "--workers", str(workers)]
    formats, from_tars = OURS[system]
    ending = ".tar" if from_tars else ""
    command = [sys.executable, "-m", "fusmae_ingest.cli", "bigearthnet"]
    command += ["--s2", f"{archive / S2_ROOT}{ending}", "--s1", f"{archive / S1_ROOT}{ending}"]
    command += ["--out", str(out), "--workers", str(workers)]
    command += ["--samples-per-shard", SAMPLES_PER_SHARD]
    for name in formats:
        command += ["--format", name]
    return command


def run(system: str, archive: Path, out: Path, workers: int) -> Run:
    """Run one system; its output is measured and deleted.

    Raises:
        RuntimeError: it failed; the message is the end of what it printed.
    """
    with tempfile.TemporaryFile() as log:
        start = time.perf_counter()
        process = subprocess.Popen(
            command_of(system, archive, out, workers), stdout=log, stderr=subprocess.STDOUT
        )
        # Of the process and of all children that it waited for.
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            told = log.read().decode(errors="replace")[-2000:]
            raise RuntimeError(f"{system} ended with {process.returncode}: {told}")
    # What lies on disk: LMDB's file is sparse.
    out_bytes = sum(512 * f.stat().st_blocks for f in out.rglob("*") if f.is_file())
    shutil.rmtree(out)
    # The index of tars is made anew in each run, and counts.
    shutil.rmtree(out.with_name(f"{out.name}.spool"), ignore_errors=True)
    return Run(usage.ru_utime + usage.ru_stime, wall_s, out_bytes)


def stages(archive: Path, out: Path, formats: tuple[str, ...], tars: bool) -> dict[str, float]:
    """CPU seconds of each stage of ours, by clocks in its process."""
    command = [sys.executable, str(HERE / "ingest_stages.py"), str(archive), str(out)]
    command += ["--tars"] if tars else []
    for name in formats:
        command += ["--format", name]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    shutil.rmtree(out)
    shutil.rmtree(out.with_name(f"{out.name}.spool"), ignore_errors=True)
    seconds: dict[str, float] = json.loads(told.splitlines()[-1])["cpu_s"]
    return seconds


def summary(runs: list[Run], starts: list[Run], num_pairs: int) -> dict[str, Any]:
    start_s = min(run.cpu_s for run in starts)
    start_wall_s = min(run.wall_s for run in starts)
    more = num_pairs - START_PAIRS
    return {
        "cpu_ms_a_pair": machine.spread([1e3 * r.cpu_s / num_pairs for r in runs]),
        "cpu_ms_a_pair_without_start": machine.spread(
            [1e3 * (r.cpu_s - start_s) / more for r in runs]
        ),
        "start_cpu_s": round(start_s, 4),
        "pairs_a_s": machine.spread([num_pairs / r.wall_s for r in runs], 1),
        "pairs_a_s_without_start": machine.spread(
            [more / (r.wall_s - start_wall_s) for r in runs], 1
        ),
        "out_bytes_a_pair": round(runs[-1].out_bytes / num_pairs),
    }


def ratios(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """CPU of each peer over CPU of ours, medians, at the same number of workers."""
    table = {}
    for case, result in results.items():
        system, _, workers = case.partition(" @ ")
        if system not in PEERS:
            continue
        for ours in OURS:
            other = results[f"{ours} @ {workers}"]
            for what in ("cpu_ms_a_pair", "cpu_ms_a_pair_without_start"):
                ratio = result[what]["median"] / other[what]["median"]
                table[f"{case}: {what} over {ours}"] = round(ratio, 2)
    return table


def compare(
    archive: Path, small: Path, scratch: Path, num_pairs: int, rounds: int, workers: list[int]
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Every system's summary, and the stages of ours, ms CPU a pair."""
    cases = [(system, count) for count in workers for system in SYSTEMS]
    runs: dict[tuple[str, int], list[Run]] = defaultdict(list)
    starts: dict[tuple[str, int], list[Run]] = defaultdict(list)
    by_stage: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for turn in range(rounds):
        for case in cases:
            starts[case].append(run(case[0], small, scratch / "out", case[1]))
            runs[case].append(run(case[0], archive, scratch / "out", case[1]))
            print(f"round {turn + 1}: {case[0]} @ {case[1]}: {runs[case][-1]}", file=sys.stderr)
        for system, how in OURS.items():
            for stage, seconds in stages(archive, scratch / "out", *how).items():
                by_stage[system][stage].append(1e3 * seconds / num_pairs)
    results = {
        f"{system} @ {count}": summary(runs[system, count], starts[system, count], num_pairs)
        for system, count in cases
    }
    return results, {
        system: {stage: machine.spread(ms) for stage, ms in table.items()}
        for system, table in by_stage.items()
    }


def pack(archive: Path) -> None:
    """Put a tar of each of the two folders beside them, as the archives are published."""
    for folder in (S2_ROOT, S1_ROOT):
        with tarfile.open(archive / f"{folder}.tar", "w", format=tarfile.GNU_FORMAT) as tar:
            tar.add(archive / folder, folder)


def simulate(out: Path) -> Path:
    """A simulated archive of six pairs, where the real ones are absent."""
    command = [sys.executable, "-m", "fusmae_ingest.cli", "simulate", "bigearthnet"]
    command += ["--out", str(out), "--patches", str(START_PAIRS), "--version", "v1"]
    subprocess.run(command, check=True, capture_output=True)
    return out


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=2000, help="of the archive; default 2000")
    parser.add_argument("--rounds", type=int, default=3, help="of each system; default 3")
    workers = parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    workers.help = "processes, a case each; default 1 2"
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    options = parser.parse_args(arguments)
    if options.pairs <= START_PAIRS:
        parser.error(f"--pairs must be above {START_PAIRS}, the pairs that tell what a start costs")
    described = machine.describe(
        *("numpy", "numba", "rasterio", "zarr", "numcodecs", "webdataset", "lmdb", "safetensors")
    )
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        real = REAL_V1.is_dir()
        pairs = list(read_pairs(REAL_V1 if real else simulate(scratch / "simulated")))
        write_archive(scratch / "archive", pairs, options.pairs)
        write_archive(scratch / "small", pairs, START_PAIRS)
        for archive in (scratch / "archive", scratch / "small"):
            pack(archive)
        results, by_stage = compare(
            scratch / "archive",
            scratch / "small",
            scratch,
            options.pairs,
            options.rounds,
            options.workers,
        )
    report = {
        "benchmark": "ingest",
        "machine": described,
        "config": {
            "pairs": options.pairs,
            "rounds": options.rounds,
            "workers": options.workers,
            "content": f"varied copies of {len(pairs)} "
            + ("real BigEarthNet v1 pairs" if real else "SIMULATED pairs, real ones being absent"),
            "samples_per_shard": f"{SAMPLES_PER_SHARD} (ours), 1024 (rasterio loop)",
            "source": "files in the page cache; from tars: two plain tars, indexed in each run",
            "cpu": "user and system seconds of the process and all its children",
        },
        "results": results,
        "ratios": ratios(results),
        "stages_cpu_ms_a_pair": by_stage,
    }
    machine.write(options.out, report)
    print(json.dumps({key: report[key] for key in ("results", "ratios")}, indent=1))


if __name__ == "__main__":
    main()
