"""Label maps against the published ones, by name."""

import json

import numpy as np
import pytest

from fusmae.labels import (
    BIGEARTHNET_19,
    BIGEARTHNET_43,
    IGBP_10,
    igbp_fractions,
    igbp_single_label,
    labels_43_to_19,
    multi_hot,
)


def test_the_43_to_19_map_is_the_published_one(name_lists):
    published = json.loads((name_lists / "ben_43_to_19.json").read_text())
    assert list(BIGEARTHNET_43) == published["old_order"]
    assert list(BIGEARTHNET_19) == published["new_order"]
    for old, new in published["old2new"].items():
        assert labels_43_to_19([old]) == ([new] if new else [])


def test_v2s_table_uses_exactly_our_19_names(name_lists):
    import pyarrow.parquet as pq

    table = pq.read_table(name_lists / "bigearthnet-v2" / "metadata.parquet", columns=["labels"])
    used = set(table["labels"].combine_chunks().flatten().unique().to_pylist())
    assert used == set(BIGEARTHNET_19)


def test_multi_hot_columns_follow_the_given_order():
    hot = multi_hot([["b"], [], ["c", "a"]], ["a", "b", "c"])
    np.testing.assert_array_equal(hot, [[0, 1, 0], [0, 0, 0], [1, 0, 1]])


def test_an_unknown_label_is_an_error_that_names_it():
    with pytest.raises(ValueError, match="'Lava'"):
        labels_43_to_19(["Lava"])
    with pytest.raises(ValueError, match="'Lava'"):
        multi_hot([["Lava"]], BIGEARTHNET_19)


def test_of_classes_that_cover_as_much_the_first_is_the_single_label():
    # Forest (1) and urban (13) in equal parts, some grassland (10), and codes of no class.
    fractions = igbp_fractions(np.array([[10, 1, 13], [13, 1, 255]], np.uint8))
    assert fractions.tolist() == [2 / 6, 0, 0, 1 / 6, 0, 0, 2 / 6, 0, 0, 0]
    assert igbp_single_label(fractions) == IGBP_10[0]
    assert igbp_single_label(igbp_fractions(np.array([255, 0], np.uint8))) is None
