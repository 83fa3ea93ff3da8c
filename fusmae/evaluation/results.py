"""`OUT/metrics.json`: the result of one run of a protocol, written last and then kept."""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fusmae.evaluation.labelled import LabelledSplit, few_labels_warning, labels_by_class
from fusmae.evaluation.tasks import Task
from fusmae.manifest import Manifest, manifest_sha256
from fusmae.training.durable import replace_file

RESULT_NAME = "metrics.json"
LABELS_NAME = "labels_used.txt"
PROBE_FORMAT = "fusmae-probe"
FINETUNE_FORMAT = "fusmae-finetune"
_PACKAGES = ("fusmae", "torch", "torchmetrics", "numpy")


def describe_inputs(dataset: Path, files: Sequence[Path]) -> dict[str, Any]:
    """Hashes of the dataset's manifest, which lists every file's, and of the encoder's files."""
    return {
        "encoder_sha256": {path.name: _sha256(path) for path in files},
        "manifest_sha256": manifest_sha256(dataset),
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def as_json(table: Mapping[str, Any]) -> dict[str, Any]:
    """The table as it comes back from a file, for comparisons with one."""
    plain: dict[str, Any] = json.loads(json.dumps(table))
    return plain


def describe_task(
    task: Task, label_set: str, splits: Sequence[LabelledSplit], manifest: Manifest
) -> dict[str, Any]:
    """What the scores are of: classes, averaging, splits and their sizes."""
    labelled, _, tested = splits
    return {
        "task": task.name,
        "label_set": label_set,
        "num_classes": len(task.classes),
        "classes": list(task.classes),
        "averaging": task.averaging,
        "splits": {
            name: {
                "split": split.reader.split,
                "num_samples": split.reader.num_samples,
                "num_used": len(split.ids),
                "num_unlabelled": split.num_unlabelled,
            }
            for name, split in zip(("train", "val", "test"), splits, strict=True)
        },
        "split_rule": manifest.options.get("plan", {}).get("split"),
        "num_labels": len(labelled.ids),
        "labels_by_class": labels_by_class(labelled, task),
        "few_labels": few_labels_warning(labelled, task),
        "fraction": len(labelled.ids) / labelled.reader.num_samples,
        "num_test": len(tested.ids),
    }


def provenance(manifest: Manifest, encoder: str, device: torch.device) -> dict[str, Any]:
    """Where a result comes from, for its readers."""
    return {
        "dataset": manifest.name,
        "simulated": manifest.simulated,
        "simulation": manifest.source.get("simulation"),
        "encoder": encoder,
        "versions": {name: version(name) for name in _PACKAGES}
        | {"python": platform.python_version()},
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
    }


def write_result(out: Path, result: Mapping[str, Any], keys: Sequence[str]) -> None:
    """The keys of the labels used, then the result, whose presence says that it is complete."""
    out.mkdir(parents=True, exist_ok=True)
    replace_file(out / LABELS_NAME, "".join(f"{key}\n" for key in keys).encode())
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    replace_file(out / RESULT_NAME, text.encode())


def earlier_result(path: Path, described: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result in `path` if its options are these; None where there is no file.

    Raises:
        ValueError: the file holds something else; the first difference is named.
    """
    if not path.exists():
        return None
    earlier = read_result(path)
    for key, now in described.items():
        then = earlier["options"].get(key)
        if then != now and isinstance(now, dict) and isinstance(then, dict):
            key, then, now = next(
                (f"{key}.{name}", then.get(name), now.get(name))
                for name in now | then
                if then.get(name) != now.get(name)
            )
        if then != now:
            raise ValueError(
                f"{path} holds the result of other options ({key}: {then!r} then, {now!r} now): "
                "give another --out, or delete it"
            )
    return earlier


def read_result(path: Path) -> dict[str, Any]:
    """The content of a `metrics.json`.

    Raises:
        ValueError: the file is missing, not JSON or not the result of a protocol.
    """
    try:
        table = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    formats = (PROBE_FORMAT, FINETUNE_FORMAT)
    if not isinstance(table, dict) or table.get("format") not in formats:
        raise ValueError(f"{path} is not the result of train/linear_probe.py or train/finetune.py")
    return table
