"""`RUN/run.json`: what a run was made from, for whoever finds it later."""

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from fusmae.data import location_of
from fusmae.manifest import manifest_sha256
from fusmae.training.durable import replace_file

RUN_RECORD = "run.json"
_PACKAGES = ("fusmae", "torch", "deepspeed", "numpy", "safetensors", "timm")


def describe_datasets(datasets: Sequence[Path]) -> dict[str, Any]:
    """Where the first dataset lies and the sha256 of its manifest, which lists every file's.

    Those of further ones stand under `mixed_with`.
    """
    first, *others = (
        {"path": location_of(dataset), "manifest_sha256": manifest_sha256(dataset)}
        for dataset in datasets
    )
    return {**first, "mixed_with": others} if others else first


def describe_start(world_size: int, step: int, ds_config: dict[str, Any]) -> dict[str, Any]:
    """One start of a run: when, from which step, on what and with which versions."""
    on_gpu = torch.cuda.is_available()
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": step,
        "world_size": world_size,
        "deepspeed_config": ds_config,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "cpu": platform.processor() or platform.machine(),
        "num_cores": len(os.sched_getaffinity(0)),
        "host": platform.node(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "git_commit": git_commit(),
    }


def write_record(
    run: Path, recipe: dict[str, Any], dataset: dict[str, Any], start: dict[str, Any]
) -> None:
    """Write `run.json`, keeping the starts that it already lists."""
    path = run / RUN_RECORD
    starts = json.loads(path.read_text())["starts"] if path.exists() else []
    record = {"recipe": recipe, "dataset": dataset, "starts": [*starts, start]}
    replace_file(path, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """The commit of the sources that run, with "-dirty" if changed; None outside of git."""
    source = Path(__file__)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(source.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", source.name)  # not another project's repository
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
