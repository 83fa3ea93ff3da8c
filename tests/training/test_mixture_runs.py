"""Runs of `train/pretrain.py` on a mixture of datasets."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from fusmae.model import load_encoder
from fusmae.sensors import SEN12MS_S1, SEN12MS_S2
from fusmae.training.checkpoint import newest_state

from ..data.tiny_dataset import write_tiny_dataset  # noqa: TID252
from .conftest import SCRIPT, InProcess, start_ranks, wait_for
from .script import alone, lines_of, wait_until_step


@pytest.fixture(scope="module")
def mixture(
    tiny_dataset: Path, ds_json: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """Options for 6 of BigEarthNet's half to 2 of SEN12MS's arrays, which know other bands."""
    specs = tuple(replace(spec, size_px=25) for spec in (SEN12MS_S1, SEN12MS_S2))
    other = write_tiny_dataset(tmp_path_factory.mktemp("sen12ms"), {"train": (9, 9)}, specs, 7)
    path = tmp_path_factory.mktemp("mixture") / "mixture.toml"
    sources = "[[data.sources]]\nquota = 6\n[data.sources.subset]\nfraction = 0.5\n"
    path.write_text(recipe.read_text() + sources + "[[data.sources]]\nquota = 2\n")
    options = ["--recipe", str(path), "--deepspeed_config", str(ds_json)]
    return [*options, "--data", str(tiny_dataset), "--data", str(other)]


@pytest.fixture(scope="module")
def mixed_run(mixture: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "mixture"
    result = alone(*mixture, "--out", str(run))
    assert result.returncode == 0, result.stderr
    return run


def test_a_mixture_trains_for_the_first_datasets_epochs_and_records_what_it_saw(
    mixture: list[str], mixed_run: Path, in_process: InProcess
) -> None:
    state = newest_state(mixed_run)
    assert state is not None
    # ceil(4 epochs * 20 of the first dataset's samples / 6 a step)
    assert state["step"] == 14
    assert [s["consumed"] for s in state["loader"]["sources"]] == [6 * 14, 2 * 14]
    assert lines_of(mixed_run)[-1]["loss"] < lines_of(mixed_run)[0]["loss"]

    # The subset is on record, and the dataset without one is not listed.
    assert not (mixed_run / "subset-1.txt").exists()
    keys = (mixed_run / "subset-0.txt").read_text().splitlines()
    assert len(set(keys)) == 20
    record = json.loads((mixed_run / "run.json").read_text())
    others = record["dataset"]["mixed_with"]
    paths = [record["dataset"]["path"], *(other["path"] for other in others)]
    assert paths == [str(Path(option).resolve()) for option in mixture[5::2]]
    _, card = load_encoder(mixed_run / "encoder")
    assert card.dataset == "tiny + tiny"

    swapped = [*mixture[:4], "--data", mixture[7], "--data", mixture[5]]
    code, _, error = in_process(*swapped, "--out", str(mixed_run), "--resume", "auto")
    assert code == 1
    assert f"was started with the dataset {paths[0]}" in error


@pytest.mark.slow
def test_a_mixture_stopped_on_two_ranks_goes_on_alone_in_the_same_sequence(
    mixture: list[str], mixed_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    processes = start_ranks(2, SCRIPT, *mixture, "--out", run)
    wait_until_step(run, 3, processes)
    processes[0].send_signal(signal.SIGTERM)
    wait_for(processes)
    state = newest_state(run)
    assert state is not None
    assert 3 <= state["step"] < 14
    result = alone(*mixture, "--out", str(run), "--resume", "auto")
    assert result.returncode == 0, result.stderr
    mine, expected = lines_of(run), lines_of(mixed_run)
    assert [line["step"] for line in mine] == [3, 6, 9, 12, 14]
    # As in test_pretrain, another world size sums in another order.
    for key in ("s1", "s2", "loss"):
        assert [line[key] for line in mine] == pytest.approx(
            [line[key] for line in expected], rel=1e-5
        )


def test_quotas_that_do_not_divide_name_the_deepspeed_json(
    mixture: list[str], tmp_path: Path, in_process: InProcess
) -> None:
    quotas = "data.sources=[{quota=5}, {quota=3}]"
    code, _, error = in_process(*mixture, "--out", str(tmp_path / "run"), "--set", quotas)
    assert code == 1
    (line,) = error.splitlines()
    assert "zero1.json: quotas 5, 3 do not divide among the 2 micro-batches of 4" in line
