"""All of a folder, to be compared with another."""

from pathlib import Path


def tree(root: Path) -> dict[str, bytes]:
    """The bytes of each file below, by its path from there."""
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
