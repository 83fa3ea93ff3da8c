"""The real pairs through ingest and back by readers that know nothing of us."""

import json
import struct
from pathlib import Path

import numpy as np
import pandas
import pytest
import rasterio
import webdataset
import xarray
from rasterio.warp import transform

from fusmae.labels import labels_43_to_19

BANDS = {
    "s1": ["VV", "VH"],
    "s2_10m": ["B02", "B03", "B04", "B08"],
    "s2_20m": ["B05", "B06", "B07", "B8A", "B11", "B12"],
    "s2_60m": ["B01", "B09"],
}


@pytest.fixture(scope="module")
def dataset(real_v1, fusmae_ingest, paths, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("real") / "dataset"
    formats = ("--format", "shards", "--format", "zarr")
    result = fusmae_ingest(
        "bigearthnet", *paths(real_v1), "--out", out, "--samples-per-shard", 2, *formats
    )
    assert result.returncode == 0, result.stderr
    return out


def oracle(real_v1: Path, s2_name: str, s1_name: str) -> dict[str, np.ndarray]:
    """A pair as plain rasterio reads it, bands in the order of BANDS."""
    arrays = {}
    for name, bands in BANDS.items():
        patch = (
            real_v1 / "BigEarthNet-S1-v1.0" / s1_name
            if name == "s1"
            else real_v1 / "BigEarthNet-v1.0" / s2_name
        )
        layers = []
        for band in bands:
            with rasterio.open(patch / f"{patch.name}_{band}.tif") as file:
                layers.append(file.read(1))
        arrays[name] = np.stack(layers)
    return arrays


def test_plain_webdataset_reads_every_pixel_as_rasterio_does(dataset, real_v1):
    shards = sorted(map(str, dataset.glob("shards/*/*.tar")))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode())
    assert len(samples) == 6
    for sample in samples:
        expected = oracle(real_v1, sample["__key__"], sample["json"]["s1_name"])
        for name, pixels in expected.items():
            stored = sample[f"{name}.npy"]
            assert stored.dtype == pixels.dtype
            np.testing.assert_array_equal(stored, pixels)


def test_xarray_reads_every_pixel_as_rasterio_does_by_band_name(dataset, real_v1):
    partner = {
        json.loads(path.read_text())["corresponding_s2_patch"]: path.parent.name
        for path in real_v1.glob("BigEarthNet-S1-v1.0/*/*.json")
    }
    count = 0
    for store in sorted(dataset.glob("zarr/*.zarr")):
        split = xarray.open_zarr(store)
        for row in range(split.sizes["sample"]):
            sample = split.isel(sample=row)
            name = str(sample.sample_id.values)
            s1_name = partner[name]
            for array, pixels in oracle(real_v1, name, s1_name).items():
                for band, expected in zip(BANDS[array], pixels, strict=True):
                    stored = sample[array].sel({f"{array}_band": band}).values
                    assert stored.dtype == expected.dtype
                    np.testing.assert_array_equal(stored, expected)
            count += 1
    assert count == 6


def test_s1_is_stored_vv_then_vh(dataset):
    split = xarray.open_zarr(next(iter(dataset.glob("zarr/train.zarr"))))
    assert split.s1_band.values.tolist() == ["VV", "VH"]
    manifest = json.loads((dataset / "dataset.json").read_text())
    assert [b["name"] for b in manifest["arrays"][0]["bands"]] == ["VV", "VH"]
    # Cross-polarised backscatter of land is weaker than co-polarised.
    assert split.s1.sel(s1_band="VV").mean() > split.s1.sel(s1_band="VH").mean()


def test_the_table_holds_the_archives_own_labels_grids_and_times(dataset, real_v1):
    table = pandas.read_parquet(dataset / "samples.parquet").set_index("key")
    assert len(table) == 6
    for patch in sorted((real_v1 / "BigEarthNet-v1.0").glob("S[12]*")):
        facts = json.loads((patch / f"{patch.name}_labels_metadata.json").read_text())
        row = table.loc[patch.name]
        assert list(row.labels_bigearthnet_43) == facts["labels"]
        assert list(row.labels_bigearthnet_19) == labels_43_to_19(facts["labels"])
        assert str(row.time_s2) == facts["acquisition_date"]
        with rasterio.open(patch / f"{patch.name}_B02.tif") as file:
            assert row.crs == f"EPSG:{file.crs.to_epsg()}"
            assert tuple(row["transform"]) == tuple(file.transform)[:6]


def test_footprints_are_the_patch_corners_in_degrees(dataset, real_v1):
    table = pandas.read_parquet(dataset / "samples.parquet").set_index("key")
    for name, wkb in table.footprint.items():
        assert struct.unpack_from("<BIII", wkb) == (1, 3, 1, 5)
        ring = np.frombuffer(wkb, "<f8", offset=13).reshape(5, 2)
        file = rasterio.open(next(real_v1.glob(f"BigEarthNet-v1.0/{name}/*_B02.tif")))
        lon, lat = transform(file.crs, "OGC:CRS84", [file.bounds.left], [file.bounds.top])
        # Both go through PROJ: the same point to far less than a millimetre.
        np.testing.assert_allclose(ring[3], [lon[0], lat[0]], atol=1e-9)
        np.testing.assert_array_equal(ring[0], ring[4])


def test_verify_and_info_accept_the_dataset(dataset, fusmae_ingest):
    verified = fusmae_ingest("verify", dataset)
    assert verified.returncode == 0, verified.stderr
    assert "6 samples verified" in verified.stdout
    shown = fusmae_ingest("info", dataset)
    assert shown.returncode == 0 and "bigearthnet-v1" in shown.stdout
