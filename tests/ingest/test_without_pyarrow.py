"""What `fusmae.data` gathers from the shards of a dataset as ingest makes it, without pyarrow."""

import sys

import pytest

from fusmae.data.reader import SplitReader


@pytest.mark.parametrize("kind", ["v2", "sen12ms"])
def test_without_pyarrow_keys_labels_and_flags_are_gathered_from_the_samples(
    made_datasets, kind, monkeypatch
):
    reader = SplitReader(made_datasets[kind], "train")
    with_it = {name: reader.column(name) for name in reader.column_names()}
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    gathered = set(reader.column_names())
    assert set(with_it) - gathered == {"split", "shard", "row", "offset", "footprint"}
    for name in gathered:
        with pytest.warns(UserWarning, match="pyarrow is not installed"):
            assert reader.column(name) == with_it[name], name
