"""`--help` of every verb: read whole, in the width of a terminal."""

import importlib
import re
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from fusmae_ingest.cli import VERBS, commands
from fusmae_ingest.simulate import simulate

ALL = {name: getattr(importlib.import_module(f"fusmae_ingest.{name}"), name) for name in VERBS}
ALL |= {f"simulate {name}": verb for name, verb in simulate.commands.items()}


def test_every_verb_is_in_the_list_on_one_line_with_its_own_words():
    shown = CliRunner().invoke(commands, ["--help"], terminal_width=80).output
    for verb, told in VERBS.items():
        assert (ALL[verb].help or "").splitlines()[0] == told
        assert re.search(rf"^  {verb} +{re.escape(told)}$", shown, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "idle"),
    [
        ((), ("numpy", "pyarrow", "zarr", "rasterio", "matplotlib", "numba")),
        *(((verb,), ("zarr", "rasterio", "matplotlib", "numba")) for verb in VERBS),
    ],
)
def test_help_imports_no_package_that_takes_long(words, idle):
    run = f"""
import sys
from fusmae_ingest.cli import commands
commands({[*words, "--help"]!r}, standalone_mode=False)
print("imported:", sorted(set({idle!r}) & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("imported: []\n")


@pytest.mark.parametrize("name", ALL)
def test_every_option_says_what_it_does(name):
    options = [param for param in ALL[name].params if isinstance(param, click.Option)]
    assert [option.name for option in options if not option.help] == []


def examples(epilog: str) -> list[str]:
    """Its commands, each on one line."""
    lines = epilog.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.startswith("  fusmae-ingest ")]


@pytest.mark.parametrize("name", ["", *ALL])
def test_examples_use_options_that_there_are(name):
    for example in examples((ALL[name] if name else commands).epilog or ""):
        _, verb, *words = example.partition("#")[0].split()
        command = ALL[f"simulate {words.pop(0)}" if verb == "simulate" else verb]
        known = {option for param in command.params for option in param.opts}
        assert {word for word in words if word.startswith("-")} <= known, example


@pytest.mark.parametrize("name", [name for name in ALL if name != "simulate"])
def test_every_verb_has_an_example_of_itself(name):
    assert any(line.startswith(f"fusmae-ingest {name} ") for line in examples(ALL[name].epilog))


def test_the_whole_has_examples_that_run_one_after_another(fusmae_ingest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = examples(commands.epilog)
    assert len(run) == 4
    for example in run:
        words = example.replace("--patches 200", "--patches 6").split()
        result = fusmae_ingest(*words[1:])
        assert result.returncode == 0, result.stderr
