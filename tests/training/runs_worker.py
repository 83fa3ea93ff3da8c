"""Short runs of train/pretrain.py, one after the other, for the price of one import.

`python runs_worker.py RUNS`: a JSON list of argument lists. Each runs in a fork, since DeepSpeed
can start only once in a process; the JSON list of exit codes is the last line of stdout.
"""

import json
import multiprocessing
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "train"))

import deepspeed  # noqa: F401  (the slow import)
import pretrain


def run(arguments: list[str]) -> int:
    child = start(arguments)
    child.join()
    return child.exitcode or 0


def start(arguments: list[str]) -> BaseProcess:
    child = multiprocessing.get_context("fork").Process(target=run_here, args=(arguments,))
    child.start()
    return child


def run_here(arguments: list[str]) -> None:
    sys.argv[1:] = arguments
    pretrain.main()


if __name__ == "__main__":
    print(json.dumps([run(arguments) for arguments in json.loads(sys.argv[1])]))
