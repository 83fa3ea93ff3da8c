"""The google split against the published counts and list files."""

import bz2
import hashlib
import itertools

import pytest

from fusmae.splits import google_hash, google_split

# Sums of the split lists that stanfordmlgroup/USat pins (usat/data/bigearthnet_dataset.py).
PUBLISHED_MD5 = {
    "train": "343f7224951da0879cabcceae7b34a64",
    "val": "8fe0292aa346c0833850a322e1c1e783",
    "test": "efce8d370cf5f55afc415ace88605218",
}
PUBLISHED_COUNT = {"train": 354_196, "val": 118_065, "test": 118_065}


@pytest.fixture(scope="module")
def v1_names(name_lists) -> list[str]:
    with bz2.open(name_lists / "bigearthnet-v1" / "s1_s2_mapping.csv.bz2", "rt") as lines:
        next(lines)
        return [line.strip().partition(",")[2] for line in lines]


def test_counts_are_the_papers(v1_names):
    counts = dict.fromkeys(PUBLISHED_COUNT, 0)
    for name in v1_names:
        counts[google_split(name)] += 1
    assert counts == PUBLISHED_COUNT


def interleave(shards: list[list[str]], cycle: int = 16, block: int = 16) -> list[str]:
    """tf.data's interleave: `cycle` open inputs, `block` items from each in turn."""
    pending = [iter(shard) for shard in shards]
    open_, pending = pending[:cycle], pending[cycle:]
    out: list[str] = []
    slot = 0
    while open_:
        taken = [item for _, item in zip(range(block), open_[slot], strict=False)]
        out += taken
        if len(taken) < block:
            if pending:
                open_[slot] = pending.pop(0)
            else:
                del open_[slot]
                slot -= 1
        slot = (slot + 1) % len(open_) if open_ else 0
    return out


def test_lists_equal_the_published_files_byte_for_byte(v1_names):
    ordered = sorted(v1_names, key=google_hash)
    total = len(ordered)
    bounds = [round(i * total / 128) for i in range(129)]
    shards = [ordered[a:b] for a, b in itertools.pairwise(bounds)]
    for split, md5 in PUBLISHED_MD5.items():
        kept = [[name for name in shard if google_split(name) == split] for shard in shards]
        text = "\n".join(interleave([shard for shard in kept if shard]))
        assert hashlib.md5(text.encode()).hexdigest() == md5, split
