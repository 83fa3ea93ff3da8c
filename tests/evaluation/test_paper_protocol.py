"""The paper's protocols as the shipped recipes and tables have them, and a table run whole."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fusmae.config import PretrainRecipe, load_recipe
from fusmae.data import EvalLoader
from fusmae.evaluation import runs
from fusmae.evaluation.experiment import load_experiment
from fusmae.evaluation.experiment_page import markdown
from fusmae.evaluation.experiment_table import gather
from fusmae.evaluation.features import FeatureKind
from fusmae.evaluation.recipes import FinetuneRecipe, ProbeRecipe
from fusmae.evaluation.runs import ProbeOptions, run_probe
from fusmae.labels import BIGEARTHNET_43
from fusmae.manifest import MANIFEST_NAME, read_manifest, to_json
from fusmae.training.ds_config import plan_engine, read_ds_config

TRAIN = Path(__file__).parents[2] / "train"


def test_recipes_have_the_papers_epochs_batches_and_losses() -> None:
    """Sec. 4 of Fus-MAE: 20 epochs of 128; SEN12MS 10 of 256, labels smoothed; 10 to fine-tune."""
    recipes = TRAIN / "recipes"
    probe = load_recipe(ProbeRecipe, recipes / "probe.toml")
    assert (probe.epochs, probe.batch, probe.task) == (20, 128, "multi-label")
    sen12ms = load_recipe(ProbeRecipe, recipes / "probe_sen12ms.toml")
    assert (sen12ms.epochs, sen12ms.batch, sen12ms.task) == (10, 256, "single-label")
    assert sen12ms.smoothing == 0.1 and sen12ms.label_set == "sen12ms-igbp10"
    assert load_recipe(FinetuneRecipe, recipes / "finetune.toml").epochs == 10


def test_tables_have_the_papers_rows_sensors_and_metrics() -> None:
    rows = {"ImageNet", "DINO-MM", "SatViT v1", "SatViT v2", "Fus-MAE, XAD", "Fus-MAE, XAE&D"}
    first, second = (load_experiment(TRAIN / "tables" / f"table{n}.toml") for n in (1, 2))
    for table in (first, second):
        assert {system.name for system in table.systems} == rows
        assert table.sensors == ("s1", "s2", "s1,s2")
    multi_label = ("macro_map", "micro_map", "macro_f1", "micro_f1")
    scripts = {(p.script, p.fraction, p.metrics) for p in first.protocols}
    assert scripts == {("linear_probe", 0.01, multi_label), ("finetune", 1.0, multi_label)}
    weighted = ("weighted_precision", "weighted_recall", "weighted_f1")
    assert [p.metrics for p in second.protocols] == [("top1", "top3", *weighted)]


def test_table_1_stands_beside_the_papers_numbers_and_table_2_says_that_it_has_none() -> None:
    """Fus-MAE, Table 1: fine-tuned on all labels and probed on 1 %, of S1, S2 and both."""
    published = {
        "ImageNet": "70.2/85.5/83.4|55.9/58.5/60.5",
        "DINO-MM": "69.7/83.9/84.6|52.7/58.7/60.3",
        "SatViT v1": "75.4/85.6/85.5|52.4/58.5/58.0",
        "Fus-MAE, XAD": "73.5/87.8/86.9|59.3/60.4/63.1",
        "Fus-MAE, XAE&D": "75.5/87.9/87.9|57.8/70.0/68.7",
    }
    first, second = (load_experiment(TRAIN / "tables" / f"table{n}.toml") for n in (1, 2))
    told = {
        system.name: "|".join(
            "/".join(map(str, system.paper[protocol])) for protocol in ("FT 100 %", "LP 1 %")
        )
        for system in first.systems
        if system.paper
    }
    assert told == published
    assert not any(system.paper for system in second.systems)
    page = markdown(gather(second, Path("nowhere"), (0,)), second)
    assert "\n\nWithout the paper's numbers" in page


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("path", sorted((TRAIN / "tables").glob("*.toml")), ids=lambda p: p.stem)
def test_tables_pretrain_on_1_2_4_and_8_ranks(path: Path, ranks: int) -> None:
    how = load_experiment(path).pretrain
    optim = load_recipe(PretrainRecipe, path.parent / how.recipe).optim
    if path.stem.startswith("simulated"):  # the Makefile starts no more than 4 of these
        ranks = min(ranks, 4)
    plan = plan_engine(read_ds_config(path.parent / how.ds_config), optim, ranks)
    assert plan.micro_batch * plan.accumulation * ranks == optim.global_batch


def options(dataset: Path, encoder: Path, **changes: Any) -> ProbeOptions:
    features: FeatureKind = "pretrained"
    recipe = ProbeRecipe(epochs=1, lrs=(1e-3, 1e-2), **changes)
    return ProbeOptions(dataset, str(encoder), ("s1", "s2"), 1.0, features, recipe)


@pytest.fixture
def ben43(dataset: Path, tmp_path: Path) -> Path:
    """The tiny dataset with labels of the 43 classes, two a sample."""
    folder = Path(shutil.copytree(dataset, tmp_path / "ben43"))
    rows = pq.read_table(folder / "samples.parquet").to_pylist()
    for number, row in enumerate(rows):
        names = {BIGEARTHNET_43[number % 43], BIGEARTHNET_43[number * 7 % 43]}
        row["labels_bigearthnet_43"] = sorted(names)
    pq.write_table(pa.Table.from_pylist(rows), folder / "samples.parquet")
    manifest = read_manifest(folder)
    sets = {**manifest.label_sets, "bigearthnet-43": tuple(BIGEARTHNET_43)}
    (folder / MANIFEST_NAME).write_text(to_json(replace(manifest, label_sets=sets)))
    return folder


def test_43_classes_are_probed_as_well(ben43: Path, encoder: Path, tmp_path: Path) -> None:
    chosen = options(ben43, encoder, label_set="bigearthnet-43")
    result, _ = run_probe(chosen, tmp_path / "out")
    assert result["num_classes"] == 43 and result["classes"] == list(BIGEARTHNET_43)
    score = result["results"]["mean_tokens"]
    assert len(score["per_class"]) + len(score["absent_classes"]) == 43


def test_a_probe_reads_test_once_and_once_more_for_each_sensors_reliance(
    dataset: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def noted(dataset: Path, split: str, *more: Any, **other: Any) -> EvalLoader:
        read.append(split)
        return EvalLoader(dataset, split, *more, **other)

    monkeypatch.setattr(runs, "EvalLoader", noted)
    run_probe(options(dataset, encoder, reliance=False), tmp_path / "plain")
    assert read == ["train", "val", "test"]
    read.clear()
    run_probe(options(dataset, encoder), tmp_path / "reliance")
    # Each exchange opens the samples, and the others that lend them a sensor's images.
    assert read == ["train", "val", "test", *(2 * 2 * ["test"])]


TOY = """
title = "Toy"
sensors = ["s1,s2"]
attention = ["XAE&D"]
[pretrain]
recipe = "pretrain.toml"
ds_config = "{ds}"
data = "ben"
[[systems]]
name = "XAE&D"
[[protocols]]
name = "LP"
script = "linear_probe"
recipe = "{recipes}/probe_sen12ms.toml"
metrics = ["top1", "weighted_f1"]
data = "sen12ms"
set = ["lrs=[1e-2]"]
[[protocols]]
name = "FT"
script = "finetune"
recipe = "{recipes}/finetune.toml"
metrics = ["macro_map"]
data = "ben"
set = ["epochs=2", "lrs=[1e-3]"]
"""
PRETRAIN = """
[model]
preset = "tiny"
image_px = 12
patch_px = 4
[data]
bands = {s1 = ["VV", "VH"], s2 = ["B02", "B03", "B04", "B08", "B8A", "B11", "B01"]}
[optim]
global_batch = 16
epochs = 2
warmup_epochs = 1
[run]
validate_every_steps = 1
"""


@pytest.fixture
def toy_table(tmp_path: Path) -> Path:
    (tmp_path / "pretrain.toml").write_text(PRETRAIN)
    ds = TRAIN.parent / "ds_configs" / "cpu.json"
    (tmp_path / "toy.toml").write_text(TOY.format(ds=ds, recipes=TRAIN / "recipes"))
    return tmp_path / "toy.toml"


def test_a_table_runs_from_pretraining_to_its_page(
    toy_table: Path, dataset: Path, sen12ms: Path, tmp_path: Path
) -> None:
    """The real scripts: pretrained on one dataset, probed on another, fine-tuned on the first."""
    command = [sys.executable, TRAIN / "table.py", toy_table, "--out", tmp_path / "out"]
    command += ["--data", f"ben={dataset}", "--data", f"sen12ms={sen12ms}"]
    command += ["--launcher", sys.executable]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "out" / "toy.json").read_text())
    for rows in (part["rows"] for part in table["protocols"].values()):
        for row, cells in rows.items():
            assert list(cells["s1,s2"]["scores"]) == ["0"], row
    for part in (
        "| Pretraining | samples |",
        "| Attention to other sensors",
        "| XAE&D, global token |",
        "| XAE&D | 0.001 |",
        "this run's test split 0 of 23",
        "training of its own",
    ):
        assert part in done.stdout, part
