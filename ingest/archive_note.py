"""Which archives a dataset was made from: a note beside the spool, for a rerun to compare.

It is no part of the dataset, whose bytes are the same from an archive as published, a plain tar
or an extracted folder. It is called by the dataset's own sha256, so it cannot speak of another.
"""

import json
from contextlib import suppress
from pathlib import Path

from fusmae.manifest import MANIFEST_NAME

from .layout import UNNAMED
from .storage import LocalStore, Store, write_file

_TRIES = 100


def describe(archives: dict[str, Path]) -> dict[str, str]:
    """Option -> name and size of each archive that is a file."""
    return {
        option: f"{path.name}, {path.stat().st_size:,} bytes"
        for option, path in archives.items()
        if path.is_file()
    }


def is_noted(noted: list[dict[str, str]], now: dict[str, str]) -> bool:
    """Whether archives of these sizes were noted together; a name may have changed since.

    Archives of many GB that have the same number of bytes are the same, as far as goes without
    reading them.
    """
    return any(_sizes(told) == _sizes(now) for told in noted)


def _sizes(told: dict[str, str]) -> dict[str, str]:
    return {option: text.rpartition(", ")[2] for option, text in told.items()}


def write_note(folder: Path, dataset: Store, archives: dict[str, Path]) -> None:
    """Note the archives of a finished dataset in `folder`; none where they were folders."""
    told, noted = describe(archives), read_note(folder, dataset)
    if told and told not in noted:
        _write(folder, _name(dataset), json.dumps([*noted, told], indent=1).encode())


def read_note(folder: Path, dataset: Store) -> list[dict[str, str]]:
    """What `write_note` wrote of this dataset, an entry for each time it was made otherwise."""
    try:
        noted: list[dict[str, str]] = json.loads(LocalStore(str(folder)).read(_name(dataset)))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return []
    return noted


def _write(folder: Path, name: str, data: bytes) -> None:
    # Other runs write notes here too: only what is empty is removed, and such a run may remove
    # the folders that this one has just made.
    for tries_left in reversed(range(_TRIES)):
        try:
            write_file(LocalStore(str(folder)), name, data)
            break
        except (FileNotFoundError, FileExistsError):
            if not tries_left:
                raise
    with suppress(OSError):
        (folder / UNNAMED).rmdir()
        (folder / UNNAMED).parent.rmdir()


def _name(dataset: Store) -> str:
    return f"made-{dataset.hash(MANIFEST_NAME)[1][:16]}.json"
