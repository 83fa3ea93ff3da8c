"""What to make of an archive: all that a verb hands to `dataset.build`."""

from collections.abc import Set
from dataclasses import dataclass
from typing import Any

from fusmae.sensors import ArraySpec

from .convert import Read
from .facts import Fact
from .plan import Block, plan_blocks


@dataclass(frozen=True)
class Request:
    """What to make of an archive.

    Everything but `sources`, `places` and `read` changes the bytes. A source knows its `position`
    in the archive, and makes a message about it `bare` of where the archive lies on this machine.
    `places` are the paths that `read` needs to see.
    """

    name: str
    simulated: bool
    origin: dict[str, Any]
    arrays: tuple[ArraySpec, ...]
    label_sets: dict[str, tuple[str, ...]]
    facts: tuple[Fact, ...]
    split_of: dict[str, str]
    splits: tuple[str, ...]
    sources: dict[str, Any]
    places: tuple[str, ...]
    read: Read
    formats: frozenset[str]
    samples_per_shard: int
    seed: int
    options: dict[str, Any]

    def blocks(self, bad: Set[str] = frozenset()) -> list[Block]:
        """The blocks of all samples but those with these names: see `plan_blocks`."""
        return plan_blocks(self.split_of, self.splits, self.samples_per_shard, self.seed, bad)
