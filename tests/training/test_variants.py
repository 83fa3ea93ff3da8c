"""Every fusion variant trains from a recipe, through the script, and leaves its encoder."""

import json
import math
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from fusmae.config import Fusion
from fusmae.model import load_encoder
from fusmae.training.checkpoint import newest_state
from fusmae.training.run import Run, check_same_run, read_run

from .conftest import ENVIRONMENT, ROOT, without_ranks

FUSIONS: tuple[Fusion, ...] = typing.get_args(Fusion)
SHORT = ["--set", "optim.epochs=0.5", "--set", "optim.warmup_epochs=0"]  # 3 steps
# A group of bands with tokens of its own, and a class map.
MORE_SENSORS = [
    *("--set", 'data.bands={ s1 = ["VV"], s2_10m = ["B02"], s2_20m = ["B11"], map = ["CLC"] }'),
    *("--set", 'model.sensors.map={ loss = "cross_entropy", num_classes = 44 }'),
    *("--set", "model.sensors.s2_20m.patch_px=2", "--set", "model.masking=independent"),
]
RUNS = {fusion: ["--set", f"model.fusion={fusion}"] for fusion in FUSIONS}
RUNS |= {f"{f}, four sensors": [*RUNS[f], *MORE_SENSORS] for f in ("xae_xad", "late")}


@pytest.fixture(scope="module")
def runs(
    recipe: Path, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The folders of finished runs of 3 steps, by their name in RUNS."""
    folder = tmp_path_factory.mktemp("variants")
    (folder / "ds.json").write_text('{"train_micro_batch_size_per_gpu": 4}')
    always = ["--recipe", str(recipe), "--data", str(tiny_dataset), *SHORT]
    always += ["--deepspeed_config", str(folder / "ds.json")]
    commands = [[*always, "--out", str(folder / name), *RUNS[name]] for name in RUNS]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("runs_worker.py")), json.dumps(commands)],
        env=without_ranks(ENVIRONMENT),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [0] * len(RUNS), done.stderr
    return {name: folder / name for name in RUNS}


@pytest.mark.parametrize("name", RUNS)
def test_a_variant_trains_from_the_recipe_and_exports_its_encoder(
    runs: dict[str, Path], name: str
) -> None:
    run = runs[name]
    (line,) = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    encoder, card = load_encoder(run / "encoder")
    assert line["step"] == 3
    assert all(math.isfinite(line[sensor]) for sensor in card.bands)
    assert line["loss"] == pytest.approx(sum(line[sensor] for sensor in card.bands))
    assert card.model.fusion == encoder.config.fusion == name.partition(",")[0]
    if "four" in name:
        assert list(card.bands) == ["s1", "s2_10m", "s2_20m", "map"]
        # Of random codes few are a class's, and a micro-batch without any has a loss of 0.
        assert 0 < line["map"] < 2 * math.log(44)


def test_a_run_of_another_fusion_is_not_resumed(runs: dict[str, Path], recipe: Path) -> None:
    state = newest_state(runs["xad"])
    assert state is not None
    run = read_run_of(runs["xad"], recipe, "none")
    with pytest.raises(ValueError, match=r"started with model\.fusion = xad, .* now says none"):
        check_same_run(run, state)


def test_a_run_from_before_there_were_variants_is_resumed(
    runs: dict[str, Path], recipe: Path
) -> None:
    state = newest_state(runs["xad"])
    assert state is not None
    del state["recipe"]["model"]["sensors"]
    check_same_run(read_run_of(runs["xad"], recipe, "xad"), state)


def read_run_of(out: Path, recipe: Path, fusion: str) -> Run:
    record = json.loads((out / "run.json").read_text())
    overrides = tuple(word for word in SHORT if word != "--set")
    return read_run(
        recipe,
        [record["dataset"]["path"]],
        out / "cache",
        out,
        out.parent / "ds.json",
        (f"model.fusion={fusion}", *overrides),
    )
