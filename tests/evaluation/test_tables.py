"""The table of probe results: right numbers in right places, no comparison of the incomparable."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fusmae.evaluation.tables import gains, main, read_scores


def write_result(
    folder: Path,
    features: str = "pretrained",
    sensors: tuple[str, ...] = ("s1",),
    macro: float = 0.5,
    **changes: Any,
) -> None:
    headline = "band_statistics" if features == "band-statistics" else "mean_tokens"
    results = {headline: {"macro_map": macro, "micro_map": macro + 0.1}}
    if headline == "mean_tokens":
        results = {"global_token": {"macro_map": 0.111, "micro_map": 0.222}} | results
    table = {
        "format": "fusmae-probe",
        "options": {
            "features": features,
            "sensors": list(sensors),
            "manifest_sha256": changes.pop("manifest", "a" * 64),
            "recipe": {
                "label_set": changes.pop("label_set", "bigearthnet-19"),
                "test_split": "test",
                "seed": changes.pop("seed", 0),
            },
        },
        "headline": headline,
        "results": results,
        "num_labels": 1000,
        "fraction": 0.8065,
        "num_test": 400,
        "dataset": "demo",
        "simulated": True,
        "split_rule": "google",
        **changes,
    }
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(table))


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    table = json.loads((folder / "metrics.json").read_text())
    change(table)
    (folder / "metrics.json").write_text(json.dumps(table))


def printed(*sources: str, columns: int = 160) -> str:
    done = CliRunner().invoke(main, list(sources), env={"COLUMNS": str(columns)})
    assert done.exit_code == 0, done.output
    return done.output


def line_of(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.strip().startswith(start))


def test_the_table_shows_macro_and_micro_by_sensor_labels_and_that_data_is_simulated(
    tmp_path: Path,
) -> None:
    write_result(tmp_path / "a", macro=0.512, sensors=("s1",))
    write_result(tmp_path / "b", macro=0.634, sensors=("s1", "s2"))
    write_result(tmp_path / "c", features="random", macro=0.401, sensors=("s1",))
    write_result(tmp_path / "d", features="band-statistics", macro=0.3, sensors=("s1", "s2"))
    text = printed(str(tmp_path))
    assert line_of(text, "features, or network").split()[-2:] == ["S1", "S1+S2"]
    pretrained = line_of(text, "pretrained ")
    assert "51.2 / 61.2" in pretrained and "63.4 / 73.4" in pretrained
    assert "1,000 (80.7 %)" in pretrained
    assert "11.1 / 22.2" in line_of(text, "pretrained, global token")
    assert line_of(text, "random weights ").split()[-1] == "-"
    assert "30.0 / 40.0" in line_of(text, "band statistics")
    assert line_of(text, "gain over random weights").split()[-2:] == ["+11.1", "-"]
    for fact in ("SIMULATED", "demo", "400 samples", "google rule", "bigearthnet-19"):
        assert fact in text


def test_seeds_are_averaged_and_their_gains_paired(tmp_path: Path) -> None:
    for seed, (trained, random) in enumerate([(0.6, 0.5), (0.7, 0.5), (0.65, 0.62)]):
        write_result(tmp_path / f"p{seed}", macro=trained, seed=seed)
        write_result(tmp_path / f"r{seed}", features="random", macro=random, seed=seed)
    scores, _ = read_scores([str(tmp_path)])
    assert gains(scores, 1000)["pretrained"][("s1",)] == pytest.approx([10, 20, 3])
    text = printed(str(tmp_path))
    assert "65.0 ± 5.0 / 75.0" in line_of(text, "pretrained ")
    assert "+11.0 (least +3.0)" in line_of(text, "gain")


def test_a_result_under_two_of_the_sources_counts_once(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_result(tmp_path / f"seed-{seed}" / "p", macro=0.5 + seed / 10, seed=seed)
    once, _ = read_scores([str(tmp_path)])
    again, _ = read_scores([str(tmp_path), str(tmp_path / "seed-0")])
    assert again == once


def test_reliance_has_a_table_of_its_own_where_it_was_measured(tmp_path: Path) -> None:
    write_result(tmp_path / "alone", macro=0.4)
    assert "reliance" not in printed(str(tmp_path))
    for seed, (macro, radar, optics) in enumerate([(0.6, 0.05, 0.3), (0.7, 0.11, 0.2)]):
        write_result(tmp_path / f"p{seed}", macro=macro, sensors=("s1", "s2"), seed=seed)
        lost = {"s1": radar, "s2": optics}
        edit(
            tmp_path / f"p{seed}",
            lambda table, lost=lost: table["results"]["mean_tokens"].update(reliance=lost),
        )
    text = printed(str(tmp_path)).partition("reliance: change of macro mAP, in points")[2]
    assert line_of(text, "features, or network").split()[-4:] == ["macro", "mAP", "S1", "S2"]
    row = line_of(text, "pretrained ")
    assert "S1+S2" in row and "65.0 ± 7.1" in row and "1,000" in row
    assert row.split()[-6:] == ["-8.0", "±", "4.2", "-25.0", "±", "7.1"]
    assert "global token" not in text
    narrow = printed(f"{'a long name ' * 5}={tmp_path}/p0", columns=80)
    assert "…" not in narrow and "-30.0" in narrow


def test_a_name_given_stands_in_the_table(tmp_path: Path) -> None:
    write_result(tmp_path / "a", macro=0.4)
    write_result(tmp_path / "b", macro=0.6)
    text = printed(f"xad={tmp_path / 'a'}", f"both={tmp_path / 'b' / 'metrics.json'}")
    assert "40.0 / 50.0" in line_of(text, "xad ")
    assert "60.0 / 70.0" in line_of(text, "both ")


def test_two_encoders_of_one_seed_are_no_seeds_and_their_fusions_tell_them_apart(
    tmp_path: Path,
) -> None:
    write_result(tmp_path / "a", macro=0.4)
    write_result(tmp_path / "b", macro=0.6)
    done = CliRunner().invoke(main, [str(tmp_path)])
    assert done.exit_code == 1
    told = done.output.replace("\n", "")
    for part in (str(tmp_path / "a"), str(tmp_path / "b"), "'pretrained' of s1, seed 0"):
        assert part in told
    for name, fusion in (("a", "xad"), ("b", "xae_xad")):
        edit(
            tmp_path / name,
            lambda table, fusion=fusion: table.update(backbone={"label": f"Fus-MAE, {fusion}"}),
        )
    text = printed(str(tmp_path))
    assert "40.0 / 50.0" in line_of(text, "Fus-MAE, xad ")
    assert "60.0 / 70.0" in line_of(text, "Fus-MAE, xae_xad ")
    assert "±" not in text


def test_each_of_several_rows_has_the_gain_over_its_own_random_weights(tmp_path: Path) -> None:
    for fusion, trained, random in (("xad", 0.5, 0.42), ("xae_xad", 0.6, 0.3)):
        for features, macro in (("pretrained", trained), ("random", random)):
            told = {"label": f"Fus-MAE, {fusion}"}
            write_result(tmp_path / f"{fusion}-{features}", features, macro=macro, backbone=told)
    some = ("xad-pretrained", "xae_xad-pretrained", "xad-random")
    alone = printed(*(str(tmp_path / name) for name in some))
    assert "gain" in line_of(alone, "Fus-MAE, xad: ") and alone.count("gain") == 1
    text = printed(str(tmp_path))
    assert "+8.0" in line_of(text, "Fus-MAE, xad: gain over random weights")
    assert "+30.0" in line_of(text, "Fus-MAE, xae_xad: gain over random weights")
    for init, macro in (("pretrained", 0.8), ("random", 0.75)):
        scores = {"mean_tokens": {"macro_map": macro, "micro_map": macro}}
        write_result(tmp_path / f"tuned-{init}", format="fusmae-finetune", results=scores)
        edit(
            tmp_path / f"tuned-{init}", lambda table, init=init: table["options"].update(init=init)
        )
    assert "+5.0" in line_of(printed(str(tmp_path)), "fine-tuned: gain over random weights")


def test_neighbours_and_fine_tuning_stand_in_rows_of_their_own(tmp_path: Path) -> None:
    write_result(tmp_path / "linear", macro=0.5)
    write_result(tmp_path / "knn", macro=0.4)
    edit(tmp_path / "knn", lambda table: table["options"].update(head="knn"))
    for init, macro, pooling in (
        ("pretrained", 0.8, "mean_tokens"),
        ("random", 0.6, "mean_tokens"),
        ("pretrained", 0.7, "global_token"),
    ):
        folder = tmp_path / f"{init}-{pooling}"
        scores = {pooling: {"macro_map": macro, "micro_map": macro + 0.1}}
        write_result(folder, format="fusmae-finetune", headline=pooling, results=scores)
        edit(folder, lambda table, init=init: table["options"].update(init=init))
    text = printed(str(tmp_path))
    assert "50.0 / 60.0" in line_of(text, "pretrained ")
    assert "40.0 / 50.0" in line_of(text, "pretrained, kNN ")
    assert "80.0 / 90.0" in line_of(text, "fine-tuned ")
    assert "60.0 / 70.0" in line_of(text, "fine-tuned from random weights ")
    assert "70.0 / 80.0" in line_of(text, "fine-tuned, global token ")


def test_weights_that_were_tuned_before_are_not_called_pretrained_or_published(
    tmp_path: Path,
) -> None:
    tuned = {"label": "Fus-MAE, xad", "tuned": "1,000 samples"}
    write_result(tmp_path / "a", macro=0.8, backbone=tuned)
    write_result(tmp_path / "b", macro=0.3, features="random", backbone=tuned)
    text = printed(str(tmp_path))
    assert "80.0 / 90.0" in line_of(text, "pretrained (tuned before) ")
    assert "30.0 / 40.0" in line_of(text, "random weights ")
    # What labels have taught is no gain of pretraining.
    assert "gain" not in text
    for name in ("a", "b"):
        edit(tmp_path / name, lambda table: table["options"].update(backbone="dino-mm"))
        edit(tmp_path / name, lambda table: table["backbone"].update(label="DINO-MM"))
    text = printed(str(tmp_path))
    assert "80.0 / 90.0" in line_of(text, "DINO-MM (tuned before) ")
    assert "30.0 / 40.0" in line_of(text, "DINO-MM, random weights ")


def test_a_single_label_task_shows_top1_and_weighted_f1(tmp_path: Path) -> None:
    scores = {"mean_tokens": {"top1": 0.61, "top3": 0.9, "weighted_f1": 0.58}}
    write_result(tmp_path / "a", task="single-label", results=scores)
    text = printed(str(tmp_path))
    assert "61.0 / 58.0" in line_of(text, "pretrained ") and "top-1 / weighted F1" in text
    write_result(tmp_path / "b")
    done = CliRunner().invoke(main, [str(tmp_path)])
    assert done.exit_code == 1 and "its task is multi-label" in done.output


@pytest.mark.parametrize(
    ("change", "what"),
    [({"manifest": "b" * 64}, "dataset"), ({"label_set": "bigearthnet-43"}, "label set")],
)
def test_results_that_cannot_be_compared_are_refused(
    tmp_path: Path, change: dict[str, Any], what: str
) -> None:
    write_result(tmp_path / "a")
    write_result(tmp_path / "b", **change)
    done = CliRunner().invoke(main, [str(tmp_path)])
    assert done.exit_code == 1
    assert f"its {what} is" in done.output and done.output.count("\n") == 1


def test_a_folder_without_results_and_a_foreign_file_are_named(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, [str(tmp_path)])
    assert done.exit_code == 1 and f"no metrics.json under {tmp_path}" in done.output
    done = CliRunner().invoke(main, ["OURS="])
    assert done.exit_code == 1 and "'OURS=' names no path: give PATH or NAME=PATH" in done.output
    (tmp_path / "metrics.json").write_text("{}")
    done = CliRunner().invoke(main, [str(tmp_path)])
    assert (
        done.exit_code == 1
        and "not the result of train/linear_probe.py or train/finetune.py" in done.output
    )
