"""`open_dataset`: single samples of a split, by number and by key."""

import pickle
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

from fusmae import data
from fusmae.config import DataConfig, SubsetConfig
from fusmae.data import TrainLoader, open_dataset
from fusmae.evaluation.labelled import LabelChoice, read_splits
from fusmae.evaluation.tasks import MultiLabel
from fusmae.labels import BIGEARTHNET_19
from fusmae.manifest import read_manifest
from fusmae.sample import decode

from .tiny_dataset import write_tiny_dataset

SEED = 5
NUM_TRAIN = 41
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def samples(tiny_dataset):
    """Every train sample as tarfile and numpy read it."""
    shards = read_manifest(tiny_dataset).split("train").shards
    return [s for shard in shards for s in decode((tiny_dataset / shard.path).read_bytes())]


def multi_hot(names):
    return [float(name in names) for name in BIGEARTHNET_19]


def test_every_sample_is_what_tarfile_and_numpy_read(view, samples):
    assert len(view) == NUM_TRAIN
    for sample, expected in zip(view, samples, strict=True):  # ends by IndexError
        assert sample["key"] == expected["__key__"]
        assert sample["labels"].tolist() == multi_hot(expected["json"]["labels"]["bigearthnet-19"])
        for name in view.bands:
            np.testing.assert_array_equal(sample[name].numpy(), expected[name])
            assert sample[name].numpy().dtype == expected[name].dtype


def test_a_sample_is_found_by_its_key_and_by_a_number_from_the_end(view, samples):
    assert torch.equal(view.sample("train-1-3")["s1"], view[15]["s1"])
    assert view[-1]["key"] == samples[-1]["__key__"] == "train-3-4"
    with pytest.raises(IndexError):
        view[NUM_TRAIN]
    with pytest.raises(ValueError, match=r"split 'train' of .* has no sample 'val-0-1'"):
        view.sample("val-0-1")


def test_a_relative_path_means_what_it_meant_when_it_was_opened(
    tiny_dataset, samples, tmp_path, monkeypatch
):
    monkeypatch.chdir(tiny_dataset.parent)
    opened = [open_dataset(tiny_dataset.name), open_dataset(tiny_dataset.name, cache=tmp_path)]
    bands = DataConfig(bands={"s1": ("VV", "VH")})
    with TrainLoader(tiny_dataset.name, bands, SEED, 8, 0, 1, 8) as loader:
        monkeypatch.chdir("/")
        for view in [*opened, pickle.loads(pickle.dumps(opened[0]))]:
            assert view[20]["key"] == samples[20]["__key__"]
            assert view.sample(samples[40]["__key__"])["key"] == samples[40]["__key__"]
        assert len(next(loader)) == 8


@pytest.fixture
def exchanged(tmp_path):
    """A dataset of which somebody exchanged two shards of one size."""
    dataset = write_tiny_dataset(tmp_path, {"train": (6, 6), "val": (6,), "test": (6,)})
    first, second = (dataset / shard.path for shard in read_manifest(dataset).split("train").shards)
    data = first.read_bytes(), second.read_bytes()
    second.write_bytes(data[0]), first.write_bytes(data[1])
    return dataset


def test_a_sample_by_key_is_refused_where_shards_of_one_size_were_exchanged(exchanged):
    view = open_dataset(exchanged)
    with pytest.raises(
        ValueError, match=r"hold 'train-1-2' where samples\.parquet has 'train-0-2'"
    ):
        view.sample("train-0-2")


def test_labels_and_flags_by_row_are_refused_where_shards_of_one_size_were_exchanged(exchanged):
    told = r"hold 'train-1-0' where samples\.parquet has 'train-0-0': .* verify"
    splits, choice = ("train", "val", "test"), LabelChoice(1.0, 0)
    task = MultiLabel(tuple(BIGEARTHNET_19))
    with pytest.raises(ValueError, match=told):
        read_splits(exchanged, splits, task, "bigearthnet-19", choice)
    with pytest.raises(ValueError, match=told):
        open_dataset(exchanged, subset=SubsetConfig(exclude=("seasonal_snow",)))


