"""`Preprocess`, against each band interpolated and normalised alone."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fusmae.data import Preprocess
from fusmae.data.reader import SplitReader
from fusmae.manifest import from_json, to_json
from fusmae.sensors import CLASS_CODES, SEN12MS_LC

from ..manifests import sealed  # noqa: TID252

BANDS = {"s2": ("B11", "B04", "B01", "B03", "B8A", "B09"), "s1": ("VH", "VV")}
# Float32 has 24 bits; a normalised pixel is below 10 and bicubic sums 16 of them with
# weights up to 1.3, so results round apart by less than 64 * 10 * 2**-24.
TOLERANCE = 4e-5


@pytest.mark.parametrize("method", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("size_px", [5, 12, 28])
def test_images_are_each_band_interpolated_and_normalised_alone(manifest, arrays, method, size_px):
    images = Preprocess(manifest, BANDS, size_px, method)(arrays)
    assert list(images) == ["s2", "s1"]
    for sensor, names in BANDS.items():
        assert images[sensor].shape == (5, len(names), size_px, size_px)
        assert images[sensor].dtype == torch.float32
        for channel, name in enumerate(names):
            spec, index = manifest.find_band(sensor, name)
            pixels = torch.from_numpy(arrays[spec.name].numpy()[:, [index]].astype(np.float64))
            corners = {} if method == "nearest" else {"align_corners": False}
            pixels = F.interpolate(pixels, (size_px, size_px), mode=method, **corners)
            statistics = manifest.statistics[spec.name]
            expected = (pixels.numpy()[:, 0] - statistics.mean[index]) / statistics.std[index]
            actual = images[sensor][:, channel].numpy()
            np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)


def test_native_grid_is_normalised_without_resampling(manifest, arrays):
    image = Preprocess(manifest, {"s1": ("VV", "VH")}, 12)(arrays)["s1"].numpy()
    statistics = manifest.statistics["s1"]
    pixels = arrays["s1"].numpy().astype(np.float64).transpose(0, 2, 3, 1)
    expected = (pixels - statistics.mean) / statistics.std
    np.testing.assert_allclose(image.transpose(0, 2, 3, 1), expected, rtol=0, atol=TOLERANCE)


def test_statistics_split_has_mean_0_and_deviation_1(tiny_dataset, manifest):
    reader = SplitReader(tiny_dataset, "train", ["s2_10m"])
    rows = np.zeros((41, 4, 12, 12), np.uint16)
    reader.read_into(np.arange(41), {"s2_10m": rows})
    # The fixture's statistics are over all 60 samples, of one uniform distribution: the mean
    # of 41 * 144 pixels has a deviation of 0.013, their standard deviation less.
    image = Preprocess(manifest, {"s2": ("B02", "B08")}, 12)({"s2_10m": torch.from_numpy(rows)})
    assert image["s2"].mean(dim=(0, 2, 3)).abs().max() < 0.08
    assert (image["s2"].std(dim=(0, 2, 3)) - 1).abs().max() < 0.08


def test_what_preprocess_cannot_take_is_refused_by_kind(manifest, arrays):
    preprocess = Preprocess(manifest, {"s1": ("VV",)}, 12)
    with pytest.raises(ValueError, match=r"got Tensor: give batch\.arrays of a loader"):
        preprocess(arrays["s1"])
    with pytest.raises(ValueError, match="array 's1' must be a tensor, got ndarray"):
        preprocess({"s1": arrays["s1"].numpy()})
    for images, found in ((arrays["s1"], "Tensor"), ({"s2": arrays["s1"]}, r"\['s2'\]")):
        with pytest.raises(ValueError, match=rf"sensors of \['s1'\] to theirs, got {found}"):
            preprocess.denormalise(images)
    with pytest.raises(ValueError, match=r"bands\['s2'\] names no band: leave 's2' out"):
        Preprocess(manifest, {"s1": ("VV",), "s2": ()}, 12)


def test_denormalise_gives_the_stored_units_back(manifest, arrays):
    preprocess = Preprocess(manifest, {"s2": ("B08", "B02"), "s1": ("VH",)}, 12)
    stored = preprocess.denormalise(preprocess(arrays))
    expected = arrays["s2_10m"].to(torch.float32)[:, [3, 0]]
    # One rounding of a number below 2**16 at 24 bits is 2**-9; three of them meet here.
    torch.testing.assert_close(stored["s2"], expected, rtol=0, atol=2**-7)
    torch.testing.assert_close(stored["s1"], arrays["s1"][:, [1]], rtol=0, atol=1e-4)
    assert list(preprocess.denormalise({"s1": torch.zeros(1, 1, 2, 2)})) == ["s1"]


def test_mean_and_std_follow_the_order_of_the_bands(manifest):
    preprocess = Preprocess(manifest, BANDS, 12)
    for sensor, names in BANDS.items():
        statistics = [
            manifest.band_statistics(manifest.find_band(sensor, name)[0].name, name)
            for name in names
        ]
        assert preprocess.mean[sensor] == tuple(mean for mean, _ in statistics)
        assert preprocess.std[sensor] == tuple(std for _, std in statistics)


def test_statistics_do_not_enter_a_state_dict_and_move_with_the_module(manifest):
    preprocess = Preprocess(manifest, BANDS, 12)
    assert preprocess.state_dict() == {}
    assert {buffer.device.type for buffer in preprocess.to("meta").buffers()} == {"meta"}


def test_only_arrays_with_wanted_bands_are_looked_at(manifest, arrays):
    only = {"s2_20m": arrays["s2_20m"]}
    assert Preprocess(manifest, {"s2": ("B05",)}, 12)(only)["s2"].shape == (5, 1, 12, 12)


def test_an_array_that_is_missing_or_no_batch_is_refused_by_name(manifest, arrays):
    preprocess = Preprocess(manifest, {"s1": ("VV",), "s2": ("B05",)}, 12)
    with pytest.raises(
        ValueError, match=r"image of 's2' wants array 's2_20m', and there are \['s1'\]: read"
    ):
        preprocess({"s1": arrays["s1"]})
    with pytest.raises(
        ValueError, match=r"'s1' must be \(B, C, H, W\), got \(2, 12, 12\); .*\[None"
    ):
        preprocess({"s1": arrays["s1"][0], "s2_20m": arrays["s2_20m"][0]})
    with pytest.raises(ValueError, match=r"bands\['s2'\] = 'B05' must be a list of names"):
        Preprocess(manifest, {"s2": "B05"}, 12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size_px": 0}, "size_px = 0 must be a whole number, 1 or more"),
        ({"size_px": 12.5}, r"size_px = 12\.5 must be a whole number"),
        ({"size_px": {"s2": 12}}, "size_px = {'s2': 12} has no size for s1"),
        (
            {"size_px": 12, "resample": "lanczos"},
            "resample = 'lanczos' must be one of bilinear, bicubic, nearest",
        ),
    ],
)
def test_impossible_grids_are_refused_when_they_are_asked_for(manifest, options, message):
    with pytest.raises(ValueError, match=message):
        Preprocess(manifest, {"s1": ("VV",)}, **options)


def test_constant_band_is_refused_by_name(manifest):
    table = json.loads(to_json(manifest))
    table["statistics"]["s2_60m"]["std"][1] = 0.0
    with pytest.raises(ValueError, match=r"band 'B09' of sensor 's2' .* deviation 0"):
        Preprocess(from_json(sealed(table)), BANDS, 12)


def test_array_without_statistics_is_refused_by_name(manifest):
    table = json.loads(to_json(manifest))
    del table["statistics"]["s1"]
    with pytest.raises(ValueError, match="no statistics of array 's1'"):
        Preprocess(from_json(sealed(table)), BANDS, 12)


def test_unknown_band_is_refused(manifest):
    with pytest.raises(ValueError, match="no band 'B10'"):
        Preprocess(manifest, {"s2": ("B10",)}, 12)


def test_a_group_of_bands_is_its_sensors_bands_on_a_grid_of_its_own(manifest, arrays):
    groups = {"s2_10m": ("B08", "B02"), "s2_20m": ("B11",), "s2_mixed": ("B01", "B05")}
    sizes = {"s2_10m": 12, "s2_20m": 6, "s2_mixed": 4}
    images = Preprocess(manifest, groups, sizes)(arrays)
    for group, names in groups.items():
        expected = Preprocess(manifest, {"s2": names}, sizes[group])(arrays)["s2"]
        assert images[group].equal(expected)
    # 20 m bands at 60 px for 120 at 10 m are the stored pixels.
    stored = arrays["s2_20m"].to(torch.float64)[:, 4]
    mean, std = manifest.band_statistics("s2_20m", "B11")
    np.testing.assert_allclose(images["s2_20m"][:, 0], (stored - mean) / std, atol=TOLERANCE)


@pytest.mark.parametrize("size_px", [12, 6, 24])
def test_class_codes_become_the_places_of_their_codes_by_the_nearest_pixel(manifest, size_px):
    codes = CLASS_CODES["CLC"]
    stored = np.array([*codes, 0, 110, 524, 999, 65535], np.uint16)
    stored = np.resize(np.random.default_rng(0).permutation(stored), (3, 1, 12, 12))
    preprocess = Preprocess(manifest, {"map": ("CLC",)}, size_px, "bicubic")
    image = preprocess({"map": torch.from_numpy(stored)})["map"]
    assert image.dtype == torch.float32
    rows = np.arange(size_px) * 12 // size_px
    nearest = stored[:, :, rows][..., rows]
    place = {code: number for number, code in enumerate(codes)}
    expected = np.vectorize(lambda code: place.get(code, -1))(nearest)
    np.testing.assert_array_equal(image.numpy(), expected)
    # Class numbers are not measurements: they come back as they are.
    assert (preprocess.mean["map"], preprocess.std["map"]) == ((0.0,), (1.0,))
    assert preprocess.denormalise({"map": image})["map"].equal(image)


def test_igbp_is_picked_from_among_the_bands_of_land_cover(manifest):
    spec = dataclasses.replace(SEN12MS_LC, size_px=4)
    lc = torch.randint(0, 256, (2, 4, 4, 4), dtype=torch.uint8)
    lc[:, 0] = torch.tensor([1, 17, 18, 255], dtype=torch.uint8)
    with_lc = dataclasses.replace(manifest, arrays=(*manifest.arrays, spec))
    image = Preprocess(with_lc, {"lc": ("IGBP",)}, 4)({"lc": lc})["lc"]
    assert image[0, 0, 0].tolist() == [0.0, 16.0, -1.0, -1.0]
