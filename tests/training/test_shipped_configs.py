"""Each shipped DeepSpeed json trains, and a run of it that is resumed goes on as if undisturbed."""

import json
from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT, start_ranks, wait_for
from .test_engine import HALF, STEPS, WORKER, Results, case, half_way

# DeepSpeed's autocast marks the process: it comes last.
FILES = sorted(
    (ROOT / "ds_configs").glob("*.json"), key=lambda path: ("autocast" in path.read_text(), path)
)


def table_of(path: Path) -> dict[str, Any]:
    """With two micro-batches of two samples on each of two ranks."""
    return json.loads(path.read_text()) | {"train_micro_batch_size_per_gpu": 2}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    out, cases = tmp_path_factory.mktemp("shipped"), []
    for path in FILES:
        name, table = path.stem, table_of(path)
        cases += [
            case(name, table, clip_norm=1.0),
            case(f"{name}-half", table, clip_norm=1.0, steps=HALF, save=name),
            case(f"{name}-resumed", table, clip_norm=1.0, restore=half_way(name)),
        ]
    (out / "plan.json").write_text(json.dumps(cases))
    wait_for(start_ranks(2, WORKER, "--plan", out / "plan.json", "--out", out), at_most_s=800)
    return {one["name"]: json.loads((out / f"{one['name']}.json").read_text()) for one in cases}


@pytest.mark.parametrize("name", [path.stem for path in FILES])
def test_a_resumed_run_of_each_shipped_config_is_exact(results: Results, name: str) -> None:
    """Tolerance 0, in half precision, too: the same ranks, on a CPU."""
    for key in ("losses", "norms", "trained"):
        whole = results[name][key]
        assert results[f"{name}-half"][key] + results[f"{name}-resumed"][key] == whole
    assert results[name]["losses"][-1] < results[name]["losses"][0]
    assert len(results[name]["losses"]) == STEPS
