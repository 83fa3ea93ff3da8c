"""The recipes that are shipped say what they claim."""

from pathlib import Path

import pytest

from fusmae.config import PretrainRecipe, load_recipe

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
