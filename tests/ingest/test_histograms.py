"""histograms.parquet read with plain pandas, against numpy's own counts of the pixels."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusmae.sensors import ArraySpec, Band
from fusmae_ingest.histograms import encode_histograms
from fusmae_ingest.statistics import measure

pd = pytest.importorskip("pandas")

S2 = ArraySpec("s2", "s2", (Band("B02", 10), Band("B03", 10)), 8, "<u2", "reflectance", "")
S1 = ArraySpec("s1", "s1", (Band("VV", 10), Band("VH", 10)), 8, "<f4", "dB", "")


def read(partials, arrays) -> "pd.DataFrame":
    return pd.read_parquet(io.BytesIO(encode_histograms(partials, arrays)))


def rows(table, *where):
    return table[(table["split"] == where[0]) & (table["band"] == where[1])]


@given(st.integers(0, 2**32 - 1), st.integers(0, 65535))
@settings(max_examples=15, deadline=None)
def test_integers_and_their_counts_are_those_of_numpy_unique(seed, top):
    rng = np.random.default_rng(seed)
    stacks = {s: rng.integers(0, top + 1, (3, 2, 8, 8)).astype("<u2") for s in ("train", "val")}
    table = read({s: {"s2": measure(stack)} for s, stack in stacks.items()}, [S2])
    assert list(table) == ["split", "array", "band", "left", "width", "count"]
    assert table["count"].dtype == np.int64 and set(table["array"]) == {"s2"}
    assert set(table["width"]) == {1.0}
    for split, stack in stacks.items():
        for band, name in enumerate(S2.band_names):
            found, values = rows(table, split, name), np.unique(stack[:, band], return_counts=True)
            np.testing.assert_array_equal(found["left"], values[0])
            np.testing.assert_array_equal(found["count"], values[1])


def test_backscatter_lies_in_its_bin_and_beyond_the_range_in_the_outer_bins():
    # Middles of bins, where float32 cannot cross an edge.
    db = np.array([-300.0, -12.345, -12.345, -0.005, 0.005, 300.0], "<f4")
    pixels = np.stack([np.stack([db.reshape(2, 3), np.zeros((2, 3), "<f4")])])
    table = rows(read({"train": {"s1": measure(pixels)}}, [S1]), "train", "VV")
    assert list(table["left"]) == [-100.0, -12.35, -0.01, 0.0, 49.99]
    assert list(table["count"]) == [1, 2, 1, 1, 1]
    assert set(table["width"]) == {0.01}


def test_equal_partials_give_equal_bytes_and_no_empty_bin():
    pixels = np.random.default_rng(0).integers(0, 9000, (4, 2, 8, 8)).astype("<u2")
    first, second = (encode_histograms({"val": {"s2": measure(pixels)}}, [S2]) for _ in range(2))
    assert first == second
    assert (pd.read_parquet(io.BytesIO(first))["count"] > 0).all()
