import itertools
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from fusmae import data
from fusmae.config import SubsetConfig
from fusmae.data import Order, Preprocess, open_dataset
from fusmae.evaluation.labelled import LabelChoice, read_splits
from fusmae.evaluation.tasks import MultiLabel
from fusmae.labels import BIGEARTHNET_19
from fusmae.manifest import read_manifest
from fusmae.sample import decode

from .tiny_dataset import write_tiny_dataset

SEED = 5
NUM_TRAIN = 41
ORDER = Order((12, 12, 12, 5), SEED)
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def samples(tiny_dataset):
    """Every train sample as tarfile and numpy read it."""
    shards = read_manifest(tiny_dataset).split("train").shards
    return [s for shard in shards for s in decode((tiny_dataset / shard.path).read_bytes())]


@pytest.fixture
def view(tiny_dataset):
    return open_dataset(tiny_dataset, labels="bigearthnet-19")


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
    with pytest.raises(ValueError, match=r"split 'train' of .* has no 'val-0-1'"):
        view.sample("val-0-1")


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


def test_what_is_no_number_of_a_sample_is_told_what_to_write(view):
    for number in ("train-0-0", slice(2), 1.0):
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


def ids_of(batches):
    return [i for batch in batches for i in batch["sample_ids"].tolist()]


