"""The picture page: right pixels, honest labels, one file, and plain errors."""

import base64
import dataclasses
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from matplotlib.axes import Axes
from torch import Tensor

from fusmae.config import DataConfig, ModelConfig, PretrainRecipe, as_table
from fusmae.data import SplitReader
from fusmae.evaluation import attention, report_sections
from fusmae.evaluation.pictures import available_views, sample_figure
from fusmae.evaluation.reconstruction import (
    Reconstruction,
    band_errors,
    dataset_of,
    load_pretrained,
    reconstruct,
    squared_errors,
    token_pixels,
)
from fusmae.evaluation.report import main
from fusmae.manifest import MANIFEST_NAME
from fusmae.model import FusMAE
from fusmae.model.patches import patchify
from fusmae.sensor_config import SensorConfig
from fusmae.training.checkpoint import write_checkpoint

MODEL = ModelConfig(
    preset="tiny", image_px=12, patch_px=3, width=16, depth=2, heads=2, decoder_width=8
)
BANDS = {"s1": ("VV", "VH"), "s2": ("B02", "B03", "B04", "B08", "B11")}


def write_run(
    folder: Path,
    dataset: Path,
    model: ModelConfig = MODEL,
    bands: dict[str, tuple[str, ...]] = BANDS,
) -> FusMAE:
    """A run with one checkpoint at step 7, two log lines and a third one cut short."""
    recipe = PretrainRecipe(model=model, data=DataConfig(bands=bands))
    weights = FusMAE(model, {sensor: len(names) for sensor, names in bands.items()})
    folder.mkdir()
    named = {name: weight.detach() for name, weight in weights.named_parameters()}
    moments = {name: torch.zeros_like(weight) for name, weight in named.items()}
    tensors = {"weight": named, "exp_avg": moments, "exp_avg_sq": moments}
    write_checkpoint(folder, tensors, {"step": 7, "adam_steps": 7}, keep=2)
    digest = hashlib.sha256((dataset / MANIFEST_NAME).read_bytes()).hexdigest()
    record = {
        "recipe": as_table(recipe),
        "dataset": {"path": str(dataset), "manifest_sha256": digest},
    }
    (folder / "run.json").write_text(json.dumps(record))
    losses = dict.fromkeys(bands, 1.0)
    lines = [{"step": step, "loss": float(len(bands)), **losses} for step in (5, 7)]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 8, "lo'
    (folder / "metrics.jsonl").write_text(text)
    return weights


