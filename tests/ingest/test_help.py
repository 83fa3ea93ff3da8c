"""`--help` of every verb: read whole, in the width of a terminal."""

import importlib

import click
import pytest
from click.testing import CliRunner

from fusmae_ingest.cli import VERBS, commands
from fusmae_ingest.simulate import simulate

ALL = {name: getattr(importlib.import_module(f"fusmae_ingest.{name}"), name) for name in VERBS}
ALL |= {f"simulate {name}": verb for name, verb in simulate.commands.items()}


def test_no_verb_is_cut_short_in_the_list():
    shown = CliRunner().invoke(commands, ["--help"], terminal_width=80).output
    assert all(f"  {verb} " in shown for verb in VERBS)
    assert "..." not in shown.partition("Commands:")[2]


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
