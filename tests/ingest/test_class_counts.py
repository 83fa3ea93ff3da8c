"""Class counts of the manifest and of `info`, held against pandas' count of samples.parquet."""

import re

import pandas
import pytest

from fusmae.labels import LABEL_SETS
from fusmae.manifest import read_manifest

COUNTED = {
    "v1": {"bigearthnet-19": "labels_bigearthnet_19", "bigearthnet-43": "labels_bigearthnet_43"},
    "v2": {"bigearthnet-19": "labels_bigearthnet_19"},
    "sen12ms": {
        "sen12ms-igbp10": "labels_sen12ms_igbp10",
        "sen12ms-igbp10/label_single": "label_single",
    },
}


def recount(dataset, column) -> pandas.Series:
    """Samples by (split, class), from the table alone."""
    table = pandas.read_parquet(dataset / "samples.parquet")
    return table.explode(column).groupby(["split", column]).key.nunique()


@pytest.mark.parametrize("kind", COUNTED)
def test_class_counts_are_those_of_the_table(made_datasets, kind):
    manifest = read_manifest(made_datasets[kind])
    assert manifest.format_version == "1.2"
    for name, column in COUNTED[kind].items():
        expected = recount(made_datasets[kind], column)
        assert expected.sum() >= sum(split.num_samples for split in manifest.splits.values())
        classes = LABEL_SETS[name.partition("/")[0]]
        for split, record in manifest.splits.items():
            assert set(record.class_counts) == set(COUNTED[kind])
            counts = dict(zip(classes, record.class_counts[name], strict=True))
            assert counts == {label: expected.get((split, label), 0) for label in classes}


def test_info_prints_the_count_of_a_class(made_datasets, fusmae_ingest):
    result = fusmae_ingest("info", made_datasets["sen12ms"])
    assert result.returncode == 0, result.stderr
    expected = recount(made_datasets["sen12ms"], "label_single")
    label, count = expected["train"].idxmax(), expected["train"].max()
    _, _, after = result.stdout.partition("label_single")
    row = next(line for line in after.splitlines() if label in line)
    assert re.split(r"\s{2,}", row)[:2] == [label, str(count)]
