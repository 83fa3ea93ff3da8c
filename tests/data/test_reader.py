import hashlib
import shutil
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from fusmae.data.bands import arrays_for
from fusmae.data.reader import SplitReader
from fusmae.manifest import read_manifest
from fusmae.sample import decode
from fusmae.sensors import BIGEARTHNET_ARRAYS

from ..manifests import edit_manifest  # noqa: TID252
from .tiny_dataset import TINY_ARRAYS, write_tiny_dataset

NAMES = [spec.name for spec in TINY_ARRAYS]


def rows_for(reader, count):
    return {spec.name: np.zeros((count, *spec.shape), spec.dtype) for spec in reader.arrays}


def decoded(dataset, split):
    """Every sample of the split in order, read by tarfile and numpy.load alone."""
    shards = read_manifest(dataset).split(split).shards
    return [s for shard in shards for s in decode((dataset / shard.path).read_bytes())]


def assert_equal_to_decoded(reader, ids, rows, samples):
    for name, array in rows.items():
        expected = np.stack([samples[i][name] for i in ids])
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array.view(np.uint8), expected.view(np.uint8))


@pytest.fixture
def copied(tiny_dataset, tmp_path):
    """A dataset that a test may break."""
    return shutil.copytree(tiny_dataset, tmp_path / "dataset")


@pytest.mark.parametrize("names", [None, ["s1"], ["s2_60m"], ["s1", "s2_20m"], NAMES[::-1]])
def test_arrays_read_are_those_that_tarfile_and_numpy_read(tiny_dataset, names):
    reader = SplitReader(tiny_dataset, "train", names)
    ids = np.random.default_rng(0).permutation(reader.num_samples)
    rows = rows_for(reader, len(ids))
    assert set(rows) == set(names or NAMES)
    reader.read_into(ids, rows)
    assert_equal_to_decoded(reader, ids, rows, decoded(tiny_dataset, "train"))


def test_arrays_of_the_genuine_sizes_are_read_bit_for_bit(tmp_path):
    dataset = write_tiny_dataset(tmp_path, {"train": (2, 1)}, BIGEARTHNET_ARRAYS)
    reader = SplitReader(dataset, "train")
    rows = rows_for(reader, 3)
    reader.read_into(np.array([2, 0, 1]), rows)
    assert_equal_to_decoded(reader, [2, 0, 1], rows, decoded(dataset, "train"))


def test_arrays_read_are_those_that_plain_webdataset_reads(tiny_dataset):
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    shards = read_manifest(tiny_dataset).split("train").shards
    urls = [str(tiny_dataset / shard.path) for shard in shards]
    stream = webdataset.WebDataset(urls, shardshuffle=False).decode()
    reader = SplitReader(tiny_dataset, "train")
    rows = rows_for(reader, reader.num_samples)
    reader.read_into(np.arange(reader.num_samples), rows)
    count = 0
    for count, sample in enumerate(stream, start=1):
        assert sample["__key__"] == reader.keys()[count - 1]
        assert sample["json"] == reader.info(count - 1)
        for name in NAMES:
            np.testing.assert_array_equal(sample[f"{name}.npy"], rows[name][count - 1])
    assert count == reader.num_samples


_LIMITED = """
import resource, sys
from fusmae.data import open_dataset
from fusmae.data.shard import most_open

limits = int(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_NOFILE, limits)
print(most_open(20), *resource.getrlimit(resource.RLIMIT_NOFILE))
views = []
try:
    while True:
        views.append(open_dataset(sys.argv[1], "train"))
        for i in range(len(views[-1])):
            views[-1][i]
except ValueError as error:
    print(error)
"""


def test_limit_of_open_files_is_raised_where_the_system_allows_it_and_told_where_not(tiny_dataset):
    limited = [sys.executable, "-c", _LIMITED, str(tiny_dataset)]
    run = partial(subprocess.run, capture_output=True, text=True, timeout=60, check=True)
    few, told = run([*limited, "64", "64"]).stdout.splitlines()
    assert few == "8 64 64"
    assert "train-00000" in told and told.endswith(
        "Too many open files: raise `ulimit -n`, or close loaders and views that are not needed"
    )
    assert run([*limited, "64", "300"]).stdout.startswith("20 300 300\n")
    assert run([*limited, "200", "300"]).stdout.startswith("20 200 300\n")  # is enough


