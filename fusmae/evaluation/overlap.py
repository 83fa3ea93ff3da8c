"""How many samples an encoder was pretrained on that a test split holds too.

Pretraining sees no labels, but a test image that it has seen is no longer unseen. The splits of
BigEarthNet cut across each other, so the google train split of the Fus-MAE paper holds images of
the official and of the v2 test split. Samples are compared by their v1 names, which v2 keeps in
`s2v1_name`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusmae.data import SplitReader
from fusmae.manifest import manifest_sha256, read_manifest
from fusmae.model import EncoderCard

_V1_NAME = "s2v1_name"
# Columns of samples.parquet that tell in which split of a rule a sample lies.
_RULES = {"google": "split_google", "official": "split_official", "v2": "split_v2"}
_TEST = "test"


@dataclass
class _Known:
    """What tables tell: names of each split of a dataset, and each rule's test names."""

    by_split: dict[str, set[str]] = field(default_factory=dict)
    by_rule: dict[str, set[str]] = field(default_factory=dict)


def find_overlap(
    card: EncoderCard, pretraining: Sequence[Path], evaluated: Path, test_split: str
) -> dict[str, Any] | None:
    """The samples that the encoder's pretraining shares with each test split, JSON-ready.

    Args:
        card: the encoder's; it says which split was trained on, and the hash of each manifest.
        pretraining: the datasets that it was trained on; without any the answer is None.
        evaluated: the dataset of this run, whose split `test_split` is scored.

    Returns:
        `shared_with`: for this run's test split, and for the test split of each rule,
        `shared` and `of` how many samples; None where no table tells that rule's test split.
        A subset of the pretraining split shares at most as many.

    Raises:
        ValueError: a dataset is not one of those in the card, or cannot be read.
    """
    if not pretraining:
        return None
    trained: set[str] = set()
    sources = []
    tables = [_read(dataset) for dataset in (*pretraining, evaluated)]
    for dataset, known in zip(pretraining, tables, strict=False):
        source = _source(card, dataset, known)
        trained |= known.by_split[source["split"]]
        sources.append(source)
    found = {"this run's test split": tables[-1].by_split.get(test_split)}
    for rule in _RULES:
        told = [known.by_rule[rule] for known in tables if rule in known.by_rule]
        found[f"{rule} test split"] = set().union(*told) if told else None
    return {
        "pretraining": sources,
        "shared_with": {
            name: None if tested is None else count_shared(trained, tested)
            for name, tested in found.items()
        },
    }


def _source(card: EncoderCard, dataset: Path, known: _Known) -> dict[str, Any]:
    """What is said of a dataset that the encoder was trained on; errors as `find_overlap`."""
    digest = manifest_sha256(dataset)
    if card.manifest_sha256 and digest not in card.manifest_sha256:
        raise ValueError(
            f"{dataset} is not what the encoder was pretrained on: its manifest has sha256 "
            f"{digest[:12]}, the card names {', '.join(h[:12] for h in card.manifest_sha256)}"
        )
    split = card.split or "train"
    if split not in known.by_split:
        raise ValueError(f"{dataset} has no split {split!r}, which the encoder was trained on")
    return {
        "dataset": read_manifest(dataset).name,
        "split": split,
        "num_samples": len(known.by_split[split]),
        "manifest_sha256": digest,
        "named_in_card": digest in card.manifest_sha256,
    }


def count_shared(trained: set[str], tested: set[str]) -> dict[str, int]:
    """How many of the names in `tested` are in `trained` too, and of how many."""
    return {"shared": len(trained & tested), "of": len(tested)}


def describe_overlap(overlap: Mapping[str, Any] | None) -> str:
    """One line for a person."""
    if overlap is None:
        return "overlap of pretraining and test: unknown (give --pretraining-data)"
    parts = [
        f"{name} unknown" if found is None else f"{name} {found['shared']:,} of {found['of']:,}"
        for name, found in overlap["shared_with"].items()
    ]
    return f"samples that pretraining has seen: {', '.join(parts)}"


def _read(dataset: Path) -> _Known:
    known = _Known()
    for split in read_manifest(dataset).splits:
        reader = SplitReader(dataset, split)
        v1_names = _optional(reader, _V1_NAME)
        names = [v1 or key for v1, key in zip(v1_names, reader.keys(), strict=True)]
        known.by_split[split] = set(names)
        for rule, column in _RULES.items():
            places = _optional(reader, column)
            if any(place is not None for place in places):
                tested = {n for n, place in zip(names, places, strict=True) if place == _TEST}
                known.by_rule.setdefault(rule, set()).update(tested)
    return known


def _optional(reader: SplitReader, column: str) -> list[str | None]:
    """A column that datasets of other archives lack; all None there."""
    if column not in reader.column_names():
        return [None] * reader.num_samples
    return reader.column(column)
