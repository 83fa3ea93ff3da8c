"""`verify` finds every flipped byte, and everything that the parts of a dataset do not agree on."""

import io
import json
import random
import shutil
import tarfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

from fusmae_ingest.storage import LocalStore, manifest_of
from fusmae_ingest.verify import find_problems

from ..manifests import edit_manifest  # noqa: TID252


def problems(folder: Path, workers: int = 1) -> list[str]:
    """What `fusmae-ingest verify` says, without its process."""
    store = LocalStore(str(folder))
    try:
        return list(find_problems(store, manifest_of(store), lambda done, total: None, workers))
    except ValueError as error:
        return [str(error)]


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture(params=["v1", "v2", "sen12ms"])
def dataset(request, made_datasets, tmp_path) -> Path:
    """A copy of a dataset of each kind: zarr only, both formats with maps, shards only."""
    return shutil.copytree(made_datasets[request.param], tmp_path / request.param)


@pytest.fixture
def both(made_datasets, tmp_path) -> Path:
    return shutil.copytree(made_datasets["v2"], tmp_path / "both")


def kind_of(path: Path) -> str:
    """Files of a kind are many or large, and each kind is to be hit."""
    if "zarr" in path.parts:
        return "zarr.json" if path.name == "zarr.json" else f"chunk {path.parent.parts[-5:]}"
    return f"shard {path.name}" if path.suffix == ".tar" else path.name


def test_a_flipped_byte_in_any_kind_of_file_is_found_and_the_file_named(dataset):
    assert problems(dataset) == []
    draw = random.Random(dataset.name)
    kinds: dict[str, list[Path]] = {}
    for path in files_of(dataset):
        kinds.setdefault(kind_of(path), []).append(path)
    for number in range(80):
        paths = list(kinds.values())[number % len(kinds)]
        path = draw.choice(paths)
        data = bytearray(path.read_bytes())
        place, flip = draw.randrange(len(data)), draw.randrange(1, 256)
        data[place] ^= flip
        path.write_bytes(data)
        told = problems(dataset)
        assert any(str(path) in line for line in told), (path, place, flip, told)
        data[place] ^= flip
        path.write_bytes(data)
    assert problems(dataset) == []


def test_no_flipped_byte_of_the_manifest_passes(dataset):
    path = dataset / "dataset.json"
    whole = path.read_bytes()
    draw = random.Random(4)
    # The end too, where the digest and its name stand.
    places = [draw.randrange(len(whole)) for _ in range(100)] + list(
        range(len(whole) - 100, len(whole))
    )
    for place in places:
        data = bytearray(whole)
        data[place] ^= draw.choice((1, 2, 4, 16, 32, 128))
        path.write_bytes(data)
        told = problems(dataset)
        assert any(str(path) in line for line in told), (place, bytes(data[place - 9 : place + 9]))


def test_the_command_names_the_file_and_fails(both, fusmae_ingest):
    result = fusmae_ingest("verify", both)
    assert result.returncode == 0 and "24 samples verified" in result.stdout
    shard = next(both.glob("shards/train/*.tar"))
    data = bytearray(shard.read_bytes())
    data[1000] ^= 8
    shard.write_bytes(data)
    result = fusmae_ingest("verify", both)
    assert result.returncode == 1 and f"{shard}: sha256" in result.stderr
    assert "has 1 problem, listed above" in result.stderr and "Traceback" not in result.stderr


