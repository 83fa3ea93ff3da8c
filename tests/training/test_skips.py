"""What becomes of the list of skipped steps when the disk is full."""

import logging
from pathlib import Path

import pytest

from fusmae.training.ledger import StepResult
from fusmae.training.skips import SKIPPED, Skips

from .conftest import fill


def test_a_full_disk_loses_a_line_of_the_list_and_not_the_run(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    skips = Skips(small_disk, (), limit=2, resumed_step=0, writes=True)
    fill(small_disk / "filler")
    with caplog.at_level(logging.WARNING):
        skips.add(StepResult(7, {}, float("nan"), 0, []))
    assert f"step 7 is missing in {small_disk / SKIPPED}" in caplog.text
    with pytest.raises(ValueError, match="2 steps in a row"):
        skips.add(StepResult(8, {}, float("nan"), 0, []))