@given(st.integers(1, 50), st.integers(1, 3), st.integers(0, 5), st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_a_stream_is_the_order_and_ends_after_its_epochs(
    tiny_dataset, batch, epochs, window, num_threads
):
    view = open_dataset(tiny_dataset, bands={"s1": ("VV",)})
    stream = view.stream(batch, SEED, epochs, window, num_threads)
    order = Order((12, 12, 12, 5), SEED, window).samples(0, epochs * NUM_TRAIN).tolist()
    batches = list(stream)
    assert ids_of(batches) == order
    positions = [p for b in batches for p in b["positions"].tolist()]
    assert positions == list(range(epochs * NUM_TRAIN))
    assert {len(b["positions"]) for b in batches[:-1]} <= {batch}
    assert ids_of(stream) == order  # over again


def test_batches_of_a_stream_are_the_samples_and_stay_the_callers(view):
    batches = list(view.stream(8, SEED, epochs=2))
    for batch in batches:
        for row, sample_id in enumerate(batch["sample_ids"].tolist()):
            sample = view[sample_id]
            for name in (*view.bands, "labels"):
                assert torch.equal(
                    batch[name][row].to(torch.float64), sample[name].to(torch.float64)
                )


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_make_the_same_sequence_each_sample_once(view, num_workers):
    stream = view.stream(4, SEED, epochs=1)
    loader = DataLoader(stream, batch_size=None, num_workers=num_workers)
    batches = list(loader)
    assert ids_of(batches) == ORDER.samples(0, NUM_TRAIN).tolist()
    assert torch.equal(batches[3]["s2_60m"][1], view[int(batches[3]["sample_ids"][1])]["s2_60m"])


@given(st.integers(0, 12), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=20, deadline=None)
def test_a_state_gives_the_tail_also_in_other_batches(tiny_dataset, taken, batch, other):
    view = open_dataset(tiny_dataset, bands={"s1": ("VV",)})
    stream = view.stream(batch, SEED)
    before = ids_of(itertools.islice(DataLoader(stream, batch_size=None), taken))
    state = json.loads(json.dumps(stream.state_dict()))
    resumed = view.stream(other, SEED)
    resumed.load_state_dict(state)
    after = ids_of(itertools.islice(resumed, 5))
    assert before + after == ORDER.samples(0, taken * batch + 5 * other).tolist()


@given(st.integers(0, 42), st.integers(1, 45), st.integers(1, 9), st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_state_from_anywhere_in_a_finite_stream_gives_its_tail(
    tiny_dataset, taken, batch, other, count_outside
):
    view = open_dataset(tiny_dataset, bands={"s1": ("VV",)})
    stream = view.stream(batch, SEED, epochs=1)
    taken = min(taken, -(-NUM_TRAIN // batch))  # up to the last one, which may be smaller
    before = ids_of(itertools.islice(stream, taken))
    state = stream.state_dict()
    if count_outside:
        assert view.stream(batch, SEED, epochs=1).state_dict(num_batches=taken) == state
    for epochs in (1, 2):
        resumed = view.stream(other, SEED, epochs)
        resumed.load_state_dict(state)
        assert before + ids_of(resumed) == ORDER.samples(0, epochs * NUM_TRAIN).tolist()


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("epochs", [None, 1])
def test_workers_start_each_for_where_the_stream_stood(view, num_workers, persistent, epochs):
    stream = view.stream(4, SEED, epochs)
    stream.load_state_dict(view.stream(4, SEED).state_dict(num_batches=2))
    loader = DataLoader(
        stream, batch_size=None, num_workers=num_workers, persistent_workers=persistent
    )
    expected = ORDER.samples(8, 36 if epochs is None else NUM_TRAIN - 8).tolist()
    for taken in (3, 1, 9):  # left early, while the workers read ahead, then to the end
        assert ids_of(itertools.islice(loader, taken)) == expected[: 4 * taken]


def test_batches_counted_outside_resume_a_dataloader_with_workers(view):
    stream = view.stream(4, SEED)
    loader = DataLoader(stream, batch_size=None, num_workers=2)
    before = ids_of(itertools.islice(loader, 3))
    resumed = view.stream(4, SEED)
    resumed.load_state_dict(stream.state_dict(num_batches=3))
    after = ids_of(itertools.islice(DataLoader(resumed, batch_size=None, num_workers=2), 4))
    assert before + after == ORDER.samples(0, 7 * 4).tolist()


@pytest.mark.parametrize("start", [True, False])
def test_persistent_workers_go_on_from_a_state_that_is_loaded_between_iterations(view, start):
    stream = view.stream(4, SEED)
    if start:
        stream.load_state_dict(view.stream(4, SEED).state_dict(num_batches=2))
    loader = DataLoader(stream, batch_size=None, num_workers=2, persistent_workers=True)
    for num_batches in (2 * start, 5, 1):
        if num_batches != 2 * start:
            stream.load_state_dict(view.stream(4, SEED).state_dict(num_batches))
        assert ids_of(itertools.islice(loader, 3)) == ORDER.samples(4 * num_batches, 12).tolist()


def test_a_stream_that_workers_read_says_no_place_until_the_batches_are_told(view):
    stream = view.stream(4, SEED)
    assert stream.state_dict()["consumed"] == 0
    list(itertools.islice(DataLoader(stream, batch_size=None, num_workers=2), 3))
    with pytest.raises(ValueError, match=r"state_dict\(num_batches=N\)"):
        stream.state_dict()
    state = stream.state_dict(num_batches=3)
    assert state["consumed"] == 12
    stream.load_state_dict(state)
    assert stream.state_dict() == state
    assert ids_of(itertools.islice(stream, 1)) == ORDER.samples(12, 4).tolist()
    assert stream.state_dict()["consumed"] == 16


def test_a_finite_stream_has_a_len_and_an_endless_one_says_why_it_has_none(view):
    stream = view.stream(8, SEED, epochs=2)
    assert len(stream) == len(DataLoader(stream, batch_size=None)) == len(list(stream)) == 11
    with pytest.raises(TypeError, match="endless stream has no len: give it epochs=n"):
        len(view.stream(8))


def test_a_worker_resumes_from_its_own_state_and_no_other(view, monkeypatch):
    """What torchdata's StatefulDataLoader does: each worker saves and loads its copy's state."""

    def as_worker(number, count):
        info = SimpleNamespace(id=number, num_workers=count)
        monkeypatch.setattr("fusmae.data.sample_stream.get_worker_info", lambda: info)

    stream = view.stream(4, SEED)
    as_worker(1, 2)
    before = ids_of(itertools.islice(stream, 3))
    state = json.loads(json.dumps(stream.state_dict()))
    resumed = view.stream(4, SEED)
    resumed.load_state_dict(state)
    after = ids_of(itertools.islice(resumed, 2))
    mine = [ORDER.samples(4 * batch, 4).tolist() for batch in range(1, 11, 2)]
    assert before + after == [i for batch in mine for i in batch]

    other = view.stream(4, SEED)
    other.load_state_dict(state)
    as_worker(0, 2)
    with pytest.raises(ValueError, match=r"worker \(1, 2\)'s, and this is worker \(0, 2\)"):
        next(iter(other))
    with pytest.raises(ValueError, match="a worker's with batches of 4, these are of 5"):
        view.stream(5, SEED).load_state_dict(state)
    with pytest.raises(ValueError, match="its epochs end at None and these at 82"):
        view.stream(4, SEED, epochs=2).load_state_dict(state)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("taken", [0, 1, 4])
def test_torchdatas_stateful_loader_resumes_a_stream(view, num_workers, taken):
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    def make():
        stream = view.stream(4, SEED)
        return stateful.StatefulDataLoader(stream, batch_size=None, num_workers=num_workers)

    loader = make()
    before = ids_of(itertools.islice(loader, taken))
    state = json.loads(json.dumps(loader.state_dict()))
    resumed = make()
    resumed.load_state_dict(state)
    after = ids_of(itertools.islice(resumed, 3))
    assert before + after == ORDER.samples(0, 4 * taken + 12).tolist()


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("taken", range(6))
def test_a_worker_resumes_from_each_batch_of_a_finite_stream(view, monkeypatch, number, taken):
    info = SimpleNamespace(id=number, num_workers=2)
    monkeypatch.setattr("fusmae.data.sample_stream.get_worker_info", lambda: info)
    order = ORDER.samples(0, NUM_TRAIN).tolist()
    mine = [i for first in range(4 * number, NUM_TRAIN, 8) for i in order[first : first + 4]]
    stream = view.stream(4, SEED, epochs=1)
    before = ids_of(itertools.islice(stream, taken))
    resumed = view.stream(4, SEED, epochs=1)
    resumed.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    assert before + ids_of(resumed) == mine
    # The next one starts where the worker's copy was made, not where its state was loaded.
    assert ids_of(resumed) == mine


def test_a_state_of_another_order_is_refused(view):
    state = view.stream(4, SEED).state_dict()
    with pytest.raises(ValueError, match="seed was 5 and is 6"):
        view.stream(4, 6).load_state_dict(state)


def test_view_and_stream_can_be_sent_to_another_process(view):
    next(iter(view.stream(4, SEED)))
    view.sample("train-0-0")
    copy = pickle.loads(pickle.dumps(view))
    assert torch.equal(copy[7]["s1"], view[7]["s1"])
    stream = view.stream(4, SEED)
    next(iter(stream))
    copied = pickle.loads(pickle.dumps(stream))
    assert ids_of(itertools.islice(copied, 2)) == ORDER.samples(4, 8).tolist()


def test_batches_go_through_the_device_transforms_as_they_are(view):
    bands = {"s2": ("B04", "B11"), "s1": ("VV",)}
    preprocess = Preprocess(view.manifest, bands, 24)
    images = preprocess(next(iter(view.stream(4))))
    assert {name: tuple(image.shape) for name, image in images.items()} == {
        "s2": (4, 2, 24, 24),
        "s1": (4, 1, 24, 24),
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "nowhere"}, "no split 'nowhere'"),
        ({"bands": {"s2": ("B10",)}}, "no band 'B10'"),
        ({"labels": "bigearthnet-43"}, "no label set 'bigearthnet-43'; it has"),
        ({"bands": ["s1"]}, r"bands = \['s1'\] must map a sensor to its band names, such as"),
        ({"bands": {"s2": "B05"}}, r"bands\['s2'\] = 'B05' must be a list of names"),
        ({"bands": {}}, r"bands = {} names no band"),
        ({"subset": 0.1}, r"subset = 0\.1 must be a dict, such as {'fraction': 0\.1}"),
        ({"subset": {"fracton": 0.1}}, r"subset\.fracton; did you mean subset\.fraction\?"),
        ({"subset": {"exclude": "snow"}}, r"subset\.exclude = 'snow' .*"),
    ],
)
def test_what_the_dataset_does_not_have_is_refused(tiny_dataset, options, message):
    with pytest.raises(ValueError, match=message):
        open_dataset(tiny_dataset, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch = 0"),
        ({"batch": 4, "epochs": 0}, "epochs = 0"),
        ({"batch": 4, "num_threads": 0}, "num_threads = 0"),
        ({"batch": 4, "seed": -1}, "seed = -1"),
        ({"batch": 4, "window": -1}, "window = -1"),
    ],
)
def test_impossible_streams_are_refused(view, options, message):
    with pytest.raises(ValueError, match=message):
        view.stream(**options)


