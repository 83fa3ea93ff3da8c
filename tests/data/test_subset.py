import json
import os
import pickle
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusmae.config import DataConfig, SubsetConfig
from fusmae.data import SplitReader, TrainLoader, open_dataset
from fusmae.data.subset import draw_fraction, list_keys, subset_ids

from .tiny_dataset import write_tiny_dataset

SEED = 5
pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def reader(tiny_dataset):
    return SplitReader(tiny_dataset, "train")


def rows_of(dataset, split):
    """The plain rows of samples.parquet."""
    rows = pq.read_table(dataset / "samples.parquet").to_pylist()
    return [row for row in rows if row["split"] == split]


def loader(dataset, subset, split="train", **options):
    data = DataConfig(split=split, subset=subset)
    cut = {"global_batch": 8, "rank": 0, "world_size": 1, "micro_batch": 8} | options
    return TrainLoader(dataset, data, SEED, **cut)


@given(
    st.integers(0, 2**64 - 1),
    st.sets(st.integers(0, 10**6), min_size=1, max_size=300),
    st.floats(0.001, 1),
    st.floats(0.001, 1),
)
def test_a_fraction_has_its_size_no_repeats_and_lies_inside_a_larger_one(seed, ids, one, other):
    pool = np.array(sorted(ids))
    small, large = sorted((one, other))
    few, many = draw_fraction(pool, small, seed), draw_fraction(pool, large, seed)
    assert set(few) <= set(many) <= ids
    assert len(few) == max(1, round(small * len(pool)))
    assert (np.diff(many) > 0).all()


def test_a_fraction_depends_on_its_seed_and_is_the_same_on_every_machine():
    # Golden, from these lines: a fraction stays the same between releases.
    assert draw_fraction(np.arange(100), 0.05, 0).tolist() == [25, 38, 45, 61, 81]
    assert draw_fraction(np.arange(100), 0.05, 1).tolist() == [17, 33, 38, 78, 95]


def test_every_sample_is_equally_likely_to_be_drawn():
    seeds = 400
    drawn = [draw_fraction(np.arange(200), 0.25, seed) for seed in range(seeds)]
    counts = np.bincount(np.concatenate(drawn), minlength=200)
    # Binomial(400, 1/4): mean 100, deviation 8.7; 5 deviations are passed by one of 200 samples
    # once in 10,000 tries.
    assert np.abs(counts - 100).max() < 5 * 8.7


def test_whole_split_is_the_default_and_changes_no_order(reader, tiny_dataset):
    assert subset_ids(reader, SubsetConfig()) is None
    with loader(tiny_dataset, SubsetConfig()) as whole:
        assert whole.num_samples == 41


def test_excluded_flags_leave_the_samples_without_any_of_them(reader, tiny_dataset):
    rows = rows_of(tiny_dataset, "train")
    both = subset_ids(reader, SubsetConfig(exclude=("seasonal_snow", "cloud_or_shadow")))
    clear = [i for i, r in enumerate(rows) if not r["seasonal_snow"] and not r["cloud_or_shadow"]]
    assert both.tolist() == clear
    snowless = subset_ids(reader, SubsetConfig(exclude=("seasonal_snow",)))
    assert snowless.tolist() == [i for i, row in enumerate(rows) if not row["seasonal_snow"]]
    assert 0 < len(both) < len(snowless) < len(rows)


def test_listed_keys_are_the_subset_in_whatever_order_they_stand(reader, tiny_dataset, tmp_path):
    path = tmp_path / "keys.txt"
    rows = rows_of(tiny_dataset, "train")
    path.write_text("\n".join(rows[i]["key"] for i in (30, 2, 17)) + "\n\n")
    assert subset_ids(reader, SubsetConfig(keys=str(path))).tolist() == [2, 17, 30]


