"""What is shown of a run, and that it needs nobody who looks."""

import subprocess
import sys

import pytest

from fusmae.training.monitor import Monitor

LINE = {"step": 20, "loss": 1.5, "s1": 1.0, "s2": 0.5, "lr": 1e-3, "samples_per_s": 6600.4}
LINE |= {"step_s": 0.5, "data_wait": 0.012}


def test_a_line_has_losses_rate_speed_wait_and_the_time_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Monitor(total_steps=7220, first_step=0, shown=True) as monitor:
        monitor.show(LINE, ["s1", "s2", "loss"])
        monitor.show({**LINE, "mfu": 0.412}, ["loss"])
    first, second = capsys.readouterr().out.splitlines()
    assert first == (
        "step 20/7220  s1 1.0000  s2 0.5000  loss 1.5000  lr 1.00e-03  6600 samples/s  "
        "data wait 1.2%  1:00:00 left"
    )
    assert "data wait 1.2%  MFU 41.2%" in second


TALK = """
import sys, time
from fusmae.training.monitor import Monitor
with Monitor(2, 0, shown=True) as monitor:
    monitor.say("first")
    sys.stdin.readline()
    for _ in range(3):
        monitor.say("nobody reads this")
sys.stderr.write("went on")
"""


def test_a_closed_pipe_does_not_end_the_run() -> None:
    """As `deepspeed ... | tee log` after tee has ended."""
    pipe = subprocess.PIPE
    run = subprocess.Popen(
        [sys.executable, "-c", TALK], stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )
    assert run.stdin and run.stdout and run.stderr
    assert run.stdout.readline() == "first\n"
    run.stdout.close()
    run.stdin.write("\n")
    run.stdin.close()
    assert run.stderr.read() == "went on"
    assert run.wait(60) == 0
