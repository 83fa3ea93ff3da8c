"""The preview page as a browser would take it apart: pictures, words, charts."""

import hashlib
import json
import math
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from rasterio.warp import transform

from fusmae.manifest import FileRecord, read_manifest
from fusmae_ingest import preview_histograms
from fusmae_ingest.preview_text import left_out_table

from ..manifests import edit_manifest  # noqa: TID252
from .page_parser import parse, pixels

PICTURES = ["True colour", "False colour", "VV", "VH", "VV, VH, VV/VH"]


@pytest.fixture(scope="module")
def dataset(shards_v1) -> Path:
    return shards_v1


@pytest.fixture(scope="module")
def page(dataset, fusmae_ingest, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("preview") / "page.html"
    result = fusmae_ingest("preview", dataset, "--out", out, "--samples", 6)
    assert result.returncode == 0, result.stderr
    return out


@pytest.fixture(scope="module")
def maps_dataset(archive_v2, fusmae_ingest, paths, tmp_path_factory) -> Path:
    """BigEarthNet v2 with reference maps, zarr alone."""
    out = tmp_path_factory.mktemp("preview") / "maps"
    tables = [
        item for path in sorted(archive_v2.glob("*.parquet")) for item in ("--metadata", path)
    ]
    args = ("--maps", archive_v2 / "Reference_Maps", "--format", "zarr", "--samples-per-shard", 4)
    result = fusmae_ingest("bigearthnet", *paths(archive_v2), *tables, "--out", out, *args)
    assert result.returncode == 0, result.stderr
    return out


def shown_keys(dataset: Path, split: str, count: int) -> list[str]:
    table = pandas.read_parquet(dataset / "samples.parquet")
    keys = table.key[table.split == split].tolist()
    return [keys[math.floor(i * len(keys) / count)] for i in range(count)]


def test_every_asked_sample_has_all_its_pictures(dataset, page):
    samples = parse(page).samples
    assert len(samples) == 6
    for sample, key in zip(samples, shown_keys(dataset, "train", 6), strict=True):
        assert sample["text"].split()[0] == key
        assert [name for name in sample if name != "text"] == PICTURES
        assert all(pixels(sample[name]).shape[:2] == (120, 120) for name in PICTURES)


def test_the_page_needs_nothing_but_itself(page):
    parsed = parse(page)
    assert not {"script", "link", "iframe", "object"} & set(parsed.tags)
    assert parsed.links and all(link.startswith("data:image/png") for link in parsed.links)
    assert "url(" not in page.read_text() and "@import" not in page.read_text()


def test_pictures_are_the_archives_pixels_between_the_percentiles_of_train(
    dataset, page, archive_v1
):
    table = pandas.read_parquet(dataset / "samples.parquet").set_index("key")

    def read(key: str, band: str) -> np.ndarray:
        radar = band in ("VV", "VH")
        name = table.s1_name[key] if radar else key
        folder = "BigEarthNet-S1-v1.0" if radar else "BigEarthNet-v1.0"
        with rasterio.open(archive_v1 / folder / name / f"{name}_{band}.tif") as file:
            return file.read(1).astype(float)

    train = table.index[table.split == "train"]
    values = {
        band: np.sort([read(key, band) for key in train], axis=None)
        for band in ("B02", "B03", "B04", "B08", "VV", "VH")
    }

    def rank(band: str, share: float) -> float:
        return values[band][math.ceil(share * values[band].size) - 1]

    def gamma(medians: list[float]) -> float:
        return round(min(1, math.log(1 / 3) / math.log(np.mean(medians))), 2)

    ends = {band: (rank(band, 0.02), rank(band, 0.98)) for band in values}
    true, false = ("B04", "B03", "B02"), ("B08", "B04", "B03")
    # True colour has one stretch for all three, false colour one for each.
    low, high = min(ends[b][0] for b in true), max(ends[b][1] for b in true)
    places = [(rank(b, 0.5) - ends[b][0]) / (ends[b][1] - ends[b][0]) for b in false]
    widest = gamma([(rank(b, 0.5) - low) / (high - low) for b in true])
    for sample in parse(page).samples:
        key = sample["text"].split()[0]
        for view, bands, (dark, bright), power in (
            ("True colour", true, (low, high), widest),
            ("False colour", false, np.transpose([ends[b] for b in false]), gamma(places)),
            ("VV", ("VV",), ends["VV"], 1),
            ("VH", ("VH",), ends["VH"], 1),
        ):
            stack = np.stack([read(key, band) for band in bands], axis=-1).squeeze()
            expected = 255 * np.clip((stack - dark) / (bright - dark), 0, 1) ** power
            drawn = pixels(sample[view])
            assert drawn.shape == expected.shape
            assert np.abs(drawn - expected).max() <= 1, (key, view)
            assert drawn.std() > 10


def test_key_dates_place_and_labels_are_told(dataset, page, archive_v1):
    table = pandas.read_parquet(dataset / "samples.parquet").set_index("key")
    for sample, key in zip(parse(page).samples, shown_keys(dataset, "train", 6), strict=True):
        row, text = table.loc[key], sample["text"]
        for label in (*row.labels_bigearthnet_19, *row.labels_bigearthnet_43):
            assert label in text
        assert f"Sentinel-2 {row.time_s2:%Y-%m-%d %H:%M} UTC" in text
        assert f"Sentinel-1 {row.time_s1:%Y-%m-%d %H:%M} UTC" in text
        with rasterio.open(archive_v1 / "BigEarthNet-v1.0" / key / f"{key}_B02.tif") as file:
            lon, lat = transform(file.crs, "OGC:CRS84", *[[v] for v in file.xy(59.5, 59.5)])
        told = re.search(r"([\d.]+)° N, ([\d.]+)° ([EW])", text)
        sign = 1 if told[3] == "E" else -1
        np.testing.assert_allclose(
            (float(told[1]), sign * float(told[2])), (lat[0], lon[0]), atol=0.001
        )


def test_a_simulated_dataset_says_so_first_and_gives_its_source(page):
    text = parse(page).text
    assert text.index("SIMULATED") < text.index("Licence") < text.index("Citation")
    assert "arXiv:2105.07921" in text and "CC0-1.0" in text


def test_shards_and_zarr_give_the_same_pictures(
    dataset, page, archive_v1, fusmae_ingest, paths, tmp_path, without_charts
):
    args = ("bigearthnet", *paths(archive_v1), "--out", tmp_path / "d", "--samples-per-shard", 4)
    assert fusmae_ingest(*args, "--format", "zarr").returncode == 0
    assert not (tmp_path / "d" / "shards").exists()
    out = tmp_path / "page.html"
    result = fusmae_ingest("preview", tmp_path / "d", "--out", out, "--samples", 6)
    assert result.returncode == 0, result.stderr
    assert parse(out).samples == parse(page).samples


def test_a_page_is_made_anew_with_the_same_bytes(dataset, page, fusmae_ingest, tmp_path):
    out = tmp_path / "folder" / "page.html"
    out.parent.mkdir()
    older = page.read_text()
    out.write_text(older[: len(older) // 2])
    assert fusmae_ingest("preview", dataset, "--out", out, "--samples", 6).returncode == 0
    assert out.read_bytes() == page.read_bytes()
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("file", ["dataset.json", "shards/train/page.html", "link/page.html"])
def test_no_page_is_written_into_any_dataset(dataset, page, fusmae_ingest, tmp_path, file):
    other = tmp_path / "other"
    (other / "shards" / "train").mkdir(parents=True)
    shutil.copy(dataset / "dataset.json", other)
    # A page that was put there by hand is not replaced either.
    shutil.copy(page, other / "shards" / "train")
    (other / "link").symlink_to("shards/train")
    before = {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}
    result = fusmae_ingest("preview", dataset, "--out", other / file)
    assert result.returncode == 1
    assert f"--out {other / file} lies in the dataset {other}" in result.stderr
    assert {path: path.read_bytes() for path in other.rglob("*") if path.is_file()} == before


def test_without_out_the_page_lies_beside_the_dataset(dataset, page, fusmae_ingest, without_charts):
    out = dataset.with_name("dataset.html")
    result = fusmae_ingest("preview", f"{dataset}/", "--samples", 6)
    assert result.returncode == 0 and str(out) in result.stdout
    assert parse(out).samples == parse(page).samples


def test_no_numbers_of_an_axis_run_into_each_other(dataset, monkeypatch):
    figures = []
    monkeypatch.setattr(preview_histograms, "figure_png", figures.append)
    manifest = read_manifest(dataset)
    table = preview_histograms.read_histograms(dataset, manifest)
    preview_histograms.histogram_figure(manifest, manifest.arrays[2], table)
    # Three panels in a line as narrow as the five of SEN12MS, and values like those of its B10.
    figures[0].set_size_inches(12.8 * 3 / 5, 5)
    for axes, high in zip(figures[0].axes, np.linspace(0.002, 0.0035, 6), strict=True):
        axes.set_xlim(0.0001, high)
    figures[0].canvas.draw()
    for axes in figures[0].axes:
        boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
        inner = axes.bbox
        shown = [box for box in boxes if inner.x0 - 1 <= (box.x0 + box.x1) / 2 <= inner.x1 + 1]
        assert len(shown) >= 2
        assert all(one.x1 + 2 < other.x0 for one, other in pairwise(shown))


def test_class_maps_have_the_colours_of_corine_and_a_legend(
    maps_dataset, archive_v2, fusmae_ingest, tmp_path, without_charts
):
    out = tmp_path / "page.html"
    result = fusmae_ingest("preview", maps_dataset, "--out", out, "--samples", 100)
    assert result.returncode == 0, result.stderr
    parsed = parse(out)
    table = pandas.read_parquet(maps_dataset / "samples.parquet")
    keys = table.key[table.split == "train"].tolist()
    assert len(parsed.samples) == len(keys)
    # Copernicus Land Monitoring Service, clc_legend.csv.
    colours = {
        "Discontinuous urban fabric": (112, (255, 0, 0)),
        "Non-irrigated arable land": (211, (255, 255, 168)),
        "Coniferous forest": (312, (0, 166, 0)),
        "Mixed forest": (313, (77, 255, 0)),
        "Water bodies": (512, (128, 242, 230)),
    }
    seen = set()
    for key, sample in zip(keys, parsed.samples, strict=True):
        path = next(archive_v2.glob(f"Reference_Maps/*/{key}/{key}_reference_map.tif"))
        with rasterio.open(path) as file:
            codes = file.read(1)
        drawn = pixels(sample["CLC land cover"])
        for name, (code, colour) in colours.items():
            same = (drawn == colour).all(axis=-1)
            np.testing.assert_array_equal(same, codes == code)
            seen |= {name} if same.any() else set()
    legend = parsed.text.partition("CLC:")[2].partition("True colour")[0].split("\n")
    assert len(seen) >= 2 and seen == set(colours) & set(legend)
    flagged = table[table.split == "train"]
    for flag, column in (
        ("seasonal snow", "seasonal_snow"),
        ("cloud or shadow", "cloud_or_shadow"),
    ):
        told = [flag in sample["text"] for sample in parsed.samples]
        assert told == flagged[column].tolist()
    for sample, country in zip(parsed.samples, flagged.country, strict=True):
        assert f" {country}\n" in sample["text"]


@pytest.mark.parametrize("with_lc", [True, False])
def test_sen12ms_with_and_without_land_cover(with_lc, fusmae_ingest, tmp_path):
    archive, dataset, out = (tmp_path / name for name in ("archive", "dataset", "page.html"))
    args = ("--out", archive, "--patches", 4, "--seed", 3)
    assert fusmae_ingest("simulate", "sen12ms", *args).returncode == 0
    lc = () if with_lc else ("--no-lc",)
    assert fusmae_ingest("sen12ms", "--root", archive, "--out", dataset, *lc).returncode == 0
    result = fusmae_ingest("preview", dataset, "--out", out, "--samples", 2)
    assert result.returncode == 0, result.stderr
    table = pandas.read_parquet(dataset / "samples.parquet").set_index("key")
    for sample in parse(out).samples:
        assert ("IGBP land cover" in sample) == with_lc
        key = sample["text"].split()[0]
        if with_lc:
            name = table.label_single[key]
            assert (
                f"{name} {100 * max(table.fractions[key]):.0f}\N{NO-BREAK SPACE}%" in sample["text"]
            )
        assert table.scene[key] in sample["text"]


def test_every_band_has_a_histogram_that_is_a_recount(dataset, archive_v1, monkeypatch):
    figures = []
    monkeypatch.setattr(preview_histograms, "figure_png", figures.append)
    manifest = read_manifest(dataset)
    table = preview_histograms.read_histograms(dataset, manifest)
    for spec in manifest.arrays:
        preview_histograms.histogram_figure(manifest, spec, table)
    axes = [axis for figure in figures for axis in figure.axes if axis.get_visible()]
    titles = [axis.get_title(loc="left") for axis in axes]
    bands = [f"{b.name}, " for spec in manifest.arrays for b in spec.bands]
    assert [title.startswith(band) for title, band in zip(titles, bands, strict=True)] == [
        True
    ] * 14
    assert "B04, 665 nm, 10 m" in titles and "VH, 10 m" in titles
    rows = pandas.read_parquet(dataset / "samples.parquet")
    stack = []
    for key in rows.key[rows.split == "train"]:
        with rasterio.open(archive_v1 / "BigEarthNet-v1.0" / key / f"{key}_B08.tif") as file:
            stack.append(file.read(1))
    axis = axes[bands.index("B08, ")]
    steps = {patch.get_label(): patch.get_data() for patch in axis.patches}
    edges = np.rint(np.array(steps["train"].edges) * 1e4)
    expected, _ = np.histogram(np.array(stack) + 0.5, edges)
    np.testing.assert_allclose(steps["train"].values, 100 * expected / np.size(stack))
    assert 98 <= sum(steps["train"].values) <= 100


def test_pixels_of_samples_that_are_not_shown_are_not_read(
    dataset, fusmae_ingest, tmp_path, without_charts
):
    copy = shutil.copytree(dataset, tmp_path / "d")
    for shard in read_manifest(copy).splits["train"].shards[1:]:
        (copy / shard.path).unlink()
    for count, code in ((1, 0), (2, 1)):
        args = ("preview", copy, "--out", tmp_path / f"{count}.html", "--samples", count)
        assert fusmae_ingest(*args).returncode == code


def test_text_of_the_data_is_escaped(maps_dataset, fusmae_ingest, tmp_path):
    copy = shutil.copytree(maps_dataset, tmp_path / "d")
    hostile = "<script>alert('&')</script>"
    path = copy / "samples.parquet"
    table = pq.read_table(path)
    column = pa.array([hostile] * len(table), pa.string())
    labels = pa.array([[hostile]] * len(table), pa.list_(pa.string()))
    for name, values in (("country", column), ("labels_bigearthnet_19", labels)):
        table = table.set_column(table.column_names.index(name), name, values)
    pq.write_table(table, path)
    data = path.read_bytes()

    def write_hostile(manifest: dict[str, Any]) -> None:
        (record,) = (file for file in manifest["files"] if file["path"] == path.name)
        record |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        manifest["name"] = manifest["source"]["citation"] = hostile
        manifest["label_sets"]["bigearthnet-19"][0] = hostile

    edit_manifest(copy, write_hostile)
    out = tmp_path / "page.html"
    result = fusmae_ingest("preview", copy, "--out", out, "--samples", 2)
    assert result.returncode == 0, result.stderr
    parsed = parse(out)
    assert "script" not in parsed.tags and "<script" not in out.read_text()
    assert all(sample["text"].count(hostile) == 2 for sample in parsed.samples)


def test_samples_left_out_are_counted_by_reason(dataset, tmp_path):
    reasons = [
        "A_1/A_1_B05.tif is missing: extract it again",
        "B_2_3/B_2_3_B05.tif is missing: extract it again",
        "A_1/A_1_B02.tif holds 5,000 bytes, expected <29,200>",
    ]
    lines = [json.dumps({"key": "k", "split": "train", "reason": r}) for r in reasons]
    (tmp_path / "quarantine.jsonl").write_text("\n".join(lines) + "\n")
    manifest = read_manifest(dataset)
    assert "No sample was left out" in left_out_table(tmp_path, manifest)
    listed = replace(manifest, files=(FileRecord("quarantine.jsonl", 1, ""),))
    text = left_out_table(tmp_path, listed)
    assert "3 samples left out" in text and "<29" not in text
    counts = re.findall(r'<tr><td>(\d+)</td><td class="text">([^<]*)<', text)
    assert counts == [
        ("2", "…_B05.tif is missing: extract it again"),
        ("1", "…_B02.tif holds # bytes, expected &lt;#&gt;"),
    ]
