"""A command stopped at a moment, and the one line that it says then."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

COMMAND = (sys.executable, "-m", "fusmae_ingest.cli")


def told(stderr: str) -> str:
    """The one line that a failed run says; progress bars and their listing are none."""
    assert "Traceback" not in stderr, stderr
    lines = [line for line in stderr.splitlines() if line.strip()]
    bars = ("Listing", "Converting", "Unpacking", "Indexing", "Verifying", "Simulating")
    (line,) = (line for line in lines if not line.startswith(bars))
    assert line.startswith("error: "), stderr
    return line


def processes_of(mark: str) -> list[str]:
    """Command lines of living processes with this mark in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"FUSMAE_TEST={mark}".encode() in entry.read_bytes():
                found.append((entry.parent / "cmdline").read_bytes().decode())
        except OSError:
            continue  # it has just ended, or is another user's
    return found


def interrupt(
    args: list[str],
    mark: str,
    moment: Callable[[], bool],
    terminate: bool = False,
    command: Sequence[str] = COMMAND,
) -> tuple[int, str]:
    """Press Ctrl-C, for all processes of the terminal, at this moment; exit code and stderr.

    With `terminate` send SIGTERM instead, to the command alone.
    """
    process = subprocess.Popen(
        [*command, *args],
        env={**os.environ, "FUSMAE_TEST": mark},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Where the tests run in the background, Ctrl-C is ignored and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not moment():
        assert time.monotonic() < deadline and process.poll() is None
    if terminate:
        process.terminate()
    else:
        os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr
