"""The samples that pretraining shares with test splits, by v1 names."""

import bz2
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fusmae.evaluation.overlap import describe_overlap, find_overlap
from fusmae.manifest import manifest_sha256
from fusmae.model import EncoderCard
from fusmae.splits import google_split

from ..manifests import edit_manifest  # noqa: TID252


def with_columns(dataset: Path, folder: Path, name: str, columns: dict[str, list[Any]]) -> Path:
    """A copy of the dataset under another name, with more columns in its table."""
    shutil.copytree(dataset, folder)
    table = pq.read_table(folder / "samples.parquet")
    for column, values in columns.items():
        table = table.append_column(column, pa.array(values, pa.string()))
    pq.write_table(table, folder / "samples.parquet")
    edit_manifest(folder, lambda manifest: manifest.update(name=name))
    return folder


@pytest.fixture
def v1(dataset: Path, tmp_path: Path) -> Path:
    """40 train, 19 val, 23 test samples. Of train, the first 10 are in the official test split."""
    official = ["test"] * 10 + ["train"] * 30 + ["val"] * 19 + ["test"] * 23
    google = ["train"] * 40 + ["val"] * 19 + ["test"] * 23
    columns = {"split_google": google, "split_official": official, "split_v2": [None] * 82}
    return with_columns(dataset, tmp_path / "v1", "v1", columns)


@pytest.fixture
def v2(dataset: Path, tmp_path: Path) -> Path:
    """The same shards as v2: keys of its own; 5 of v1's train samples lie in its test split."""
    v1_keys = pq.read_table(dataset / "samples.parquet").column("key").to_pylist()
    v1_names = [*(f"else-{i}" for i in range(59)), *v1_keys[:5], *v1_keys[41:59]]
    split_v2 = ["train"] * 40 + ["val"] * 19 + ["test"] * 23
    columns = {"s2v1_name": v1_names, "split_v2": split_v2}
    return with_columns(dataset, tmp_path / "v2", "v2", columns)


def of_dataset(card: EncoderCard, dataset: Path) -> EncoderCard:
    return dataclasses.replace(card, split="train", manifest_sha256=(manifest_sha256(dataset),))


def test_shared_samples_are_counted_for_each_rule_by_v1_names(
    v1: Path, v2: Path, card: EncoderCard
) -> None:
    overlap = find_overlap(of_dataset(card, v1), [v1], v2, "test")
    assert overlap is not None
    assert overlap["shared_with"] == {
        "this run's test split": {"shared": 5, "of": 23},
        "google test split": {"shared": 0, "of": 23},
        "official test split": {"shared": 10, "of": 33},
        "v2 test split": {"shared": 5, "of": 23},
    }
    (source,) = overlap["pretraining"]
    assert source["dataset"] == "v1" and source["num_samples"] == 40 and source["named_in_card"]
    assert "official test split 10 of 33" in describe_overlap(overlap)


def test_what_no_table_tells_is_unknown(v1: Path, dataset: Path, card: EncoderCard) -> None:
    overlap = find_overlap(of_dataset(card, v1), [v1], v1, "test")
    assert overlap is not None and overlap["shared_with"]["v2 test split"] is None
    assert "v2 test split unknown" in describe_overlap(overlap)
    bare = find_overlap(card, [dataset], dataset, "test")  # an older card, a table without rules
    assert bare is not None and not bare["pretraining"][0]["named_in_card"]
    assert bare["shared_with"]["google test split"] is None
    assert bare["shared_with"]["this run's test split"] == {"shared": 0, "of": 23}
    assert find_overlap(card, [], dataset, "test") is None
    assert "unknown (give --pretraining-data)" in describe_overlap(None)


def test_several_pretraining_datasets_are_joined(v1: Path, v2: Path, card: EncoderCard) -> None:
    digests = (manifest_sha256(v1), manifest_sha256(v2))
    both = dataclasses.replace(card, split="train", manifest_sha256=digests)
    overlap = find_overlap(both, [v1, v2], v2, "val")
    assert overlap is not None and len(overlap["pretraining"]) == 2
    assert overlap["shared_with"]["this run's test split"] == {"shared": 0, "of": 19}


def test_another_dataset_than_the_cards_is_refused(
    v1: Path, dataset: Path, card: EncoderCard
) -> None:
    with pytest.raises(ValueError, match="is not what the encoder was pretrained on"):
        find_overlap(of_dataset(card, v1), [dataset], dataset, "test")
    other = dataclasses.replace(of_dataset(card, v1), split="trian")
    with pytest.raises(ValueError, match="has no split 'trian'"):
        find_overlap(other, [v1], dataset, "test")


def test_the_papers_training_split_holds_official_and_v2_test_images(name_lists: Path) -> None:
    """Facts of the published lists: why the overlap is printed at all."""
    with bz2.open(name_lists / "bigearthnet-v1" / "test.csv.bz2", "rt") as file:
        official = {line.partition(",")[0].strip() for line in file}
    table = pq.read_table(name_lists / "bigearthnet-v2" / "metadata.parquet")
    rows = table.select(["s2v1_name", "split"]).to_pylist()
    v2 = {row["s2v1_name"] for row in rows if row["split"] == "test"}
    seen = [sum(google_split(name) == "train" for name in tested) for tested in (official, v2)]
    assert [len(official), len(v2)] == [125_866, 119_825]
    assert seen == [75_507, 71_862]  # the README's numbers
