import typing
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fusmae.config import MODEL_PRESETS, Fusion, ModelConfig
from fusmae.model import FusMAE, draw_masks
from fusmae.model.budget import count_flops, count_parameters, variants_table
from fusmae.sensor_config import SensorConfig

FUSIONS: tuple[Fusion, ...] = typing.get_args(Fusion)
LAND_COVER = {"lc": SensorConfig(loss="cross_entropy", num_classes=17)}
S2_20M = {"s2_20m": SensorConfig(patch_px=4)}
SENSORS: dict[str, tuple[dict[str, int], dict[str, SensorConfig]]] = {
    "one": ({"s2": 12}, {}),
    "two": ({"s1": 2, "s2": 12}, {}),
    "land cover": ({"s1": 2, "s2": 12, "lc": 1}, LAND_COVER),
    "two resolutions": ({"s1": 2, "s2_10m": 4, "s2_20m": 6}, S2_20M),
}
CASES = [
    (fusion, name)
    for fusion in FUSIONS
    for name in SENSORS
    if (fusion, name) != ("stack", "two resolutions")
]


def expected_parameters(preset: str, fusion: Fusion, values: list[int]) -> int:
    """Counted by hand from the published layouts; `values` are a token's, by sensor."""
    width, depth, _, e_width, e_depth, _ = MODEL_PRESETS[preset]

    def linear(inputs: int, outputs: int) -> int:
        return inputs * outputs + outputs

    def mlp(d: int) -> int:
        return linear(d, 4 * d) + linear(4 * d, d)

    def block(d: int) -> int:
        return 2 * (2 * d) + linear(d, 3 * d) + linear(d, d) + mlp(d)

    def cross(d: int) -> int:
        return 2 * (2 * d) + linear(d, d) + linear(d, 2 * d) + linear(d, d)

    count = len(values)
    crosses = count * cross(width) if count > 1 else 0
    if fusion == "stack":
        values = [sum(values)]
    total = 0
    for pixels in values:
        total += linear(pixels, width)  # embedding
        total += linear(width, e_width) + e_width + e_depth * block(e_width)
        total += 2 * e_width + linear(e_width, pixels)
    vit = depth * block(width) + width  # with the global token
    total += count * vit if fusion == "late" else vit
    if fusion in ("xae_xad", "xae"):  # in place of a block: CAs, one norm and one MLP
        total += crosses + 2 * width + mlp(width) - block(width)
    if fusion in ("xae_xad", "xad"):  # CAs, and a norm and an MLP a sensor
        total += crosses + count * (2 * width + mlp(width))
    return total


@pytest.mark.parametrize("preset", MODEL_PRESETS)
@pytest.mark.parametrize(("fusion", "name"), CASES)
def test_models_have_the_parameters_counted_by_hand(preset: str, fusion: Fusion, name: str) -> None:
    channels, sensors = SENSORS[name]
    config = ModelConfig(
        preset=preset,  # type: ignore[arg-type]
        fusion=fusion,
        image_px=64,
        patch_px=8,
        sensors=sensors,
    )
    values = {"s1": 2 * 64, "s2": 12 * 64, "s2_10m": 4 * 64, "s2_20m": 6 * 16, "lc": 17 * 64}
    expected = expected_parameters(preset, fusion, [values[sensor] for sensor in channels])
    assert count_parameters(config, channels) == expected


@pytest.mark.parametrize(("fusion", "name"), CASES)
def test_the_formula_counts_every_operation_that_torch_counts(fusion: Fusion, name: str) -> None:
    channels, sensors = SENSORS[name]
    config = ModelConfig(
        preset="tiny", fusion=fusion, image_px=64, patch_px=8, decoder_depth=2, sensors=sensors
    )
    model = FusMAE(config, channels)
    images = {
        sensor: torch.zeros(1, channels[sensor], size, size)  # of class 0, too
        for sensor, size in config.sizes_px(channels).items()
    }
    masks = draw_masks(config, list(channels), 0, torch.arange(1))
    # Attention as two products: torch does not count its fused kernel for the CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss = model(images, masks)["loss"]
        forward = counter.get_total_flops()
        loss.backward()
    flops = count_flops(config, channels)
    assert (flops.forward, flops.training) == (forward, counter.get_total_flops())


@pytest.mark.parametrize("fusion", [fusion for fusion in FUSIONS if fusion != "stack"])
def test_of_a_sensor_that_is_left_out_nothing_is_counted(fusion: Fusion) -> None:
    config = ModelConfig(preset="tiny", fusion=fusion, image_px=64, patch_px=8)
    model = FusMAE(config, {"s1": 2, "s2": 12})
    masks = draw_masks(config, ["s1", "s2"], 0, torch.arange(1))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model({"s2": torch.zeros(1, 12, 64, 64)}, masks)["loss"].backward()
    assert count_flops(config, {"s2": 12}).training == counter.get_total_flops()


def test_the_readmes_table_is_the_one_that_is_computed() -> None:
    readme = Path(__file__).resolve().parents[2] / "README.md"
    assert variants_table() in readme.read_text()
