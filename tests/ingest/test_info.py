"""`info`: columns that nothing folds in a file, boxes on a terminal, JSON for programs."""

import json
import sys

import pandas
import pytest

from .terminal import on_terminal


@pytest.mark.parametrize("name", ["v1", "v2", "sen12ms"])
def test_json_counts_what_the_tables_and_files_hold(made_datasets, fusmae_ingest, name):
    root = made_datasets[name]
    result = fusmae_ingest("info", root, "--json")
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    table = pandas.read_parquet(root / "samples.parquet")
    for split, numbers in told["splits"].items():
        tars = list((root / "shards" / split).glob("*.tar"))
        assert numbers["samples"] == (table.split == split).sum()
        assert (numbers["shards"], numbers["shard_bytes"]) == (
            len(tars),
            sum(tar.stat().st_size for tar in tars),
        )
    # The manifest's own numbers, not rounded ones.
    manifest = json.loads((root / "dataset.json").read_text())
    places = [(spec, i) for spec in manifest["arrays"] for i in range(len(spec["bands"]))]
    for band, (spec, i) in zip(told["bands"], places, strict=True):
        assert (band["array"], band["band"]) == (spec["name"], spec["bands"][i]["name"])
        statistics = manifest["statistics"][spec["name"]]
        assert band["max"] == statistics["max"][i]
        is_measured = band["sensor"] in ("s1", "s2")
        assert band["mean"] == (statistics["mean"][i] if is_measured else None)
    for labels, classes in told["label_sets"].items():
        assert list(told["class_counts"][labels]) == classes


def test_a_file_gets_one_line_a_row_without_boxes(made_datasets, fusmae_ingest):
    shown = fusmae_ingest("info", made_datasets["v2"]).stdout
    assert shown.isascii() and not [line for line in shown.splitlines() if line != line.rstrip()]
    name = "Land principally occupied by agriculture, with significant areas of natural vegetation"
    (line,) = (line for line in shown.splitlines() if line.startswith(name))
    assert len(line.removeprefix(name).split()) == 3


def test_a_terminal_gets_boxes_of_its_width(made_datasets):
    command = [sys.executable, "-m", "fusmae_ingest.cli", "info", str(made_datasets["sen12ms"])]
    shown = on_terminal(command, 80)
    rows = [line for line in shown.splitlines() if line.startswith("│")]
    assert any("LCCS_HYDROL" in row for row in rows) and max(map(len, rows)) <= 80
