"""croissant.json: read by mlcroissant offline, held against pandas, webdataset and the files."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace

import mlcroissant
import numpy as np
import pandas
import pytest
import webdataset

from fusmae.manifest import read_manifest
from fusmae_ingest.coverage import Coverage
from fusmae_ingest.croissant import croissant_json
from fusmae_ingest.facts import BIGEARTHNET_FACTS
from fusmae_ingest.origins import BIGEARTHNET_V2

KINDS = ("v1", "v2", "sen12ms")


@pytest.fixture(params=KINDS)
def dataset(made_datasets, request):
    return made_datasets[request.param]


def document(dataset) -> dict:
    return json.loads((dataset / "croissant.json").read_text())


def field(document, record_set, name) -> dict:
    records = next(r for r in document["recordSet"] if r["@id"] == record_set)
    return next(f for f in records["field"] if f["@id"] == f"{record_set}/{name}")


def plain(value):
    """A value of either reader as plain Python: text for its bytes, None for what is missing."""
    if isinstance(value, list | np.ndarray):
        return [plain(item) for item in value]
    if isinstance(value, bytes) and not value.startswith(b"\x01"):  # WKB, little-endian
        return value.decode()
    return None if pandas.isna(value) else value


def test_mlcroissant_finds_no_fault(dataset):
    issues = mlcroissant.Dataset(jsonld=dataset / "croissant.json").metadata.ctx.issues
    assert issues.errors == set() and issues.warnings == set()


def test_it_says_that_it_is_croissant_1_1_and_geocroissant_1_0(dataset):
    told = document(dataset)
    version = "http://mlcommons.org/croissant/"
    assert told["conformsTo"] == [f"{version}1.1", f"{version}geo/1.0"]
    assert told["@context"]["geocr"] == "http://mlcommons.org/croissant/geo/"


def test_the_records_of_samples_are_the_rows_of_the_table(dataset):
    table = pandas.read_parquet(dataset / "samples.parquet")
    records = list(mlcroissant.Dataset(jsonld=dataset / "croissant.json").records("samples"))
    assert len(records) == len(table)
    for record, (_, row) in zip(records, table.iterrows(), strict=True):
        assert list(record) == [f"samples/{column}" for column in table.columns]
        for column in table.columns:
            assert plain(record[f"samples/{column}"]) == plain(row[column]), column


def test_every_file_is_listed_with_its_size_and_checksum(dataset):
    listed = {f["contentUrl"]: f for f in document(dataset)["distribution"] if "contentUrl" in f}
    beside = {"dataset.json", "README.md", "croissant.json"}
    paths = {str(p.relative_to(dataset)) for p in dataset.rglob("*") if p.is_file()}
    assert set(listed) == {p for p in paths - beside if not p.startswith("zarr/")}
    for path, entry in listed.items():
        data = (dataset / path).read_bytes()
        assert entry["sha256"] == hashlib.sha256(data).hexdigest()
        assert entry["contentSize"] == f"{len(data)} B"


def test_croissant_is_a_file_of_the_manifest_and_names_no_place_on_this_machine(dataset):
    files = {file.path: file for file in read_manifest(dataset).files}
    data = (dataset / "croissant.json").read_bytes()
    assert files["croissant.json"].sha256 == hashlib.sha256(data).hexdigest()
    assert str(dataset.parent).encode() not in data


def test_arrays_come_out_of_the_shards_as_webdataset_reads_them(made_datasets, tmp_path):
    dataset = made_datasets["v2"]
    # A process of its own: mlcroissant reads the place of its cache when it is imported.
    script = """
