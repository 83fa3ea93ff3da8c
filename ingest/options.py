"""Types and options of the command line that several verbs have; imports nothing but click."""

from pathlib import Path
from typing import Any

import click


class NamedPath(click.Path):
    """A path that is not empty: an unset variable of the shell must not be the folder one is in."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("'' names no place: give a folder or a file", param, ctx)
        return super().convert(value, param, ctx)


# An option's type. Whether the path can be read shows when it is read, in one line without usage.
SOURCE_PATH = NamedPath(path_type=Path, readable=False)

workers_option = click.option(
    "--workers",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Processes on this machine.",
)
