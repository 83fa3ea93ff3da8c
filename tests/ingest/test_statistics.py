"""Histograms and sums of blocks against one numpy pass."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusmae.sensors import ArraySpec, Band
from fusmae_ingest import statistics
from fusmae_ingest.counting import LANES
from fusmae_ingest.statistics import PERCENTILES, Counter, decode, encode, finish, measure, merge


def spec(dtype: str, bands: int = 3) -> ArraySpec:
    return ArraySpec("a", "s", tuple(Band(f"B{i}", 10) for i in range(bands)), 32, dtype, "", "")


def in_blocks(pixels: np.ndarray, sizes: list[int]):
    """The statistics of a stack that was measured, stored and read back block by block."""
    arrays = (spec(pixels.dtype.str, pixels.shape[1]),)
    ends = np.cumsum(sizes)
    blocks = [pixels[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    stored = [encode({"a": measure(block)}) for block in blocks]
    return finish(arrays, merge([decode(data, arrays) for data in stored]))["a"]


def one_pass(pixels: np.ndarray) -> np.ndarray:
    return pixels.transpose(1, 0, 2, 3).reshape(pixels.shape[1], -1).astype("f8")


@given(st.integers(0, 99), st.sampled_from(["<u2", "|u1"]), st.integers(1, 65535))
@settings(max_examples=20, deadline=None)
def test_integers_are_counted_exactly(seed, dtype, top):
    rng = np.random.default_rng(seed)
    top = min(top, np.iinfo(dtype).max)
    pixels = rng.integers(0, top + 1, (21, 3, 8, 8)).astype(dtype)
    result, flat = in_blocks(pixels, [17, 1, 3]), one_pass(pixels)
    assert result.count == flat.shape[1]
    # The oracle rounds in float64; 1e-12 is a thousand times its last digit.
    np.testing.assert_allclose(result.mean, flat.mean(1), rtol=1e-12)
    np.testing.assert_allclose(result.std, flat.std(1), rtol=1e-12, atol=1e-9)
    np.testing.assert_array_equal(result.min, flat.min(1))
    np.testing.assert_array_equal(result.max, flat.max(1))
    for percent in PERCENTILES:
        expected = np.percentile(flat, percent, axis=1, method="inverted_cdf")
        np.testing.assert_array_equal(result.percentiles[f"p{percent}"], expected)


def test_backscatter_is_within_its_stated_tolerance():
    rng = np.random.default_rng(0)
    pixels = rng.normal(-12, 5, (40, 2, 32, 32)).astype("<f4")
    result, flat = in_blocks(pixels, [16, 24]), one_pass(pixels)
    # 8e4 float64 additions of float32 numbers: rounding of some 1e-16 each.
    np.testing.assert_allclose(result.mean, flat.mean(1), rtol=1e-12)
    np.testing.assert_allclose(result.std, flat.std(1), rtol=1e-10)
    np.testing.assert_array_equal(result.min, flat.min(1))
    np.testing.assert_array_equal(result.max, flat.max(1))
    for percent in PERCENTILES:
        expected = np.percentile(flat, percent, axis=1, method="inverted_cdf")
        # Half a bin, and float32's own grain of some 1e-6 dB at a bin's edge.
        np.testing.assert_allclose(
            result.percentiles[f"p{percent}"], expected, rtol=0, atol=0.005 + 1e-4
        )


def test_backscatter_out_of_range_is_counted_and_never_invented():
    pixels = np.full((1, 1, 32, 32), -300, "<f4")
    pixels[0, 0, 0] = 200
    result = in_blocks(pixels, [1])
    assert result.min == (-300,) and result.max == (200,)
    assert all(-300 <= values[0] <= 200 for values in result.percentiles.values())


def test_integer_sums_do_not_lose_small_variance_on_a_large_mean():
    pixels = np.full((1000, 1, 32, 32), 60_000, np.uint16)
    pixels[:, 0, 0, 0] += 1
    assert in_blocks(pixels, [1000]).std[0] == pytest.approx(pixels.astype("f8").std(), rel=1e-9)


def test_the_split_into_blocks_changes_integers_not_at_all():
    pixels = np.random.default_rng(1).integers(0, 9000, (20, 2, 16, 16)).astype("<u2")
    assert in_blocks(pixels, [20]) == in_blocks(pixels, [1, 9, 10])


def sum_in_lanes(values: np.ndarray) -> float:
    """The sum of one band (pixels,) in the order that `counting` states."""
    whole = len(values) // LANES * LANES
    lanes = np.zeros(LANES)
    for row in values[:whole].reshape(-1, LANES):
        lanes += row
    lanes[: len(values) - whole] += values[whole:]
    total = 0.0
    for lane in lanes.tolist():  # `sum` makes up for what each addition rounds, from Python 3.12 on
        total += lane
    return total


@pytest.mark.parametrize("size", [120, 32, 9, 5])
def test_float_sums_of_a_stack_are_its_samples_added_one_by_one_to_the_last_bit(size):
    """So the order in which samples are counted is not part of the result."""
    pixels = np.random.default_rng(2).normal(-12, 5, (37, 2, size, size)).astype("<f4")
    wide = pixels.astype("f8").reshape(37, 2, -1)
    counter = Counter({"a": pixels})
    for row in np.random.default_rng(0).permutation(37):
        counter.add(row)
    partial = counter.partials()["a"]
    assert all(np.array_equal(measure(pixels)[key], value) for key, value in partial.items())
    for key, values in (("sum", wide), ("square", wide * wide)):
        expected = np.zeros(2)
        for sample in values:
            expected += [sum_in_lanes(band) for band in sample]
        assert partial[key].tolist() == expected.tolist()
    assert partial["min"].tolist() == pixels.min(axis=(0, 2, 3)).tolist()
    assert partial["max"].tolist() == pixels.max(axis=(0, 2, 3)).tolist()


@given(st.integers(0, 99), st.sampled_from([1, 5, 40, 400]))
@settings(max_examples=20, deadline=None)
def test_each_backscatter_lies_in_the_bin_that_float32_arithmetic_gives(seed, spread):
    pixels = np.random.default_rng(seed).normal(-12, spread, (3, 2, 16, 16)).astype("<f4")
    bins = np.clip(pixels * np.float32(100) + np.float32(10_000), 0, 14_999).astype(int)
    histogram = measure(pixels)["histogram"]
    for band in range(2):
        expected = np.bincount(bins[:, band].ravel(), minlength=histogram.shape[1])
        np.testing.assert_array_equal(histogram[band], expected)


NO_FOLDER = "caching.CacheImpl._locator_classes = []"
FULL_DISK = """
def full(self, *arguments):
    raise OSError(errno.ENOSPC, "No space left on device")
