"""Checkpoints on disk: free of ZeRO stage and world size, complete or invisible, no pickle.

    RUN/checkpoints/step-00001000/weight.safetensors      fp32, by parameter name
                                  exp_avg.safetensors     Adam's first moments
                                  exp_avg_sq.safetensors  and second
                                  state.json              step, loader, recipe ...
                                  manifest.json           size and sha256 of each file
    RUN/checkpoints/latest                                the name of the newest folder
    RUN/checkpoints/step-00002000.passed-over             not gone on from, and kept for the user

Rank 0 writes (`saving.py` says when), all ranks read: the folder of a run lies where every
machine sees it.
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fusmae.training.durable import TEMPORARY, replace_file, sync
from fusmae.training.engine import Engine, ParameterState

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
LATEST = "latest"
STATE = "state.json"
MANIFEST = "manifest.json"
_NAME = re.compile(r"step-[0-9]{8}")

Tensors = dict[str, dict[str, Tensor]]  # part -> name -> fp32 on the CPU


def write_checkpoint(
    run: Path, tensors: Tensors, state: dict[str, Any], keep: int, keep_every_steps: int = 0
) -> None:
    """Write RUN/checkpoints/step-N, N being state["step"], and then name it in `latest`.

    It is read back from the disk before it gets its name. The newest `keep` checkpoints stay,
    and those of every multiple of `keep_every_steps`, 0 for none. One of a later step, which this
    run did not go on from, is renamed and told, never deleted.

    Raises:
        OSError: the disk is full, not writable, or does not give back what was written; the
            checkpoints that were there are as they were.
    """
    folder = run / CHECKPOINTS / f"step-{state['step']:08d}"
    temporary = folder.with_name(f"{TEMPORARY}{folder.name}")
    try:
        _write_folder(temporary, tensors, state)
        _remove(folder)  # of an earlier run that was resumed from before this step
        temporary.replace(folder)
        sync(folder.parent)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)  # it takes room
        raise
    replace_file(folder.with_name(LATEST), f"{folder.name}\n".encode())
    folders = _folders(run)
    older = [old for old in folders if old < folder][keep - 1 :]
    unwanted = [old for old in older if not keep_every_steps or _step(old) % keep_every_steps]
    for old in unwanted:
        try:
            _remove(old)
        except OSError as error:  # a network file system may still hold a file open
            logger.warning("cannot remove the old checkpoint %s: %s", old, error.strerror)
    for later in (other for other in folders if other > folder):
        _set_aside(later)


def find_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint that is whole, None if there is no checkpoint at all.

    `latest` is tried first, then the others, newest first. One whose files are not those of
    its manifest is passed over with a warning that names it.

    Raises:
        ValueError: there are checkpoints and none is whole, or the disk does not let one be read,
            which does not make it damaged.
    """
    for folder in _candidates(run):
        try:
            problem = _problem(folder)
        except OSError as error:
            raise ValueError(
                f"cannot read the checkpoint {folder}: {error.strerror}; try again when the disk "
                "answers, or move that folder away to go on from the one before"
            ) from None
        if problem is None:
            return folder
        logger.warning("checkpoint %s is passed over: %s", folder, problem)
    damaged = [folder.name for folder in _folders(run)]
    if damaged:
        raise ValueError(
            f"{run / CHECKPOINTS} has no whole checkpoint, {', '.join(damaged)} are damaged: move "
            "them away to start at step 0 again, or choose another folder for --out"
        )
    return None


def newest_state(run: Path) -> dict[str, Any] | None:
    """The state of the checkpoint that `find_checkpoint` tries first, its other files unchecked.

    None without one.
    """
    try:
        folders = _candidates(run)
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


def _write_folder(folder: Path, tensors: Tensors, state: dict[str, Any]) -> None:
    """Write one complete checkpoint onto the disk, and read it back from there."""
    _delete(folder)
    folder.mkdir(parents=True)
    manifest = {}
    for part, named in tensors.items():
        path = folder / f"{part}.safetensors"
        manifest[path.name] = _write_file(path, _safetensors(named))
    manifest[STATE] = _write_file(folder / STATE, [json.dumps(state, indent=1).encode() + b"\n"])
    _write_file(folder / MANIFEST, [json.dumps(manifest, indent=1).encode() + b"\n"])
    sync(folder)
    problem = _problem(folder)
    if problem:
        raise OSError(errno.EIO, f"{problem} when it is read back")


def _safetensors(named: dict[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file of fp32 tensors.

    Written here so that they are hashed on their way to the disk, and without Python's lock,
    which older releases of safetensors hold and so stop the training.
    """
    header, end = {}, 0
    for name, tensor in named.items():
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors are aligned
    yield len(text).to_bytes(8, "little") + text
    for tensor in named.values():
        yield tensor.flatten().numpy().data.cast("B")


def _write_file(path: Path, chunks: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Write a file onto the disk; its length and the sha256 of what was to be written."""
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for chunk in chunks:
            digest.update(chunk)
            size += file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
        # What is read back comes from the disk, and the cache keeps the dataset's shards.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _problem(folder: Path) -> str | None:
    """Why this is no complete checkpoint, or None.

    Raises OSError where the disk does not answer, or not to this user.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        for name, expected in manifest.items():
            if _describe(folder / name) != expected:
                return f"{name} is not the file that was written"
    except (FileNotFoundError, NotADirectoryError, ValueError, AttributeError) as error:
        return str(error)
    return None


def _candidates(run: Path) -> list[Path]:
    """The folder that `latest` names, then the others, newest first."""
    folders = _folders(run)
    try:
        latest = run / CHECKPOINTS / (run / CHECKPOINTS / LATEST).read_text().strip()
    except FileNotFoundError:
        return folders
    return [latest, *(folder for folder in folders if folder != latest)]


def _folders(run: Path) -> list[Path]:
    """The checkpoints' folders, newest first; raises OSError if they cannot be listed."""
    try:
        # A glob would take an error for an empty folder. A copy of the user's is not ours.
        found = [path for path in (run / CHECKPOINTS).iterdir() if _NAME.fullmatch(path.name)]
    except FileNotFoundError:
        return []
    return sorted(found, reverse=True)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _remove(folder: Path) -> None:
    """Delete a checkpoint so that it is never seen in part."""
    if folder.exists():
        leaving = folder.with_name(f"{TEMPORARY}old-{folder.name}")
        _delete(leaving)
        folder.replace(leaving)
        _delete(leaving)


def _set_aside(folder: Path) -> None:
    """Rename a checkpoint so that no run looks at it; it may be whole."""
    taken = 0
    while (aside := folder.with_name(f"{folder.name}.passed-over{taken or ''}")).exists():
        taken += 1
    try:
        folder.replace(aside)
    except OSError as error:
        logger.warning("cannot rename %s, which was passed over: %s", folder, error.strerror)
    else:
        logger.warning("%s was passed over and is kept as %s", folder, aside.name)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
