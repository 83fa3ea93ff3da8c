"""Kill a run of train/pretrain.py again and again, for the price of one import.

    kills_worker.py RUN COUNT SEED [options of pretrain.py]

Each start is a fork with one rank, killed by SIGKILL: every second one at a random moment, start
and resumption included, the others while a checkpoint is being written. The last line of stdout is
a JSON list of {"in_save", "problem", "step"}, what each kill has left in RUN.
"""

import json
import os
import random
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from runs_worker import start

from fusmae.training import checkpoint


def is_writing(run: Path) -> bool:
    return any((run / checkpoint.CHECKPOINTS).glob(".tmp-step-*"))


def wait(run: Path, child: BaseProcess, rng: random.Random, in_save: bool) -> None:
    if not in_save:
        time.sleep(rng.uniform(0, 6))
        return
    while is_writing(run) and child.is_alive():  # what the last kill has left is removed first
        time.sleep(0.0005)
    for _ in range(rng.randint(1, 20)):
        while not is_writing(run) and child.is_alive():
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, 0.02))


def describe(run: Path) -> dict[str, Any]:
    """What is there after a kill: the checkpoint that `latest` names has to be whole."""
    described: dict[str, Any] = {"in_save": is_writing(run), "problem": None, "step": 0}
    latest = run / checkpoint.CHECKPOINTS / checkpoint.LATEST
    if latest.exists():
        folder = latest.with_name(latest.read_text().strip())
        described["problem"] = checkpoint._problem(folder)
        described["step"] = int(folder.name.removeprefix("step-"))
    return described


def main() -> None:
    run, count, rng = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
    options, left = sys.argv[4:], []
    for number in range(count):
        child = start([*options, "--out", str(run), "--resume", "auto"])
        wait(run, child, rng, in_save=number % 2 == 1)
        assert child.is_alive(), "the run has ended before it was killed"
        child.kill()
        child.join()
        left.append(describe(run))
    print(json.dumps(left))


if __name__ == "__main__":
    os.environ.pop("RANK", None)
    main()
