"""Checkpoints on disk: complete or invisible, and damage never goes unnoticed."""

import errno
import json
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from fusmae.training import checkpoint
from fusmae.training.checkpoint import (
    find_checkpoint,
    newest_state,
    read_state,
    read_weights,
    remove_leftovers,
    restore_checkpoint,
    write_checkpoint,
)

from .memory_engine import Memory


def save(run: Path, step: int, keep: int = 2, keep_every_steps: int = 0) -> Path:
    state = {"step": step, "adam_steps": step}
    write_checkpoint(run, Memory(step).tensors, state, keep, keep_every_steps)
    return run / "checkpoints" / f"step-{step:08d}"


def test_a_checkpoint_gives_back_every_number(tmp_path: Path) -> None:
    folder = save(tmp_path, 7)
    other = Memory(100.0)
    restore_checkpoint(folder, other)  # type: ignore[arg-type]
    for name, state in Memory(7).named.items():
        for mine, restored in zip(state, other.named[name], strict=True):
            assert torch.equal(mine, restored)
    assert other.adam_steps == 7
    assert read_state(folder)["step"] == 7
    assert torch.equal(read_weights(folder)["a.weight"], torch.full((3, 2), 7.0))


def test_the_newest_stay_and_latest_names_the_last(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        newest = save(tmp_path, step)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["latest", "step-00000003", "step-00000010"]
    assert (tmp_path / "checkpoints" / "latest").read_text().strip() == newest.name
    assert find_checkpoint(tmp_path) == newest


def test_every_nth_step_stays_beside_the_newest(tmp_path: Path) -> None:
    for step in (10, 15, 20, 25, 30, 33):
        save(tmp_path, step, keep_every_steps=10)
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert names == [f"step-{step:08d}" for step in (10, 20, 30, 33)]


def test_a_users_copy_of_a_checkpoint_is_neither_read_nor_removed(tmp_path: Path) -> None:
    copy = save(tmp_path, 1).rename(tmp_path / "checkpoints" / "step-00000001-good")
    assert find_checkpoint(tmp_path) is None
    for step in (2, 3, 4):
        save(tmp_path, step)
    assert copy.is_dir()


def test_any_software_reads_the_tensors(tmp_path: Path) -> None:
    folder, tensors = save(tmp_path, 1), Memory(1).tensors
    tensors["weight"]["scalar"] = torch.tensor(2.5)
    tensors["weight"]["ü"] = torch.arange(6.0).view(1, 2, 3)
    write_checkpoint(tmp_path, tensors, {"step": 2, "adam_steps": 2}, keep=2)
    for part, named in tensors.items():
        path = tmp_path / "checkpoints" / "step-00000002" / f"{part}.safetensors"
        read = safetensors.torch.load_file(path)
        assert read.keys() == named.keys()
        assert all(torch.equal(read[name], tensor) for name, tensor in named.items())
    assert folder.is_dir()


def test_an_empty_run_has_none(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path / "absent") is None
    assert newest_state(tmp_path) is None


def damage_bit(folder: Path) -> None:
    path = folder / "exp_avg.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def damage_length(folder: Path) -> None:
    path = folder / "weight.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


def damage_missing(folder: Path) -> None:
    (folder / "state.json").unlink()


def damage_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


@pytest.mark.parametrize("damage", [damage_bit, damage_length, damage_missing, damage_manifest])
def test_a_damaged_checkpoint_is_passed_over_aloud(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = save(tmp_path, 1), save(tmp_path, 2)
    damage(bad)
    with caplog.at_level(logging.WARNING):
        assert find_checkpoint(tmp_path) == good
    assert str(bad) in caplog.text


@pytest.mark.parametrize("damage", [damage_bit, damage_manifest])
def test_where_none_is_whole_no_run_starts_anew(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folders = [save(tmp_path, step) for step in (1, 2)]
    for folder in folders:
        damage(folder)
    with pytest.raises(ValueError, match=r"step-00000002, step-00000001 are damaged: move them"):
        find_checkpoint(tmp_path)
    for folder in folders:
        folder.rename(tmp_path / folder.name)  # as the message says
    assert find_checkpoint(tmp_path) is None


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_disk_that_does_not_answer_is_no_damage(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, describe = save(tmp_path, 1), checkpoint._describe
    newest = save(tmp_path, 2)

    def failing(path: Path) -> dict[str, Any]:
        if path.parent == newest:
            raise OSError(number, os.strerror(number))
        return describe(path)

    monkeypatch.setattr(checkpoint, "_describe", failing)
    with pytest.raises(ValueError, match=rf"{newest}: {os.strerror(number)}; try again when"):
        find_checkpoint(tmp_path)
    newest.rename(tmp_path / "away")
    assert find_checkpoint(tmp_path) == good


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)

    def failing(path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(Path, "iterdir", failing)
    with pytest.raises(OSError, match="checkpoints"):
        find_checkpoint(tmp_path)
    assert newest_state(tmp_path) is None


def test_a_later_checkpoint_that_was_passed_over_is_kept_under_another_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for repeat in range(2):
        whole = {path.name: path.read_bytes() for path in save(tmp_path, 200).iterdir()}
        save(tmp_path, 101)  # of a run that went on from 100
        aside = tmp_path / "checkpoints" / f"step-00000200.passed-over{repeat or ''}"
        assert {path.name: path.read_bytes() for path in aside.iterdir()} == whole
        assert aside.name in caplog.text
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step-00000101"


@pytest.mark.parametrize("step", ["_write_folder", "replace_file"])
def test_a_kill_while_saving_leaves_the_previous_one(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the folder is renamed, and between that and `latest`."""
    good = save(tmp_path, 1)
    half = tmp_path / "checkpoints" / ".tmp-step-00000002"

    def killed(*arguments: object) -> Path:
        half.mkdir()
        (half / "weight.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, step, killed)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert find_checkpoint(tmp_path) == good
    remove_leftovers(tmp_path)
    assert not half.exists()
    assert find_checkpoint(tmp_path) == good
    assert save(tmp_path, 2) == find_checkpoint(tmp_path)


@pytest.mark.parametrize("saved_before", [True, False])
def test_a_disk_that_is_full_when_latest_is_replaced_leaves_a_whole_checkpoint(
    tmp_path: Path, saved_before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = save(tmp_path, 1) if saved_before else None

    def full(path: Path, data: bytes) -> None:
        path.with_name(f".tmp-{path.name}").write_bytes(data[:3])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "replace_file", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2, keep=1)
    monkeypatch.undo()
    found, state = find_checkpoint(tmp_path), newest_state(tmp_path)
    assert found == (before or tmp_path / "checkpoints" / "step-00000002")
    # What the failed save tells, is what the next run finds.
    assert state is not None and state["step"] == (1 if saved_before else 2)
    remove_leftovers(tmp_path)
    assert save(tmp_path, 2, keep=1) == find_checkpoint(tmp_path)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["latest", "step-00000002"]


def test_what_the_disk_does_not_give_back_is_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, write = save(tmp_path, 1), checkpoint._write_file

    def lossy(path: Path, chunks: Iterable[bytes]) -> dict[str, Any]:
        described = write(path, chunks)
        if path.name == "exp_avg.safetensors":
            damage_bit(path.parent)
        return described

    monkeypatch.setattr(checkpoint, "_write_file", lossy)
    with pytest.raises(OSError, match=r"exp_avg\.safetensors is not the file that was written"):
        save(tmp_path, 2)
    assert find_checkpoint(tmp_path) == good
    assert sorted(path.name for path in good.parent.iterdir()) == ["latest", good.name]


def test_another_models_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    other = Memory(1)
    other.named["c.weight"] = other.named["a.weight"]
    with pytest.raises(ValueError, match=r"has no parameter c\.weight"):
        restore_checkpoint(folder, other)  # type: ignore[arg-type]


def test_every_file_is_in_the_manifest(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    listed = set(json.loads((folder / "manifest.json").read_text())) | {"manifest.json"}
    assert listed == {path.name for path in folder.iterdir()}
