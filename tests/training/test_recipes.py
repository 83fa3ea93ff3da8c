"""The recipes that are shipped say what they claim, and what they say reaches the loader."""

import threading
from pathlib import Path

import pytest
import torch

from fusmae.config import PretrainRecipe, load_recipe
from fusmae.training import start
from fusmae.training.run import read_run

RECIPES = Path(__file__).resolve().parents[2] / "train" / "recipes"


@pytest.mark.parametrize("name", ["paper", "paper_b200", "native", "tiny"])
def test_shipped_recipes_load_strictly(name: str) -> None:
    load_recipe(PretrainRecipe, RECIPES / f"{name}.toml")


def test_the_papers_numbers() -> None:
    recipe = load_recipe(PretrainRecipe, RECIPES / "paper.toml")
    optim, model = recipe.optim, recipe.model
    # MultiMAE's rule: 1e-4 x global batch / 256.
    assert optim.lr == pytest.approx(1e-4 * optim.global_batch / 256)
    assert (optim.epochs, optim.warmup_epochs) == (100, 10)
    assert (model.image_px, model.patch_px, model.mask_ratio) == (224, 16, 0.75)
    assert (model.num_tokens, model.num_visible) == (196, 49)
    assert model.fusion == "xae_xad"


def test_variants_differ_from_the_paper_only_in_what_they_say() -> None:
    paper = load_recipe(PretrainRecipe, RECIPES / "paper.toml")
    b200 = load_recipe(PretrainRecipe, RECIPES / "paper_b200.toml", ("optim.global_batch=400",))
    assert b200 == paper
    sizes = ("model.image_px=224", "model.patch_px=16")
    assert load_recipe(PretrainRecipe, RECIPES / "native.toml", sizes) == paper


def test_the_recipes_threads_read_on_each_rank(
    recipe: Path, tiny_dataset: Path, ds_json: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    changes = ["run.read_threads=3"]
    run = read_run(recipe, [str(tiny_dataset)], tmp_path, tmp_path / "out", ds_json, changes)
    monkeypatch.setattr(start, "Engine", lambda *_: None)
    _, _, loader = start.build(run, torch.device("cpu"))
    next(loader)
    reading = [thread for thread in threading.enumerate() if thread.name.startswith("fusmae-read-")]
    loader.close()
    assert len(reading) == 3
