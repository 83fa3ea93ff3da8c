import numpy as np
import numpy.typing as npt
import pytest
import torch

from fusmae.config import ModelConfig
from fusmae.model.masking import draw_masks, draw_sensors

SENSORS = ["s1", "s2"]
CONSISTENT = ModelConfig(preset="tiny", image_px=40, patch_px=8)  # 25 tokens, 6 visible
INDEPENDENT = ModelConfig(preset="tiny", image_px=40, patch_px=8, masking="independent")
SEEDS = [0, 1, -1, 2**63, 2**80 + 5]
POSITIONS = [0, 1, 2, 12345678901, 2**62]


def splitmix64(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The output function of Vigna's splitmix64.c, which takes a state already advanced."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def oracle_order(num_tokens: int, seed: int, stream: int, position: int) -> npt.NDArray[np.int64]:
    """The permutation of one sample in plain unsigned arithmetic; signed order of the keys."""
    golden = np.array([0x9E3779B97F4A7C15], np.uint64)
    state = splitmix64(np.array([position], np.uint64) + golden)
    state = splitmix64(state + np.array([seed % 2**64], np.uint64))
    state = splitmix64(state + np.array([int.from_bytes(b"masking", "big") + stream], np.uint64))
    keys = []
    for _ in range(num_tokens):
        state = state + golden
        keys.append(splitmix64(state)[0])
    return np.argsort(np.array(keys).view(np.int64), kind="stable")


def test_the_oracle_is_splitmix64() -> None:
    # First outputs of splitmix64.c from state 1234567, as published with Rosetta Code's
    # task "Pseudo-random numbers/Splitmix64".
    state, outputs = np.array([1234567], np.uint64), []
    for _ in range(3):
        state = state + np.array([0x9E3779B97F4A7C15], np.uint64)
        outputs.append(int(splitmix64(state)[0]))
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("config", [CONSISTENT, INDEPENDENT], ids=["consistent", "independent"])
def test_masks_equal_an_unsigned_numpy_oracle(config: ModelConfig, seed: int) -> None:
    masks = draw_masks(config, SENSORS, seed, torch.tensor(POSITIONS))
    for stream, sensor in enumerate(SENSORS):
        for row, position in enumerate(POSITIONS):
            drawn = 0 if config.masking == "consistent" else stream
            order = oracle_order(25, seed, drawn, position)
            assert masks.visible[sensor][row].tolist() == sorted(order[:6])
            assert masks.masked[sensor][row].tolist() == sorted(order[6:])


@pytest.mark.parametrize("config", [CONSISTENT, INDEPENDENT], ids=["consistent", "independent"])
def test_visible_and_masked_partition_the_tokens_in_ascending_order(config: ModelConfig) -> None:
    masks = draw_masks(config, SENSORS, 3, torch.arange(50))
    for sensor in SENSORS:
        visible, masked = masks.visible[sensor], masks.masked[sensor]
        assert visible.dtype == masked.dtype == torch.int64
        assert (visible.diff(dim=1) > 0).all()
        assert (masked.diff(dim=1) > 0).all()
        both = torch.cat([visible, masked], dim=1).sort(dim=1).values
        assert both.equal(torch.arange(25).expand(50, 25))


@pytest.mark.parametrize(
    ("image_px", "patch_px", "ratio", "num_visible"),
    [(224, 16, 0.75, 49), (120, 8, 0.75, 56), (128, 16, 0.75, 16), (224, 16, 0.5, 98)],
)
def test_the_visible_count_is_the_ratio_rounded_down(
    image_px: int, patch_px: int, ratio: float, num_visible: int
) -> None:
    config = ModelConfig(preset="tiny", image_px=image_px, patch_px=patch_px, mask_ratio=ratio)
    masks = draw_masks(config, SENSORS, 0, torch.arange(3))
    assert masks.visible["s1"].shape == (3, num_visible)
    assert masks.masked["s1"].shape == (3, config.num_tokens - num_visible)


def test_consistent_sensors_share_tokens_and_independent_ones_do_not() -> None:
    positions = torch.arange(100)
    same = draw_masks(CONSISTENT, SENSORS, 0, positions).visible
    assert same["s1"].equal(same["s2"])
    own = draw_masks(INDEPENDENT, SENSORS, 0, positions).visible
    overlap = (own["s1"][:, :, None] == own["s2"][:, None, :]).sum(dim=(1, 2)).float().mean()
    # Hypergeometric: mean 6 * 6 / 25 = 1.44, variance 0.866; 5 standard errors of 100 draws.
    assert abs(overlap - 1.44) < 5 * (0.866 / 100) ** 0.5


def test_masks_do_not_depend_on_the_batch_split_its_order_or_torchs_seed() -> None:
    positions = torch.arange(1000, 1024)
    torch.manual_seed(1)
    whole = draw_masks(INDEPENDENT, SENSORS, 7, positions).visible["s2"]
    torch.manual_seed(2)
    parts = [draw_masks(INDEPENDENT, SENSORS, 7, p).visible["s2"] for p in positions.split(5)]
    assert torch.cat(parts).equal(whole)
    backwards = draw_masks(INDEPENDENT, SENSORS, 7, positions.flip(0)).visible["s2"]
    assert backwards.flip(0).equal(whole)


def test_seeds_and_positions_change_the_masks() -> None:
    rows = [
        tuple(row)
        for seed in range(20)
        for row in draw_masks(CONSISTENT, SENSORS, seed, torch.arange(100)).visible["s1"].tolist()
    ]
    # 2,000 draws of 177,100 subsets: 11.3 coincidences are expected, standard deviation 3.4.
    assert len(rows) - len(set(rows)) < 11.3 + 6 * 3.4


def test_tokens_and_pairs_of_tokens_are_visible_equally_often() -> None:
    num = 20_000
    visible = draw_masks(CONSISTENT, SENSORS, 5, torch.arange(num)).visible["s1"]
    seen = torch.zeros(num, 25).scatter(1, visible, 1.0)
    for pairs, p in ((seen.mean(0), 6 / 25), ((seen.T @ seen / num).triu(1), 6 * 5 / (25 * 24))):
        rates = pairs[pairs > 0]
        # The largest of 300 normal deviates is above 5 with a chance of 2e-4.
        assert (rates - p).abs().max() < 5 * (p * (1 - p) / num) ** 0.5
        assert len(rates) in (25, 300)


def oracle_draw(seed: int, step: int) -> tuple[int, int]:
    """The two numbers of a step's draw of sensors, 53 and 63 bits, in plain unsigned arithmetic."""
    golden = np.array([0x9E3779B97F4A7C15], np.uint64)
    state = splitmix64(np.array([step], np.uint64) + golden)
    state = splitmix64(state + np.array([seed % 2**64], np.uint64))
    state = splitmix64(state + np.array([int.from_bytes(b"dropout", "big")], np.uint64))
    words = [int(splitmix64(state + np.uint64(n) * golden)[0]) for n in (1, 2)]
    return (words[0] >> 1) % 2**53, words[1] >> 1


@pytest.mark.parametrize("seed", SEEDS)
def test_the_sensors_of_a_step_equal_an_unsigned_numpy_oracle(seed: int) -> None:
    sensors = ["s1", "s2", "lc"]
    for step in POSITIONS:
        chance, which = oracle_draw(seed, step)
        absent = sensors[which % 3] if chance < 0.4 * 2**53 else None
        expected = [sensor for sensor in sensors if sensor != absent]
        assert draw_sensors(sensors, 0.4, seed, step) == expected


def test_sensors_are_left_out_one_at_a_time_equally_often_and_never_all() -> None:
    num, sensors = 3000, ["s1", "s2", "lc"]
    drawn = [draw_sensors(sensors, 0.3, 0, step) for step in range(num)]
    for sensor in sensors:
        rate = sum(sensor not in shown for shown in drawn) / num
        assert abs(rate - 0.1) < 5 * (0.1 * 0.9 / num) ** 0.5
    assert {len(shown) for shown in drawn} == {2, 3}
    assert all(draw_sensors(sensors, 0.0, 0, step) == sensors for step in range(100))
    for alone in (["s2"], ["s2_10m", "s2_20m"]):
        assert all(draw_sensors(alone, 0.9, 0, step) == alone for step in range(100))


def test_a_sensor_in_groups_is_left_out_whole() -> None:
    """As often as if it were in one piece: each draw is that of the sensors themselves."""
    groups = ["s2_10m", "s1", "s2_20m", "s2_60m"]
    whole = {"s1": ["s1"], "s2": ["s2_10m", "s2_20m", "s2_60m"]}
    seen = set()
    for step in range(200):
        shown = draw_sensors(groups, 0.5, 7, step)
        sensors = draw_sensors(["s2", "s1"], 0.5, 7, step)
        assert sorted(shown) == sorted(name for sensor in sensors for name in whole[sensor])
        seen.add(tuple(shown))
    assert seen == {tuple(groups), ("s1",), ("s2_10m", "s2_20m", "s2_60m")}


@pytest.mark.gpu
def test_masks_are_the_same_on_the_gpu_without_a_host_synchronisation() -> None:
    positions = torch.arange(4096)
    on_device = positions.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours = draw_masks(INDEPENDENT, SENSORS, 7, on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = draw_masks(INDEPENDENT, SENSORS, 7, positions)
    for sensor in SENSORS:
        assert ours.visible[sensor].cpu().equal(expected.visible[sensor])
        assert ours.masked[sensor].cpu().equal(expected.masked[sensor])