@pytest.fixture
def programs(tiny_dataset, tiny_sen12ms, tmp_path, monkeypatch):
    """Gives the Python blocks of a page, to be run beside the datasets that they name."""
    (tmp_path / "ben").symlink_to(tiny_dataset)
    (tmp_path / "sen12ms").symlink_to(tiny_sen12ms)
    monkeypatch.chdir(tmp_path)

    def blocks(page):
        text = (Path(__file__).parents[2] / page).read_text()
        return re.findall(r"```python\n(.*?)```", text, re.DOTALL)

    return blocks


def test_the_readmes_ten_lines_run(programs):
    (block,) = (block for block in programs("README.md") if "open_dataset" in block)
    assert len([line for line in block.splitlines() if line]) <= 10
    names = {}
    exec(block, names)
    shapes = {name: tuple(image.shape) for name, image in names["images"].items()}
    assert shapes == {"s1": (64, 2, 120, 120), "s2": (64, 2, 120, 120)}


def test_the_programs_of_the_streaming_page_run(programs):
    subset, mixture = programs("docs/STREAMING.md")
    names = {}
    exec(subset, names)
    assert len(names["clear"]) == 16  # half of the 32 without snow
    exec(mixture, names)
    shapes = {name: tuple(image.shape) for name, image in names["images"].items()}
    assert shapes == {"s1": (64, 2, 120, 120), "s2": (64, 2, 120, 120)}
    assert names["batch"].sample_ids[:, 0].bincount().tolist() == [48, 16]


PROGRAM = """
import sys

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
try:
    ds.sample(sample["key"])
except ValueError as error:
    print(error)
"""


def test_numpy_and_torch_are_all_it_needs_but_for_keys(tiny_dataset):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tiny_dataset], capture_output=True, text=True, timeout=100
    )
    half = open_dataset(tiny_dataset, subset=SubsetConfig(fraction=0.5))
    assert done.stdout.splitlines() == [
        f"{half[3]['key']} 20 20 (8, 6, 12, 12)",
        "reading samples.parquet needs pyarrow: pip install pyarrow",
    ], done.stderr
