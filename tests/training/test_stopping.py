"""What a run leaves that signals, kills or a full disk stop: a whole checkpoint, no orphans."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fusmae.training.checkpoint import find_checkpoint, newest_state

from .conftest import ENVIRONMENT, ROOT, SCRIPT, fill, start_ranks
from .script import alone, assert_same_run, launch, lines_of, steps_written, wait_until_step

EXIT_WORKER = Path(__file__).with_name("exit_worker.py")


def is_running(pid: int) -> bool:
    """False for a zombie, too, which nobody may reap in a container; it has no command line."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except OSError:
        return False


# What the `deepspeed` command exits with, as docs/TRAINING.md says: None for killed by the
# signal itself.
RUNNER_CODES = {
    ("runner", "SIGTERM"): None,
    ("runner", "SIGUSR1"): None,
    ("launcher", "SIGTERM"): 1,
    ("launcher", "SIGUSR1"): 0,
    ("rank", "SIGTERM"): 0,
    ("rank", "SIGUSR1"): 0,
    ("everyone", "SIGINT"): None,  # Ctrl-C, of which Python dies after its traceback
}

# Seconds from a signal to the end of the last rank: the launcher kills those that take longer.
WITHIN_S = 30


@pytest.mark.slow
@pytest.mark.parametrize(("target", "name"), RUNNER_CODES)
def test_a_signal_to_anyone_saves_and_ends_every_rank_within_30_s(
    target: str, name: str, options: list[str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run, number = tmp_path / "run", signal.Signals[name]
    arguments = [*options, "--out", str(run), "--set", "optim.epochs=4000"]
    launched = launch([str(tmp_path), *arguments], script=EXIT_WORKER)
    request.addfinalizer(launched.kill)  # the ranks notice
    wait_until_step(run, 3, [launched])
    ranks, launchers, runners = zip(
        *(map(int, (tmp_path / f"{rank}.pids").read_text().split()) for rank in (0, 1)), strict=True
    )
    assert set(runners) == {launched.pid}
    step, asked_s = steps_written(run), time.monotonic()
    if target == "everyone":
        os.killpg(launched.pid, number)
    else:
        os.kill({"runner": runners[0], "launcher": launchers[0], "rank": ranks[1]}[target], number)
    while any(map(is_running, ranks)):
        assert time.monotonic() < asked_s + 240
        time.sleep(0.1)
    stopped_s = time.monotonic() - asked_s
    output, _ = launched.communicate(timeout=240)  # ends when the last rank closes the pipe
    assert stopped_s < WITHIN_S, output
    assert [(tmp_path / f"{rank}.code").read_text() for rank in (0, 1)] == ["0", "0"], output
    expected = RUNNER_CODES[target, name]
    assert launched.returncode == (-number if expected is None else expected)
    until = time.monotonic() + 60
    while any(map(is_running, launchers)):
        assert time.monotonic() < until
        time.sleep(0.1)
    # A whole checkpoint of the last step that was made.
    checkpoint, state = find_checkpoint(run), newest_state(run)
    assert checkpoint is not None and state is not None
    assert checkpoint.name == f"step-{state['step']:08d}"
    assert state["step"] >= step
    assert f"asked to stop: saved step {state['step']};" in output


@pytest.mark.slow
def test_a_full_disk_is_survived_until_the_last_save(options: list[str], small_disk: Path) -> None:
    run, filler = small_disk / "run", small_disk / "filler"
    arguments = [*options, "--out", str(run), "--set", "optim.epochs=4000"]
    ranks = start_ranks(2, SCRIPT, *arguments, "--set", "run.save_every_steps=3")
    told = ranks[0].stdout
    assert told
    wait_until_step(run, 6, ranks)
    fill(filler)
    while "could not be saved" not in (warning := told.readline()):
        assert ranks[0].poll() is None
    assert warning.startswith("warning: step ") and "No space left on device" in warning
    filler.unlink()
    while "failed_saves" not in (lines_of(run) or [{}])[-1]:
        assert ranks[0].poll() is None
        time.sleep(0.01)
    newest = newest_state(run)
    fill(filler)
    ranks[1].send_signal(signal.SIGTERM)
    output, other = (rank.communicate(timeout=240)[0] for rank in ranks)
    assert [rank.returncode for rank in ranks] == [1, 1]
    (error,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "could not be saved" in error and "the newest checkpoint is of step" in error
    assert "Traceback" not in output + other
    state = newest_state(run)
    assert newest and state and state["step"] >= newest["step"]


@pytest.mark.slow
def test_50_kills_also_while_saving_always_leave_a_whole_checkpoint(
    options: list[str], tmp_path: Path
) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    options += ["--set", "optim.epochs=800"]
    often = [*options, "--set", "run.save_every_steps=1"]
    worker = Path(__file__).with_name("kills_worker.py")
    killed = subprocess.run(
        [sys.executable, str(worker), str(run), "50", "0", *often],
        env=ENVIRONMENT,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert killed.returncode == 0, killed.stderr
    left = json.loads(killed.stdout.splitlines()[-1])
    assert len(left) == 50
    assert [kill["problem"] for kill in left] == [None] * 50
    assert sum(kill["in_save"] for kill in left) >= 10
    steps = [kill["step"] for kill in left]
    assert steps == sorted(steps) and steps[-1] >= 50
    # It goes on to the end as if nothing had been.
    for out, resume in ((run, ["--resume", "auto"]), (whole, [])):
        ended = alone(*options, "--out", str(out), *resume)
        assert ended.returncode == 0, ended.stderr
        assert "is passed over" not in ended.stderr
    assert_same_run(run, whole)
    assert not list((run / "checkpoints").glob(".tmp-*"))
