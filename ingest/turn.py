"""Whose turn it is to write a dataset: what holds back work that has outlived its run.

A cluster's worker goes on with a block when the run that sent it was killed, and one that was
out of reach goes on when its block was given to another. By then the dataset may have been
removed and begun with other options, or be finished. So each round of blocks takes a turn, and
a block's files get their names only while it is the block's turn. What remains is the moment
between that look and the name: a rename in a folder, one PUT in an object store.
"""

import uuid

from .layout import SCRATCH
from .storage import Store, write_file

TURN = f"{SCRATCH}/turn"


def take_turn(store: Store) -> str:
    """End the turn of all blocks before; the mark of the new one. Call it with the lock held."""
    turn = uuid.uuid4().hex
    write_file(store, TURN, turn.encode())
    return turn


def has_turn(store: Store, turn: str) -> bool:
    """Whether it still is this turn, as far as this process sees the store.

    Raises:
        OSError: the store cannot be read.
    """
    try:
        return store.read(TURN).decode() == turn
    except FileNotFoundError:
        return False  # finished, or removed


def require_turn(store: Store, turn: str) -> None:
    """Raises ValueError: another run has taken its turn since, or the dataset is finished."""
    if not has_turn(store, turn):
        raise ValueError(
            f"another run is writing {store}, or it was removed: wait for that run, then run "
            "the same command again"
        )
