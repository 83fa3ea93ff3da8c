"""Saves in the background: of one moment, one at a time, and survived when they fail."""

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from fusmae.config import RunConfig
from fusmae.training import saving
from fusmae.training.checkpoint import find_checkpoint, newest_state, read_weights, write_checkpoint
from fusmae.training.saving import Saver

from .conftest import fill
from .memory_engine import Memory


class Said(list[str]):
    """What a reader is told."""


def saver_of(run: Path, engine: Memory, said: Said, **config: Any) -> Saver:
    return Saver(run, engine, RunConfig(**config), 0, said.append)  # type: ignore[arg-type]


def test_training_goes_on_while_the_state_of_the_save_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, said, may_write = Memory(7), Said(), threading.Event()

    def slowly(*arguments: Any) -> None:
        assert may_write.wait(60)
        write_checkpoint(*arguments)

    monkeypatch.setattr(saving, "write_checkpoint", slowly)
    with saver_of(tmp_path, engine, said) as saver:
        saver.save({"step": 7})
        for state in engine.named.values():  # the next update
            for tensor in state:
                tensor.fill_(-1.0)
        engine.adam_steps = 8
        assert find_checkpoint(tmp_path) is None
        may_write.set()
        saver.finish()
    found = find_checkpoint(tmp_path)
    assert found is not None
    assert torch.equal(read_weights(found)["a.weight"], torch.full((3, 2), 7.0))
    state = newest_state(tmp_path)
    assert state is not None
    assert state["adam_steps"] == 7
    assert said[0].startswith("step 7  saved")


def test_a_save_waits_for_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, engine = [0, 0], Memory(1)  # writers now, and at most

    def counted(*arguments: Any) -> None:
        at_once[0] += 1
        at_once[1] = max(at_once)
        write_checkpoint(*arguments)
        at_once[0] -= 1

    monkeypatch.setattr(saving, "write_checkpoint", counted)
    with saver_of(tmp_path, engine, Said(), keep_checkpoints=9) as saver:
        for step in range(1, 6):
            engine.named = Memory(step).named
            saver.save({"step": step})
    assert at_once == [0, 1]
    for step in range(1, 6):  # each with the numbers of its own step
        folder = tmp_path / "checkpoints" / f"step-{step:08d}"
        assert float(read_weights(folder)["a.weight"][0, 0]) == step


def test_an_error_that_ends_the_run_lets_the_writer_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed, said = threading.Event(), Said()

    def slowly(*arguments: Any) -> None:
        assert failed.wait(60)
        write_checkpoint(*arguments)

    def train() -> None:
        with saver_of(tmp_path, Memory(3), said) as saver:
            saver.save({"step": 3})
            failed.set()
            raise ValueError("the loss is not finite")

    monkeypatch.setattr(saving, "write_checkpoint", slowly)
    with pytest.raises(ValueError, match="not finite"):
        train()
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step-00000003"


def test_numbers_that_are_not_finite_are_never_written(tmp_path: Path) -> None:
    engine = Memory(1)
    with saver_of(tmp_path, engine, Said()) as saver:
        saver.save({"step": 1})
        engine.named["b.bias"].exp_avg[1, 1] = float("nan")
        with pytest.raises(ValueError, match=r"step 2: exp_avg of b\.bias is not finite"):
            saver.save({"step": 2})
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step-00000001"


def test_the_clock_of_rank_0_asks_for_a_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(saving.time, "monotonic", lambda: now[0])
    config = RunConfig(save_every_minutes=0.5)
    first, second = (
        Saver(tmp_path, Memory(1), config, rank, Said().append)  # type: ignore[arg-type]
        for rank in (0, 1)
    )
    never = saver_of(tmp_path, Memory(1), Said())
    now[0] += 29
    assert not first.is_due
    now[0] += 1
    assert first.is_due and not second.is_due and not never.is_due
    first.save({"step": 1})
    assert not first.is_due
    now[0] += 30
    assert first.is_due
    first.finish()


def test_a_failed_save_is_told_and_counted_and_the_next_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, fsync, full = Said(), os.fsync, [False]

    def fsync_or_fail(descriptor: int) -> None:
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync_or_fail)
    with saver_of(tmp_path, Memory(1), said) as saver:
        for step, is_full in enumerate([False, True, True, False, True], start=1):
            saver._wait()
            full[0] = is_full
            saver.save({"step": step})
        with pytest.raises(ValueError, match=r"step 5 could not be saved in .*: No space left"):
            saver.finish()
    assert saver.num_failed == 3
    told = [line for line in said if line.startswith("warning: ")]
    assert len(told) == 3
    assert "step 3 could not be saved" in told[1]
    assert "the newest checkpoint is of step 1; the next save tries again" in told[1]
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step-00000004"


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    run, said = small_disk, Said()
    with saver_of(run, Memory(1), said) as saver:
        saver.save({"step": 1})
        saver.finish()
        fill(run / "filler")
        saver.save({"step": 2})
        with pytest.raises(
            ValueError, match=r"step 2 could not be saved .*No space left on device"
        ):
            saver.finish()
        assert find_checkpoint(run) == run / "checkpoints" / "step-00000001"
        assert not list((run / "checkpoints").glob(".tmp-*"))
        (run / "filler").unlink()
        saver.save({"step": 3})
        saver.finish()
        assert find_checkpoint(run) == run / "checkpoints" / "step-00000003"