def test_repeated_ids_fill_a_row_each(tiny_dataset):
    reader = SplitReader(tiny_dataset, "val")
    rows = rows_for(reader, 3)
    reader.read_into(np.array([4, 4, 0]), rows)
    assert_equal_to_decoded(reader, [4, 4, 0], rows, decoded(tiny_dataset, "val"))


def test_many_threads_read_what_one_reads(tiny_dataset, monkeypatch):
    # Two open shards for four in use: shards are closed and reopened under the readers.
    monkeypatch.setattr("fusmae.data.reader.most_open", lambda num_shards: 2)
    reader = SplitReader(tiny_dataset, "train", ["s1"])
    samples = decoded(tiny_dataset, "train")
    wrong = []

    def read(seed):
        rng = np.random.default_rng(seed)
        for _ in range(50):
            ids = rng.integers(0, reader.num_samples, 5)
            rows = rows_for(reader, 5)
            reader.read_into(ids, rows)
            expected = np.stack([samples[i]["s1"] for i in ids])
            wrong.append(not np.array_equal(rows["s1"], expected))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 400
    assert not any(wrong)


def test_info_is_the_json_member(tiny_dataset):
    reader = SplitReader(tiny_dataset, "train")
    samples = decoded(tiny_dataset, "train")
    assert [reader.info(i) for i in range(reader.num_samples)] == [s["json"] for s in samples]


def test_keys_and_labels_are_in_the_order_of_the_shards(tiny_dataset):
    for split in ("train", "val", "test"):
        reader = SplitReader(tiny_dataset, split)
        assert reader.keys() == [s["__key__"] for s in decoded(tiny_dataset, split)]
        assert len(reader.labels("bigearthnet-19")) == reader.num_samples
    first = SplitReader(tiny_dataset, "train").labels("bigearthnet-19")[2]
    assert first == ["Arable land"]


def test_arrays_for_names_the_arrays_that_hold_the_bands(tiny_dataset):
    manifest = read_manifest(tiny_dataset)
    assert arrays_for(manifest, {"s2": ("B01", "B02", "B03"), "s1": ("VH",)}) == (
        "s1",
        "s2_10m",
        "s2_60m",
    )
    with pytest.raises(ValueError, match="no band 'B10'"):
        arrays_for(manifest, {"s2": ("B10",)})


def shard_path(dataset, index=0):
    return dataset / read_manifest(dataset).split("train").shards[index].path


def test_shard_truncated_before_it_is_opened_is_refused_by_name(copied):
    path = shard_path(copied)
    path.write_bytes(path.read_bytes()[:-1])
    reader = SplitReader(copied, "train")
    with pytest.raises(ValueError, match=rf"{path.name} has \d+ bytes, its manifest says"):
        reader.read_into(np.array([0]), rows_for(reader, 1))


def test_shard_truncated_while_it_is_open_is_refused_by_name(copied):
    reader = SplitReader(copied, "train")
    rows = rows_for(reader, 1)
    reader.read_into(np.array([0]), rows)
    path = shard_path(copied)
    with path.open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(ValueError, match=rf"{path.name} ends early"):
        reader.read_into(np.array([0]), rows)


def test_missing_shard_is_refused_by_name(copied):
    shard_path(copied).unlink()
    reader = SplitReader(copied, "train")
    told = r"cannot open shard .*000000\.tar: No such file or directory: copy it again, or remove"
    with pytest.raises(ValueError, match=told):
        reader.info(0)


def test_wrong_offset_is_an_error_and_not_noise(copied):
    index = copied / "index" / "train.npy"
    offsets = np.load(index)
    offsets[1] += 512
    np.save(index, offsets)
    digest = hashlib.sha256(index.read_bytes()).hexdigest()
    edit_manifest(copied, lambda table: table["splits"]["train"]["index"].update(sha256=digest))
    reader = SplitReader(copied, "train")
    with pytest.raises(ValueError, match="does not hold array 's1'"):
        reader.read_into(np.array([1]), rows_for(reader, 1))
    with pytest.raises(ValueError, match="no JSON member"):
        reader.info(1)


