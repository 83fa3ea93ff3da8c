"""Which steps of a table are done, how long they took and by which commits: `OUT/steps.json`.

`train/table.py` asks before each step and notes after it.
"""

import hashlib
import itertools
import json
import shlex
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from fusmae.evaluation.backbones import weight_files
from fusmae.evaluation.experiment_steps import Step
from fusmae.manifest import MANIFEST_NAME
from fusmae.model.pretrained import WEIGHTS_NAME
from fusmae.training.record import git_commit

STEPS_NAME = "steps.json"


def read_done(out: Path) -> dict[str, Any]:
    """By name the steps that were begun: command, inputs, seconds of all attempts, commits."""
    try:
        done: dict[str, Any] = json.loads((out / STEPS_NAME).read_text())
    except FileNotFoundError:
        return {}
    return done


def is_done(step: Step, entry: Mapping[str, Any]) -> bool:
    """Whether a step has ended with its product, by this command on these recipes and data."""
    return _is_of(step, entry) and not entry.get("unfinished") and step.product.exists()


def commits_of(entry: Mapping[str, Any]) -> list[str]:
    """What made a step's product; entries of before commits were kept have "unknown"."""
    return entry.get("git_commits") or [entry.get("git_commit") or "unknown"]


class Attempt:
    """One attempt at a step, to be made before it is begun; `entry` is what to keep of it.

    Its time is added to that of the attempts before it where it goes on from what they left: the
    step is the same, it is a pretraining that was begun, or its product was taken as it was.
    """

    def __init__(self, step: Step, earlier: Mapping[str, Any]) -> None:
        self._step = step
        self._earlier = earlier
        self._goes_on = _is_of(step, earlier) or (step.record is not None and step.record.exists())
        self._product = _state(step.product)
        self._known = {"command": shlex.join(step.command), "inputs": _inputs(step)}
        self._commit = git_commit() or "unknown"

    def entry(self, seconds: float, unfinished: bool) -> dict[str, Any]:
        """`seconds` is what the attempt took."""
        taken = self._product is not None and self._product == _state(self._step.product)
        before_s = self._earlier.get("wall_s", 0.0) if self._goes_on or taken else 0.0
        made_by = _starts(self._step) or [self._commit]
        if taken and self._earlier and self._step.record is None:
            made_by = commits_of(self._earlier)
        wall = {"wall_s": round(before_s + seconds, 1), "git_commits": made_by}
        return self._known | wall | ({"unfinished": True} if unfinished else {})


def _is_of(step: Step, entry: Mapping[str, Any]) -> bool:
    # Entries of before the launcher was left out have it in front.
    command = str(entry.get("command", ""))
    return command.endswith(shlex.join(step.command)) and entry.get("inputs") == _inputs(step)


def _inputs(step: Step) -> dict[str, str]:
    """The sha256 of each file that the command names; of a folder, of what says all of it."""
    paths: list[Path] = []
    for option, word in itertools.pairwise(("", *step.command)):
        paths += (Path(word), Path(word) / MANIFEST_NAME, Path(word) / WEIGHTS_NAME)
        if option == "--pretrained":
            paths += weight_files(word)
    digests = {}
    for path in paths:
        if path.is_file() and not path.is_relative_to(step.out):
            state = path.stat()
            digests[str(path)] = _sha256(path, state.st_mtime_ns, state.st_size)
    return digests


@lru_cache
def _sha256(path: Path, mtime_ns: int, size: int) -> str:
    """Once for all steps that read the file as it is; the last two say whether it still is."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _state(path: Path) -> tuple[int, int] | None:
    """Which file it is and when it was written; None where there is none."""
    try:
        state = path.stat()
    except FileNotFoundError:
        return None
    return state.st_ino, state.st_mtime_ns


def _starts(step: Step) -> list[str]:
    """The commits of all starts of a pretraining, as its own record has them."""
    if step.record is None or not step.record.exists():
        return []
    starts = json.loads(step.record.read_text())["starts"]
    return list(dict.fromkeys(start["git_commit"] or "unknown" for start in starts))
