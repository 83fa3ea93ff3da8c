"""dataset.json: round trip and refusals."""

import json

import pytest

from fusmae.manifest import (
    BandStatistics,
    FileRecord,
    Manifest,
    ShardRecord,
    SplitRecord,
    from_json,
    read_manifest,
    to_json,
)
from fusmae.sensors import BIGEARTHNET_ARRAYS

from .manifests import sealed


@pytest.fixture
def manifest() -> Manifest:
    file = FileRecord("index/train.npy", 136, "ab" * 32)
    shard = ShardRecord("shards/train/x.tar", 1024, "cd" * 32, 1)
    return Manifest(
        name="x",
        simulated=True,
        source={"title": "x"},
        seed=3,
        samples_per_shard=4,
        arrays=BIGEARTHNET_ARRAYS,
        label_sets={"bigearthnet-19": ("a", "b")},
        splits={
            "train": SplitRecord(1, (shard,), file, class_counts={"bigearthnet-19": (1, 0)}),
            "val": SplitRecord(0, (), None, class_counts={"bigearthnet-19": (0, 0)}),
        },
        statistics={
            s.name: BandStatistics(9, *[tuple(float(i) for i in range(len(s.bands)))] * 4)
            for s in BIGEARTHNET_ARRAYS
        },
        statistics_split="train",
        options={"plan": {"split": "google"}},
        files=(file,),
    )


def test_text_and_back_is_the_same_manifest(manifest):
    assert from_json(to_json(manifest)) == manifest
    assert list(from_json(to_json(manifest)).splits) == ["train", "val"]


def test_bands_are_found_by_sensor_and_name(manifest):
    spec, row = manifest.find_band("s2", "B8A")
    assert (spec.name, row) == ("s2_20m", 3)
    assert manifest.band_statistics("s2_20m", "B8A") == (3.0, 3.0)
    with pytest.raises(ValueError, match=r"no band 'B10'.*B02"):
        manifest.find_band("s2", "B10")
    with pytest.raises(ValueError, match=r"no sensor 'dem'.*s1"):
        manifest.find_band("dem", "B10")


def test_a_group_of_bands_is_found_in_its_sensor(manifest):
    for group, band in (("s2_10m", "B02"), ("s2_red_edge", "B8A")):
        assert manifest.find_band(group, band) == manifest.find_band("s2", band)
    with pytest.raises(ValueError, match=r"'s2_10m' has no band 'VV'"):
        manifest.find_band("s2_10m", "VV")
    with pytest.raises(ValueError, match=r"no sensor 's3_10m'"):
        manifest.find_band("s3_10m", "B02")


def test_fields_of_a_newer_minor_version_are_ignored_everywhere(manifest):
    table = json.loads(to_json(manifest))
    table["format_version"] = "1.9"
    for record in (
        table["arrays"][0]["bands"][0],
        table["splits"]["train"]["shards"][0],
        table["splits"]["train"]["index"],
        table["files"][0],
    ):
        record["new"] = 1
    assert from_json(sealed(table)).splits == manifest.splits


def test_a_newer_major_version_is_refused_and_a_newer_minor_is_not(manifest):
    table = json.loads(to_json(manifest))
    with pytest.raises(ValueError, match=r"format version 2\.0"):
        from_json(sealed({**table, "format_version": "2.0"}))
    assert from_json(sealed({**table, "format_version": "1.9", "new": 1})).name == "x"


def test_datasets_of_older_minor_versions_are_read_without_class_counts(manifest):
    assert manifest.counted_classes() == {"bigearthnet-19": ("a", "b")}
    table = json.loads(to_json(manifest))
    for split in table["splits"].values():
        del split["class_counts"]
    del table["digest"]
    old = from_json(json.dumps({**table, "format_version": "1.1"}))
    assert old.splits["train"].class_counts == {} and old.counted_classes() == {}
    assert old.splits["train"].shards == manifest.splits["train"].shards


@pytest.mark.parametrize("field", ["arrays", "splits", "seed", "statistics"])
def test_a_missing_field_is_named(manifest, field):
    table = json.loads(to_json(manifest))
    del table[field]
    with pytest.raises(ValueError, match=field):
        from_json(sealed(table))


def test_an_offset_that_is_not_the_layouts_is_refused(manifest):
    table = json.loads(to_json(manifest))
    table["arrays"][1]["offset"] += 1
    with pytest.raises(ValueError, match="s2_10m"):
        from_json(sealed(table))


@pytest.mark.parametrize("new", ["1", '"1"', "3.5"])
def test_a_number_that_was_edited_by_hand_is_refused_by_the_digest(manifest, tmp_path, new):
    path = tmp_path / "dataset.json"
    path.write_text(to_json(manifest).replace('"seed": 3', f'"seed": {new}'))
    told = rf"{path} was changed \(its sha256 is \w+, its digest says \w+\): copy it again, or "
    with pytest.raises(ValueError, match=told):
        read_manifest(tmp_path)


def test_only_formats_before_1_2_have_no_digest(manifest):
    table = json.loads(to_json(manifest))
    for digest in ({}, {"digest": ""}, {"digest": None}):
        fields = {name: value for name, value in table.items() if name != "digest"} | digest
        with pytest.raises(ValueError, match="has no digest, which belongs into every manifest"):
            from_json(json.dumps(fields))
        for version in ("1.0", "1.1"):
            assert from_json(json.dumps(fields | {"format_version": version})).name == "x"


def test_other_files_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"dataset\.json.*finished dataset"):
        read_manifest(tmp_path)
    for text, message in (("{", "not valid JSON"), ("[1]", "not the manifest")):
        (tmp_path / "dataset.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_manifest(tmp_path)
