"""`--set KEY=VALUE` of the scripts of `train/`; `fusmae.strict_toml.load_recipe` applies it."""

from collections.abc import Callable
from typing import Any

import click


def set_option(command: Callable[..., None]) -> Callable[..., None]:
    """`--set`, given any number of times, as the parameter `overrides` of a click command.

    The command takes no other words; one that is left over is told to need a `--set`.
    """
    option = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Change one value of the recipe, in TOML's syntax; may be repeated.",
    )
    rest = click.argument("rest", nargs=-1, metavar="", expose_value=False, callback=_refuse)
    return option(rest(command))


def _refuse(context: click.Context, parameter: click.Parameter, words: tuple[Any, ...]) -> None:
    if words:
        raise click.UsageError(
            f"unexpected {words[0]!r}: each change needs a --set of its own and no spaces, such as "
            '--set seed=1 --set "lrs=[1e-3]"'
        )
