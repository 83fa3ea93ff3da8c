"""The README's job for SLURM, as it stands there, on a cluster that is started here instead."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .stopping import told
from .trees import tree

README = Path(__file__).parents[2] / "README.md"

# In place of dask-jobqueue, which starts workers by `sbatch`.
JOBQUEUE = """
from distributed import LocalCluster

class SLURMCluster(LocalCluster):
    def __init__(self, cores, memory, walltime, queue, worker_extra_args):
        options = {"threads_per_worker": cores, "memory_limit": memory}
        for name, value in zip(worker_extra_args[::2], worker_extra_args[1::2], strict=True):
            options[name.removeprefix("--").replace("-", "_")] = value
        super().__init__(n_workers=0, host="127.0.0.1", dashboard_address=None, **options)

    def adapt(self, minimum, maximum):
        super().adapt(minimum=minimum, maximum=min(maximum, 2))
"""


@pytest.fixture
def on_slurm(tmp_path) -> Path:
    (script,) = re.findall(r"`on_slurm\.py`.*?```python\n(.*?)```", README.read_text(), re.DOTALL)
    (tmp_path / "dask_jobqueue.py").write_text(JOBQUEUE)
    (tmp_path / "on_slurm.py").write_text(script)
    return tmp_path / "on_slurm.py"


def run(script: Path, *args: object) -> subprocess.CompletedProcess[str]:
    commands = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [sys.executable, script, *map(str, args)],
        env={**os.environ, "PATH": commands},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_job_makes_the_bytes_of_a_serial_run_and_has_its_exit_code(
    on_slurm, packed, fusmae_ingest, tmp_path
):
    archives = ("--s2", packed["v1-s2"], "--s1", packed["v1-s1"], "--samples-per-shard", 4)
    result = run(
        on_slurm, "bigearthnet", *archives, "--out", tmp_path / "d", "--spool", tmp_path / "spool"
    )
    assert result.returncode == 0, result.stderr
    assert fusmae_ingest("bigearthnet", *archives, "--out", tmp_path / "e").returncode == 0
    assert tree(tmp_path / "d") == tree(tmp_path / "e")
    result = run(on_slurm, "bigearthnet", *archives, "--out", tmp_path / "d", "--seed", 1)
    assert result.returncode == 1 and "--seed: 0 then, 1 now" in told(result.stderr)
