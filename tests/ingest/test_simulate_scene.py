"""What a simulated scene promises: labels from the map, texture and not brightness."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.preprocessing import StandardScaler

from fusmae.labels import BIGEARTHNET_19
from fusmae.sensors import S2_10M, S2_20M, S2_60M
from fusmae_ingest.simulated_classes import APPEARANCES, TEXTURE_PX
from fusmae_ingest.simulated_scene import (
    MIN_COVER,
    draw_land_cover,
    render_optical,
    render_radar,
    simulate_scene,
)

NUM_CLASSES = len(BIGEARTHNET_19)


def test_every_class_of_a_map_covers_enough_and_no_class_is_rare():
    counts = np.array(
        [
            np.bincount(draw_land_cover(np.random.default_rng(i)).ravel(), minlength=NUM_CLASSES)
            for i in range(1500)
        ]
    )
    present = counts > 0
    assert counts[present].min() >= MIN_COVER * 120 * 120
    assert 2.5 < present.sum(1).mean() < 3.3  # BigEarthNet v2 has 2.95
    share = present.mean(0)
    assert share.min() > 0.03
    assert share.max() > 3 * share.min()  # uneven, as in nature


def test_a_scene_is_a_pure_function_of_the_generator():
    first, second = (simulate_scene(np.random.default_rng(5), 180, "clear") for _ in range(2))
    np.testing.assert_array_equal(first.cover, second.cover)
    np.testing.assert_array_equal(first.s1, second.s1)
    for spec in (S2_10M, S2_20M, S2_60M):
        assert first.arrays[spec.name].shape == spec.shape
        assert first.arrays[spec.name].dtype == np.uint16
        np.testing.assert_array_equal(first.arrays[spec.name], second.arrays[spec.name])
    assert first.s1.shape == (2, 120, 120) and first.s1.dtype == np.float32


def test_speckle_is_that_of_four_point_four_looks():
    # VV and VH share the texture; their difference holds the speckle of both. In dB the
    # variance of gamma speckle of L looks is (10 / ln 10)^2 trigamma(L); trigamma(4.4) = 0.2546.
    cover = np.full((120, 120), BIGEARTHNET_19.index("Marine waters"), np.uint8)
    vv, vh = render_radar(np.random.default_rng(0), cover).astype(float)
    expected = 2 * (10 / np.log(10)) ** 2 * 0.2546
    # 14,400 pixels: the estimate's standard error is about 1.3 %; four of them.
    assert abs((vv - vh).var() / expected - 1) < 0.05


def test_season_snow_and_clouds_show_in_the_bands_where_they_do_in_nature():
    forest = np.full((120, 120), BIGEARTHNET_19.index("Broad-leaved forest"), np.uint8)

    def means(day, condition="clear"):
        s2 = render_optical(np.random.default_rng(1), forest, day, condition)
        names = [*S2_10M.band_names, *S2_20M.band_names]
        values = [*s2["s2_10m"].mean((1, 2)), *s2["s2_20m"].mean((1, 2))]
        return dict(zip(names, values, strict=True))

    summer, winter = means(196), means(15)
    assert summer["B08"] > 1.2 * winter["B08"]
    snow, cloud = means(15, "snow"), means(15, "cloud")
    assert snow["B03"] > 2 * winter["B03"] and snow["B11"] < 1.2 * winter["B11"]
    assert cloud["B03"] > 2 * winter["B03"] and cloud["B11"] > 1.2 * winter["B11"]


def test_no_two_classes_look_alike_and_some_share_all_but_one_sensor():
    looks = [(look.family, look.optical, look.radar) for look in APPEARANCES]
    assert len(set(looks)) == NUM_CLASSES
    optics = [look[:2] for look in looks]
    radar = [(look[0], look[2]) for look in looks]
    assert len(set(optics)) < NUM_CLASSES  # some only radar tells apart
    assert len(set(radar)) < NUM_CLASSES  # some only optics


def band_statistics(bands):
    flat = bands.reshape(len(bands), -1)
    percentiles = np.percentile(flat, (5, 25, 50, 75, 95), axis=1).T
    return np.column_stack([flat.mean(1), flat.std(1), percentiles]).ravel()


def texture_energy(bands):
    """Energy of the six lowest spatial frequencies in each square of TEXTURE_PX, averaged."""
    size = TEXTURE_PX
    squares = bands.reshape(len(bands), 120 // size, size, 120 // size, size).swapaxes(2, 3)
    spectrum = np.abs(np.fft.fft2(squares))
    waves = [spectrum[..., v, u] for u, v in ((1, 0), (0, 1), (1, 1), (-1, 1), (2, 0), (0, 2))]
    return np.log(np.stack(waves, -1).mean((1, 2)) + 1).ravel()


def macro_map(features, labels, num_train):
    scaled = StandardScaler().fit(features[:num_train]).transform(features)
    scores = []
    for column in labels.T:
        probe = LogisticRegression(C=0.01, max_iter=100).fit(scaled[:num_train], column[:num_train])
        scores.append(
            average_precision_score(column[num_train:], probe.decision_function(scaled[num_train:]))
        )
    return 100 * float(np.mean(scores))


def test_labels_are_in_the_texture_and_not_in_the_bands_statistics():
    statistics, textures, labels = [], [], []
    for index in range(600):
        rng = np.random.default_rng([7, index])
        scene = simulate_scene(rng, int(rng.integers(1, 366)), "clear")
        ten = np.concatenate([scene.s1, scene.arrays["s2_10m"]]).astype(np.float32)
        coarse = scene.arrays["s2_20m"].astype(np.float32)
        statistics.append(np.concatenate([band_statistics(ten), band_statistics(coarse)]))
        textures.append(np.concatenate([statistics[-1], texture_energy(ten)]))
        labels.append(np.isin(np.arange(NUM_CLASSES), scene.cover))
    flat, spatial = (macro_map(np.array(f), np.array(labels), 400) for f in (statistics, textures))
    # Measured with 900 patches: 30 and 80; chance is 15, the mean share of a class.
    assert flat < 40
    assert spatial > flat + 10
