"""Checkpoints on disk: complete or invisible, and damage never goes unnoticed."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fusmae.training import checkpoint
from fusmae.training.checkpoint import (
    find_checkpoint,
    newest_state,
    read_state,
    read_weights,
    remove_leftovers,
    restore_checkpoint,
    save_checkpoint,
)
from fusmae.training.engine import ParameterState


class Memory:
    """The engine's side of a checkpoint, for one rank and without DeepSpeed."""

    def __init__(self, value: float) -> None:
        self.named = {
            name: ParameterState(*(torch.full((3, 2), float(value + i)) for i in range(3)))
            for name in ("a.weight", "b.bias")
        }
        self.adam_steps = int(value)

    def states(self) -> Iterator[tuple[str, ParameterState]]:
        yield from self.named.items()

    def barrier(self) -> None:
        pass

    def restore(self, state_of: Callable[[str], ParameterState], adam_steps: int) -> None:
        self.named = {name: state_of(name) for name in self.named}
        self.adam_steps = adam_steps


def save(run: Path, step: int, keep: int = 2) -> Path:
    save_checkpoint(run, Memory(step), {"step": step}, keep, rank=0)  # type: ignore[arg-type]
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


def test_numbers_that_are_not_finite_are_never_written(tmp_path: Path) -> None:
    good = save(tmp_path, 1)
    poisoned = Memory(2)
    weight: Tensor = poisoned.named["b.bias"].weight
    weight[1, 1] = float("nan")
    with pytest.raises(ValueError, match=r"step 2: weight of b\.bias is not finite"):
        save_checkpoint(tmp_path, poisoned, {"step": 2}, 2, rank=0)  # type: ignore[arg-type]
    assert find_checkpoint(tmp_path) == good


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
