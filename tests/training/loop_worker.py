"""Runs of train/pretrain.py that are asked to stop at a step, as by a signal, or not at all.

`python loop_worker.py RUNS`: a JSON list of [step or null, arguments], made one after the other,
each in a fork; the JSON list of exit codes is the last line of stdout. The recipe logs every step.
"""

import json
import sys

import runs_worker  # makes the script importable
from runs_worker import pretrain

Real = pretrain.StopRequest


def stop_at(step: int) -> type[Real]:
    class Asked(Real):
        num_asked = 0

        @property
        def requested(self) -> bool:
            self.num_asked += 1
            return self.num_asked == step

    return Asked


def main() -> None:
    codes = []
    for step, arguments in json.loads(sys.argv[1]):
        pretrain.StopRequest = Real if step is None else stop_at(step)
        codes.append(runs_worker.run(arguments))
    print(json.dumps(codes))


if __name__ == "__main__":
    main()
