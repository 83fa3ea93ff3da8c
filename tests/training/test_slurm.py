"""The sbatch script of docs/TRAINING.md, run by stand-ins for SLURM's commands."""

import os
import re
import subprocess
from pathlib import Path

from .conftest import ROOT

STAND_INS = {
    "scontrol": 'printf "node1\\nnode2\\n"',
    "srun": 'env SLURM_PROCID=11 SLURM_LOCALID=3 SLURM_NTASKS=16 "${@: -3}"',
    ".venv/bin/python": 'echo "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_SIZE $MASTER_ADDR"; echo "$@"',
}


def test_the_sbatch_script_gives_each_rank_its_place(tmp_path: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "TRAINING.md").read_text(), re.DOTALL)
    (script,) = [block for block in blocks if block.startswith("#!/bin/bash\n#SBATCH")]
    assert "--signal=USR1@" in script
    for name, line in STAND_INS.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/bash\n{line}\n")
        path.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euc", script],
        env=environment | {"SLURM_JOB_NODELIST": "node[1-2]"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    place, options = done.stdout.splitlines()
    assert place == "11 3 16 8 node1"
    assert options.startswith("train/pretrain.py --recipe train/recipes/paper.toml --data ben")
    assert options.endswith("--resume auto")
