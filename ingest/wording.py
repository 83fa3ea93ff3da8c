"""Numbers with their nouns, and paths as they were given, for what a user reads."""

import re
import sys
from pathlib import Path

import click

# To add to an error about a sample that ends a run and that quarantine would leave out.
LEAVE_OUT = "or leave such samples out: --on-error quarantine"


def plural(count: int, noun: str) -> str:
    """The noun as it follows the count."""
    return noun if count == 1 else f"{noun}s"


def counted(count: int, noun: str) -> str:
    """Such as `1 shard` or `2,048 shards`."""
    return f"{count:,} {plural(count, noun)}"


def say(text: str) -> None:
    """A line on stderr, with paths as they were given."""
    click.echo(as_given(text), err=True)


def as_given(text: str) -> str:
    """Absolute paths below the current folder as relative ones, where the command gave such.

    With `--scheduler` they stay: the cluster's workers stand in other folders.
    """
    try:
        here = f"{Path.cwd()}/"
    except FileNotFoundError:  # the current folder was removed
        return text
    if any(here in word or word.startswith("--scheduler") for word in sys.argv[1:]):
        return text
    # Where a path begins: /data/x may be the end of /mnt/data/x, and // that of s3://.
    return re.sub(rf"(?<![\w./:~-]){re.escape(here)}", "", text)
