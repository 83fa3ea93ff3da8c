"""The training loop's order: a stop comes before what takes long, which is made up for later."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fusmae.training.checkpoint import newest_state

from ..data.tiny_dataset import write_tiny_dataset  # noqa: TID252
from .conftest import ENVIRONMENT, ROOT, TOTAL_STEPS, without_ranks
from .script import assert_same_run, lines_of

STOP = 6  # a step of 8 samples, the last of the first epoch


@pytest.fixture(scope="module")
def runs(
    recipe: Path, ds_json: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, object]]]:
    """`whole`, `stopped` and resumed, `timed`; and what the stop had left in metrics.jsonl."""
    folder = tmp_path_factory.mktemp("loop")
    data = write_tiny_dataset(folder / "data", {"train": (12, 12, 12, 5), "val": (9,)})
    always = ["--recipe", recipe, "--data", data, "--deepspeed_config", ds_json]
    always += ["--set", "run.log_every_steps=1", "--resume", "auto"]
    looks = ["validate_every_steps=3", "probe_every_epochs=1", "picture_every_epochs=1"]
    watched = [*always, *(word for look in looks for word in ("--set", f"run.{look}"))]
    by_time = [*always, "--set", "run.save_every_minutes=1e-9", "--set", "run.keep_checkpoints=99"]
    by_time += ["--set", "run.save_every_steps=1000"]
    make_runs([(STOP, [*watched, "--out", folder / "stopped"])])
    left = lines_of(folder / "stopped")
    state = newest_state(folder / "stopped")
    assert state is not None and state["step"] == STOP
    assert not (folder / "stopped" / "pictures").exists()
    make_runs(
        [
            (None, [*watched, "--out", folder / "stopped"]),
            (None, [*watched, "--out", folder / "whole"]),
            (None, [*by_time, "--out", folder / "timed"]),
        ]
    )
    return folder, left


def make_runs(runs: list[tuple[int | None, list[object]]]) -> None:
    table = [(step, list(map(str, arguments))) for step, arguments in runs]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("loop_worker.py")), json.dumps(table)],
        env=without_ranks(ENVIRONMENT),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [0] * len(runs), done.stderr


def test_a_stop_is_saved_without_the_validation_and_the_look_of_its_step(
    runs: tuple[Path, list[dict[str, object]]],
) -> None:
    _, left = runs
    assert [line["step"] for line in left if "val" in line] == [3]
    assert not [line for line in left if "knn" in line]
    assert left[-1]["step"] == STOP


def test_the_resumed_run_makes_what_the_stop_has_left_out(
    runs: tuple[Path, list[dict[str, object]]],
) -> None:
    folder, _ = runs
    assert_same_run(folder / "stopped", folder / "whole")
    lines = lines_of(folder / "whole")
    assert [line["step"] for line in lines if "knn" in line] == [6, 12, 18]
    assert STOP in [line["step"] for line in lines if "val" in line]
    for name in ("stopped", "whole"):
        pictures = sorted(path.name for path in (folder / name / "pictures").iterdir())
        assert pictures == [f"step-{step:08d}.png" for step in (6, 12, 18)]


def test_a_save_that_is_due_by_time_is_made_at_the_next_reading(
    runs: tuple[Path, list[dict[str, object]]],
) -> None:
    saved = sorted(path.name for path in (runs[0] / "timed" / "checkpoints").glob("step-*"))
    assert saved == [f"step-{step:08d}" for step in range(1, TOTAL_STEPS + 1)]
