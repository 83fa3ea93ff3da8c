"""What the Makefile's targets for tables would run, as `make -n` prints it."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


def printed(target: str, *variables: str) -> str:
    """`GPUS`, given, keeps make from asking the environment, which there may not be."""
    command = ["make", "-n", "-C", str(ROOT), target, "GPUS=2", *variables]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(("gpus", "ranks"), [(0, 2), (1, 1), (2, 2), (4, 4), (8, 4)])
def test_the_simulated_table_has_a_rank_a_gpu_as_far_as_its_batch_allows(
    gpus: int, ranks: int
) -> None:
    assert f'--num_accelerators {ranks}"' in printed("table-simulated", f"GPUS={gpus}")