def test_listed_keys_may_be_a_path_or_a_list_in_python(reader, tiny_dataset, tmp_path):
    keys = [rows_of(tiny_dataset, "train")[i]["key"] for i in (30, 2, 17)]
    (tmp_path / "keys.txt").write_text("\n".join(keys))
    for listed in (tmp_path / "keys.txt", keys, tuple(keys)):
        subset = SubsetConfig(keys=listed)
        assert subset_ids(reader, subset).tolist() == [2, 17, 30] and hash(subset)
        view = open_dataset(tiny_dataset, subset={"keys": listed})
        assert [sample["key"] for sample in view] == [keys[1], keys[2], keys[0]]
        again = SubsetConfig(**json.loads(json.dumps(asdict(subset))))
        assert subset_ids(reader, again).tolist() == [2, 17, 30]
    with loader(tiny_dataset, SubsetConfig(keys=keys)) as one:
        assert one.state_dict()["subset"] == (
            "SubsetConfig(fraction=1.0, seed=0, keys='3 keys', exclude=())"
        )


def test_a_relative_file_of_keys_is_found_from_another_folder(tiny_dataset, tmp_path, monkeypatch):
    (tmp_path / "keys.txt").write_text("train-0-2\ntrain-0-1\n")
    monkeypatch.chdir(tmp_path)
    for subset in ({"keys": "keys.txt"}, SubsetConfig(keys=Path("keys.txt"))):
        view = pickle.dumps(open_dataset(tiny_dataset, subset=subset))
        with monkeypatch.context() as elsewhere:
            elsewhere.chdir("/")
            assert [sample["key"] for sample in pickle.loads(view)] == ["train-0-1", "train-0-2"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([], r"subset\.keys lists no key: leave it out"),
        ([1], r"subset\.keys = \[1\] must be a list of keys, or the path of a text file"),
        ({"train-0-1"}, r"subset\.keys = {'train-0-1'} must be a list of keys"),
        (["train-0-1", "train-0-1"], r"subset\.keys lists key 'train-0-1' more than once"),
        (["val-0-1"], r"subset\.keys must list keys of split 'train' of .*: 1 are not, such as"),
    ],
)
def test_what_is_no_list_of_keys_of_the_split_is_refused(reader, keys, message):
    with pytest.raises(ValueError, match=message):
        subset_ids(reader, SubsetConfig(keys=keys))


def test_a_fraction_is_one_of_what_keys_and_flags_leave(reader, tiny_dataset, tmp_path):
    path = tmp_path / "keys.txt"
    rows = rows_of(tiny_dataset, "train")
    path.write_text("\n".join(row["key"] for row in rows[:30]))
    config = SubsetConfig(keys=str(path), exclude=("seasonal_snow",))
    pool = subset_ids(reader, config)
    half = subset_ids(reader, replace(config, fraction=0.5))
    assert set(half) < set(pool)
    assert len(half) == round(0.5 * len(pool))


def test_a_saved_list_reads_back_as_the_same_subset_in_another_ingest(tmp_path):
    sizes = {"train": (12, 12, 12, 5)}
    first = SplitReader(write_tiny_dataset(tmp_path / "first", sizes), "train")
    ids = subset_ids(first, SubsetConfig(fraction=0.3))
    (tmp_path / "saved.txt").write_text(list_keys(first, ids))
    other = SplitReader(write_tiny_dataset(tmp_path / "other", sizes, seed=1), "train")
    again = subset_ids(other, SubsetConfig(keys=str(tmp_path / "saved.txt")))
    assert list_keys(other, again) == (tmp_path / "saved.txt").read_text()
    assert len(again) == round(0.3 * 41)


