"""Sensors of a recipe: groups of bands, class maps, token sizes; and recipes from before them."""

import json
from pathlib import Path

import pytest

from fusmae.config import (
    DataConfig,
    ModelConfig,
    PretrainRecipe,
    as_table,
    build,
    load_recipe,
)
from fusmae.sensor_config import SensorConfig
from fusmae.sensors import CLASS_CODES
from fusmae_ingest.landcover_colours import CLC, IGBP

S1, S2 = {"s1": ("VV", "VH")}, {"s2": ("B02", "B03")}
LC = SensorConfig(loss="cross_entropy", num_classes=17)


def recipe(bands: dict[str, tuple[str, ...]], sensors: dict[str, SensorConfig]) -> PretrainRecipe:
    return PretrainRecipe(model=ModelConfig(sensors=sensors), data=DataConfig(bands=bands))


def test_class_codes_are_those_that_ingest_has_colours_for() -> None:
    # 999 and 255: no data, unclassified.
    assert set(CLASS_CODES["CLC"]) == set(CLC) - {999}
    assert set(CLASS_CODES["IGBP"]) == set(IGBP) - {255}
    assert all(sorted(set(codes)) == list(codes) for codes in CLASS_CODES.values())


def test_a_recipe_file_names_sensors_as_strictly_as_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(
        "[model]\nimage_px = 120\npatch_px = 8\n[model.sensors.s2_20m]\npatch_px = 4\n"
        '[data.bands]\ns2_10m = ["B02"]\ns2_20m = ["B11"]\n'
    )
    model = load_recipe(PretrainRecipe, path).model
    assert model.sizes_px(["s2_10m", "s2_20m"]) == {"s2_10m": 120, "s2_20m": 60}
    for override, message in (
        ("model.sensors.s2_20m.pach_px=4", r"model\.sensors\.s2_20m\.pach_px; did you mean"),
        ("model.sensors.s2_20m.loss=mae", "loss = 'mae' is not one of 'mse', 'cross_entropy'"),
        ("model.sensors.s2_20m=4", r"model\.sensors\.s2_20m = 4 is not of type"),
    ):
        with pytest.raises(ValueError, match=message):
            load_recipe(PretrainRecipe, path, (override,))


@pytest.mark.parametrize(
    ("bands", "sensors", "message"),
    [
        (S1, {"s2": SensorConfig(patch_px=8)}, r"model\.sensors\.s2: data\.bands has only s1"),
        (
            {"s2_a": ("B02", "B03"), "s2_b": ("B03",)},
            {},
            r"data\.bands has B03 in s2_a and in s2_b",
        ),
        ({"s2": ("B02",), "s2_b": ("B02",)}, {}, "B02 in s2 and in s2_b"),
        (S1 | {"lc": ("IGBP",)}, {}, "IGBP of lc holds 17 classes: set .*num_classes = 17"),
        (
            S1 | {"lc": ("IGBP",)},
            {"lc": SensorConfig(loss="cross_entropy", num_classes=10)},
            "IGBP of lc holds 17 classes",
        ),
        (S1 | {"lc": ("IGBP", "LCCS_LC")}, {"lc": LC}, "a sensor of classes has one band"),
        (S1 | S2, {"s2": LC}, r"data\.bands\.s2 = B02, B03: a sensor of classes"),
    ],
)
def test_sensors_that_do_not_fit_their_bands_are_refused(
    bands: dict[str, tuple[str, ...]], sensors: dict[str, SensorConfig], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        recipe(bands, sensors)


def test_a_class_map_and_bands_of_one_sensor_in_groups_are_accepted() -> None:
    recipe(S1 | {"lc": ("IGBP",)}, {"lc": LC})
    recipe({"s2_a": ("B02",), "s2_b": ("B03",)}, {})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"patch_px": -1}, "patch_px = -1 must not be negative"),
        ({"loss": "cross_entropy"}, "num_classes = 0: cross_entropy needs 2 or more"),
        ({"num_classes": 3}, "'mse' does not go with num_classes = 3"),
    ],
)
def test_a_sensor_that_contradicts_itself_is_refused(
    values: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        SensorConfig(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "values",
    [{"masking": "independent"}, {"sensors": {"s2": SensorConfig(patch_px=8)}}],
)
def test_stack_has_one_mask_and_one_token_size(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match='"stack" has all sensors in each token'):
        ModelConfig(fusion="stack", **values)  # type: ignore[arg-type]
    ModelConfig(fusion="stack", sensors={"s2": SensorConfig(patch_px=16)})  # the model's own


def test_a_recipe_saved_before_sensors_had_settings_is_the_same_recipe() -> None:
    table = json.loads(json.dumps(as_table(PretrainRecipe())))
    del table["model"]["sensors"]
    assert build(PretrainRecipe, table) == PretrainRecipe()
