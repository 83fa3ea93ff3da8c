"""From sample names to ordered blocks: a pure function of (seed, split, set of names).

A block is the unit of work: it makes one tar shard and the matching rows of the zarr
arrays, so blocks never share a byte and any of them can be redone alone.
"""

import hashlib
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass


@dataclass(frozen=True)
class Block:
    """Samples `names` of a split; `index` counts the split's blocks from 0."""

    split: str
    index: int
    names: tuple[str, ...]

    @property
    def label(self) -> str:
        return f"{self.split}-{self.index:06d}"


def order_key(seed: int, split: str, name: str) -> bytes:
    """The key by which a split's samples are sorted: uniform, and blind to other names."""
    return hashlib.blake2b(f"{seed}/{split}/{name}".encode(), digest_size=16).digest()


def shuffle(names: Iterable[str], seed: int, split: str) -> list[str]:
    """The names in the split's seeded order. Taking a name away keeps the others' order."""
    return sorted(names, key=lambda name: (order_key(seed, split, name), name))


def fill(order: Sequence[str], bad: Set[str]) -> list[str]:
    """The order without the bad names and without holes.

    The place of each bad name, in ascending position, is taken by the last good name that
    is still unused, so a bad name changes its own block and the tail, and nothing else.
    """
    num_good = sum(name not in bad for name in order)
    spare = [name for name in order[num_good:] if name not in bad]
    return [spare.pop() if name in bad else name for name in order[:num_good]]


def limit(split_of: dict[str, str], count: int, seed: int) -> dict[str, str]:
    """A seeded uniform draw of `count` samples over all splits."""
    kept = sorted(split_of, key=lambda name: (order_key(seed, "limit", name), name))[:count]
    return {name: split_of[name] for name in kept}


def plan_blocks(
    split_of: dict[str, str],
    splits: Sequence[str],
    samples_per_shard: int,
    seed: int,
    bad: Set[str] = frozenset(),
) -> list[Block]:
    """Every block of every split, in order; a split without samples has none.

    Args:
        split_of: the split of each sample name.
        splits: the splits in the order of the dataset.
        bad: names to leave out; others take their places, see `fill`.
    """
    blocks: list[Block] = []
    for split in splits:
        order = shuffle((n for n, s in split_of.items() if s == split), seed, split)
        names = fill(order, bad)
        for index, start in enumerate(range(0, len(names), samples_per_shard)):
            blocks.append(Block(split, index, tuple(names[start : start + samples_per_shard])))
    return blocks


def names_digest(split_of: dict[str, str]) -> str:
    """A sha256 that stands for the names and their splits, in any order."""
    digest = hashlib.sha256()
    for name in sorted(split_of):
        digest.update(f"{name}\t{split_of[name]}\n".encode())
    return digest.hexdigest()
