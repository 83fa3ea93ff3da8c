"""Checkpoints on disk: free of ZeRO stage and world size, complete or invisible, no pickle.

    RUN/checkpoints/step-00001000/weight.safetensors      fp32, by parameter name
                                  exp_avg.safetensors     Adam's first moments
                                  exp_avg_sq.safetensors  and second
                                  state.json              step, loader, recipe ...
                                  manifest.json           size and sha256 of each file
    RUN/checkpoints/latest                                the name of the newest folder

Rank 0 writes, all ranks read: the folder of a run lies where every machine sees it.
"""

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fusmae.training.durable import TEMPORARY, replace_file, sync
from fusmae.training.engine import Engine, ParameterState

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
LATEST = "latest"
STATE = "state.json"
MANIFEST = "manifest.json"


def save_checkpoint(run: Path, engine: Engine, state: dict[str, Any], keep: int, rank: int) -> None:
    """Write the engine's state and `state` as RUN/checkpoints/step-N, N being state["step"].

    Called by all ranks together; returns once the checkpoint is complete and on the disk.
    The newest `keep` checkpoints stay.

    Raises:
        ValueError: a weight or a moment is not finite; nothing is written.
        OSError: the disk is full or not writable (rank 0).
    """
    tensors: dict[str, dict[str, Tensor]] = {part: {} for part in ParameterState._fields}
    for name, whole in engine.states():
        if rank == 0:
            for part, tensor in zip(ParameterState._fields, whole, strict=True):
                tensors[part][name] = tensor.to("cpu", torch.float32, copy=True).contiguous()
    if rank == 0:
        _check_finite(tensors, state["step"])
        folder = _write_folder(
            run / CHECKPOINTS, tensors, {**state, "adam_steps": engine.adam_steps}
        )
    engine.barrier()
    if rank == 0:
        replace_file(run / CHECKPOINTS / LATEST, f"{folder.name}\n".encode())
        # One of a later step is damaged, or this run would have gone on from it.
        others = [old for old in _folders(run) if old != folder]
        later = [old for old in others if old > folder]
        for old in later + [old for old in others if old < folder][keep - 1 :]:
            _remove(old)
    engine.barrier()


def find_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint that is whole, None if there is none.

    `latest` is tried first, then the others, newest first. One whose files are not those of
    its manifest is passed over with a warning that names it.
    """
    candidates = _folders(run)
    pointer = run / CHECKPOINTS / LATEST
    if pointer.exists():
        latest = run / CHECKPOINTS / pointer.read_text().strip()
        candidates = [latest, *(folder for folder in candidates if folder != latest)]
    for folder in candidates:
        problem = _problem(folder)
        if problem is None:
            return folder
        logger.warning("checkpoint %s is passed over: %s", folder, problem)
    return None


def newest_state(run: Path) -> dict[str, Any] | None:
    """The state of the newest checkpoint by name, its other files unchecked; None without one."""
    folders = _folders(run)
    try:
        return read_state(folders[0]) if folders else None
    except (OSError, ValueError):
        return None


def read_state(folder: Path) -> dict[str, Any]:
    """The `state` with which the checkpoint was saved, and Adam's count as "adam_steps"."""
    state: dict[str, Any] = json.loads((folder / STATE).read_text())
    return state


def restore_checkpoint(folder: Path, engine: Engine) -> None:
    """Set the engine to a checkpoint's weights and Adam state; called by all ranks together.

    Raises:
        ValueError: the checkpoint lacks a parameter of the model or has it in another shape.
    """
    files = [
        safe_open(folder / f"{part}.safetensors", framework="pt") for part in ParameterState._fields
    ]

    def state_of(name: str) -> ParameterState:
        try:
            return ParameterState(*(file.get_tensor(name) for file in files))  # type: ignore[no-untyped-call]
        except SafetensorError as error:
            raise ValueError(f"{folder} has no parameter {name}: {error}") from None

    engine.restore(state_of, read_state(folder)["adam_steps"])


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The checkpoint's fp32 weights by parameter name, on the CPU."""
    return safetensors.torch.load_file(folder / "weight.safetensors")


def remove_leftovers(run: Path) -> None:
    """Delete what a killed run left half-written; called by one rank before training."""
    if (run / CHECKPOINTS).is_dir():
        for leftover in (run / CHECKPOINTS).glob(f"{TEMPORARY}*"):
            _delete(leftover)


def _check_finite(tensors: dict[str, dict[str, Tensor]], step: int) -> None:
    for part, named in tensors.items():
        for name, tensor in named.items():
            if not torch.isfinite(tensor).all():
                raise ValueError(
                    f"step {step}: {part} of {name} is not finite, so no checkpoint is written; "
                    "resume from the previous one with a lower optim.lr or with optim.clip_norm"
                )


def _write_folder(
    parent: Path, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]
) -> Path:
    """Write one complete checkpoint and give it its name last."""
    folder = parent / f"step-{state['step']:08d}"
    temporary = parent / f"{TEMPORARY}{folder.name}"
    _delete(temporary)
    temporary.mkdir(parents=True)
    for part, named in tensors.items():
        safetensors.torch.save_file(named, temporary / f"{part}.safetensors")
    (temporary / STATE).write_text(json.dumps(state, indent=1) + "\n")
    manifest = {path.name: _describe(path) for path in sorted(temporary.iterdir())}
    (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    for path in temporary.iterdir():
        sync(path)
    sync(temporary)
    _remove(folder)  # of an earlier run that was resumed from before this step
    temporary.replace(folder)
    sync(parent)
    return folder


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _problem(folder: Path) -> str | None:
    """Why this is no complete checkpoint, or None."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        for name, expected in manifest.items():
            if _describe(folder / name) != expected:
                return f"{name} is not the file that was written"
    except (OSError, ValueError, AttributeError) as error:
        return str(error)
    return None


def _folders(run: Path) -> list[Path]:
    """The checkpoints' folders, newest first."""
    return sorted((run / CHECKPOINTS).glob("step-*"), reverse=True)


def _remove(folder: Path) -> None:
    """Delete a checkpoint so that it is never seen in part."""
    if folder.exists():
        leaving = folder.with_name(f"{TEMPORARY}old-{folder.name}")
        _delete(leaving)
        folder.replace(leaving)
        _delete(leaving)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
