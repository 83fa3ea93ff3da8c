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


@pytest.mark.parametrize("name", [name for name in ALL if name != "simulate"])
def test_every_verb_has_an_example_of_itself(name):
    assert f"  fusmae-ingest {name} " in ALL[name].epilog
