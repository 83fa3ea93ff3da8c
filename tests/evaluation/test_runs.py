"""Probe runs end to end on a tiny dataset, through the command that a user types."""

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "train" / "linear_probe.py"
RECIPE = ROOT / "train" / "recipes" / "probe.toml"
SEN12MS_RECIPE = ROOT / "train" / "recipes" / "probe_sen12ms.toml"
Probe = Callable[..., Result]


@pytest.fixture
def probe(dataset: Path, encoder: Path, tmp_path: Path) -> Probe:
    """Runs linear_probe.py; options given replace the usual ones, None takes one away."""
    spec = importlib.util.spec_from_file_location("linear_probe", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def run(*more: str, **changes: Any) -> Result:
        options = {
            "recipe": RECIPE,
            "data": dataset,
            "pretrained": encoder,
            "sensors": "s1,s2",
            "out": tmp_path / "out",
            **changes,
        }
        given = [
            part
            for name, value in options.items()
            if value is not None
            for part in (f"--{name}", str(value))
        ]
        return CliRunner().invoke(script.main, [*given, *more])

    return run


def result_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize("features", ["pretrained", "random", "band-statistics"])
def test_every_kind_of_features_is_probed_and_described(
    probe: Probe, tmp_path: Path, features: str
) -> None:
    done = probe("--fraction", "0.5", features=features)
    assert done.exit_code == 0, done.output
    result = result_in(tmp_path / "out")
    score = result["results"][result["headline"]]
    assert 0 < score["macro_map"] <= 1 and 0 < score["micro_map"] <= 1
    assert score["macro_map"] == pytest.approx(np.mean(list(score["per_class"].values())))
    assert len(score["per_class"]) + len(score["absent_classes"]) == 19
    assert score["val_macro_map"][str(score["lr"])] == max(score["val_macro_map"].values())
    assert result["num_labels"] == 20 and result["fraction"] == 0.5 and result["num_test"] == 23
    assert result["dataset"] == "tiny" and result["simulated"] is True
    assert result["options"]["recipe"]["label_set"] == "bigearthnet-19"
    assert "simulated data" in done.output and "20 labelled samples, 50 %" in done.output
    keys = (tmp_path / "out" / "labels_used.txt").read_text().split()
    assert len(set(keys)) == 20 and all(key.startswith("train-") for key in keys)
    if features != "band-statistics":
        assert list(result["results"]) == ["mean_tokens", "global_token"]


def test_a_result_says_split_classes_averaging_labels_seed_and_images(
    probe: Probe, tmp_path: Path
) -> None:
    probe("--fraction", "0.5", "--seed", "4", sensors="s1")
    result = result_in(tmp_path / "out")
    assert result["seed"] == 4 and result["num_labels"] == 20 and result["num_classes"] == 19
    assert result["classes"][:2] == ["Urban fabric", "Industrial or commercial units"]
    assert (
        result["splits"]["test"]["split"] == "test" and result["splits"]["test"]["num_used"] == 23
    )
    assert "positive sample" in result["averaging"]["macro"]
    assert result["images"]["size_px"] == {"s1": 12} and result["images"]["bands"] == {
        "s1": ["VV", "VH"]
    }
    score = result["results"]["mean_tokens"]
    assert 0 <= score["macro_f1"] <= 1 and 0 <= score["micro_f1"] <= 1
    zero_filled = ["zero_filled_mean_tokens", "zero_filled_global_token"]
    assert list(result["results"]) == ["mean_tokens", "global_token", *zero_filled]


def test_labels_that_are_too_few_are_told_and_stand_in_the_result(
    probe: Probe, tmp_path: Path
) -> None:
    whole = probe(out=tmp_path / "whole")
    assert "warning" not in whole.output and result_in(tmp_path / "whole")["few_labels"] == ""
    done = probe("--fraction", "0.1")
    assert done.exit_code == 0, done.output
    result = result_in(tmp_path / "out")
    none = [name for name, count in result["labels_by_class"].items() if count == 0]
    assert len(result["labels_by_class"]) == 19 and len(none) > 3
    told = f"4 labelled samples for 19 classes, {len(none)} of which have none ({none[0]}; "
    assert f"warning: {told}" in done.output and done.output.count("warning") == 1
    assert result["few_labels"].startswith(told) and result["few_labels"].endswith(
        "by chance: take more by --fraction or --labels"
    )


def test_sen12ms_is_probed_by_one_class_a_patch_without_b10(
    probe: Probe, sen12ms: Path, tmp_path: Path
) -> None:
    done = probe(recipe=SEN12MS_RECIPE, data=sen12ms)
    assert done.exit_code == 0, done.output
    result = result_in(tmp_path / "out")
    assert result["task"] == "single-label" and result["num_classes"] == 10
    splits = result["splits"].values()
    assert [split["num_used"] + split["num_unlabelled"] for split in splits] == [40, 19, 23]
    assert result["splits"]["test"]["num_unlabelled"] == 3  # samples 63, 70 and 77
    assert "B10" in result["images"]["bands_left_out"]["s2"]
    assert result["images"]["native_px"] == {"s1": 16, "s2": 16}
    assert result["images"]["statistics"].startswith("the dataset's train split")
    score = result["results"]["mean_tokens"]
    assert score["weighted_recall"] == pytest.approx(score["top1"], abs=1e-6)
    assert 0 <= score["top1"] <= score["top3"] <= 1
    assert score["val_top1"][str(score["lr"])] == max(score["val_top1"].values())
    assert "top-1" in done.output and "weighted F1" in done.output


def test_nearest_neighbours_vote_with_the_same_features(probe: Probe, tmp_path: Path) -> None:
    done = probe("--head", "knn", "--set", "k=7")
    assert done.exit_code == 0 and "k = 7" in done.output, done.output
    score = result_in(tmp_path / "out")["results"]["mean_tokens"]
    assert (score["k"], score["temperature"]) == (7, 0.07) and "lr" not in score
    few = probe("--head", "knn", "--fraction", "0.1", out=tmp_path / "few")
    assert few.exit_code == 1 and "k = 20 neighbours of 4 labelled samples" in few.output


def test_a_saved_list_of_labels_gives_the_scores_of_the_draw_it_came_from(
    probe: Probe, tmp_path: Path
) -> None:
    probe("--fraction", "0.5")
    drawn = tmp_path / "out" / "labels_used.txt"
    probe(labels=drawn, out=tmp_path / "listed")
    assert result_in(tmp_path / "listed")["results"] == result_in(tmp_path / "out")["results"]
    for text, message in (("test-0-1\n", "'test-0-1'"), ("train-0-1\n" * 2, "each once")):
        bad = tmp_path / "bad.txt"
        bad.write_text(text)
        done = probe(labels=bad, out=tmp_path / "bad")
        assert done.exit_code == 1 and message in done.output


def test_the_same_options_give_the_same_scores(probe: Probe, tmp_path: Path) -> None:
    first, second, other = (tmp_path / name for name in ("first", "second", "other"))
    probe("--fraction", "0.5", out=first)
    probe("--fraction", "0.5", out=second)
    probe("--fraction", "0.5", "--seed", "1", out=other)
    assert result_in(first)["results"] == result_in(second)["results"]
    labels = [(folder / "labels_used.txt").read_text() for folder in (first, second, other)]
    assert labels[0] == labels[1] != labels[2]


def test_a_smaller_fraction_uses_a_part_of_the_larger_ones_labels(
    probe: Probe, tmp_path: Path
) -> None:
    used = []
    for fraction in ("0.2", "0.6"):
        probe(fraction=fraction, out=tmp_path / fraction)
        used.append(set((tmp_path / fraction / "labels_used.txt").read_text().split()))
    assert [len(keys) for keys in used] == [8, 24]
    assert used[0] < used[1]


def test_test_labels_and_unused_train_labels_have_no_say_in_the_choice_of_the_rate(
    probe: Probe, dataset: Path, tmp_path: Path
) -> None:
    probe(fraction="0.5", out=tmp_path / "before")
    used = set((tmp_path / "before" / "labels_used.txt").read_text().split())
    scrambled = tmp_path / "scrambled"
    shutil.copytree(dataset, scrambled)
    rows = pq.read_table(scrambled / "samples.parquet").to_pylist()
    for row in rows:
        if row["split"] == "test" or (row["split"] == "train" and row["key"] not in used):
            row["labels_bigearthnet_19"] = ["Urban fabric", "Marine waters"]
    rows[-1]["labels_bigearthnet_19"] = ["Pastures"]
    pq.write_table(pa.Table.from_pylist(rows), scrambled / "samples.parquet")
    probe(fraction="0.5", data=scrambled, out=tmp_path / "after")
    before, after = (result_in(tmp_path / name)["results"] for name in ("before", "after"))
    for pooling in before:
        assert before[pooling]["lr"] == after[pooling]["lr"]
        assert before[pooling]["val_macro_map"] == after[pooling]["val_macro_map"]
        assert before[pooling]["per_class"] != after[pooling]["per_class"]


def test_random_features_do_not_depend_on_the_pretrained_weights(
    probe: Probe, encoder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "encoder"
    shutil.copytree(encoder, other)
    weights = load_file(encoder / "model.safetensors")
    save_file({name: 2 * w for name, w in weights.items()}, other / "model.safetensors")
    results: dict[str, list[Any]] = {}
    for features in ("random", "pretrained"):
        for pretrained in (encoder, other):
            out = tmp_path / features / pretrained.parent.name
            probe(features=features, pretrained=pretrained, out=out)
            results.setdefault(features, []).append(result_in(out)["results"])
    assert results["random"][0] == results["random"][1]
    assert results["pretrained"][0] != results["pretrained"][1]
    assert results["pretrained"][0] != results["random"][0]


def test_a_result_of_the_same_options_is_kept_and_of_others_refused(
    probe: Probe, tmp_path: Path
) -> None:
    probe(sensors="s2")
    before = (tmp_path / "out" / "metrics.json").read_bytes()
    again = probe(sensors="s2")
    assert again.exit_code == 0 and "already there" in again.output
    other = probe("--seed", "3", sensors="s2")
    assert other.exit_code == 1
    assert "recipe.seed: 0 then, 3 now" in other.output and other.output.count("\n") == 1
    assert (tmp_path / "out" / "metrics.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "exit_code", "message"),
    [
        ({"sensors": "s1,s3"}, 1, "each once: s1,s2"),
        ({"fraction": "1.5"}, 1, "at most 1"),
        ({"data": "/nowhere"}, 1, "cannot read /nowhere/dataset.json"),
        ({"pretrained": "/nowhere"}, 1, "cannot read /nowhere/config.json"),
        ({"set": "label_set=bigearthnet-43"}, 1, "no label set 'bigearthnet-43'"),
        ({"set": "task=single-label"}, 1, "cannot read column 'label_single'"),
        ({"set": "image_px=13"}, 1, "multiple of the encoder's patch of 4 px"),
        ({"set": "lrs=[]"}, 2, "one or more learning rates"),
        ({"set": "val_split=test"}, 1, "must be three"),
        ({"set": "val_split=vaal"}, 1, "no split 'vaal'"),
        ({"set": "epoch=3"}, 2, "did you mean epochs?"),
        ({"recipe": "/nowhere.toml"}, 2, "cannot read the recipe /nowhere.toml"),
        ({"features": "resnet"}, 2, "band-statistics"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(
    probe: Probe, tmp_path: Path, changes: dict[str, str], exit_code: int, message: str
) -> None:
    done = probe(**changes)
    assert done.exit_code == exit_code
    assert message in done.output
    errors = [line for line in done.output.splitlines() if line.startswith("Error")]
    assert len(errors) == 1 and "Traceback" not in done.output
    assert not (tmp_path / "out").exists()


def test_a_change_without_a_set_of_its_own_is_told_so(probe: Probe, tmp_path: Path) -> None:
    for rest in (("--set", "epochs=1", "seed=3"), ("--set", "seed=3", "=", "3")):
        done = probe(*rest)
        assert done.exit_code == 2 and f"unexpected '{rest[2]}'" in done.output
        assert 'such as --set seed=1 --set "lrs=[1e-3]"' in done.output
    assert not (tmp_path / "out").exists()


def test_the_script_runs_as_a_user_starts_it(dataset: Path, encoder: Path, tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "--recipe", RECIPE, "--data", dataset]
    command += ["--pretrained", encoder, "--sensors", "s1", "--out", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "macro mAP" in done.stdout
    assert result_in(tmp_path / "out")["options"]["sensors"] == ["s1"]
