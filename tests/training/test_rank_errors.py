"""An error that one rank alone meets is told by it; one of all, by a machine's first."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fusmae.config import PretrainRecipe
from fusmae.data import MixedBatch
from fusmae.training import start
from fusmae.training.metrics import has_line
from fusmae.training.ranks import RankError, Ranks, on_this_rank
from fusmae.training.source import read_sources
from fusmae.training.validation import Validation

from .conftest import InProcess


def test_an_error_is_told_once_with_its_rank() -> None:
    with (
        pytest.raises(RankError, match=r"^rank 3: no such shard$"),
        on_this_rank(3),
        on_this_rank(3),
    ):
        raise OSError("no such shard")


def test_a_batch_that_cannot_be_read_names_the_rank() -> None:
    def broken() -> Iterator[MixedBatch]:
        raise OSError("a shard is gone")
        yield

    with pytest.raises(RankError, match="rank 2: a shard is gone"):
        start.next_batch(broken(), 2)


def test_a_checkpoint_that_one_rank_cannot_read_names_the_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the folder of the run is not mounted on a machine."""
    run: Any = SimpleNamespace(out=tmp_path, ranks=Ranks(9, 1, 16, 8))
    engine: Any = SimpleNamespace(gather_over_ranks=lambda found: [tmp_path / "step-00000004"])
    loader: Any = None
    with pytest.raises(RankError, match=r"rank 9: .*No such file"):
        start.restore(run, engine, loader)
    monkeypatch.setattr(start, "read_state", lambda folder: {})
    monkeypatch.setattr(start, "check_same_run", lambda run, state: None)
    with pytest.raises(RankError, match=r"rank 9: .*No such file"):
        start.restore(run, engine, loader)


def test_a_val_sample_that_one_rank_cannot_read_names_the_rank(
    tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = PretrainRecipe()
    object.__setattr__(recipe.run, "val_split", "train")
    sources = read_sources(recipe, [tiny_dataset])
    ranks = Ranks(1, 1, 2, 2)
    validation = Validation(recipe, sources, ranks, 4, torch.device("cpu"))

    def broken(engine: Any, stop: Any) -> dict[str, float]:
        raise ValueError("shard 3 is damaged")

    monkeypatch.setattr(validation, "losses", broken)
    engine: Any = None
    with pytest.raises(RankError, match="rank 1: shard 3 is damaged"):
        validation.log(engine, 1, lambda: False, None, print)


@pytest.mark.parametrize(("local_rank", "told"), [("0", True), ("1", False)])
def test_the_first_rank_of_another_machine_tells_what_only_its_machine_lacks(
    options: list[str],
    tmp_path: Path,
    in_process: InProcess,
    monkeypatch: pytest.MonkeyPatch,
    local_rank: str,
    told: bool,
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    for name, value in {"RANK": "8", "WORLD_SIZE": "16", "LOCAL_RANK": local_rank}.items():
        monkeypatch.setenv(name, value)
    options[options.index("--data") + 1] = str(tmp_path / "not-mounted")
    code, _, error = in_process(*options, "--out", str(tmp_path / "run"))
    assert code == 1
    assert ("not-mounted" in error) is told


def test_a_line_of_metrics_is_found_by_its_step_and_key(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert not has_line(path, 3, "val")
    path.write_text('{"step": 3, "loss": 1}\n{"step": 4, "val": {"loss": 1}}\n{"step": 5, "va')
    assert has_line(path, 4, "val")
    assert not has_line(path, 3, "val") and not has_line(path, 5, "val")
