"""Recipes: strict keys, strict types, overrides."""

from pathlib import Path

import pytest

from fusmae.config import (
    MODEL_PRESETS,
    DataConfig,
    ModelConfig,
    PretrainRecipe,
    SubsetConfig,
    load_recipe,
)
from fusmae.evaluation.recipes import FinetuneRecipe, ProbeRecipe

RECIPES = Path(__file__).parents[1] / "train" / "recipes"


def write(folder: Path, text: str) -> Path:
    path = folder / "r.toml"
    path.write_text(text)
    return path


def test_every_recipe_of_the_project_loads():
    recipes = sorted(RECIPES.glob("*.toml"))
    assert {"paper", "paper_b200", "native"} <= {path.stem for path in recipes}
    for path in recipes:
        kinds = {"probe": ProbeRecipe, "finetune": FinetuneRecipe}
        load_recipe(kinds.get(path.stem.partition("_")[0], PretrainRecipe), path)


def test_an_unknown_key_names_the_file_and_the_nearest_key(tmp_path):
    path = write(tmp_path, "[model]\npach_px = 8\n")
    with pytest.raises(ValueError, match=r"r\.toml.*model\.pach_px.*model\.patch_px"):
        load_recipe(PretrainRecipe, path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[model]\nimage_px = "big"\n', "model.image_px = 'big' is not of type int"),
        ("[model]\nimage_px = true\n", "model.image_px = True is not of type int"),
        ('[model]\nfusion = "mix"\n', "model.fusion = 'mix' is not one of"),
        ("[model]\nimage_px = 100\npatch_px = 16\n", "not a multiple of"),
        ("[model]\nmask_ratio = 1.0\n", "leaves 0 of"),
        ("[optim]\nbetas = [0.9]\n", 'expected such as "optim.betas=[1e-3, 1e-3]"'),
        ('[data.bands]\ns1 = "VV"\n', "expected such as \"data.bands.s1=['VV']\""),
        ("[optim]\nbetas = 0.9\n", 'list of float: expected such as "optim.betas=[0.9, 0.9]"'),
        ("[optim]\nepochs = 1\nwarmup_epochs = 2\n", "must be less than"),
        ("[run]\nkeep_checkpoints = 0\n", "run.keep_checkpoints = 0 must be more than 0"),
        ("[run]\nlog_every_steps = 0\n", "run.log_every_steps = 0 must be more than 0"),
        ("[optim]\nglobal_batch = -64\n", "optim.global_batch = -64 must be more than 0"),
        ("[optim]\nlr = -1\n", "optim.lr = -1.0 must be more than 0"),
        ("[optim]\nclip_norm = -1\n", "optim.clip_norm = -1.0 must not be negative"),
        ("[model]\ndepth = -1\n", "model.depth = -1 must be more than 0"),
        ("model = 3\n", "model = 3 is not of type"),
        ("[data]\nsources = 3\n", "list of tables: expected [[data.sources]] in the file"),
        ('[data.subset]\nexclude = "snow"\n', "\"data.subset.exclude=['seasonal_snow']\""),
        ("[data.subset]\nkeys = 3\n", "subset.keys = 3 is not of type str: expected such as"),
        ("[data.subset]\nfraction = 10\n", "subset.fraction = 10.0 must be above 0"),
        (
            "[data.subset]\nfracton = 0.1\n",
            "data.subset.fracton; did you mean data.subset.fraction",
        ),
        ('[data.subset]\nexclude = ["snow"]\n', "data.subset.exclude[0] = 'snow' is not one of"),
        (
            "[[data.sources]]\nqota = 4\n",
            "data.sources[0].qota; did you mean data.sources[0].quota",
        ),
        ("[[data.sources]]\n", "data.sources.quota = 0 must be more than 0"),
        (
            "[[data.sources]]\nquota = 300\n[[data.sources]]\nquota = 90\n",
            "300 + 90 = 390, must add up to optim.global_batch = 400",
        ),
        (
            "[data.subset]\nfraction = 0.1\n[[data.sources]]\nquota = 400\n",
            "data.subset does not say of which of data.sources",
        ),
        (
            '[model]\nfusion = "stack"\nsensor_dropout = 0.5\n',
            "cannot leave one out: set model.sensor_dropout = 0",
        ),
        ("[model\n", "is not valid TOML"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_it(tmp_path, text, message):
    with pytest.raises(ValueError) as error:
        load_recipe(PretrainRecipe, write(tmp_path, text))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_mixture_has_a_quota_and_a_subset_for_each_source(tmp_path):
    text = "[[data.sources]]\nquota = 300\n[[data.sources]]\nquota = 100\n"
    text += '[data.sources.subset]\nfraction = 0.5\nexclude = ["cloud_or_shadow"]\n'
    recipe = load_recipe(PretrainRecipe, write(tmp_path, text))
    assert [source.quota for source in recipe.sources] == [300, 100]
    assert recipe.sources[0].subset.is_whole
    assert recipe.sources[1].subset == SubsetConfig(0.5, exclude=("cloud_or_shadow",))


def test_a_single_dataset_has_the_whole_global_batch(tmp_path):
    recipe = load_recipe(PretrainRecipe, write(tmp_path, "[data.subset]\nfraction = 0.1\n"))
    assert [(s.quota, s.subset.fraction) for s in recipe.sources] == [(400, 0.1)]


def test_overrides_replace_values_and_are_as_strict_as_files(tmp_path):
    path = write(tmp_path, "[optim]\nlr = 1e-3\n")
    recipe = load_recipe(PretrainRecipe, path, ("optim.lr=2", "model.fusion=xad", "seed=7"))
    assert (recipe.optim.lr, recipe.model.fusion, recipe.seed) == (2.0, "xad", 7)
    for override, message in (
        ("optim.lrr=2", "optim.lr"),
        ("optim.lr", "expected key=value"),
        ("seed.x=1", "seed"),
    ):
        with pytest.raises(ValueError, match=message):
            load_recipe(PretrainRecipe, path, (override,))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lrs=", "lrs = '' is not of type list of float: expected such as \"lrs=[1e-3]\""),
        ("lrs=1e-3", 'lrs = 0.001 is not of type list of float: expected such as "lrs=[0.001]"'),
        ("lrs=1e-3,3e-3", 'expected such as "lrs=[1e-3]"'),
        ("lrs=['x']", "lrs[0] = 'x' is not of type float: expected such as 1e-3"),
        ("epochs=1.5", "epochs = 1.5 is not of type int: expected such as epochs=3"),
        ("zero_filled=yes", "not of type bool: expected such as zero_filled=true"),
        ("=3", "--set =3: expected key=value"),
    ],
)
def test_a_wrong_override_is_one_line_with_a_right_one(tmp_path, override, message):
    with pytest.raises(ValueError) as error:
        load_recipe(ProbeRecipe, write(tmp_path, ""), (override,))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_presets_fill_only_what_is_left_open():
    width, depth, *_ = MODEL_PRESETS["small"]
    config = ModelConfig(preset="small", depth=3)
    assert (config.width, config.depth) == (width, 3) and depth != 3


def test_visible_tokens_follow_mae():
    assert ModelConfig(image_px=224, patch_px=16).num_visible == 49
    assert ModelConfig(image_px=120, patch_px=8).num_visible == 56


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"resample": "area"}, "resample = 'area' must be one of bilinear, bicubic, nearest"),
        ({"on_bad_shard": "ignore"}, "on_bad_shard = 'ignore' must be one of error, skip"),
        ({"subset": {"fraction": 0.5}}, "must be a SubsetConfig, such as"),
    ],
)
def test_a_wrong_choice_in_python_is_one_line_as_in_a_recipe(wrong, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**wrong)


@pytest.mark.parametrize(
    ("bands", "message"),
    [
        ({"s1": "VV"}, r"bands\['s1'\] = 'VV' must be a list of names, such as"),
        ({"s1": ()}, r"bands\['s1'\] names no band: leave 's1' out"),
        ({}, "bands = {} names no band"),
        (["s1"], r"bands = \['s1'\] must map a sensor to its band names"),
    ],
)
def test_bands_that_are_no_lists_are_refused_by_the_config_itself(bands, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(bands=bands)
