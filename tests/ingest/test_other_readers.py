"""Datasets opened by other people's readers, in processes that never load anything of ours.

Every reader is one script; what it read is compared here with rasterio's reading of the
source GeoTIFFs and with the source's JSON.
"""

import ast
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.warp import transform

IMPORTS = (ast.Import, ast.ImportFrom)
README = Path(__file__).parents[2] / "README.md"

# `pixels` maps KEY/ARRAY/BAND to an image, `facts` a key to JSON-ready facts. Band names come
# from dataset.json, read as any JSON.
BEFORE = """
import json, sys
from pathlib import Path
import numpy as np
dataset, out = map(Path, sys.argv[1:])
arrays = json.loads((dataset / "dataset.json").read_text())["arrays"]
bands = {array["name"]: [band["name"] for band in array["bands"]] for array in arrays}
splits = ["train", "val", "test"]
pixels, facts = {}, {}

def take(key, array, stack):
    assert len(stack) == len(bands[array])
    pixels.update({f"{key}/{array}/{band}": image for band, image in zip(bands[array], stack)})
"""
AFTER = """
ours = [name for name in sys.modules if name.partition(".")[0] in ("fusmae", "fusmae_ingest")]
assert not ours, ours
np.savez(out / "pixels.npz", **pixels)
(out / "facts.json").write_text(json.dumps(facts))
"""
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


@dataclass(frozen=True)
class Source:
    """A pair as rasterio and the json module read it; images by ARRAY/BAND."""

    images: dict[str, Any]
    labels: list[str]
    time: np.datetime64
    grids: dict[str, tuple[Any, Any, Any]]  # array -> CRS, transform, bounds


