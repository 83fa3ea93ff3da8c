"""Flips and crops against numpy, sample by sample, and against the ground they show."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusmae.data.augment import cell_grid, crop, flip, random_crops, random_flips

SIDES = {"s1": 120, "s2_10m": 120, "s2_20m": 60, "s2_60m": 20}
DTYPES = {"s1": torch.float32}
GROUND_M = 1200


def random_batch(size, seed=0):
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, side in SIDES.items():
        pixels = rng.integers(0, 65536, (size, 2, side, side), np.uint16)
        array = pixels.astype(np.float32) if name in DTYPES else pixels
        arrays[name] = torch.from_numpy(array)
    return arrays


def ramps(size):
    """Two bands that hold the ground's coordinate in metres, across and down, at pixel centres."""
    arrays = {}
    for name, side in SIDES.items():
        centre = (torch.arange(side) + 0.5) * GROUND_M / side
        bands = torch.stack([centre.expand(side, side), centre[:, None].expand(side, side)])
        arrays[name] = bands.expand(size, 2, side, side).to(DTYPES.get(name, torch.uint16))
    return arrays


def positions(size, first=0):
    return torch.arange(first, first + size)


def plain_hash(position, seed, stream):
    """The word of hashing.hash_positions in Python integers."""
    mask = 2**64 - 1

    def mix(x):
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & mask
        x = (x ^ x >> 27) * 0x94D049BB133111EB & mask
        return x ^ x >> 31

    state = mix((position + 0x9E3779B97F4A7C15) & mask)
    return mix((mix((state + seed) & mask) + stream) & mask)


def plain_draw(position, seed, stream, bound):
    return (plain_hash(position, seed, int.from_bytes(stream)) >> 1) % bound


@given(st.integers(-(2**63), 2**64 - 1), st.integers(0, 2**50))
@settings(max_examples=10, deadline=None)
def test_flips_are_numpys_of_each_sample(seed, first):
    arrays = random_batch(6)
    flipped = random_flips(arrays, seed, positions(6, first))
    for name, array in arrays.items():
        assert flipped[name].dtype == array.dtype
        for i in range(6):
            drawn = plain_draw(first + i, seed, b"flip", 4)
            expected = array[i].numpy()[:, :: -1 if drawn >= 2 else 1, :: -1 if drawn % 2 else 1]
            np.testing.assert_array_equal(flipped[name][i].numpy(), expected)


@pytest.mark.parametrize("sides", [(8, 4), (3, 10)])
def test_flips_of_oblong_images_are_numpys_too(sides):
    array = torch.arange(16 * 2 * sides[0] * sides[1]).view(16, 2, *sides)
    flipped = random_flips({"a": array}, 1, positions(16))["a"]
    for i in range(16):
        drawn = plain_draw(i, 1, b"flip", 4)
        expected = array[i].numpy()[:, :: -1 if drawn >= 2 else 1, :: -1 if drawn % 2 else 1]
        np.testing.assert_array_equal(flipped[i].numpy(), expected)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**50), st.integers(1, 20))
@settings(max_examples=10, deadline=None)
def test_crops_are_numpys_slices_of_each_sample(seed, first, cells):
    arrays = random_batch(6)
    cropped = random_crops(arrays, 6 * cells, seed, positions(6, first))
    for name, array in arrays.items():
        scale = SIDES[name] // 20
        for i in range(6):
            top, left = (
                scale * plain_draw(first + i, seed, stream, 21 - cells)
                for stream in (b"top", b"left")
            )
            side = scale * cells
            expected = array[i].numpy()[:, top : top + side, left : left + side]
            np.testing.assert_array_equal(cropped[name][i].numpy(), expected)


@given(st.integers(0, 2**64 - 1), st.integers(0, 10**9), st.integers(1, 20))
@settings(max_examples=15, deadline=None)
def test_all_resolutions_still_show_the_same_ground(seed, first, cells):
    where = positions(8, first)
    moved = random_crops(random_flips(ramps(8), seed, where), 6 * cells, seed, where)
    fine = moved["s1"].double()
    torch.testing.assert_close(moved["s2_10m"].to(torch.int32), fine.to(torch.int32))
    for name, factor in {"s2_20m": 2, "s2_60m": 6}.items():
        # A coarse pixel lies at the mean of the fine pixels on its ground.
        ground = torch.nn.functional.avg_pool2d(fine, factor)
        torch.testing.assert_close(moved[name].double(), ground, rtol=0, atol=0)


@given(st.lists(st.integers(1, 15), max_size=4))
@settings(max_examples=15, deadline=None)
def test_any_split_of_a_batch_gives_the_same_samples(cuts):
    arrays, where = random_batch(16), positions(16, 1000)
    whole = random_crops(random_flips(arrays, 3, where), 60, 3, where)
    edges = sorted({0, 16, *cuts})
    for start, stop in itertools.pairwise(edges):
        part = {name: array[start:stop] for name, array in arrays.items()}
        mine = where[start:stop]
        for name, array in random_crops(random_flips(part, 3, mine), 60, 3, mine).items():
            assert torch.equal(array.view(torch.uint8), whole[name][start:stop].view(torch.uint8))


