"""`fusmae-ingest`: one verb a file, errors as one line.

Exit codes: 0 done, 1 bad data or a full disk, 2 wrong usage, 130 interrupted, 143 stopped.
"""

import errno
import importlib
import os
import sys

import click

from .stop import Stopped, stoppable
from .wording import say

# In the order of `--help`, with the first line of each verb's own. A verb's module is imported when
# it is asked for: zarr, rasterio and matplotlib take longer to import than a small run takes, and
# no verb needs them all.
VERBS = {
    "bigearthnet": "Make a dataset of BigEarthNet-MM: shards, zarr or both.",
    "sen12ms": "Make a dataset of SEN12MS: shards, zarr or both.",
    "simulate": "Write an archive of simulated images, for demos and tests.",
    "verify": "Re-read a whole dataset; exit code 1 if anything differs.",
    "info": "Print what a dataset holds: splits, bands, classes.",
    "preview": "Make one HTML page to look at a dataset in a browser.",
}


# Where the same command again goes on, and what to do before it, by what the system says. Other
# errors of the system come from a wrong path or damage, which no rerun mends.
_ADVICE = {
    errno.ENOSPC: "make room there, then ",
    errno.EDQUOT: "make room there, then ",
    errno.EACCES: "change its permissions, then ",
    errno.EPERM: "change its permissions, then ",
    errno.EROFS: "make it writable or give another place, then ",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), then ",
    errno.EMFILE: "raise the limit of open files (ulimit -n), then ",
    errno.ENOMEM: "make memory free, then ",
    **dict.fromkeys(
        (
            *(errno.EIO, errno.EREMOTEIO, errno.ESTALE, errno.ETIMEDOUT, errno.EPIPE),
            *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.ENOTCONN),
            *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH),
        ),
        "",
    ),
}


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        verb: click.Command = getattr(
            importlib.import_module(f"fusmae_ingest.{cmd_name}"), cmd_name
        )
        return verb

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


_EXAMPLES = """
\b
Examples, without any data of your own:
  fusmae-ingest simulate bigearthnet --out archive --patches 200
  fusmae-ingest bigearthnet --s2 archive/BigEarthNet-v1.0 --s1 archive/BigEarthNet-S1-v1.0 \\
      --out ben
  fusmae-ingest verify ben
  fusmae-ingest info ben

\b
More: fusmae-ingest bigearthnet --help, and so on.
"""


@click.group(cls=_Verbs, epilog=_EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fusmae")
def commands() -> None:
    """Sentinel-1 and Sentinel-2 archives to sharded, verified, self-describing datasets."""


def main() -> None:
    """Run the command line; what a user or a disk can cause becomes one line on stderr."""
    # The processes are the parallelism. Threads of numpy's matrix products, which wait by spinning,
    # made 2 simulating workers on 2 busy cores 30 times slower. Read when numpy is imported. Blocks
    # have no such products, so Dask's workers need nothing of the kind.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        with stoppable():
            commands(standalone_mode=False)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt) as error:
        # click puts its own in place of the interrupt.
        cause = error.__cause__ or error
        what, code = ("stopped", 143) if isinstance(cause, Stopped) else ("interrupted", 130)
        _fail(f"{what}; run the same command again to go on", code, cause)
    except OSError as error:
        _fail(_system_told(error), 1, error)
    except MemoryError as error:
        why = f" ({error})" if str(error) else ""
        _fail(
            f"not enough memory{why}: make memory free, or give fewer --workers or, with a new "
            "--out, a smaller --samples-per-shard",
            1,
            error,
        )
    except (ValueError, RuntimeError) as error:
        _fail(str(error), 1, error)


def _system_told(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    told = f"{where}{error.strerror or error}"
    is_network = isinstance(error, (ConnectionError, TimeoutError))
    advice = _ADVICE.get(error.errno or 0, "" if is_network else None)
    return told if advice is None else f"{told}; {advice}run the same command again to go on"


def _fail(message: str, code: int, error: BaseException) -> None:
    told = "; ".join([message, *getattr(error, "__notes__", [])])
    # Some libraries' messages have several lines.
    say(f"error: {' '.join(told.splitlines())}")
    sys.exit(code)


if __name__ == "__main__":
    main()