@dataclass(frozen=True)
class Case:
    """A dataset, its sources by key, and a way to run a script on it."""

    dataset: Path
    sources: dict[str, Source]
    out: Path

    def read(self, script: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The pixels and facts that a reader's script finds."""
        run(BEFORE + script + AFTER, self.out, self.dataset, self.out)
        with np.load(self.out / "pixels.npz") as pixels:
            return dict(pixels), json.loads((self.out / "facts.json").read_text())

    def check_pixels(self, pixels: dict[str, Any]) -> None:
        """Every image of every source was read, with its values and dtype, and no other."""
        expected = {
            f"{key}/{name}": image
            for key, source in self.sources.items()
            for name, image in source.images.items()
        }
        assert pixels.keys() == expected.keys()
        for name, image in expected.items():
            assert pixels[name].dtype == image.dtype, name
            np.testing.assert_array_equal(pixels[name], image, err_msg=name)


def run(script: str, folder: Path, *args: Path) -> str:
    """Run a script in a fresh process whose caches lie in `folder`; its output."""
    environment = {**os.environ, **OFFLINE, "HF_HOME": str(folder / "hf"), "HOME": str(folder)}
    command = [sys.executable, "-c", script, *map(str, args)]
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


BANDS = {
    "s1": ["VV", "VH"],
    "s2_10m": ["B02", "B03", "B04", "B08"],
    "s2_20m": ["B05", "B06", "B07", "B8A", "B11", "B12"],
    "s2_60m": ["B01", "B09"],
}


def read_sources(archive: Path) -> dict[str, Source]:
    """Every pair of an archive, by the name of its S2 patch."""
    sources = {}
    for s1 in sorted((archive / "BigEarthNet-S1-v1.0").glob("S[12]*")):
        told = json.loads((s1 / f"{s1.name}_labels_metadata.json").read_text())
        s2 = archive / "BigEarthNet-v1.0" / told["corresponding_s2_patch"]
        images, grids = {}, {}
        for array, names in BANDS.items():
            folder = s1 if array == "s1" else s2
            for name in names:
                with rasterio.open(folder / f"{folder.name}_{name}.tif") as file:
                    images[f"{array}/{name}"] = file.read(1)
                    grids[array] = (file.crs, file.transform, file.bounds)
        s2_json = json.loads((s2 / f"{s2.name}_labels_metadata.json").read_text())
        time = np.datetime64(s2_json["acquisition_date"])
        sources[s2.name] = Source(images, s2_json["labels"], time, grids)
    return sources


@pytest.fixture(scope="module", params=["simulated", "real"])
def case(request, fusmae_ingest, paths, tmp_path_factory) -> Case:
    fixture = {"simulated": "archive_v1", "real": "real_v1"}[request.param]
    archive = request.getfixturevalue(fixture)
    out = tmp_path_factory.mktemp(request.param)
    formats = ("--format", "shards", "--format", "zarr", "--samples-per-shard", 4)
    result = fusmae_ingest("bigearthnet", *paths(archive), "--out", out / "ben", *formats)
    assert result.returncode == 0, result.stderr
    return Case(out / "ben", read_sources(archive), out)


def test_webdataset(case):
    pixels, facts = case.read("""
import webdataset
shards = sorted(map(str, dataset.glob("shards/*/*.tar")))
for sample in webdataset.WebDataset(shards, shardshuffle=False).decode():
    for array in bands:
        take(sample["__key__"], array, sample[f"{array}.npy"])
    facts[sample["__key__"]] = sample["json"]
""")
    case.check_pixels(pixels)
    for key, source in case.sources.items():
        assert sorted(facts[key]["labels"]["bigearthnet-43"]) == sorted(source.labels)
        crs, grid, _ = source.grids["s2_10m"]
        assert facts[key]["crs"] == crs.to_string()
        assert facts[key]["transform"] == list(grid)[:6]
        assert np.datetime64(facts[key]["time_s2"]) == source.time


def test_xarray_selects_bands_by_name(case):
    pixels, facts = case.read("""
import xarray
for split in splits:
    store = xarray.open_zarr(dataset / f"zarr/{split}.zarr")
    for row in range(store.sizes["sample"]):
        sample = store.isel(sample=row)
        key = str(sample.sample_id.values)
        for array, names in bands.items():
            for band in names:
                image = sample[array].sel({f"{array}_band": band})
                pixels[f"{key}/{array}/{band}"] = image.values
        labels = sample.class_43.values[sample.labels_bigearthnet_43.values == 1]
        facts[key] = {
            "labels": labels.tolist(), "time": str(sample.time.values), "crs": int(sample.crs)
        }
""")
    case.check_pixels(pixels)
    for key, source in case.sources.items():
        assert sorted(facts[key]["labels"]) == sorted(source.labels)
        assert np.datetime64(facts[key]["time"]) == source.time
        assert facts[key]["crs"] == source.grids["s2_10m"][0].to_epsg()


def test_pandas(case):
    _, facts = case.read("""
import pandas
for row in pandas.read_parquet(dataset / "samples.parquet").itertuples():
    facts[row.key] = {
        "labels": list(row.labels_bigearthnet_43), "time": row.time_s2.isoformat(),
        "crs": row.crs, "transform": list(row.transform), "split": row.split,
    }
""")
    assert facts.keys() == case.sources.keys()
    assert {fact["split"] for fact in facts.values()} <= {"train", "val", "test"}
    for key, source in case.sources.items():
        assert sorted(facts[key]["labels"]) == sorted(source.labels)
        assert np.datetime64(facts[key]["time"]) == source.time
        assert facts[key]["crs"] == source.grids["s2_10m"][0].to_string()
        assert facts[key]["transform"] == list(source.grids["s2_10m"][1])[:6]


def test_geopandas_finds_the_footprint_of_each_sample(case):
    _, facts = case.read("""
import geopandas
table = geopandas.read_parquet(dataset / "samples.parquet")
assert table.geometry.name == "footprint" and table.crs.to_string() == "OGC:CRS84"
for row in range(len(table)):
    sample = table.iloc[[row]]
    facts[sample.key.item()] = {
        "ring": list(sample.footprint.item().exterior.coords),
        "area": sample.to_crs(sample["crs"].item()).area.item(),
    }
""")
    assert facts.keys() == case.sources.keys()
    for key, source in case.sources.items():
        crs, _, bounds = source.grids["s2_10m"]
        left, bottom, right, top = bounds
        corners = ([left, right, right, left, left], [bottom, bottom, top, top, bottom])
        expected = np.transpose(transform(crs, "OGC:CRS84", *corners))
        np.testing.assert_allclose(facts[key]["ring"], expected, rtol=0, atol=1e-9)
        # 1.2 km by 1.2 km.
        assert facts[key]["area"] == pytest.approx(1.44e6, rel=1e-6)


def test_energon_reads_every_sample_once(case):
    pixels, facts = case.read("""
from megatron import energon
encoder = energon.DefaultTaskEncoder()
encoder.cookers = [energon.Cooker(energon.stateless(lambda sample: sample))]
counts = dict.fromkeys(splits, 0)
for split in splits:
    samples = energon.get_train_dataset(
        dataset, split_part=split, task_encoder=encoder, batch_size=None, repeat=False,
        shuffle_buffer_size=None, max_samples_per_sequence=None,
        worker_config=energon.WorkerConfig.default_worker_config(0),
    )
    for sample in energon.get_loader(samples):
        assert sample["__key__"] not in facts
        for array in bands:
            take(sample["__key__"], array, sample[f"{array}.npy"].numpy())
        facts[sample["__key__"]] = sample["json"]
""")
    case.check_pixels(pixels)
    for key, source in case.sources.items():
        assert sorted(facts[key]["labels"]["bigearthnet-43"]) == sorted(source.labels)


@pytest.mark.parametrize("streaming", [True, False])
def test_hugging_face_datasets(case, streaming):
    # Arrays come as lists; the dtype is the feature's.
    pixels, facts = case.read(f"""
import datasets
files = {{split: str(dataset / f"shards/{{split}}/*.tar") for split in splits}}
loaded = datasets.load_dataset("webdataset", data_files=files, streaming={streaming})
for samples in loaded.values():
    for sample in samples:
        for array in bands:
            dtype = samples.features[f"{{array}}.npy"].feature.feature.feature.dtype
            take(sample["__key__"], array, np.asarray(sample[f"{{array}}.npy"], dtype))
        facts[sample["__key__"]] = sample["json"]
""")
    case.check_pixels(pixels)
    for key, source in case.sources.items():
        assert sorted(facts[key]["labels"]["bigearthnet-43"]) == sorted(source.labels)


@pytest.mark.parametrize("streaming", [True, False])
def test_hugging_face_datasets_by_the_card_alone(case, streaming):
    """Every field of KEY.json comes, typed, also where it is null in every sample."""
    pixels, facts = case.read(f"""
import datasets
loaded = datasets.load_dataset(str(dataset), streaming={streaming})
assert set(loaded) == set(splits), loaded
for samples in loaded.values():
    for sample in samples:
        for array in bands:
            dtype = samples.features[f"{{array}}.npy"].dtype
            take(sample["__key__"], array, np.asarray(sample[f"{{array}}.npy"], dtype))
        facts[sample["__key__"]] = sample["json"]
""")
    case.check_pixels(pixels)
    from fusmae.sample import decode

    for shard in case.dataset.glob("shards/*/*.tar"):
        for sample in decode(shard.read_bytes()):
            assert facts[sample["__key__"]] == sample["json"]


RASTERS = """
def write(key, array, image):
    facts[f"{key}/{array}"] = {
        "crs": image.rio.crs.to_string(), "transform": list(image.rio.transform())[:6],
        "bounds": list(image.rio.bounds()),
    }
    image = image.assign_attrs(long_name=bands[array])
    image.rio.to_raster(out / f"{key}-{array}.tif")
"""
FROM_ZARR = """
import rioxarray, xarray
from affine import Affine
for split in splits:
    sample = xarray.open_zarr(dataset / f"zarr/{split}.zarr").isel(sample=0)
    for array in bands:
        _, y, x = sample[array].dims
        size = 120 // sample.sizes[x]
        image = sample[array].rename({x: "x", y: "y"}).rio.write_crs(int(sample.crs))
        grid = Affine(*sample.transform.values) * Affine.scale(size)
        write(str(sample.sample_id.values), array, image.rio.write_transform(grid))
"""
FROM_TAR = """
import rioxarray, webdataset, xarray
from affine import Affine
shards = sorted(map(str, dataset.glob("shards/*/*.tar")))
for sample in webdataset.WebDataset(shards, shardshuffle=False).decode():
    for array in bands:
        image = xarray.DataArray(sample[f"{array}.npy"], dims=("band", "y", "x"))
        image = image.assign_coords(band=bands[array]).rio.write_crs(sample["json"]["crs"])
        grid = Affine(*sample["json"]["transform"]) * Affine.scale(120 // image.sizes["x"])
        write(sample["__key__"], array, image.rio.write_transform(grid))
"""


@pytest.mark.parametrize("script", [FROM_ZARR, FROM_TAR], ids=["zarr", "tar"])
def test_rioxarray_takes_samples_to_geotiffs_like_their_sources(case, script):
    _, facts = case.read(RASTERS + script)
    assert facts
    for name, fact in facts.items():
        key, array = name.split("/")
        crs, grid, bounds = case.sources[key].grids[array]
        assert fact["crs"] == crs.to_string()
        assert fact["transform"] == list(grid)[:6]
        assert fact["bounds"] == list(bounds)
        with rasterio.open(case.out / f"{key}-{array}.tif") as file:
            assert (file.crs, file.transform, file.bounds) == (crs, grid, bounds)
            assert list(file.descriptions) == BANDS[array]
            for band, image in zip(BANDS[array], file.read(), strict=True):
                expected = case.sources[key].images[f"{array}/{band}"]
                assert image.dtype == expected.dtype
                np.testing.assert_array_equal(image, expected)


def readme_snippets() -> dict[str, str]:
    """The README's lines for each reader, by the words before the comma above them."""
    section = README.read_text().split("\n## Any software reads the result\n")[1].split("\n## ")[0]
    return dict(re.findall(r"^([\w ]+),.*:\n\n```python\n([^`]*)```", section, re.M))


READERS = ["WebDataset", "xarray", "rioxarray", "pandas", "geopandas", "Energon"]
READERS += ["Hugging Face datasets"]


@pytest.mark.parametrize("case", ["simulated"], indirect=True)
@pytest.mark.parametrize("reader", READERS)
def test_the_readme_reads_it_in_three_statements_that_run(case, reader):
    snippet = readme_snippets()[reader]
    statements = [s for s in ast.parse(snippet).body if not isinstance(s, IMPORTS)]
    assert len(statements) <= 3
    run(snippet, case.out)
    if reader == "rioxarray":
        with rasterio.open(case.out / "sample.tif") as file:
            assert list(file.descriptions) == BANDS["s2_10m"]
