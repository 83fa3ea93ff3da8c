"""Which BigEarthNet pairs become samples: the split rule and `--exclude`, and what they leave out.

Stands between the listing of an archive and the plan; a function of what tables and lists say.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from .bigearthnet_archive import Pair
from .wording import say

# Without a class of the 19, 55 of v1's 590,326 patches are in none of the published lists.
_NOT_PUBLISHED = "the published ones lack 55 of v1's 590,326"


def choose(
    pairs: Sequence[Pair], rule: str, excluded: frozenset[str]
) -> tuple[dict[str, str], dict[str, int]]:
    """The split of each pair that the rule covers and `excluded` does not take out.

    The second value counts the others by reason, `exclude` before `no_split`.

    Raises:
        ValueError: of a pair it is not known whether `excluded` takes it out.
    """
    split_of: dict[str, str] = {}
    left_out: Counter[str] = Counter()
    for pair in pairs:
        flags = {"snow": pair.seasonal_snow, "cloud": pair.cloud_or_shadow}
        unknown = sorted(word for word in excluded if flags[word] is None)
        if unknown:
            raise ValueError(
                f"--exclude {unknown[0]}: the tables do not say whether {pair.name} has it"
            )
        split = getattr(pair, f"split_{rule}")
        if any(flags[word] for word in excluded):
            left_out["exclude"] += 1
        elif split is None:
            left_out["no_split"] += 1
        else:
            split_of[pair.name] = split
    return split_of, dict(left_out)


def say_unlisted(pairs: Sequence[Pair], lists: Path) -> None:
    """Say how many pairs are in none of the published lists, neither of splits nor of flags."""
    unlisted = sorted(
        pair.name
        for pair in pairs
        if pair.split_official is None and not pair.seasonal_snow and not pair.cloud_or_shadow
    )
    if unlisted:
        say(
            f"warning: {len(unlisted):,} of {len(pairs):,} patches are in none of the lists of "
            f"{lists}: are these whole? ({_NOT_PUBLISHED}.) The first: {unlisted[0]}"
        )


# The fields of a pair that no list or table says.
_NOT_OF_TABLES = {"s2", "s1", "map", "time_s1"}


def facts_digest(pairs: Sequence[Pair]) -> str:
    """A sha256 of all that lists and tables say of the pairs, and of nothing about paths.

    Nor about the S1 patches: a pair that had none is taken in when its own is restored.
    """
    digest = hashlib.sha256()
    told = [field.name for field in fields(Pair) if field.name not in _NOT_OF_TABLES]
    for pair in sorted(pairs, key=lambda pair: pair.name):
        facts = [getattr(pair, name) for name in told]
        digest.update(json.dumps([*facts, pair.map is not None]).encode())
    return digest.hexdigest()