def test_two_workers_say_what_one_says(both):
    assert problems(both, workers=2) == []
    chosen = [path for path in files_of(both) if path.suffix == ".tar"][::2]
    for path in (*chosen, both / "README.md"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    (both / "README.md").unlink()
    alone = problems(both)
    assert len(alone) == len(chosen) + 1 and problems(both, workers=2) == alone


def forge(folder: Path, path: Path, data: bytes) -> None:
    """Exchange a file and put its new hash into the manifest, as a mistaken writer would."""
    path.write_bytes(data)
    name = str(path.relative_to(folder))

    def mend(entry: object) -> None:
        if isinstance(entry, dict):
            if entry.get("path") == name:
                entry |= {"bytes": len(data), "sha256": sha256(data).hexdigest()}
            for value in entry.values():
                mend(value)
        if isinstance(entry, list):
            for value in entry:
                mend(value)

    edit_manifest(folder, mend)


def forge_table(folder: Path, column: str, change) -> None:
    """Change the first value of a column of samples.parquet."""
    path = folder / "samples.parquet"
    table = pq.read_table(path)
    values = table.column(column).to_pylist()
    values[0] = change(values[0])
    place = table.column_names.index(column)
    changed = table.set_column(place, column, pa.array(values, table.schema.field(column).type))
    buffer = io.BytesIO()
    pq.write_table(changed, buffer)
    forge(folder, path, buffer.getvalue())


@pytest.mark.parametrize(
    ("column", "change", "told"),
    [
        ("labels_bigearthnet_19", lambda v: v[1:], "json says labels"),
        ("crs", lambda v: "EPSG:32601", "json says crs"),
        ("transform", lambda v: [v[0] + 1, *v[1:]], "json says transform"),
        ("country", lambda v: "Atlantis", "json says country"),
        ("time_s2", lambda v: v.replace(year=1999), "json says time_s2"),
        ("offset", lambda v: v + 512, "the shard, row or offset of"),
        ("row", lambda v: v + 1, "the shard, row or offset of"),
        ("key", lambda v: v + "x", "its keys are not those of samples.parquet"),
        ("split", lambda v: "nowhere", "samples.parquet lists"),
    ],
)
def test_a_table_that_is_not_what_shards_hold_is_found(both, column, change, told):
    forge_table(both, column, change)
    assert any(told in line for line in problems(both)), problems(both)


def test_samples_stand_in_the_order_of_the_seed(dataset):
    edit_manifest(dataset, lambda manifest: manifest.update(seed=1))
    assert "the samples of train do not stand in the order of seed 1" in problems(dataset)


def test_class_counts_are_those_of_the_table(both):
    forge_table(both, "labels_bigearthnet_19", lambda v: v[1:])
    assert any("class counts of bigearthnet-19 in train" in line for line in problems(both))


def test_an_index_that_points_elsewhere_is_found(both):
    path = both / "index" / "train.npy"
    starts = np.load(path)
    starts[1] += 512
    buffer = io.BytesIO()
    np.save(buffer, starts)
    forge(both, path, buffer.getvalue())
    assert any("the index does not point at" in line for line in problems(both))


def test_json_in_a_shard_that_is_not_what_the_table_says_is_found(both):
    path = next(both.glob("shards/train/*.tar"))
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        member = next(m for m in tar if m.name.endswith(".json"))
    at = data.index(b'"crs":"EPSG:32', member.offset_data) + len(b'"crs":"EPSG:32')
    forge(both, path, data[:at] + b"999" + data[at + 3 :])
    assert any("json says crs 'EPSG:32999'" in line for line in problems(both))


def zarr_forged(folder: Path, change) -> None:
    store = folder / "zarr" / "train.zarr"
    change(zarr.open_group(store, mode="r+"))
    for path in files_of(store):
        forge(folder, path, path.read_bytes())


@pytest.mark.parametrize("name", ["v1", "v2"])
@pytest.mark.parametrize(
    "array", ["sample_id", "labels_bigearthnet_19", "crs", "transform", "time", "s2_10m_band"]
)
def test_zarr_coordinates_in_another_order_are_found(made_datasets, tmp_path, name, array):
    folder = shutil.copytree(made_datasets[name], tmp_path / "d")

    def turn(group):
        group[array][...] = group[array][...][::-1]

    zarr_forged(folder, turn)
    location = folder / "zarr" / "train.zarr" / array
    assert any(line.startswith(f"{location}: differs") for line in problems(folder))


def test_zarr_pixels_that_are_not_the_shards_are_found(both):
    def change(group):
        group["s2_20m"][1, 2, 3, 4] += 1

    zarr_forged(both, change)
    assert any("s2_20m: pixels differ from" in line for line in problems(both))


def test_statistics_and_histograms_are_those_of_the_pixels_without_shards(made_datasets, tmp_path):
    folder = shutil.copytree(made_datasets["v1"], tmp_path / "d")

    def change(group):
        group["s2_20m"][1, 2, 3, 4] += 1

    zarr_forged(folder, change)
    told = problems(folder)
    assert any("statistics of s2_20m (mean)" in line for line in told)
    assert any("histograms.parquet: its counts are not" in line for line in told)


@pytest.mark.parametrize("field", ["mean", "std", "min", "max", "count", "p50"])
@pytest.mark.parametrize("array", ["s1", "s2_60m"])
def test_a_wrong_statistic_of_the_manifest_is_found(both, field, array):
    def change(manifest: dict[str, Any]) -> None:
        entry = manifest["statistics"][array]
        if field == "count":
            entry["count"] += 1
        else:
            values = entry["percentiles"] if field == "p50" else entry
            values[field][1] += 0.001

    edit_manifest(both, change)
    assert [line for line in problems(both) if f"of {array} ({field})" in line]


def test_manifests_before_format_1_2_need_no_digest_and_later_ones_do(both):
    path = both / "dataset.json"
    table = json.loads(path.read_text())
    del table["digest"]
    path.write_text(json.dumps(table))
    (told,) = problems(both)
    assert f"{path} was changed (has no digest, which belongs into every" in told
    path.write_text(json.dumps({**table, "format_version": "1.1"}))
    assert problems(both) == []
