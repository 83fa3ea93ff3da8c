from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusmae.config import DataConfig, SubsetConfig
from fusmae.data import EvalLoader, open_dataset

DATA = DataConfig()
NUM_TRAIN = 41
pytestmark = pytest.mark.timeout(60)


@given(
    st.integers(1, 5),
    st.integers(1, 9),
    st.one_of(st.none(), st.lists(st.integers(0, 40), min_size=1, max_size=20, unique=True)),
)
@settings(max_examples=40, deadline=None)
def test_evaluation_visits_each_sample_once_and_pads_with_weight_0(
    tiny_dataset, world_size, batch, chosen
):
    sample_ids = None if chosen is None else np.array(chosen)
    visited, shapes = [], set()
    for rank in range(world_size):
        loader = EvalLoader(tiny_dataset, "train", DATA, batch, rank, world_size, sample_ids)
        sizes = []
        for part in loader:
            sizes.append(len(part))
            real = part.weights == 1
            assert (part.weights[~real] == 0).all()
            assert (part.positions[real] < loader.num_samples).all()
            assert (part.positions[~real] >= loader.num_samples).all()
            visited += part.sample_ids[real].tolist()
        assert len(sizes) == len(loader)
        assert set(sizes[:-1]) <= {batch}
        shapes.add(tuple(sizes))
    assert visited == (list(range(NUM_TRAIN)) if chosen is None else chosen)
    assert len(shapes) == 1


def test_evaluation_on_one_rank_keeps_the_smaller_last_batch_and_pads_nothing(tiny_dataset):
    loader = EvalLoader(tiny_dataset, "train", DATA, batch=16)
    assert [len(batch) for batch in loader] == [16, 16, 9]
    assert all((batch.weights == 1).all() for batch in loader)


def test_evaluation_can_be_repeated(tiny_dataset):
    loader = EvalLoader(tiny_dataset, "val", DATA, batch=4)
    assert [batch.sample_ids.tolist() for batch in loader] == [[0, 1, 2, 3], [4, 5, 6]]
    assert [batch.sample_ids.tolist() for batch in loader] == [[0, 1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize("sample_ids", [[], [-1], [41]])
def test_evaluation_of_unknown_samples_is_refused(tiny_dataset, sample_ids):
    with pytest.raises(ValueError, match="from 0 to 40"):
        EvalLoader(tiny_dataset, "train", DATA, 4, sample_ids=np.array(sample_ids, int))


@pytest.mark.parametrize("sample_ids", [[0.5], [True, False], [[0, 1]], "ab"])
def test_what_are_no_sample_ids_is_not_taken_for_some(tiny_dataset, sample_ids):
    with pytest.raises(ValueError, match="needs sample ids from 0 to 40, got"):
        EvalLoader(tiny_dataset, "train", DATA, 4, sample_ids=sample_ids)


def ids_of(dataset, split, subset, **options):
    loader = EvalLoader(dataset, split, replace(DATA, subset=subset), 4, **options)
    ids = [i for batch in loader for i in batch.sample_ids.tolist()]
    assert len(ids) == loader.num_samples
    return ids


def test_what_is_excluded_is_left_out_of_an_evaluation_and_nothing_else_is(tiny_dataset):
    rows = pq.read_table(tiny_dataset / "samples.parquet").to_pylist()
    rows = [row for row in rows if row["split"] == "val"]
    clear = [i for i, row in enumerate(rows) if not row["seasonal_snow"]]
    assert 0 < len(clear) < len(rows)
    # Fraction and keys are of training's samples: the keys are not even of this split.
    subset = SubsetConfig(0.1, keys=("train-0-1",), exclude=("seasonal_snow",))
    assert ids_of(tiny_dataset, "val", subset) == clear
    assert ids_of(tiny_dataset, "val", replace(subset, exclude=())) == list(range(len(rows)))


def test_samples_that_are_named_are_evaluated_excluded_or_not(tiny_dataset):
    subset = SubsetConfig(exclude=("seasonal_snow",))
    snowy = np.setdiff1d(np.arange(41), open_dataset(tiny_dataset, subset=subset).subset_ids)
    assert ids_of(tiny_dataset, "train", subset, sample_ids=snowy) == snowy.tolist() != []


def test_an_evaluation_that_cannot_tell_what_is_excluded_is_refused(tiny_dataset):
    with pytest.raises(ValueError, match="cloud_or_shadow is unknown for 12 of 12 samples"):
        ids_of(tiny_dataset, "test", SubsetConfig(exclude=("cloud_or_shadow",)))
