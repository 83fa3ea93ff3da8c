"""Writing a file so that a reader finds the old one or the new one, after any crash."""

import os
from pathlib import Path

TEMPORARY = ".tmp-"


def replace_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, and onto the disk."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    temporary.write_bytes(data)
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Force a file's bytes, or a folder's entries, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
