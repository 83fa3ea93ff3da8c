"""The loader's benchmark runs, and would notice a lost or altered sample; no figure is promised."""

import json
import shutil
import signal
import subprocess
import sys
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
import torch

from fusmae.data import Batch

HERE = Path(__file__).parent
NUM_SAMPLES = 40
# Measured in one case only.
SYSTEM = "ours, many shards"


@pytest.fixture
def benchmark_modules(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))


def run(script, *arguments):
    command = [sys.executable, HERE / script, *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=240)


def test_loader_benchmark_measures_ours_and_the_bare_copy_and_shows_a_truncated_shard(tmp_path):
    report_path = tmp_path / "loader.json"
    done = run(
        *("loader.py", "--samples", NUM_SAMPLES, "--rounds", 1, "--seconds", 0.01),
        *("--only", SYSTEM, "memcpy", "--data", tmp_path / "data", "--out", report_path),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(report_path.read_text())
    names = {name.rpartition(",")[0] for name in report["hot"]}
    assert names == {SYSTEM, "memcpy"}
    for name, result in report["hot"].items():
        assert result["pixels"] == "all", name
        assert result["samples_an_epoch"] == [NUM_SAMPLES]
        assert result["cpu_us"]["min"] > 0
        assert result["disk_mb"] * 1e6 > 275_200 * NUM_SAMPLES
        assert result["peak_mib"] > result["start_mib"] > 0
    ends = {}
    for how in ("preadv", "mmap"):
        copy = shutil.copytree(tmp_path / "data" / "dataset", tmp_path / how)
        ends[how] = run("loader_truncated.py", how, copy)
    assert ends["preadv"].stdout.startswith("ValueError: shard DATASET/shards/train")
    assert ends["mmap"].returncode == -signal.SIGBUS


def test_digest_of_a_sample_changes_with_its_number_and_with_any_pixel(benchmark_modules):
    from loader_data import ARRAYS, sample_digest

    arrays = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in ARRAYS.values()}
    digests = {sample_digest(0, arrays), sample_digest(1, arrays)}
    for name in ARRAYS:
        arrays[name][-1, -1, -1] = 1
        digests.add(sample_digest(0, arrays))
    assert len(digests) == 2 + len(ARRAYS)


@pytest.mark.parametrize("num_samples", [3, 8, 10, 11, 24])
def test_epochs_are_cut_out_of_the_endless_sequence_without_loss(benchmark_modules, num_samples):
    from loader_systems import cut_epochs

    def batches(size=8):
        for start in count(0, size):
            positions = torch.arange(start, start + size)
            yield Batch({}, positions, positions % num_samples, torch.ones(size))

    for epoch in islice(cut_epochs(batches(), num_samples), 5):
        ids = [int(index) for batch in epoch for index in batch["index"]]
        assert ids == list(range(num_samples))


def committed(name):
    return json.loads((HERE / "results" / name).read_text())


def test_the_committed_run_reaches_what_the_loader_was_built_for():
    """75 us a sample and on 2 cores 13,000 samples/s, 2.5 times the best peer, 6 times webdataset,
    memory that does not grow, and an error where mmap dies; figures of that run, none of today.

    On one core LitData, in process, comes nearer: README says how near.
    """
    report = committed("loader.json")
    ours = report["hot"]["ours, 2 threads @ 2"]
    assert ours["pixels"] == "all" and ours["shuffle"] == "global"
    assert ours["cpu_us"]["median"] <= 75 and ours["samples_a_s"]["median"] >= 13_000
    many, stream = (
        report["hot"][f"ours{how}, 2 threads @ 2"] for how in (", many shards", " by ds.stream")
    )
    assert many["cpu_us"]["median"] <= 75 and many["samples_a_s"]["median"] >= 13_000
    assert stream["pixels"] == "all" and stream["samples_a_s"]["median"] >= 13_000
    assert ours["last_quarter_mib"] <= 1.01 * ours["first_quarter_mib"]
    ratios = {name: told["by_default"] for name, told in report["ratios"]["2 cores"].items()}
    assert ratios["samples_a_s, best peer"] >= 2.5 and ratios["samples_a_s, webdataset"] >= 6
    assert report["ratios"]["1 cores"]["samples_a_s, webdataset"]["by_default"] >= 6
    assert report["truncated_shard"]["preadv"].startswith("ValueError: ")
    systems = {name.partition(",")[0] for name in report["hot"]}
    assert {"webdataset", "mosaicml", "litdata", "rasterio files", "memcpy"} <= systems
    assert {"ours with mmap", "ours with DataLoader processes"} <= systems
    assert report["cold"] and report["limited"]
    remote = report["remote"]["pixels"]
    assert {"ours", "webdataset", "mosaicml", "litdata"} <= remote.keys()
    assert set(remote.values()) == {"all"}
