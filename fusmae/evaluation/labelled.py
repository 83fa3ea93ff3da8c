"""The three splits of a protocol, and which of their samples have labels that it may see."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fusmae.data import SplitReader
from fusmae.evaluation.fractions import choose_labelled
from fusmae.evaluation.tasks import MultiLabel, Task
from fusmae.manifest import Manifest

# The column of samples.parquet with the one class of each sample, null where there is none.
_SINGLE_LABEL_COLUMN = "label_single"
# Classes that a warning names; the others are counted.
_NAMED = 3


@dataclass(frozen=True)
class LabelChoice:
    """The training labels to use: those of the keys in a file, or a drawn `fraction` in (0, 1]."""

    fraction: float
    seed: int
    listed: Path | None = None

    def describe(self) -> dict[str, object]:
        """What decides the choice, JSON-ready; the seed stands in the recipe.

        Raises:
            ValueError: the list cannot be read.
        """
        if self.listed is None:
            return {"fraction": self.fraction}
        text = "\n".join(_read_list(self.listed))
        return {"labels_sha256": hashlib.sha256(text.encode()).hexdigest()}


@dataclass(frozen=True)
class LabelledSplit:
    """Samples of one split that a protocol uses: ids ascending, labels as the task has them.

    `num_unlabelled` samples of the split have no class and are left out.
    """

    reader: SplitReader
    ids: Tensor
    labels: Tensor
    num_unlabelled: int

    def keys(self) -> list[str]:
        """The keys of the samples used, in the order of `ids`."""
        keys = self.reader.keys()
        return [keys[index] for index in self.ids.tolist()]


def labels_by_class(split: LabelledSplit, task: Task) -> dict[str, int]:
    """How many of the samples used have each class."""
    counts = task.votes(split.labels).sum(dim=0).int().tolist()
    return dict(zip(task.classes, counts, strict=True))


def few_labels_warning(split: LabelledSplit, task: Task) -> str:
    """One line where labels are fewer than classes, or a class has none; "" otherwise."""
    num, of = len(split.ids), len(task.classes)
    lacking = [name for name, count in labels_by_class(split, task).items() if not count]
    if not lacking and num >= of:
        return ""
    told = f"{num:,} labelled samples for {of} classes"
    if lacking:
        more = f"; and {len(lacking) - _NAMED} more" if len(lacking) > _NAMED else ""
        told += f", {len(lacking)} of which have none ({'; '.join(lacking[:_NAMED])}{more})"
        told += " and are scored by chance"
    drawn = num < split.reader.num_samples - split.num_unlabelled
    return f"{told}: take more by --fraction or --labels" if drawn else told


def classes_of(manifest: Manifest, label_set: str) -> tuple[str, ...]:
    """The classes of a label set, in the order of their columns.

    Raises:
        ValueError: the dataset has no such label set.
    """
    if label_set not in manifest.label_sets:
        raise ValueError(
            f"dataset {manifest.name} has no label set {label_set!r}; "
            f"it has {list(manifest.label_sets)}: set label_set in the recipe"
        )
    return manifest.label_sets[label_set]


def smallest_label_set(manifest: Manifest) -> str:
    """The name of the label set with the fewest classes, of a dataset that has one."""
    return min(manifest.label_sets, key=lambda name: len(manifest.label_sets[name]))


def read_splits(
    dataset: Path, names: tuple[str, str, str], task: Task, label_set: str, choice: LabelChoice
) -> list[LabelledSplit]:
    """The chosen part of the train split, and all of val and test.

    Raises:
        ValueError: the splits are not three of the dataset's, it lacks the label set, a fraction
            is out of range, or a listed key is unknown or has no label.
    """
    if len(set(names)) < len(names):
        raise ValueError(f"the train, val and test splits must be three, got {', '.join(names)}")
    return [
        _read_split(SplitReader(dataset, name), task, label_set, choice if not place else None)
        for place, name in enumerate(names)
    ]


def _read_split(
    reader: SplitReader, task: Task, label_set: str, choice: LabelChoice | None
) -> LabelledSplit:
    labels = reader.labels(label_set)
    if isinstance(task, MultiLabel):
        ids = list(range(reader.num_samples))
    else:
        single = reader.column(_SINGLE_LABEL_COLUMN)
        ids = [index for index, name in enumerate(single) if name is not None]
    num_unlabelled = reader.num_samples - len(ids)
    if choice is not None:
        keys = reader.keys()
        row = {keys[index]: index for index in ids}
        chosen = (
            choose_labelled(list(row), choice.fraction, choice.seed)
            if choice.listed is None
            else _listed(choice.listed, row, reader.split)
        )
        ids = sorted(row[key] for key in chosen)
    if not ids:
        raise ValueError(f"split {reader.split!r} has no sample with a {label_set} class")
    if isinstance(task, MultiLabel):
        encoded = task.encode([labels[index] for index in ids])
    else:
        encoded = task.encode([single[index] for index in ids])
    return LabelledSplit(reader, torch.tensor(ids), encoded, num_unlabelled)


def _read_list(path: Path) -> list[str]:
    try:
        keys = path.read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the list of labels {path}: {error}") from None
    if not keys or len(set(keys)) < len(keys):
        raise ValueError(f"{path} must list sample keys, one a line, each once")
    return keys


def _listed(path: Path, row: dict[str, int], split: str) -> list[str]:
    keys = _read_list(path)
    strange = [key for key in keys if key not in row]
    if strange:
        raise ValueError(
            f"{path}: {len(strange)} of {len(keys)} keys are no labelled samples of split "
            f"{split!r}, the first is {strange[0]!r}"
        )
    return keys
