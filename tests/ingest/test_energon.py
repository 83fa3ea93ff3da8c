"""What ingest writes for Energon, held against tarfile, sqlite3 and Energon's own tools."""

import json
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from fusmae.manifest import ShardRecord, read_manifest
from fusmae_ingest.energon import energon_files
from fusmae_ingest.record import BlockRecord

# Every file of every sample: key, file name after the key, first byte and size in its shard.
FILES = """
SELECT tar_file_id, sample_key, part_name, content_byte_offset, content_byte_size
FROM samples JOIN sample_parts USING (tar_file_id, sample_index)
ORDER BY tar_file_id, content_byte_offset
"""
SAMPLES = "SELECT * FROM samples ORDER BY tar_file_id, sample_index"
# Energon's `lint` and `info` know typed samples only: a config of one array for them.
ONE_ARRAY = {
    "sample_type": {"__module__": "megatron.energon", "__class__": "ImageSample"},
    "field_map": {"image": "s2_10m.npy"},
}


@pytest.fixture(scope="module")
def build(archive_v1, fusmae_ingest, paths, tmp_path_factory):
    def build(*options: str) -> Path:
        out = tmp_path_factory.mktemp("energon") / "dataset"
        result = fusmae_ingest("bigearthnet", *paths(archive_v1), "--out", out, *options)
        assert result.returncode == 0, result.stderr
        return out

    return build


@pytest.fixture(scope="module")
def dataset(build) -> Path:
    return build("--samples-per-shard", "5")


