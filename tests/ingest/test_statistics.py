"""Merged partial statistics against one numpy pass."""

import numpy as np
import pytest

from fusmae_ingest.statistics import finish, merge, partial


@pytest.mark.parametrize(("dtype", "rtol"), [("<u2", 1e-12), ("<f4", 1e-9)])
def test_merged_partials_equal_one_numpy_pass(dtype, rtol):
    """rtol: integers are exact; float64 sums of 1e4 float32 numbers round at 1e-16 each."""
    rng = np.random.default_rng(0)
    samples = (
        rng.normal(-12, 5, (10, 3, 32, 32))
        if dtype == "<f4"
        else rng.integers(0, 65536, (10, 3, 32, 32))
    ).astype(dtype)
    result = finish(merge([merge([partial(s) for s in samples[i : i + 4]]) for i in (0, 4, 8)]))
    flat = samples.transpose(1, 0, 2, 3).reshape(3, -1).astype("f8")
    assert result.count == flat.shape[1]
    np.testing.assert_allclose(result.mean, flat.mean(1), rtol=rtol)
    np.testing.assert_allclose(result.std, flat.std(1), rtol=rtol)
    np.testing.assert_array_equal(result.min, flat.min(1))
    np.testing.assert_array_equal(result.max, flat.max(1))


def test_integer_sums_do_not_lose_small_variance_on_a_large_mean():
    pixels = np.full((1, 120, 120), 60_000, np.uint16)
    pixels[0, 0, 0] += 1
    result = finish(merge([partial(pixels)] * 1000))
    assert result.std[0] == pytest.approx(pixels.astype("f8").std(), rel=1e-9)
