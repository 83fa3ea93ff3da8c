"""Of which archive a dataset was begun: some of its samples, noted before the first block.

Archives of one layout name their samples alike, so a rerun could go on with another's pixels and
mix the two. The note is dropped with the scratch folder.
"""

import hashlib
import json
from typing import Any

import numpy as np

from .layout import SCRATCH
from .request import Request
from .storage import Store, read_json_object, write_file

_PATH = f"{SCRATCH}/begun.json"
# Another archive differs in all of its samples. What is mended differs in few, and may go on.
_NUM_NOTED = 8


def refuse_other_archives(store: Store, request: Request) -> None:
    """Note some samples at the start; on a rerun read them again.

    Samples that are bad now, or were then, are not compared.

    Raises:
        ValueError: one holds other pixels or facts than noted; the message names it.
        OSError: an archive cannot be read, or the note not be written.
    """
    noted = read_json_object(store, _PATH)
    if noted is None:
        write_file(store, _PATH, json.dumps(_sums(request, _spread(request))).encode())
        return
    known = [name for name in noted if name in request.sources]
    now = _sums(request, known)
    other = [name for name in known if now.get(name, noted[name]) != noted[name]]
    if other:
        raise ValueError(
            f"--out {store} was begun with other archives ({other[0]} held other pixels or labels "
            "then): use the same to go on, or a new folder"
        )


def _spread(request: Request) -> list[str]:
    names = sorted(request.split_of)
    return names[:: -(-len(names) // _NUM_NOTED)]


def _sums(request: Request, names: list[str]) -> dict[str, str]:
    """The sha256 of each of these samples that is not bad: pixels, and what is told of it."""
    rows: dict[str, Any] = {spec.name: np.empty(spec.shape, spec.dtype) for spec in request.arrays}
    sums = {}
    for name in names:
        try:
            sample = request.read(request.sources[name], rows)
        except ValueError:
            continue
        digest = hashlib.sha256(json.dumps(sample.facts, sort_keys=True).encode())
        for pixels in rows.values():
            digest.update(pixels)
        sums[name] = digest.hexdigest()
    return sums
