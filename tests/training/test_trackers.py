"""Where metrics go: other software reads them back, and no place of them ends a run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fusmae.config import PretrainRecipe, RunConfig
from fusmae.training import trackers
from fusmae.training.metrics import METRICS
from fusmae.training.trackers import Trackers, check_trackers

LINES = (
    {"step": 1, "loss": 2.0, "lr": 1e-3, "grad_norm": None},
    {"step": 2, "val": {"loss": 3.0}},
    {"step": 3, "loss": 1.0},
)


def test_tensorboard_has_every_number_once_after_a_resumption(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    recipe = PretrainRecipe(run=RunConfig(tensorboard=True))
    first = Trackers(tmp_path, recipe, 0, print)
    for line in (*LINES[:2], {"step": 3, "loss": 9.0}):
        first.write(line)
    Trackers(tmp_path, recipe, 2, print).write(LINES[2])  # killed, and resumed after step 2
    read = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(read.Tags()["scalars"]) == {"loss", "lr", "val/loss"}
    assert [(e.step, e.value) for e in read.Scalars("loss")] == [(1, 2.0), (3, 1.0)]
    assert [(e.step, e.value) for e in read.Scalars("val/loss")] == [(2, 3.0)]
    written = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert written == list(LINES)


OFFLINE = """
import json, sys
from pathlib import Path
from fusmae.config import PretrainRecipe, RunConfig
from fusmae.training.trackers import Trackers
run = Path(sys.argv[1])
(run / "run.json").write_text(json.dumps({"starts": [{"time": "now"}]}))
tracked = Trackers(run, PretrainRecipe(run=RunConfig(wandb="fusmae-test")), 0, print)
tracked.write({"step": 2, "val": {"loss": 3.0}})
"""


def test_weights_and_biases_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    environment = {**os.environ, "WANDB_MODE": "offline"}
    command = [sys.executable, "-c", OFFLINE, str(tmp_path)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    assert "warning" not in ended.stdout
    (log,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    content = log.read_bytes()
    assert b"val/loss" in content and b"fusmae-test" in content
    # Without a key and without a terminal it is refused in one line.
    environment |= {"WANDB_MODE": "online", "WANDB_API_KEY": "", "HOME": str(tmp_path)}
    ended = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        stdin=subprocess.DEVNULL,
    )
    assert "ValueError: run.wandb = 'fusmae-test': " in ended.stderr.splitlines()[-1]


def test_a_place_that_fails_is_told_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(line: dict[str, object]) -> None:
        raise ConnectionResetError("reset by peer\nand more")

    said: list[str] = []
    monkeypatch.setattr(trackers, "_tensorboard", lambda folder, step: broken)
    tracked = Trackers(tmp_path, PretrainRecipe(run=RunConfig(tensorboard=True)), 0, said.append)
    for line in LINES[:2]:
        tracked.write(line)
    assert said == [
        f"warning: step {step} is missing in TensorBoard: reset by peer" for step in (1, 2)
    ]
    assert len((tmp_path / METRICS).read_text().splitlines()) == 2


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_package_that_is_missing_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    check_trackers(RunConfig())
    with pytest.raises(ValueError, match=rf"run\.{name} needs .*pip install 'fusmae\[{name}\]'"):
        check_trackers(RunConfig(**{name: True if name == "tensorboard" else "project"}))
