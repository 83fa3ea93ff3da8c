"""A rank of train/pretrain.py that leaves its process ids and its exit code behind.

    exit_worker.py FOLDER [options of pretrain.py]

Writes FOLDER/RANK.pids, its own, its launcher's and its runner's, and at the end FOLDER/RANK.code.
"""

import os
import runpy
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "train" / "pretrain.py"


def main() -> None:
    local_rank = [argument for argument in sys.argv[1:] if argument.startswith("--local_rank")]
    folder, *options = [argument for argument in sys.argv[1:] if argument not in local_rank]
    name = Path(folder) / os.environ["RANK"]
    launcher = os.getppid()
    stat = Path(f"/proc/{launcher}/stat").read_text()
    runner = stat.rpartition(")")[2].split()[1]
    name.with_suffix(".pids").write_text(f"{os.getpid()} {launcher} {runner}")
    sys.argv = [str(SCRIPT), *options, *local_rank]
    code = 0
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as end:
        code = int(end.code or 0)
    name.with_suffix(".code").write_text(str(code))
    sys.exit(code)


if __name__ == "__main__":
    main()