caching.IndexDataCacheFile.save = full
caching.IndexDataCacheFile.load = lambda self, *arguments: None
"""


@pytest.mark.parametrize("trouble", [NO_FOLDER, FULL_DISK])
def test_where_no_cache_can_be_written_it_is_compiled_all_the_same(trouble):
    """As in a container whose file system is read-only, or with a full home."""
    script = (
        f"import errno\nimport numba.core.caching as caching\n{trouble}\n"
        "import numpy as np\n"
        "from fusmae_ingest.counting import count_integers\n"
        "from fusmae_ingest.statistics import measure\n"
        "print(measure(np.full((1, 1, 4, 4), 7, np.uint8))['histogram'][0, 7])\n"
        "print(measure(np.full((1, 1, 4, 4), 7, np.float32))['sum'].tolist())\n"
        "print(count_integers.stats.cache_path)\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.stdout.split() == ["16", "[112.0]", "None"], done.stderr


def test_pixels_may_be_read_only_and_lie_apart():
    pixels = np.random.default_rng(4).integers(0, 9000, (6, 4, 8, 8)).astype("<u2")
    whole = measure(pixels[::2, 1:3].copy())["histogram"]
    pixels.flags.writeable = False
    np.testing.assert_array_equal(measure(pixels[::2, 1:3])["histogram"], whole)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_backscatter_that_is_not_finite_is_refused(bad):
    pixels = np.zeros((3, 2, 8, 8), "<f4")
    pixels[1, 1, 2, 2] = bad
    with pytest.raises(ValueError, match="not finite"):
        measure(pixels)


def test_pixels_of_another_type_are_refused():
    with pytest.raises(ValueError, match="int16"):
        measure(np.zeros((1, 1, 8, 8), "<i2"))


def test_a_stack_with_more_pixels_than_a_bin_can_count_is_refused(monkeypatch):
    counter = Counter({"a": np.empty((1, 1, 8, 8), np.uint16)})
    counts = counter._partials["a"]["histogram"]
    assert np.iinfo(counts.dtype).max == statistics._MAX_PIXELS
    monkeypatch.setattr(statistics, "_MAX_PIXELS", 3 * 64)
    Counter({"a": np.empty((3, 2, 8, 8), np.uint16)})
    with pytest.raises(ValueError, match=r"of 256 pixels.*fewer --samples-per-shard"):
        Counter({"a": np.empty((4, 2, 8, 8), np.uint16)})


@pytest.mark.parametrize("dtype", ["|u1", "<u2", "<f4"])
def test_stored_partials_are_equal_bytes_and_come_back_as_they_were(dtype):
    pixels = np.random.default_rng(3).integers(0, 250, (5, 3, 16, 16)).astype(dtype)
    partial = measure(pixels)
    data = encode({"a": partial})
    assert data == encode({"a": measure(pixels)})
    back = decode(data, (spec(dtype),))["a"]
    assert back.keys() == partial.keys()
    for key, values in partial.items():
        assert back[key].dtype == values.dtype
        np.testing.assert_array_equal(back[key], values)


@pytest.mark.parametrize("values", [(3, 5, 3), (5, 3, 5)])
def test_blocks_are_merged_one_at_a_time_and_not_changed(values):
    blocks = [{"a": measure(np.full((1, 1, 8, 8), value, "<u2"))} for value in values]
    total = merge(block for block in blocks)
    assert total["a"]["histogram"].tolist() == [
        [0, 0, 0, 64 * values.count(3), 0, 64 * values.count(5)]
    ]
    for block, value in zip(blocks, values, strict=True):
        assert block["a"]["histogram"].tolist() == [[0] * value + [64]]