@pytest.mark.parametrize("offsets", [np.zeros(3, np.int64), np.zeros(41, np.int32)])
def test_index_of_another_shape_or_dtype_is_refused(copied, offsets):
    np.save(copied / "index" / "train.npy", offsets)
    with pytest.raises(ValueError, match=r"train\.npy is int"):
        SplitReader(copied, "train")


def test_truncated_index_is_refused(copied):
    index = copied / "index" / "train.npy"
    index.write_bytes(index.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"cannot read index .*train\.npy"):
        SplitReader(copied, "train")


def test_missing_index_is_refused_by_name(copied):
    (copied / "index" / "train.npy").unlink()
    told = rf"cannot read index {copied}/index/train\.npy: No such file or directory: copy it again"
    with pytest.raises(ValueError, match=told):
        SplitReader(copied, "train")


def test_split_without_shards_is_refused(copied):
    edit_manifest(copied, lambda table: table["splits"]["val"].update(index=None, shards=[]))
    with pytest.raises(ValueError, match=r"'val' .* has no shards"):
        SplitReader(copied, "val")
    # As ingest writes a split that nothing fell into.
    edit_manifest(copied, lambda table: table["splits"]["val"].update(num_samples=0))
    with pytest.raises(ValueError, match=r"'val' of .* has no samples; .*{'train': 41, 'val': 0"):
        SplitReader(copied, "val")


@pytest.mark.parametrize("ids", [[-1], [41], [0, 99]])
def test_sample_ids_out_of_range_are_refused(tiny_dataset, ids):
    reader = SplitReader(tiny_dataset, "train")
    with pytest.raises(ValueError, match="from 0 to 40"):
        reader.read_into(np.array(ids), rows_for(reader, len(ids)))


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((2, 2, 12, 12), np.float64),
        np.zeros((3, 2, 12, 12), np.float32),
        np.zeros((2, 2, 12, 24), np.float32)[..., ::2],
    ],
)
def test_rows_of_another_shape_dtype_or_layout_are_refused(tiny_dataset, rows):
    reader = SplitReader(tiny_dataset, "train", ["s1"])
    with pytest.raises(ValueError, match="'s1' wants a contiguous float32"):
        reader.read_into(np.array([0, 1]), {"s1": rows})


@pytest.mark.parametrize("names", [[], ["s3"]])
def test_unknown_arrays_are_refused(tiny_dataset, names):
    with pytest.raises(ValueError, match="cannot read arrays"):
        SplitReader(tiny_dataset, "train", names)


def test_unknown_label_set_is_refused_and_the_known_are_named(tiny_dataset):
    with pytest.raises(ValueError, match=r"no label set 'igbp'.*bigearthnet-19"):
        SplitReader(tiny_dataset, "train").labels("igbp")


def test_columns_without_pyarrow_are_those_of_the_table(tiny_dataset, monkeypatch):
    reader = SplitReader(tiny_dataset, "train")
    wanted = ["key", "labels_bigearthnet_19", "seasonal_snow", "cloud_or_shadow"]
    told = {name: reader.column(name) for name in wanted}
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for name, values in told.items():
        with pytest.warns(UserWarning, match=f"so {name} is gathered from the 41 samples"):
            assert reader.column(name) == values
    assert set(wanted) < set(reader.column_names())
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match="has no field 'clouds'; it has"),
    ):
        reader.column("clouds")


def test_missing_samples_table_is_refused_by_name(copied):
    (copied / "samples.parquet").unlink()
    for read in (SplitReader.keys, SplitReader.column_names):
        with pytest.raises(ValueError, match=r"no .*/samples\.parquet, in which .* copy it again"):
            read(SplitReader(copied, "train"))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="/proc lists open files on Linux")
def test_closed_reader_holds_no_file_open(copied):
    def num_open():
        targets = [fd.resolve() for fd in Path("/proc/self/fd").iterdir()]
        return sum(target.is_relative_to(copied) for target in targets)

    reader = SplitReader(copied, "train")
    reader.read_into(np.arange(41), rows_for(reader, 41))
    assert num_open() == 4
    reader.close()
    assert num_open() == 0