def test_only_what_was_asked_for_is_in_a_sample(tiny_dataset):
    view = open_dataset(str(tiny_dataset), "val", bands={"s2": ("B05",)})
    assert len(view) == 7
    assert list(view[0]) == ["key", "s2_20m"]
    assert view.bands == {"s2_20m": ("B05", "B06", "B07", "B8A", "B11", "B12")}
    assert view.classes == ()


def test_a_subset_is_numbered_without_gaps(tiny_dataset, samples):
    view = open_dataset(tiny_dataset, subset=SubsetConfig(exclude=("seasonal_snow",)))
    keys = [s["__key__"] for i, s in enumerate(samples) if i % 5]  # as tiny_dataset flags them
    assert [sample["key"] for sample in view] == keys
    ids = [i for batch in view.stream(8, SEED, epochs=1) for i in batch["sample_ids"].tolist()]
    assert sorted(ids) == [i for i in range(NUM_TRAIN) if i % 5]


def test_a_subset_may_be_a_dict_of_its_fields(tiny_dataset):
    subset = {"fraction": 0.5, "seed": 3, "exclude": ["seasonal_snow"]}
    config = data.SubsetConfig(0.5, 3, exclude=("seasonal_snow",))
    view = open_dataset(tiny_dataset, subset=subset)
    assert [s["key"] for s in view] == [s["key"] for s in open_dataset(tiny_dataset, subset=config)]


def test_keys_of_a_batch_are_those_of_its_samples(view):
    batch = next(iter(view.stream(4, SEED)))
    keys = view.keys_of(batch["sample_ids"])
    for row, key in enumerate(keys):
        assert torch.equal(view.sample(key)["s1"], batch["s1"][row])


@pytest.mark.parametrize("rows", [3, [1.5], "ab", torch.zeros(2, 2, dtype=torch.int64)])
def test_what_are_no_rows_of_the_split_have_neither_keys_nor_labels(view, rows):
    for look_up in (view.keys_of, view.labels_of):
        with pytest.raises(
            ValueError, match=r"sample_ids = 3 must be a list|sample id = .* must be"
        ):
            look_up(rows)


def test_a_key_of_no_sample_is_told_what_keys_look_like(view):
    for key in ("val-0-0", 3, ["train-0-0"]):
        with pytest.raises(ValueError, match=r"has no sample .*; its keys are such as 'train-0-0'"):
            view.sample(key)


def test_what_is_no_number_of_a_sample_is_told_what_to_write(view):
    for number in ("train-0-0", slice(2), 1.0, True, np.True_):
        with pytest.raises(TypeError, match=r"must be ds\[NUMBER\]; by a key it is ds\.sample"):
            view[number]
    with pytest.raises(IndexError, match=r"ds\[41\]: it has 41 samples, from 0 on"):
        view[41]
    assert view[np.int64(3)]["key"] == view[torch.tensor(3)]["key"] == "train-0-3"


def test_a_view_and_a_stream_say_what_they_are(tiny_dataset):
    view = open_dataset(tiny_dataset, bands={"s1": ["VV"]}, subset={"fraction": 0.5})
    told = f"DatasetView({str(tiny_dataset)!r}, 'train', 20 of 41 samples of s1)"
    assert repr(view) == told
    assert repr(view.stream(4)) == f"SampleStream(endless, batch=4, seed=0, window=0 of {told})"


