"""The benchmarks run and measure what they say; their figures are nobody's promise here."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent


def test_ingest_benchmark_measures_every_system_in_one_run(tmp_path):
    report_path = tmp_path / "ingest.json"
    command = [sys.executable, HERE / "ingest.py", "--pairs", "7", "--rounds", "1"]
    command += ["--workers", "1", "--out", report_path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    report = json.loads(report_path.read_text())
    results = report["results"]
    assert set(results) == {
        "ours, shards @ 1",
        "ours, shards and zarr @ 1",
        "ours, shards, from tars @ 1",
        "ours, shards and zarr, from tars @ 1",
        "rasterio loop @ 1",
        "stand-in for rico-hdl @ 1",
        "bare bytes @ 1",
    }
    # Every system stores 275,200 bytes of pixels a pair; zarr beside shards adds to that.
    for system, result in results.items():
        assert result["out_bytes_a_pair"] >= 275_200, system
        assert result["cpu_ms_a_pair"]["min"] > 0
    both, shards = results["ours, shards and zarr @ 1"], results["ours, shards @ 1"]
    assert both["out_bytes_a_pair"] > shards["out_bytes_a_pair"] + 100_000
    stages = report["stages_cpu_ms_a_pair"]["ours, shards and zarr"]
    assert {"read bytes", "decode", "statistics", "hash", "write", "zarr encode"} <= set(stages)


def test_copies_of_an_archive_share_no_rows_and_read_as_pairs(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    import real_content

    if not real_content.REAL_V1.is_dir():
        pytest.skip(f"needs the real sample data in {real_content.REAL_V1}")
    pairs = list(real_content.read_pairs(real_content.REAL_V1))
    real_content.write_archive(tmp_path, pairs, 3 * len(pairs))
    copies = list(real_content.read_pairs(tmp_path))
    assert len(copies) == 3 * len(pairs)
    assert len({pair.s1_name for pair in copies}) == len(copies)
    for name in ("s1", "s2_10m"):
        rows = [row for pair in copies for row in pair.arrays[name].reshape(-1, 120)]
        originals = [row for pair in pairs for row in pair.arrays[name].reshape(-1, 120)]
        # A scene may repeat itself; a copy adds no repetition.
        distinct = len({np.asarray(row).tobytes() for row in originals})
        assert len({np.asarray(row).tobytes() for row in rows}) == 3 * distinct
