"""SIGTERM at the moments at which Python drops what a signal raises, and more than one of it."""

import subprocess
import sys

import pytest

# `drop(N)` gets the signal N in a callback of a weak reference, as those of importlib.
START = """
import os, signal, sys, time, weakref
from fusmae_ingest import cli
class Thing: pass
def drop(number):
    thing = Thing()
    kept = weakref.ref(thing, lambda _: os.kill(os.getpid(), number))
    del thing
sys.argv = ["fusmae-ingest", "info", "nowhere"]
signal.signal(signal.SIGINT, signal.default_int_handler)
"""
IMPORTED = """
class Finder:
    def find_spec(self, name, *_):
        if name == "fusmae_ingest.info":
            drop(NUMBER)
            time.sleep(0.2)
sys.meta_path.insert(0, Finder())
"""
CLEANED_UP = """
class Verb:
    def invoke(*_):
        drop(signal.SIGTERM)
        try:
            raise ValueError("some error")
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)
            print("cleaned up")
cli.commands.invoke = Verb().invoke
"""
TWICE = """
class Verb:
    def invoke(*_):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            print("cleaned up")
cli.commands.invoke = Verb().invoke
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", START + code + "cli.main()"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("number", "code", "what"), [("SIGTERM", 143, "stopped"), ("SIGINT", 130, "interrupted")]
)
def test_a_signal_in_a_callback_while_a_verb_is_imported_ends_it_in_one_line(number, code, what):
    told = run(IMPORTED.replace("NUMBER", f"signal.{number}"))
    assert told.returncode == code
    assert told.stderr.strip() == f"error: {what}; run the same command again to go on"


@pytest.mark.parametrize("code", [CLEANED_UP, TWICE])
def test_what_cleans_up_is_not_interrupted_and_the_line_is_that_of_the_stop(code):
    told = run(code)
    assert (told.returncode, told.stdout) == (143, "cleaned up\n")
    assert told.stderr.strip() == "error: stopped; run the same command again to go on"


LATE = """
class Late:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        import warnings
        warnings.warn("half made", RuntimeWarning)
        raise ValueError("half made")
sys.kept = Late()
"""


def test_what_comes_at_the_end_of_a_stopped_process_changes_nothing():
    told = run(TWICE + LATE)
    assert told.returncode == 143
    assert told.stderr.strip() == "error: stopped; run the same command again to go on"


def test_other_errors_that_python_drops_are_told_as_ever():
    told = run(
        "thing = Thing(); kept = weakref.ref(thing, lambda _: 1 / 0)\n"
        "cli.commands.invoke = lambda _: globals().pop('thing')\n"
    )
    assert told.returncode == 0
    assert told.stderr.startswith("Exception ignored in: ") and "ZeroDivisionError" in told.stderr