@pytest.fixture
def run(dataset: Path, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    write_run(tmp_path / "run", dataset)
    return tmp_path / "run"


def test_masked_pixels_are_those_of_the_masked_tokens() -> None:
    image = torch.arange(144.0).view(1, 1, 12, 12)
    chosen = torch.tensor([[0, 5, 14]])
    inside = image[0, 0][token_pixels(chosen, MODEL, "s1")[0]]
    expected = patchify(image, 3)[0, chosen[0]].flatten()
    assert sorted(inside.tolist()) == sorted(expected.tolist())


def test_reconstructions_are_in_stored_units_and_of_the_runs_weights(
    run: Path, dataset: Path
) -> None:
    pretrained = load_pretrained(run, dataset)
    assert pretrained.step == 7
    parts = list(reconstruct(pretrained, dataset, "val", 100))
    assert [key for part in parts for key in part.keys] == [f"val-0-{i}" for i in range(19)]
    reader = SplitReader(dataset, "val")
    stored = np.zeros((1, 4, 12, 12), np.uint16)
    others = {s.name: np.zeros((1, *s.shape), s.dtype) for s in reader.arrays}
    reader.read_into(np.array([18]), {**others, "s2_10m": stored})
    # B02, B03, B04 and B08 at native resolution; normalised and back in float32.
    np.testing.assert_allclose(parts[-1].truth["s2"][-1, :4], stored[0], atol=0.1)
    assert parts[0].masked["s1"].float().mean().item() == pytest.approx(12 / 16)


def test_band_errors_are_root_mean_squares_over_masked_pixels_of_all_batches() -> None:
    rng = np.random.default_rng(0)

    def part(size: int) -> Reconstruction:
        truth, predicted = (torch.tensor(rng.normal(5, 2, (size, 2, 6, 6))) for _ in range(2))
        masked = torch.tensor(rng.random((size, 6, 6)) < 0.7)
        return Reconstruction(("k",) * size, {"s1": truth}, {"s1": predicted}, {"s1": masked})

    parts = [part(3), part(2)]
    sums = squared_errors(parts[0])["s1"] + squared_errors(parts[1])["s1"]
    got = band_errors({"s1": sums}, {"s1": ("VV", "VH")})
    for channel, error in enumerate(got):
        squares, fills = [], []
        for each in parts:
            for truth, predicted, masked in zip(
                each.truth["s1"], each.predicted["s1"], each.masked["s1"], strict=True
            ):
                hidden = truth[channel][masked].numpy()
                squares += list((predicted[channel][masked].numpy() - hidden) ** 2)
                fills += list((truth[channel][~masked].numpy().mean() - hidden) ** 2)
        assert error.band == ("VV", "VH")[channel]
        assert error.rmse == pytest.approx(np.sqrt(np.mean(squares)))
        assert error.visible_mean == pytest.approx(np.sqrt(np.mean(fills)))


def test_only_the_third_and_fourth_pictures_depend_on_the_prediction() -> None:
    truth = {s: torch.rand(1, len(b), 12, 12) * 1000 for s, b in BANDS.items()}
    masked: dict[str, Tensor] = {s: torch.zeros(1, 12, 12, dtype=torch.bool) for s in BANDS}
    masked["s2"][0, :6] = True
    wrong = {s: torch.full_like(x, 500) for s, x in truth.items()}
    columns = {}
    for name, predicted in (("perfect", truth), ("wrong", wrong)):
        png = sample_figure(Reconstruction(("k",), truth, predicted, masked), 0, BANDS)
        pixels = matplotlib.image.imread(io.BytesIO(png))
        columns[name] = np.array_split(pixels[:, -pixels.shape[1] * 4 // 5 :], 4, axis=1)
    # Input and masked input do not depend on the prediction; the other two do.
    same = [np.array_equal(a, b) for a, b in zip(columns["perfect"], columns["wrong"], strict=True)]
    assert same == [True, True, False, False]


def test_views_need_their_bands() -> None:
    titles = [view.title for view in available_views({"s1": ("VV",), "s2": ("B02", "B03", "B04")})]
    assert titles == ["True colour", "Radar backscatter"]


def test_a_view_finds_its_bands_in_a_group_of_their_sensor() -> None:
    groups = {"s2_10m": ("B02", "B03", "B04"), "s2_20m": ("B11",), "s1": ("VV",)}
    views = [(view.title, view.sensor) for view in available_views(groups)]
    assert views == [("True colour", "s2_10m"), ("Radar backscatter", "s1")]


def test_a_page_of_grouped_bands_and_a_class_map_has_no_errors_of_classes(
    dataset: Path, tmp_path: Path
) -> None:
    sensors = {
        "s2_20m": SensorConfig(patch_px=2),
        "map": SensorConfig(loss="cross_entropy", num_classes=44),
    }
    bands = {
        "s2_10m": ("B02", "B03", "B04"),
        "s2_20m": ("B11",),
        "map": ("CLC",),
    }
    write_run(tmp_path / "run", dataset, dataclasses.replace(MODEL, sensors=sensors), bands)
    done = CliRunner().invoke(main, [str(tmp_path / "run"), "--data", str(dataset)])
    assert done.exit_code == 0, done.output
    text = _Page((tmp_path / "run" / "report.html").read_text()).text
    assert "S2_20M B11" in text
    assert "MAP CLC" not in text


class _Page(HTMLParser):
    """Collects what a page shows, and what it would fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.links, self.open = "", [], []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_one_whole_file_that_says_what_it_shows(run: Path, dataset: Path) -> None:
    done = CliRunner().invoke(main, [str(run), "--data", str(dataset)])
    assert done.exit_code == 0, done.output
    page = _Page((run / "report.html").read_text())
    assert page.open == []
    # The loss curve, four samples, attention by block, two samples' maps, embeddings.
    assert len(page.links) == 1 + 4 + 1 + 2 + 1
    for link in page.links:
        png = base64.b64decode(link.removeprefix("data:image/png;base64,"))
        assert matplotlib.image.imread(io.BytesIO(png)).std() > 0
    for text in ("simulated data", "after step 7", "19 samples of the val split", "val-0-3"):
        assert text in page.text
    assert re.findall("S[12] (?:V[VH]|B[0-9]{2})", page.text) == [
        f"{sensor.upper()} {band}" for sensor, bands in BANDS.items() for band in bands
    ]
    assert "up to its mean" not in page.text
    assert "Block 1 is XAttnEncoder" in page.text and "t-SNE of 19 samples" in page.text


def test_the_page_says_when_token_statistics_come_from_the_true_pixels(
    dataset: Path, tmp_path: Path
) -> None:
    write_run(tmp_path / "run", dataset, dataclasses.replace(MODEL, normalise_target=True))
    out = tmp_path / "page.html"
    titles: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Axes, "set_title", lambda axes, title, **_: titles.append(title))
        CliRunner().invoke(main, [str(tmp_path / "run"), "--data", str(dataset), "--out", str(out)])
    assert sum(title.startswith("Reconstruction, unnormalised:") for title in titles) == 4
    assert "up to its mean and standard deviation" in out.read_text()


@pytest.mark.parametrize("fusion", ["late", "stack"])
def test_a_page_of_sensors_that_never_meet_has_no_attention_between_them(
    dataset: Path, tmp_path: Path, fusion: str
) -> None:
    model = dataclasses.replace(MODEL, fusion=fusion)  # type: ignore[arg-type]
    write_run(tmp_path / "run", dataset, model)
    done = CliRunner().invoke(main, [str(tmp_path / "run"), "--data", str(dataset)])
    assert done.exit_code == 0, done.output
    page = _Page((tmp_path / "run" / "report.html").read_text())
    assert len(page.links) == 1 + 4 + 1 and "Attention" not in page.text


def test_losses_are_drawn_by_sensor_for_train_and_val(run: Path, dataset: Path) -> None:
    drawn: list[dict[str, Any]] = []

    def loss_figure(*curves: Any) -> bytes:
        drawn.extend(curves)
        return b""

    path = run / "metrics.jsonl"
    whole = path.read_text().rpartition("\n")[0] + "\n"
    without = json.dumps({"step": 9, "loss": 0.5, "s2": 0.5})  # a step that left s1 out
    val = json.dumps({"step": 8, "val": {"s1": 3.0, "s2": 4.0, "loss": 7.0}})
    path.write_text(whole + val + "\n" + without + "\n" + '{"step": 10, "lo')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_sections, "loss_figure", loss_figure)
        section = report_sections.loss_section(run, load_pretrained(run, dataset).recipe)
    train, validated = drawn
    assert train["s1"] == ((5, 7), (1.0, 1.0)) and train["s2"] == ((5, 7, 9), (1.0, 1.0, 0.5))
    assert train["sum"] == ((5, 7, 9), (2.0, 2.0, 0.5))
    assert validated == {"s1": ((8,), (3.0,)), "s2": ((8,), (4.0,)), "sum": ((8,), (7.0,))}
    assert "dashed: on samples of the val split" in section


def test_the_dataset_is_the_runs_own_if_none_is_given(run: Path, dataset: Path) -> None:
    assert dataset_of(run) == dataset
    done = CliRunner().invoke(main, [str(run)])
    assert done.exit_code == 0, done.output
    assert (run / "report.html").exists()
    record = json.loads((run / "run.json").read_text())
    for gone in ("/nowhere/ben", "s3://bucket/ben"):
        record["dataset"]["path"] = gone
        (run / "run.json").write_text(json.dumps(record))
        for command in (main, attention.main):
            done = CliRunner().invoke(command, [str(run)])
            told = f"Error: {run} was trained on {gone}, which is no dataset here: give --data"
            assert (done.exit_code, done.output.splitlines()) == (1, [told])


@pytest.mark.parametrize("damage", ["run.json", "checkpoints", "dataset", "split"])
def test_a_page_that_cannot_be_made_is_one_line_that_says_why(
    run: Path, dataset: Path, damage: str
) -> None:
    arguments = [str(run), "--data", str(dataset)]
    if damage == "run.json":
        (run / "run.json").unlink()
        message = "a run of train/pretrain.py?"
    elif damage == "checkpoints":
        (run / "checkpoints").rename(run / "gone")
        message = "has no checkpoint yet"
    elif damage == "dataset":
        record = json.loads((run / "run.json").read_text())
        record["dataset"]["manifest_sha256"] = "0" * 64
        (run / "run.json").write_text(json.dumps(record))
        message = "is not the same"
    else:
        arguments += ["--split", "vaal"]
        message = "there is no split 'vaal'"
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1
    assert message in done.output and "Traceback" not in done.output
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("text", ['{"a":', "{}", "[]", '{"dataset": 3}', '{"dataset": {}}'])
def test_a_record_that_is_damaged_is_named(run: Path, dataset: Path, text: str) -> None:
    (run / "run.json").write_text(text)
    done = CliRunner().invoke(main, [str(run), "--data", str(dataset)])
    assert done.exit_code == 1 and done.output.count("\n") == 1
    assert f"Error: {run / 'run.json'} is damaged, or of another release: " in done.output


def test_a_page_needs_no_log(run: Path, dataset: Path) -> None:
    (run / "metrics.jsonl").unlink()
    done = CliRunner().invoke(main, [str(run), "--data", str(dataset)])
    assert done.exit_code == 0, done.output