@pytest.fixture(scope="module")
def dataset_with_maps(archive_v2, fusmae_ingest, paths, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("maps") / "dataset"
    tables = [option for path in archive_v2.glob("*.parquet") for option in ("--metadata", path)]
    tables += ["--maps", archive_v2 / "Reference_Maps"]
    result = fusmae_ingest("bigearthnet", *paths(archive_v2), *tables, "--out", out)
    assert result.returncode == 0, result.stderr
    return out


def query(index: Path, text: str) -> list[tuple]:
    connection = sqlite3.connect(f"file:{index}?mode=ro", uri=True)
    try:
        return connection.execute(text).fetchall()
    finally:
        connection.close()


def shards_of(dataset: Path) -> list[str]:
    return list(json.loads((dataset / ".nv-meta/.info.json").read_text())["shard_counts"])


def energon(*args: object) -> str:
    command = [sys.executable, "-m", "megatron.energon.cli.main", *map(str, args)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(("made", "files"), [("dataset", 5), ("dataset_with_maps", 6)])
def test_the_index_knows_every_file_where_tarfile_finds_it(made, files, request):
    dataset = request.getfixturevalue(made)
    expected = []
    for number, shard in enumerate(shards_of(dataset)):
        with tarfile.open(dataset / shard) as tar:
            for member in tar:
                key, _, name = member.name.partition(".")
                expected.append((number, key, name, member.offset_data, member.size))
    assert query(dataset / ".nv-meta/index.sqlite", FILES) == expected
    assert len(expected) == 24 * files


def test_all_shards_are_counted_and_are_in_the_split_of_their_folder(dataset):
    counts = json.loads((dataset / ".nv-meta/.info.json").read_text())["shard_counts"]
    assert sum(counts.values()) == 24
    table = yaml.safe_load((dataset / ".nv-meta/split.yaml").read_text())["split_parts"]
    assert table.keys() == {"train", "val", "test"}
    # Braces as a shell expands them.
    for split, patterns in table.items():
        echo = subprocess.run(
            ["bash", "-c", f"echo {' '.join(patterns)}"], capture_output=True, text=True
        )
        paths = sorted((dataset / "shards" / split).glob("*.tar"))
        assert echo.stdout.split() == [str(path.relative_to(dataset)) for path in paths]


def test_it_is_what_energon_prepare_writes(dataset, tmp_path):
    ours, theirs = dataset / ".nv-meta", tmp_path / "dataset/.nv-meta"
    without_index = shutil.ignore_patterns("*.idx")
    shutil.copytree(dataset / "shards", tmp_path / "dataset/shards", ignore=without_index)
    splits = [f"--split-parts={split}:shards/{split}/.*" for split in ("train", "val", "test")]
    options = ("--non-interactive", "--sample-type", "CrudeWebdataset", "--num-workers", "1")
    energon("prepare", tmp_path / "dataset", *options, *splits)
    # They number the shards by name, we in the order of splits.
    shards, numbers = shards_of(dataset), shards_of(tmp_path / "dataset")
    assert sorted(shards) == numbers
    for shard in shards:
        ending = f"{shard}.idx"
        assert (dataset / ending).read_bytes() == (tmp_path / "dataset" / ending).read_bytes()
    for text in (SAMPLES, FILES):
        found = [(shards[row[0]], *row[1:]) for row in query(ours / "index.sqlite", text)]
        expected = [(numbers[row[0]], *row[1:]) for row in query(theirs / "index.sqlite", text)]
        assert sorted(found) == sorted(expected)
    for name in ("dataset.yaml", "split.yaml"):
        assert yaml.safe_load((ours / name).read_text()) == yaml.safe_load(
            (theirs / name).read_text()
        )


def test_energon_lint_and_info_accept_it_and_leave_it_whole(dataset, fusmae_ingest):
    config = dataset / ".nv-meta/one.yaml"
    config.write_text(yaml.dump(ONE_ARRAY))
    try:
        energon("lint", dataset, "--dataset-config", "one.yaml")
        told = energon("info", dataset, "--dataset-config", "one.yaml")
    finally:
        config.unlink()
    assert "24 samples" in told
    result = fusmae_ingest("verify", dataset)
    assert result.returncode == 0, result.stderr


def test_equal_shards_give_equal_files_and_others_another_identity(build, dataset):
    again = build("--samples-per-shard", "5")
    for path in sorted(again.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (dataset / path.relative_to(again)).read_bytes(), path
    other = build("--samples-per-shard", "5", "--seed", "7")
    identity = ".nv-meta/index.uuid"
    assert (other / identity).read_text() != (dataset / identity).read_text()


def test_without_shards_there_is_nothing(build):
    out = build("--format", "zarr")
    assert not (out / ".nv-meta").exists()
    assert not list(out.rglob("*.idx"))


def test_a_large_index_is_sound_and_holds_nothing_but_its_rows(dataset):
    manifest = read_manifest(dataset)
    size = 4096
    rows = [
        {"key": f"{i * 7919 % 10007:06d}", "offset": i * size, "facts": {}} for i in range(9000)
    ]
    blocks = [
        BlockRecord(
            "train",
            number,
            ShardRecord(f"shards/train/x-train-{number:06d}.tar", 3000 * size + 1024, "", 3000),
            (),
            manifest.files[0],
            tuple({**row, "offset": i * size} for i, row in enumerate(part)),
        )
        for number, part in enumerate((rows[:3000], rows[3000:6000], rows[6000:]))
    ]
    data = energon_files(replace(manifest, name="x"), blocks)[".nv-meta/index.sqlite"]
    database = sqlite3.connect(":memory:")
    database.deserialize(data)
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    keys = [key for (key,) in database.execute("SELECT sample_key FROM samples ORDER BY 1")]
    assert keys == sorted(row["key"] for row in rows)
    # Neither the version of the library nor what it left between cells.
    assert data[92:100] == bytes(8)
    for page in np.frombuffer(data, np.uint8).reshape(-1, 4096)[1:]:
        end = (12 if page[0] in (2, 5) else 8) + 2 * (int(page[3]) << 8 | int(page[4]))
        assert not page[end : int(page[5]) << 8 | int(page[6])].any()
    # 590,326 samples in less than 150 MB.
    assert len(data) / 9000 < 254
