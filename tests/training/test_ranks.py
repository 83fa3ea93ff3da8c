"""Stopping: signals, and a launcher that dies without a word."""

import os
import signal
import subprocess
import sys
import time

import pytest

from fusmae.training.ranks import StopRequest, ranks_from_environment

# A runner that starts a launcher that starts a rank, as `deepspeed` does. The rank prints a
# line when it is ready and another when it finds that it should stop.
RANK = """
import time
from fusmae.training.ranks import StopRequest
stop = StopRequest()
print("ready", flush=True)
while not stop.requested():
    time.sleep(0.01)
print("stopped", flush=True)
"""
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"


def test_a_dead_runner_counts_as_a_stop() -> None:
    runner = subprocess.Popen(
        [sys.executable, "-c", PARENT, PARENT, RANK],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "CROSS_SIZE": "1"},
    )
    assert runner.stdout is not None
    assert runner.stdout.readline() == "ready\n"
    runner.kill()
    assert runner.stdout.readline() == "stopped\n"
    runner.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_only_sets_a_flag(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", RANK], stdout=subprocess.PIPE, text=True, env=without_launcher()
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.stdout.readline() == "stopped\n"
    assert process.wait() == 0


# The process that is told first is the rank's child, as by a launcher that tells all of them.
CHILD = """
import subprocess, sys, time
from fusmae.training.ranks import StopRequest
stop = StopRequest()
child = subprocess.Popen(["sleep", "600"])
print(child.pid, flush=True)
while not stop.requested():
    time.sleep(0.01)
print(child.poll(), flush=True)
child.kill()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_all_processes_leaves_a_ranks_children(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True, env=without_launcher()
    )
    assert process.stdout is not None
    os.kill(int(process.stdout.readline()), number)
    time.sleep(0.2)
    process.send_signal(number)
    assert process.stdout.readline() == "None\n"
    assert process.wait() == 0


def without_launcher() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "CROSS_SIZE"}


def test_a_second_interrupt_is_not_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    try:
        stop = StopRequest()
        assert not stop.requested()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


def test_plain_python_is_one_rank_on_a_free_port(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # so that it is restored afterwards
        monkeypatch.delenv(name)
    ranks = ranks_from_environment()
    assert (ranks.rank, ranks.world_size, ranks.local_size) == (0, 1, 1)
    assert int(os.environ["MASTER_PORT"]) > 1024
