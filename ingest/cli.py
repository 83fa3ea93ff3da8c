"""`fusmae-ingest`: one verb a file, errors as one line.

Exit codes: 0 done, 1 bad data or a full disk, 2 wrong usage, 130 interrupted.
"""

import sys

import click

from .bigearthnet import bigearthnet
from .info import info
from .preview import preview
from .sen12ms import sen12ms
from .simulate import simulate
from .verify import verify


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fusmae")
def commands() -> None:
    """Sentinel-1 and Sentinel-2 archives to sharded, verified, self-describing datasets."""


for verb in (bigearthnet, sen12ms, simulate, verify, info, preview):
    commands.add_command(verb)


def main() -> None:
    """Run the command line; what a user or a disk can cause becomes one line on stderr."""
    try:
        commands(standalone_mode=False)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted; run the same command again to go on", 130)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}; run the same command again to go on", 1)
    except (ValueError, RuntimeError) as error:
        _fail(str(error), 1)


def _fail(message: str, code: int) -> None:
    click.echo(f"error: {message}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
