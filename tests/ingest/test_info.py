"""`info`: columns that nothing folds in a file, boxes on a terminal, JSON for programs."""

import json
import sys

import numpy as np
import pandas
import pytest

from fusmae.sample import decode

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


@pytest.mark.parametrize(("name", "class_map"), [("v2", "map"), ("sen12ms", "lc")])
def test_what_a_gpu_asks_of_the_storage_is_without_class_maps(
    made_datasets, fusmae_ingest, name, class_map
):
    shard = next(iter(sorted(made_datasets[name].glob("shards/train/*.tar"))))
    sample = next(iter(decode(shard.read_bytes())))
    sizes = {key: x.nbytes for key, x in sample.items() if isinstance(x, np.ndarray)}
    told = json.loads(fusmae_ingest("info", made_datasets[name], "--json").stdout)
    assert told["sample_bytes"] == sum(sizes.values())
    assert sizes.pop(class_map) > 0 and set(told["gpu_read_arrays"]) == set(sizes)
    read, listed = sum(sizes.values()), ", ".join(told["gpu_read_arrays"])
    assert told["gpu_read_sample_bytes"] == read
    shown = fusmae_ingest("info", made_datasets[name]).stdout
    assert f"{read:,} bytes x 5,913 samples/s = {read * 5913 / 1e9:.2f} GB/s of {listed} (" in shown


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
