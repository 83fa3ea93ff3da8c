"""Every ZeRO stage on 1, 2 and 4 ranks goes on from a checkpoint of each of them: 144 pairs."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from .conftest import start_ranks, wait_for
from .engine_worker import GLOBAL_BATCH
from .test_engine import FP32, HALF, WORKER, Results, case, half_way, plain_pytorch, zero

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

RANKS = (1, 2, 4)
PLACES = list(itertools.product(RANKS, range(4)))  # (ranks, stage)


def name_of(ranks: int, stage: int) -> str:
    return f"{stage}-on-{ranks}"


def table(ranks: int, stage: int) -> dict[str, Any]:
    return zero(stage) | {"train_micro_batch_size_per_gpu": GLOBAL_BATCH // ranks}


def run_cases(out: Path, ranks: int, cases: list[dict[str, Any]]) -> None:
    plan = out / "plan.json"
    plan.write_text(json.dumps(cases))
    wait_for(start_ranks(ranks, WORKER, "--plan", plan, "--out", out), at_most_s=800)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Losses and norms of the second halves, by "STAGE-on-RANKS from STAGE-on-RANKS"."""
    out = tmp_path_factory.mktemp("restores")
    for ranks in RANKS:
        names = {stage: name_of(ranks, stage) for stage in range(4)}
        saves = [case(n, table(ranks, s), steps=HALF, save=n) for s, n in names.items()]
        run_cases(out, ranks, saves)
    found = {}
    for ranks in RANKS:
        cases = [
            case(f"{name_of(ranks, stage)} from {name_of(*saved)}", table(ranks, stage))
            | {"restore": half_way(name_of(*saved))}
            for stage in range(4)
            for saved in PLACES
        ]
        run_cases(out, ranks, cases)
        for entry in cases:
            found[entry["name"]] = json.loads((out / f"{entry['name']}.json").read_text())
    return found


@pytest.fixture(scope="module")
def oracle() -> dict[str, Any]:
    return plain_pytorch()


@pytest.mark.parametrize("saved", PLACES)
@pytest.mark.parametrize("restored", PLACES)
def test_a_checkpoint_restores_at_any_stage_and_world_size(
    results: Results, oracle: Any, restored: tuple[int, int], saved: tuple[int, int]
) -> None:
    result = results[f"{name_of(*restored)} from {name_of(*saved)}"]
    assert result["losses"] == pytest.approx(oracle["losses"][HALF:], rel=FP32)
    assert result["norms"] == pytest.approx(oracle["norms"][HALF:], rel=FP32)
