"""The transforms that need no dataset, against numpy, torch and ten lines of our own."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fusmae.data import Preprocess, arrays_for, open_dataset
from fusmae.data.transforms import (
    clip_percentiles,
    normalise,
    percentile_limits,
    resample,
)
from fusmae.manifest import from_json, to_json

from ..manifests import sealed  # noqa: TID252

BANDS = {"s1": ("VH", "VV")}
# Float32 has 24 bits, and what is compared is below 10: 64 roundings.
TOLERANCE = 4e-5


def test_resampling_keeps_edges_and_not_centres_in_place():
    # A ramp over the ground: at 10 m, pixel centres 5, 15, 25, ...; at 20 m, 10, 30, ...
    coarse = torch.arange(10.0, 120.0, 20.0).expand(1, 1, 6, 6)
    fine = resample(coarse, 12, "bilinear")[0, 0, 0]
    torch.testing.assert_close(fine[1:-1], torch.arange(15.0, 110.0, 10.0), rtol=0, atol=1e-5)


def plain_bilinear(image, size_px):
    """One band (H, H) on another grid over the same ground, pixel by pixel."""
    side = len(image)
    resized = np.empty((size_px, size_px))
    for place in np.ndindex(resized.shape):
        centre = np.clip([(i + 0.5) * side / size_px - 0.5 for i in place], 0, side - 1)
        low = np.floor(centre).astype(int)
        high = np.minimum(low + 1, side - 1)
        y, x = centre - low
        top = image[low[0], low[1]] * (1 - x) + image[low[0], high[1]] * x
        bottom = image[high[0], low[1]] * (1 - x) + image[high[0], high[1]] * x
        resized[place] = top * (1 - y) + bottom * y
    return resized


@pytest.mark.parametrize("side", [10, 20])  # 120 m and 60 m of ground a pixel, to 20 m
def test_bilinear_and_nearest_are_those_of_ten_lines_of_numpy(side):
    images = np.random.default_rng(0).normal(size=(2, 3, side, side))
    fine = resample(torch.from_numpy(images), 60, "bilinear").numpy()
    expected = [[plain_bilinear(band, 60) for band in image] for image in images]
    np.testing.assert_allclose(fine, expected, rtol=0, atol=1e-12)
    nearest = resample(torch.from_numpy(images), 60, "nearest").numpy()
    np.testing.assert_array_equal(nearest, images.repeat(60 // side, 2).repeat(60 // side, 3))


def plain_cubic(distance, a=-0.75):
    """The weight of a pixel so far away: Keys 1981, Cubic convolution interpolation, eq. 4."""
    x = np.abs(distance)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def plain_bicubic(image, size_px):
    """One band (H, H) on another grid over the same ground; outside of it are its edges."""
    side = len(image)
    weights = np.zeros((size_px, side))
    for i in range(size_px):
        centre = (i + 0.5) * side / size_px - 0.5
        for pixel in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            weights[i, np.clip(pixel, 0, side - 1)] += plain_cubic(centre - pixel)
    return weights @ image @ weights.T


@pytest.mark.parametrize(("side", "size_px"), [(20, 60), (10, 60), (12, 28), (12, 5)])
def test_bicubic_is_cubic_convolution_in_numpy(side, size_px):
    images = np.random.default_rng(0).normal(size=(2, 3, side, side))
    resized = resample(torch.from_numpy(images), size_px, "bicubic").numpy()
    expected = [[plain_bicubic(band, size_px) for band in image] for image in images]
    # Float64: 16 numbers below 5 with weights below 1.3 round apart by some 100 * 2**-52.
    np.testing.assert_allclose(resized, expected, rtol=0, atol=1e-12)


def test_normalise_and_clip_percentiles_are_numpys(manifest, arrays):
    pixels = arrays["s2_10m"].numpy().astype(np.float64).transpose(0, 2, 3, 1)
    statistics = manifest.statistics["s2_10m"]
    images = normalise(arrays["s2_10m"], statistics.mean, statistics.std)
    expected = (pixels - statistics.mean) / statistics.std
    np.testing.assert_allclose(images.permute(0, 2, 3, 1), expected, rtol=0, atol=TOLERANCE)
    low, high = np.percentile(pixels, (2, 98), axis=(0, 1, 2))
    images = clip_percentiles(arrays["s2_10m"], low.tolist(), high.tolist())
    expected = np.clip((pixels - low) / (high - low), 0, 1)
    np.testing.assert_allclose(images.permute(0, 2, 3, 1), expected, rtol=0, atol=TOLERANCE)
    assert (images.min(), images.max()) == (0, 1)


def test_percentiles_are_the_manifests(manifest):
    table = json.loads(to_json(manifest))
    table["statistics"]["s1"]["percentiles"] = {"p2": [-20.0, -25.0]}
    with_percentiles = from_json(sealed(table))
    assert percentile_limits(with_percentiles, "s1", "p2") == (-20.0, -25.0)
    with pytest.raises(
        ValueError, match=r"'s2' is a sensor, whose arrays are \['s2_10m', 's2_20m'"
    ):
        percentile_limits(with_percentiles, "s2", "p2")
    for array, name in (("s1", "p98"), ("s2_20m", "p2"), ("s3", "p2")):
        with pytest.raises(ValueError, match=f"no percentile '{name}' of array '{array}'"):
            percentile_limits(with_percentiles, array, name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: normalise(images, [0, 0], [1, 0]), "deviation must be above 0"),
        (lambda images: normalise(images, [0], [1, 1]), "1 numbers are given for 2 bands"),
        (lambda images: clip_percentiles(images, [0, 1], [1, 1]), "must be below"),
        (lambda images: clip_percentiles(images, [0], [1]), "1 numbers are given for 2 bands"),
    ],
)
def test_numbers_that_do_not_fit_the_bands_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        change(torch.zeros(1, 2, 3, 3))


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_numbers_are_of_each_band_or_one_for_all(arrays, kind):
    images = arrays["s1"]
    of_each = normalise(images, kind([-12.0, -12.0]), kind([4.0, 4.0]))
    torch.testing.assert_close(of_each, (images + 12) / 4, rtol=0, atol=0)
    assert normalise(images, -12, 4).equal(of_each)
    assert normalise(images[0], -12.0, kind([4.0, 4.0])).equal(of_each[0])
    clipped = clip_percentiles(images, kind([-25.0, -25.0]), kind([0.0, 0.0]))
    assert clip_percentiles(images, -25, 0).equal(clipped)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: normalise(images["s1"], "ab", 1), "mean = 'ab' must be numbers"),
        (lambda images: normalise(images["s1"], torch.zeros(2, 2), 1), "2 x 2 numbers are given"),
        (lambda images: normalise(images["s1"], 0, 0), "deviation must be above 0, got 0"),
        (lambda images: normalise(images["s1"][0, 0], 0, 1), r"C, H, W\), got \(12, 12\)"),
        (lambda images: normalise(images, 0, 1), "must be a tensor .* got dict: give those of one"),
        (lambda images: clip_percentiles(images, 0, 1), "must be a tensor .* got dict"),
        (lambda images: resample(images, 12), "must be a tensor .* got dict"),
        (lambda images: resample(images["s1"].numpy(), 12), r"got ndarray: .* torch\.from_numpy"),
    ],
)
def test_what_are_no_images_or_numbers_is_told_what_is_wanted(arrays, change, message):
    with pytest.raises(ValueError, match=message):
        change(arrays)


def test_a_dataset_in_place_of_its_manifest_is_told_what_is_wanted(tiny_dataset):
    told = r"a dataset's Manifest is wanted, got DatasetView: give ds\.manifest"
    ds = open_dataset(tiny_dataset)
    for ask in (
        lambda: Preprocess(ds, BANDS, 12),
        lambda: arrays_for(ds, BANDS),
        lambda: percentile_limits(ds, "s1", "p2"),
    ):
        with pytest.raises(ValueError, match=told):
            ask()


def test_an_image_of_no_pixels_is_refused(arrays):
    with pytest.raises(ValueError, match="size_px = 0 must be a whole number"):
        resample(arrays["s1"], 0)


def test_integers_are_resampled_as_floats_by_default_bilinearly(arrays):
    stored = arrays["s2_20m"]
    expected = F.interpolate(stored.to(torch.float32), (12, 12), mode="bilinear")
    torch.testing.assert_close(resample(stored, 12), expected, rtol=0, atol=0)
    assert resample(stored, 6).dtype == torch.float32


def test_resampling_what_is_no_batch_or_by_no_method_is_refused(arrays):
    with pytest.raises(ValueError, match="'cubic' must be one of bilinear, bicubic, nearest"):
        resample(arrays["s1"], 24, "cubic")
    with pytest.raises(ValueError, match=r"must be \(B, C, H, W\), got \(2, 12, 12\)"):
        resample(arrays["s1"][0], 24)
