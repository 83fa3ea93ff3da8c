"""Steps whose loss or gradients are not finite: skipped, counted, and listed with their samples."""

import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fusmae.data import open_dataset
from fusmae.manifest import read_manifest
from fusmae.training.checkpoint import find_checkpoint, newest_state, read_state, read_weights
from fusmae.training.ledger import StepResult
from fusmae.training.skips import SKIPPED, Skips

from .conftest import SCRIPT, TOTAL_STEPS, fill, start_ranks, wait_for
from .script import alone, assert_same_run, lines_of

BAD_ROW = 17


@pytest.fixture
def spoilt(tiny_dataset: Path, options: list[str], tmp_path: Path) -> list[str]:
    """Options for a dataset of which one sample has pixels that are not finite."""
    data = tmp_path / "data"
    shutil.copytree(tiny_dataset, data)
    manifest = read_manifest(data)
    shard = data / manifest.splits["train"].shards[BAD_ROW // 12].path
    offset = int(np.load(data / "index" / "train.npy")[BAD_ROW]) + manifest.layout.offsets["s1"]
    with shard.open("r+b") as file:
        file.seek(offset)
        file.write(np.full(4, np.nan, "<f4").tobytes())
    options[options.index("--data") + 1] = str(data)
    return options


def samples_of(line: dict[str, Any]) -> list[int]:
    return [sample["row"] for sample in line["samples"]]


def test_steps_with_pixels_that_are_not_finite_are_skipped_counted_and_named(
    spoilt: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    wait_for(start_ranks(2, SCRIPT, *spoilt, "--out", run))
    listed = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    assert len(listed) == 4  # an epoch each
    assert all(BAD_ROW in samples_of(line) and len(samples_of(line)) == 4 for line in listed)
    keys = open_dataset(tmp_path / "data", "train").reader.keys()
    for sample in listed[0]["samples"]:
        assert sample == {"dataset": "tiny", "row": sample["row"], "key": keys[sample["row"]]}
    lines = lines_of(run)
    assert sum(line.get("skipped", 0) for line in lines) == 4
    assert all(math.isfinite(line["loss"]) for line in lines)
    checkpoint = find_checkpoint(run)
    assert checkpoint is not None
    assert read_state(checkpoint)["adam_steps"] == TOTAL_STEPS - 4
    assert all(torch.isfinite(weight).all() for weight in read_weights(checkpoint).values())


def test_too_many_skipped_steps_in_a_row_end_the_run_and_name_their_samples(
    spoilt: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    limits = ["--set", "run.max_skips_in_a_row=1", "--set", "run.log_every_steps=1000"]
    result = alone(*spoilt, "--out", str(run), *limits)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "are not finite, as those of 1 steps in a row (run.max_skips_in_a_row)" in line
    assert str(run / "skipped.jsonl") in line
    # Nothing is lost: it goes on after the skipped step, until the sample comes again.
    first = newest_state(run)
    assert first is not None
    assert f"go on after them, from step {first['step']}, with --resume auto" in line
    found = find_checkpoint(run)
    assert found is not None
    assert all(torch.isfinite(weight).all() for weight in read_weights(found).values())
    assert alone(*spoilt, "--out", str(run), *limits, "--resume", "auto").returncode == 1
    second = newest_state(run)
    assert second is not None
    assert second["step"] > first["step"]
    assert second["adam_steps"] == second["step"] - 2
    listed = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    assert len(listed) == 2 and all(BAD_ROW in samples_of(line) for line in listed)


def test_a_resumed_run_goes_on_counting_the_skips_before_the_stop(tmp_path: Path) -> None:
    bad = StepResult(7, {}, float("nan"), 0, [])
    for in_a_row, too_many in ((0, False), (1, False), (2, True)):
        skips = Skips(tmp_path, (), 3, resumed_step=6, in_a_row=in_a_row, writes=False)
        skips.add(bad)
        assert (skips.in_a_row, skips.are_too_many) == (in_a_row + 1, too_many)
    skips.add(StepResult(8, {"loss": 1.0}, 1.0, 0, None))
    assert skips.in_a_row == 0 and skips.are_too_many  # found together, when the steps are read
    with pytest.raises(ValueError, match=r"of step 7 are not finite.* from step 9,"):
        skips.check(9)


def test_skipped_steps_are_listed_once_however_often_a_run_is_resumed(
    spoilt: list[str], tmp_path: Path
) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    for out in (run, whole):
        assert alone(*spoilt, "--out", str(out)).returncode == 0
    shutil.rmtree(run / "encoder")
    newest = find_checkpoint(run)
    assert newest is not None
    shutil.rmtree(newest)  # the one before it is taken
    assert alone(*spoilt, "--out", str(run), "--resume", "auto").returncode == 0
    assert_same_run(run, whole)
    assert (run / "skipped.jsonl").read_bytes() == (whole / "skipped.jsonl").read_bytes()


def test_a_full_disk_loses_a_line_of_the_list_and_not_the_run(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    skips = Skips(small_disk, (), limit=2, resumed_step=0, in_a_row=0, writes=True)
    fill(small_disk / "filler")
    with caplog.at_level(logging.WARNING):
        skips.add(StepResult(7, {}, float("nan"), 0, []))
    assert f"step 7 is missing in {small_disk / SKIPPED}" in caplog.text
    skips.add(StepResult(8, {}, float("nan"), 0, []))
    with pytest.raises(ValueError, match="2 steps in a row"):
        skips.check(8)
