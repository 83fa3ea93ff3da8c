"""README.md: its front matter is what the hub reads, its examples run, its counts are right."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pandas
import pytest
import yaml

from fusmae.manifest import read_manifest
from fusmae_ingest.card import card_text, size_category
from fusmae_ingest.facts import BIGEARTHNET_FACTS
from fusmae_ingest.origins import BIGEARTHNET_V1, BIGEARTHNET_V2, SEN12MS

LIBRARIES = {
    "v1": ("xarray", "pandas", "mlcroissant"),
    "v2": ("webdataset", "datasets", "xarray", "pandas", "mlcroissant"),
    "sen12ms": ("webdataset", "datasets", "pandas", "mlcroissant"),
}
# What the examples end in, by the kind of dataset.
SHAPES = {"v1": (4, 120, 120), "v2": (4, 120, 120), "sen12ms": (13, 256, 256)}


def card(dataset) -> str:
    return (dataset / "README.md").read_text()


def front_matter(text) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def examples(text) -> dict[str, str]:
    """Each example by the library that it imports first."""
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return {re.match(r"import (\w+)", block).group(1): block for block in blocks}


@pytest.mark.parametrize("kind", LIBRARIES)
def test_examples_are_shown_for_what_the_dataset_holds(made_datasets, kind):
    assert tuple(examples(card(made_datasets[kind]))) == LIBRARIES[kind]


@pytest.mark.parametrize(
    ("kind", "library"), [(kind, library) for kind in LIBRARIES for library in LIBRARIES[kind]]
)
def test_examples_run_as_they_stand(made_datasets, kind, library, tmp_path):
    *lines, last = examples(card(made_datasets[kind]))[library].rstrip().splitlines()
    script = "\n".join([*lines, f"value = ({last.partition('  #')[0]})", "print(value.__class__)"])
    if library in ("webdataset", "datasets", "xarray"):
        script += f"\nassert value.shape == {SHAPES[kind]}"
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=made_datasets[kind],
        env={"HF_HOME": str(tmp_path), "HF_DATASETS_OFFLINE": "1", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("kind", LIBRARIES)
def test_front_matter_is_yaml_that_names_the_files_of_each_split(made_datasets, kind):
    dataset = made_datasets[kind]
    told, manifest = front_matter(card(dataset)), read_manifest(dataset)
    assert told["pretty_name"].startswith("SIMULATED") and "simulated" in told["tags"]
    assert told["license"] == "cc0-1.0" and told["size_categories"] == ["n<1K"]
    (config,) = told["configs"]
    if kind == "v1":
        assert "library_name" not in told and "webdataset" not in told["tags"]
        assert [entry["path"] for entry in config["data_files"]] == ["samples.parquet"]
        return
    assert told["library_name"] == "webdataset"
    for entry in config["data_files"]:
        found = sorted(str(path.relative_to(dataset)) for path in dataset.glob(entry["path"]))
        assert found == [shard.path for shard in manifest.splits[entry["split"]].shards]
    named = {entry["split"] for entry in config["data_files"]}
    assert named == {name for name, split in manifest.splits.items() if split.num_samples}


def test_the_class_table_is_the_count_of_the_table_of_samples(made_datasets):
    table = pandas.read_parquet(made_datasets["v2"] / "samples.parquet")
    counts = table.explode("labels_bigearthnet_19").groupby("labels_bigearthnet_19").split
    text = card(made_datasets["v2"])
    for label, splits in counts:
        numbers = [int((splits == name).sum()) for name in ("train", "val", "test")]
        assert f"| {label} | {' | '.join(map(str, numbers))} |" in text


def test_percentiles_are_those_of_the_manifest(made_datasets):
    statistics = read_manifest(made_datasets["sen12ms"]).statistics["s2"]
    row = next(r for r in card(made_datasets["sen12ms"]).splitlines() if "| s2 | B10 |" in r)
    p2, p98 = (statistics.percentiles[name][10] for name in ("p2", "p98"))
    assert [float(cell) for cell in row.split("|")[9:11]] == [p2, p98]


def test_an_observed_dataset_is_not_called_simulated(made_datasets):
    manifest = read_manifest(made_datasets["v2"])
    assert "> **SIMULATED DATA.**" in card_text(manifest, BIGEARTHNET_FACTS)
    source = {**manifest.source, "title": "BigEarthNet"}
    text = card_text(
        type(manifest)(**{**vars(manifest), "simulated": False, "source": source}),
        BIGEARTHNET_FACTS,
    )
    assert "SIMULATED" not in text and "tags: [" in text and "simulated]" not in text


@pytest.mark.parametrize("archive", [BIGEARTHNET_V1, BIGEARTHNET_V2, SEN12MS])
def test_the_archives_licence_and_citation_are_told(made_datasets, archive):
    manifest = replace(read_manifest(made_datasets["v2"]), simulated=False, source=archive)
    text = card_text(manifest, BIGEARTHNET_FACTS)
    licence = (front_matter(text)["license"], archive["licence"], archive["licence_url"])
    assert front_matter(text)["pretty_name"] == archive["title"]
    assert licence[0] == archive["licence_id"]
    told = text.partition("## Source, licence and citation\n\n")[2].partition("\n## ")[0]
    assert told.splitlines()[:4] == [
        f"- Archive: <{archive['url']}>",
        f"- Processing level: {archive['processing']}",
        f"- Licence: [{licence[1]}]({licence[2]})",
        f"- Cite: {archive['citation']}",
    ]
    assert f"```bibtex\n{archive['bibtex'].strip()}\n```" in told


def test_what_was_left_out_as_bad_is_counted(archive_v1, fusmae_ingest, paths, tmp_path):
    archive = shutil.copytree(archive_v1, tmp_path / "archive")
    next(archive.glob("BigEarthNet-v1.0/*/*_B05.tif")).unlink()
    args = ("bigearthnet", *paths(archive), "--out", tmp_path / "d", "--max-bad", 0.1)
    result = fusmae_ingest(*args, "--on-error", "quarantine")
    assert result.returncode == 0, result.stderr
    text = card(tmp_path / "d")
    assert "Bad samples: 1 of 24; `quarantine.jsonl`" in text
    listed = json.loads((tmp_path / "d" / "croissant.json").read_text())["distribution"]
    assert "quarantine.jsonl" in {entry["@id"] for entry in listed}


def test_size_categories_have_the_hubs_names():
    numbers = (0, 999, 1000, 590_326, 999_999, 1_000_000, 50_000_000)
    assert [size_category(n) for n in numbers] == [
        *("n<1K", "n<1K", "1K<n<10K", "100K<n<1M", "100K<n<1M", "1M<n<10M", "10M<n<100M"),
    ]