def test_the_names_of_the_package_are_the_public_ones():
    assert set(dir(data)) == set(data.__all__)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_dataloader_batches_the_map_style_view(view, num_workers):
    loader = DataLoader(view, batch_size=16, shuffle=True, num_workers=num_workers)
    batches = list(loader)
    assert [batch["s1"].shape for batch in batches] == [
        (n, 2, 12, 12) for n in (16, 16, NUM_TRAIN - 32)
    ]
    assert sorted(key for batch in batches for key in batch["key"]) == sorted(
        sample["key"] for sample in view
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "nowhere"}, "no split 'nowhere'"),
        ({"bands": {"s2": ("B10",)}}, "no band 'B10'"),
        ({"labels": "bigearthnet-43"}, "no label set 'bigearthnet-43'; it has"),
        ({"bands": ["s1"]}, r"bands = \['s1'\] must map a sensor to its band names, such as"),
        ({"bands": {"s2": "B05"}}, r"bands\['s2'\] = 'B05' must be a list of names"),
        ({"split": ["train"]}, r"no split \['train'\]"),
        ({"labels": ["bigearthnet-19"]}, r"no label set \['bigearthnet-19'\]"),
        ({"cache": 4, "path": "file:///x"}, "cache = 4 must be a path, a str or"),
        ({"path": None}, "dataset = None must be a path, a str or a pathlib.Path"),
        ({"bands": {}}, r"bands = {} names no band"),
        ({"cache_gb": 0}, r"cache_gb = 0 must be a number above 0, in 10\^9 bytes"),
        ({"cache_gb": "1"}, "cache_gb = '1' must be a number above 0"),
        ({"subset": 0.1}, r"subset = 0\.1 must be a dict, such as {'fraction': 0\.1}"),
        ({"subset": {"fracton": 0.1}}, r"subset\.fracton; did you mean subset\.fraction\?"),
        (
            {"subset": {"exclude": "seasonal_snow"}},
            r"subset\.exclude = 'seasonal_snow' is not of type list of 'seasonal_snow', "
            r"'cloud_or_shadow': expected such as \"subset\.exclude=\['seasonal_snow'\]\"$",
        ),
        (
            {"subset": {"keys": 3}},
            r"subset\.keys = 3 is not of type str: expected such as subset\.keys='text', "
            r"or list of str: expected such as \"subset\.keys=\['text'\]\"$",
        ),
    ],
)
def test_what_the_dataset_does_not_have_is_refused(tiny_dataset, options, message):
    with pytest.raises(ValueError, match=message):
        open_dataset(**{"path": tiny_dataset, **options})


def test_what_is_a_column_and_no_label_set_is_told_where_it_is_and_only_there(tmp_path):
    dataset = write_tiny_dataset(tmp_path, {"train": (2,)})
    table = tmp_path / "samples.parquet"
    for name, column in (("sen12ms-igbp10/label_single", "label_single"), ("fractions",) * 2):
        nothing = rf"no label set '{name}'; it has \['bigearthnet-19'\]$"
        with pytest.raises(ValueError, match=nothing):
            open_dataset(dataset, labels=name)
        pq.write_table(pq.read_table(table).append_column(column, pa.array([3, 4])), table)
        told = (
            rf"it has \['bigearthnet-19'\]. {column} is a column of samples\.parquet: open the "
            rf"dataset without it, ds\.reader\.column\('{column}'\) has a value for each row"
        )
        with pytest.raises(ValueError, match=told):
            open_dataset(dataset, labels=name)
        assert open_dataset(dataset).reader.column(column) == [3, 4]
    table.unlink()
    with pytest.raises(ValueError, match=nothing):
        open_dataset(dataset, labels=name)


PROGRAM = """
import sys

import torch

BLOCKED = {"pyarrow", "rasterio", "zarr", "click", "rich", "fsspec", "timm", "safetensors",
           "deepspeed", "xarray", "pandas", "webdataset", "torchmetrics"}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
from fusmae.config import SubsetConfig
from fusmae.data import open_dataset, random_flips, resample
ds = open_dataset(sys.argv[1], labels="bigearthnet-19", subset=SubsetConfig(fraction=0.5))
sample = ds[3]
batches = list(ds.stream(8, epochs=1))
flipped = random_flips({"s1": batches[0]["s1"]}, 0, batches[0]["positions"])
coarse = resample(batches[0]["s2_20m"].float(), 12, "bilinear")
print(sample["key"], len(ds), sum(len(b["labels"]) for b in batches), tuple(coarse.shape))
again = ds.sample(sample["key"])
print(torch.equal(again["s1"], sample["s1"]), ds.reader.labels("bigearthnet-19")[0])
listed = {"keys": (sample["key"],), "exclude": ("cloud_or_shadow",)}
print(len(open_dataset(sys.argv[1], subset=listed)))
"""


def test_numpy_and_torch_are_all_it_needs(tiny_dataset):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tiny_dataset], capture_output=True, text=True, timeout=100
    )
    half = open_dataset(tiny_dataset, subset=SubsetConfig(fraction=0.5))
    assert done.stdout.splitlines() == [
        f"{half[3]['key']} 20 20 (8, 6, 12, 12)",
        f"True {half.reader.labels('bigearthnet-19')[0]}",
        "1",
    ], done.stderr
    assert "pyarrow is not installed, so key is gathered from the 41 samples" in done.stderr
