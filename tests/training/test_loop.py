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

# Where a run is asked to stop: how often it has looked for it by then, and the step it ends after.
# It looks once a step, before each of the 3 batches of a validation, before both batches of a kNN
# score, before a picture, and after these two. It validates every 3 steps, looks every 6, an epoch.
STOPS = {
    "in the step": (9, 6),
    "in its validation": (11, 6),
    "in its look": (14, 6),
    "in the last validation": (53, TOTAL_STEPS),
}


@pytest.fixture(scope="module")
def runs(
    recipe: Path, ds_json: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, list[dict[str, object]]]]:
    """`whole`, `timed`, and each of STOPS, resumed; and the lines that each stop had left."""
    folder = tmp_path_factory.mktemp("loop")
    data = write_tiny_dataset(folder / "data", {"train": (12, 12, 12, 5), "val": (9,)})
    always = ["--recipe", recipe, "--data", data, "--deepspeed_config", ds_json]
    always += ["--set", "run.log_every_steps=1", "--resume", "auto"]
    looks = ["validate_every_steps=3", "probe_every_epochs=1", "picture_every_epochs=1"]
    watched = [*always, *(word for look in looks for word in ("--set", f"run.{look}"))]
    by_time = [*always, "--set", "run.save_every_minutes=1e-9", "--set", "run.keep_checkpoints=99"]
    by_time += ["--set", "run.save_every_steps=1000"]
    make_runs([(look, [*watched, "--out", folder / name]) for name, (look, _) in STOPS.items()])
    left = {name: lines_of(folder / name) for name in STOPS}
    for name, (_, step) in STOPS.items():
        state = newest_state(folder / name)
        assert state is not None and state["step"] == step, name
        assert not (folder / name / "encoder").exists()
    assert not (folder / "in its look" / "pictures").exists()
    resumed = [(None, [*watched, "--out", folder / name]) for name in (*STOPS, "whole")]
    make_runs([*resumed, (None, [*by_time, "--out", folder / "timed"])])
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


@pytest.mark.parametrize("name", STOPS)
def test_a_stop_is_saved_without_the_validation_and_the_look_that_it_meets(
    name: str, runs: tuple[Path, dict[str, list[dict[str, object]]]]
) -> None:
    left, (_, step) = runs[1][name], STOPS[name]
    made = step if name == "in its look" else step - 3
    assert [line["step"] for line in left if "val" in line] == list(range(3, made + 1, 3))
    assert [line["step"] for line in left if "knn" in line] == list(range(6, step, 6))
    assert left[-1]["step"] == step


@pytest.mark.parametrize("name", STOPS)
def test_the_resumed_run_makes_what_the_stop_has_left_out(
    name: str, runs: tuple[Path, dict[str, list[dict[str, object]]]]
) -> None:
    folder, _ = runs
    assert_same_run(folder / name, folder / "whole")
    for run in (folder / name, folder / "whole"):
        lines = lines_of(run)
        assert [line["step"] for line in lines if "val" in line] == list(range(3, 22, 3))
        assert [line["step"] for line in lines if "knn" in line] == [6, 12, 18]
        pictures = sorted(path.name for path in (run / "pictures").iterdir())
        assert pictures == [f"step-{step:08d}.png" for step in (6, 12, 18)]
        assert (run / "encoder" / "config.json").exists()


def test_a_save_that_is_due_by_time_is_made_at_the_next_reading(
    runs: tuple[Path, dict[str, list[dict[str, object]]]],
) -> None:
    saved = sorted(path.name for path in (runs[0] / "timed" / "checkpoints").glob("step-*"))
    assert saved == [f"step-{step:08d}" for step in range(1, TOTAL_STEPS + 1)]
