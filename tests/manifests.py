"""A `dataset.json` of a test's own, with the digest that docs/FORMAT.md asks for."""

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any


def sealed(table: dict[str, Any]) -> str:
    """The text of a manifest with these fields, its digest made right."""
    text = json.dumps(table | {"digest": 64 * "0"}, indent=1, ensure_ascii=False) + "\n"
    before, _, after = text.rpartition(64 * "0")
    return before + sha256(text.encode()).hexdigest() + after


def edit_manifest(dataset: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Have `change` alter the fields of a dataset's manifest."""
    path = dataset / "dataset.json"
    table = json.loads(path.read_text())
    change(table)
    path.write_text(sealed(table))