def test_every_flip_and_every_place_is_equally_likely():
    count = 4000
    where = positions(count)
    corner = {"a": torch.arange(4).view(1, 1, 2, 2).expand(count, 1, 2, 2)}
    seen = torch.bincount(random_flips(corner, 1, where)["a"][:, 0, 0, 0], minlength=4)
    places = {"a": torch.arange(9).view(1, 1, 3, 3).expand(count, 1, 3, 3)}
    top_left = torch.bincount(random_crops(places, 2, 1, where)["a"][:, 0, 0, 0], minlength=9)
    # A multinomial count has at most the deviation sqrt(count * p * (1 - p)); 5 of them.
    assert (seen - count / 4).abs().max() < 5 * (count * 3 / 16) ** 0.5
    assert (top_left[[0, 1, 3, 4]] - count / 4).abs().max() < 5 * (count * 3 / 16) ** 0.5
    assert top_left[[2, 5, 6, 7, 8]].sum() == 0


def test_crops_flips_and_masks_of_a_position_are_independent_draws():
    where = positions(4000)
    drawn = torch.tensor(
        [
            [plain_draw(int(p), 0, stream, 2) for stream in (b"flip", b"top", b"left", b"masking")]
            for p in where
        ]
    )
    correlation = torch.corrcoef(drawn.T.double()) - torch.eye(4)
    assert correlation.abs().max() < 5 / 4000**0.5


def test_crops_of_fewer_sensors_move_in_finer_steps():
    arrays = random_batch(1)
    assert cell_grid(arrays) == (20, 6)
    assert cell_grid({name: arrays[name] for name in ("s1", "s2_20m")}) == (60, 2)
    assert cell_grid({"s1": arrays["s1"]}) == (120, 1)


def test_given_flips_and_crops_do_what_they_say():
    arrays = {"a": torch.arange(16).view(1, 1, 4, 4), "b": torch.arange(4).view(1, 1, 2, 2)}
    yes, no = torch.tensor([True]), torch.tensor([False])
    assert flip(arrays, yes, no)["b"].tolist() == [[[[1, 0], [3, 2]]]]
    assert flip(arrays, no, yes)["b"].tolist() == [[[[2, 3], [0, 1]]]]
    cropped = crop(arrays, 2, torch.tensor([2]), torch.tensor([0]))
    assert cropped["a"].tolist() == [[[[8, 9], [12, 13]]]]
    assert cropped["b"].tolist() == [[[[2]]]]


@pytest.mark.parametrize("size_px", [0, -6, 7, 126])
def test_crops_that_cut_a_pixel_or_do_not_fit_are_refused(size_px):
    with pytest.raises(ValueError, match=r"multiple of 6 px, .* at most 120 px"):
        random_crops(random_batch(1), size_px, 0, positions(1))


@pytest.mark.parametrize("other", [torch.zeros(2), torch.zeros(2, 1, 1), torch.zeros(3, 1, 1, 1)])
def test_what_is_no_image_of_each_position_is_refused_by_name(other):
    batch = {"s1": torch.zeros(2, 2, 4, 4), "labels": other}
    with pytest.raises(ValueError, match=r"'labels' must be \(2, C, H, W\), .* for name in ds"):
        random_flips(batch, 0, positions(2))
    for draw in (random_flips, lambda arrays, *more: random_crops(arrays, 2, *more)):
        with pytest.raises(ValueError, match=r"'s1' must be \(3, C, H, W\), one a position, got"):
            draw({"s1": torch.zeros(4, 2, 4, 4)}, 0, positions(3))
    with pytest.raises(ValueError, match=r"array 'key' must be \(B, C, H, H\), got list: give"):
        random_crops({"key": ["a", "b"]}, 2, 0, positions(2))


@pytest.mark.parametrize(
    "other", [positions(2).int(), positions(2).float(), positions(2)[:, None], [0, 1]]
)
def test_positions_of_another_kind_draw_nothing_else(other):
    for draw in (random_flips, lambda arrays, *more: random_crops(arrays, 6, *more)):
        with pytest.raises(ValueError, match=r"positions must be \(B,\) torch\.int64"):
            draw(random_batch(2), 0, other)


@pytest.mark.parametrize("arrays", [torch.zeros(2, 2, 4, 4), {}, None])
def test_what_maps_no_names_to_images_is_refused(arrays):
    for draw in (random_flips, lambda arrays, *more: random_crops(arrays, 2, *more)):
        with pytest.raises(ValueError, match=r"arrays must map names .* give batch\.arrays of a"):
            draw(arrays, 0, positions(2))


def test_seeds_and_sizes_of_another_kind_draw_nothing():
    for seed in (1.5, "1", None):
        with pytest.raises(ValueError, match=f"seed = {seed!r} must be an int"):
            random_flips(random_batch(2), seed, positions(2))
    for size_px in (None, (6, 6), 6.5):
        with pytest.raises(ValueError, match="px must be a multiple of 6 px"):
            random_crops(random_batch(2), size_px, 0, positions(2))


def test_oblong_arrays_are_refused_by_name():
    with pytest.raises(ValueError, match=r"array 'a' must be \(B, C, H, H\)"):
        random_crops({"a": torch.zeros(1, 1, 4, 6)}, 2, 0, positions(1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_gpu_moves_the_same_pixels_as_a_cpu():
    arrays, where = random_batch(16), positions(16, 2**40)
    on_gpu = {name: array.cuda() for name, array in arrays.items()}
    expected = random_crops(random_flips(arrays, 7, where), 60, 7, where)
    actual = random_crops(random_flips(on_gpu, 7, where.cuda()), 60, 7, where.cuda())
    for name, array in expected.items():
        assert actual[name].is_cuda
        assert torch.equal(actual[name].cpu().view(torch.uint8), array.view(torch.uint8))