@given(
    st.sampled_from([1, 2, 4, 8]),
    st.integers(1, 4),
    st.integers(0, 5),
    st.floats(0.03, 1),
    st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_an_epoch_of_all_ranks_is_the_subset_once(
    tiny_dataset, world_size, num_threads, window, fraction, clear
):
    subset = SubsetConfig(fraction, 1, exclude=("seasonal_snow",) if clear else ())
    data = DataConfig(subset=subset, window=window)
    loaders = [
        TrainLoader(tiny_dataset, data, SEED, 8, rank, world_size, 8 // world_size, 0, num_threads)
        for rank in range(world_size)
    ]
    num_samples = loaders[0].num_samples
    steps = -(-2 * num_samples // 8)
    ids = []
    for _ in range(steps):  # the same number on every rank
        for one in loaders:
            ids += next(one).sample_ids.tolist()
    chosen = subset_ids(SplitReader(tiny_dataset, "train"), subset)
    expected = list(range(41)) if chosen is None else chosen.tolist()
    assert sorted(ids[:num_samples]) == sorted(ids[num_samples : 2 * num_samples]) == expected
    for one in loaders:
        one.close()


def test_resuming_with_another_subset_is_refused_by_name(tiny_dataset):
    with loader(tiny_dataset, SubsetConfig(fraction=0.5)) as half:
        next(half)
        state = json.loads(json.dumps(half.state_dict()))
    with loader(tiny_dataset, SubsetConfig(fraction=0.5)) as again:
        again.load_state_dict(state)
    for other in (SubsetConfig(), SubsetConfig(fraction=0.5, seed=1)):
        with (
            loader(tiny_dataset, other) as changed,
            pytest.raises(ValueError, match=r"subset was .SubsetConfig\(fraction=0\.5"),
        ):
            changed.load_state_dict(state)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read the list of keys"),
        ("", "one a line: it has none"),
        ("train-0-1\nval-0-1\n", "1 are not, such as 'val-0-1'"),
        ("train-0-1\ntrain-0-1\n", "'train-0-1' more than once"),
    ],
)
def test_a_broken_list_of_keys_is_named(reader, tmp_path, text, message):
    path = tmp_path / "keys.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        subset_ids(reader, SubsetConfig(keys=str(path)))
    assert str(path) in str(error.value)


@pytest.mark.parametrize("exclude", ["seasonal_snow", ("snow",), (1,)])
def test_what_is_no_list_of_flags_is_refused_with_those_that_are(exclude):
    with pytest.raises(ValueError, match=r"list of flags, which are seasonal_snow, cloud_or_sha"):
        SubsetConfig(exclude=exclude)


def test_a_flag_that_is_not_known_of_every_sample_excludes_nothing_silently(tiny_dataset):
    test = SplitReader(tiny_dataset, "test")
    with pytest.raises(ValueError, match="cloud_or_shadow is unknown for 12 of 12 samples"):
        subset_ids(test, SubsetConfig(exclude=("cloud_or_shadow",)))


def test_a_flag_that_the_dataset_does_not_have_is_one_line(tmp_path):
    dataset = write_tiny_dataset(tmp_path, {"train": (3,)})
    table = pq.read_table(dataset / "samples.parquet").drop_columns(["seasonal_snow"])
    pq.write_table(table, dataset / "samples.parquet")
    with pytest.raises(ValueError, match="does not tell seasonal_snow of its samples") as error:
        subset_ids(SplitReader(dataset, "train"), SubsetConfig(exclude=("seasonal_snow",)))
    assert "\n" not in str(error.value)


def test_a_subset_that_leaves_nothing_is_refused(reader, tiny_dataset, tmp_path):
    path = tmp_path / "keys.txt"
    snowy = [row["key"] for row in rows_of(tiny_dataset, "train") if row["seasonal_snow"]]
    path.write_text("\n".join(snowy))
    with pytest.raises(ValueError, match="no sample of split 'train'"):
        subset_ids(reader, SubsetConfig(keys=str(path), exclude=("seasonal_snow",)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 0.0}, "subset.fraction = 0.0"),
        ({"fraction": 10.0}, "1 % is 0.01"),
        ({"seed": -1}, "subset.seed = -1"),
    ],
)
def test_impossible_subsets_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SubsetConfig(**options)


def test_bytes_of_a_sensor_that_is_left_out_are_not_read(tiny_dataset, monkeypatch):
    read, preadv = [], os.preadv

    def counted(fd, buffers, offset):
        read.append(sum(len(memoryview(buffer).cast("B")) for buffer in buffers))
        return preadv(fd, buffers, offset)

    monkeypatch.setattr("fusmae.data.shard.os.preadv", counted)
    sizes = {}
    # S2's 10 m bands lie next to S1, nearer than the gap that is read along.
    for name, bands in {"both": {"s1": ("VV",), "s2": ("B02",)}, "s1": {"s1": ("VV",)}}.items():
        read.clear()
        with TrainLoader(tiny_dataset, DataConfig(bands=bands), SEED, 8, 0, 1, 8, ring=1) as one:
            next(one)
        sizes[name] = sum(read)
    pixels_s1 = 8 * 2 * 12 * 12 * 4
    assert pixels_s1 <= sizes["s1"] < pixels_s1 + 8 * 1200
    assert sizes["both"] >= sizes["s1"] + 8 * 4 * 12 * 12 * 2