import io, json, mlcroissant, numpy, sys
records = mlcroissant.Dataset(jsonld=sys.argv[1]).records("s2_20m")
arrays = {r["s2_20m/key"].decode(): numpy.load(io.BytesIO(r["s2_20m/npy"])) for r in records}
numpy.savez(sys.argv[2], **arrays)
"""
    subprocess.run(
        [sys.executable, "-c", script, dataset / "croissant.json", tmp_path / "arrays.npz"],
        env={**os.environ, "CROISSANT_CACHE": str(tmp_path / "cache")},
        check=True,
        timeout=120,
    )
    arrays = np.load(tmp_path / "arrays.npz")
    shards = sorted(map(str, dataset.glob("shards/*/*.tar")))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode())
    assert len(samples) == len(arrays) == 24
    for sample in samples:
        np.testing.assert_array_equal(arrays[sample["__key__"]], sample["s2_20m.npy"])


def test_coverage_is_that_of_the_footprints_and_times(dataset):
    told, table = document(dataset), pandas.read_parquet(dataset / "samples.parquet")
    # A WKB polygon of one ring: 13 bytes of header, then pairs of longitude and latitude.
    points = np.concatenate([np.frombuffer(b, "<f8", offset=13) for b in table.footprint])
    lon, lat = points.reshape(-1, 2).T
    south, west, north, east = map(float, told["spatialCoverage"]["geo"]["box"].split())
    assert (west, east) == (lon.min(), lon.max()) and (south, north) == (lat.min(), lat.max())
    assert told["geocr:coordinateReferenceSystem"].split(", ") == sorted(set(table.crs))
    if "time_s1" not in table:
        assert "temporalCoverage" not in told
        return
    times = pandas.concat([table.time_s1, table.time_s2])
    first, last = map(pandas.Timestamp, told["temporalCoverage"].split("/"))
    assert (first, last) == (times.min(), times.max())


def test_bands_have_their_names_resolutions_and_wavelengths(made_datasets):
    told = document(made_datasets["v2"])
    names = told["geocr:bandConfiguration"]["geocr:bandNameList"]
    assert names == [
        "VV",
        "VH",
        "B02",
        "B03",
        "B04",
        "B08",
        "B05",
        "B06",
        "B07",
        "B8A",
        "B11",
        "B12",
        "B01",
        "B09",
        "CLC",
    ]
    assert told["geocr:bandConfiguration"]["geocr:totalBands"] == 15
    resolution = told["geocr:spatialResolution"]
    assert (resolution["minValue"], resolution["maxValue"]) == (10, 60)
    centres = {
        band["name"]: band["geocr:centerWavelength"]["value"]
        for band in told["geocr:spectralBandMetadata"]
    }
    assert len(centres) == 12 and centres["B8A"] == 864.7 and "VV" not in centres
    npy = field(told, "s2_60m", "npy")
    assert [band["name"] for band in npy["geocr:spectralBandMetadata"]] == ["B01", "B09"]
    assert "uint16, shape (2, 20, 20)" in npy["description"]
    told = document(made_datasets["sen12ms"])
    assert told["geocr:spatialResolution"]["value"] == 10
    assert "float32, shape (2, 256, 256), in dB" in field(told, "s1", "npy")["description"]


def test_a_simulated_dataset_says_so_and_claims_nobody_as_its_creator(dataset):
    told = document(dataset)
    assert told["description"].startswith("SIMULATED") and "simulated" in told["keywords"]
    assert [c["name"] for c in told["creator"]] == ["fusmae-ingest simulate"]
    assert told["url"] == "./" and "publisher" not in told and "prov:wasDerivedFrom" not in told


def test_an_observed_dataset_names_its_archive(made_datasets, tmp_path):
    manifest = read_manifest(made_datasets["v2"])
    manifest = replace(manifest, simulated=False, source=BIGEARTHNET_V2, files=manifest.files[:2])
    coverage = Coverage((5.9, 36.9, 31.6, 70.1), ("EPSG:32633",), "2017-06-13", "2018-05-29")
    told = json.loads(croissant_json(manifest, coverage, BIGEARTHNET_FACTS))
    assert mlcroissant.Dataset(jsonld=told).metadata.ctx.issues.warnings == set()
    assert told["publisher"]["name"] == "Zenodo" and "SIMULATED" not in json.dumps(told)
    assert told["creator"][0]["name"] == "Kai Norman Clasen"
    assert told["prov:wasDerivedFrom"]["@id"] == told["url"] == BIGEARTHNET_V2["url"]
    assert told["license"].endswith("CDLA-Permissive-1.0.html") and "@inproc" in told["citeAs"]
