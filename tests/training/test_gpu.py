"""What only a GPU can show."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .conftest import ROOT, without_ranks


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("stage", [0, 1])
def test_the_host_waits_for_nothing_from_forward_to_update_on_a_gpu(stage: int) -> None:
    """One step of four is not finite: skipped, without a wait either."""
    result = subprocess.run(
        [sys.executable, Path(__file__).with_name("gpu_worker.py"), str(stage)],
        env=without_ranks(os.environ),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr
    assert "skipped [0, 0, 1, 0] steps 3" in result.stdout
