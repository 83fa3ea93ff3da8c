"""How many samples of a split hold each class, for the manifest, the card and `info`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from .facts import Fact


def class_counts(
    rows: Sequence[dict[str, Any]],
    label_sets: Mapping[str, tuple[str, ...]],
    facts: Sequence[Fact],
) -> dict[str, tuple[int, ...]]:
    """The number of these samples (rows of block records) that hold each class.

    Keys are label sets, and `LABEL_SET/FACT` for a fact that names one class of a label set
    (SEN12MS: `sen12ms-igbp10/label_single`); numbers stand in the order of the set's classes.
    """
    told = [row["facts"] for row in rows]
    held: dict[str, Counter[str]] = {
        name: Counter(label for entry in told for label in set(entry["labels"][name]))
        for name in label_sets
    }
    for fact in facts:
        if fact.kind == "string" and fact.label_set is not None:
            held[f"{fact.label_set}/{fact.name}"] = Counter(
                entry[fact.name] for entry in told if entry[fact.name] is not None
            )
    return {
        name: tuple(counter[label] for label in label_sets[name.partition("/")[0]])
        for name, counter in held.items()
    }
