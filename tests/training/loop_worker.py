"""Runs of train/pretrain.py that are asked to stop, as by a signal, or not at all.

`python loop_worker.py RUNS`: a JSON list of [look or null, arguments], made one after the other,
each in a fork; the JSON list of exit codes is the last line of stdout. A run is asked to stop
when it looks for the `look`th time whether it is.
"""

import json
import sys

import runs_worker  # makes the script importable
from runs_worker import pretrain

Real = pretrain.StopRequest


def stop_at(look: int) -> type[Real]:
    class Asked(Real):
        looks = 0

        def requested(self) -> bool:
            self.looks += 1
            return self.looks >= look

    return Asked


def main() -> None:
    codes = []
    for look, arguments in json.loads(sys.argv[1]):
        pretrain.StopRequest = Real if look is None else stop_at(look)
        codes.append(runs_worker.run(arguments))
    print(json.dumps(codes))


if __name__ == "__main__":
    main()
