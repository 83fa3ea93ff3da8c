"""Which folders of a cache were made by it, so that their shards are its to delete.

A folder is claimed by a file that holds the folder's own path. A copy of it, or the folder in
another place, has another path: it is somebody's dataset then, and no cache touches it.
"""

import os
from collections.abc import Iterator
from pathlib import Path

_MARKER = "cached-at"
# What may stand in a folder between its making and its claim.
_LOCK, _UNFINISHED = "lock", f".tmp-{_MARKER}"


def lock_of(folder: Path) -> Path:
    """The file that is locked by whoever fills the folder."""
    return folder / _LOCK


def is_claimed(folder: Path) -> bool:
    """Whether a folder, given by its resolved path, was claimed where it stands."""
    return _claimed_at(folder) == os.fsencode(folder)


def claim(folder: Path) -> None:
    """Claim a new folder, given by its resolved path; the caller holds its lock.

    Raises:
        ValueError: something that was not made here is in the folder.
    """
    if is_claimed(folder):
        return
    made_at = _claimed_at(folder)
    if made_at is not None:
        raise ValueError(
            f"{folder} was copied or moved from {os.fsdecode(made_at)} and is not touched: choose "
            "another --cache, or delete it"
        )
    if {path.name for path in folder.iterdir()} - {_LOCK, _UNFINISHED}:
        raise ValueError(
            f"{folder} was not made by this cache and is not touched: choose another --cache, or "
            "delete it"
        )
    unfinished = folder / _UNFINISHED
    unfinished.write_bytes(os.fsencode(folder))
    unfinished.replace(folder / _MARKER)


def claimed_files(cache: Path) -> Iterator[Path]:
    """The files below `shards` of the claimed folders in a cache's folder, its path resolved.

    No link is followed: what it points to was not made here.
    """
    for folder in cache.iterdir():
        if is_claimed(folder) and not (folder / "shards").is_symlink():
            for parent, _, names in os.walk(folder / "shards"):
                yield from (Path(parent, name) for name in names)


def _claimed_at(folder: Path) -> bytes | None:
    try:
        return (folder / _MARKER).read_bytes()
    except OSError:  # no such file, or no folder, or not ours to read
        return None
