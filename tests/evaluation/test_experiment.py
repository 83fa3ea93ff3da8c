"""A table's steps and what becomes of their results; nothing is run."""

import hashlib
import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fusmae.evaluation.experiment import (
    Experiment,
    Pretraining,
    Protocol,
    Question,
    System,
    load_experiment,
    pretraining_folder,
    result_folder,
)
from fusmae.evaluation.experiment_page import markdown
from fusmae.evaluation.experiment_steps import Places, check_weights, steps
from fusmae.evaluation.experiment_table import gather
from fusmae.evaluation.results import PROBE_FORMAT

from .published import satvit_state

ROOT = Path(__file__).parents[2]
TABLES = sorted((ROOT / "train" / "tables").glob("*.toml"))
SENSORS = ("s1", "s2", "s1,s2")
PROBE = Protocol("LP 1 %", "linear_probe", "probe.toml", ("macro_map", "micro_map"), "ben", 0.01)
TUNED = Protocol("FT", "finetune", "finetune.toml", ("macro_map",), "ben")
EXPERIMENT = Experiment(
    "A table",
    SENSORS,
    Pretraining("r.toml", "c.json", "ben"),
    (
        System("DINO-MM", weights="dino-mm", paper={"LP 1 %": (52.7, 58.7, 60.3)}),
        System("XAD", ("model.fusion=xad",)),
        System("XAE&D", ("model.fusion=xae_xad",)),
    ),
    (PROBE, TUNED),
    (Question("Better?", "LP 1 %", ("XAE&D", "s1,s2"), ("XAD", "s1,s2")),),
    (0, 1),
)


def places(out, **weights):
    return Places(Path("h"), Path("t"), out, {"ben": "DATA"}, weights, ("ds", "-n", "2"), "py")


def test_every_system_is_pretrained_before_it_is_scored_with_its_own_changes(tmp_path):
    listed = steps(EXPERIMENT, places(tmp_path), (0, 1))
    names = [step.name for step in listed]
    assert len(set(names)) == len(names)
    # Two systems of ours, three columns, two protocols; statistics are not fine-tuned.
    assert len(names) == 2 * (2 + 2 * 3 * 2 + 3 * 2 + 3)
    for seed in (0, 1):
        for name in ("XAD", "XAE&D"):
            first = names.index(f"pretraining, {name}, seed {seed}")
            assert all(
                place >= first
                for place, step in enumerate(names)
                if f", {name}, s" in step and step.endswith(f"seed {seed}")
            )
    by_name = dict(zip(names, listed, strict=True))
    pretraining = by_name["pretraining, XAD, seed 1"]
    words = pretraining.command
    assert (pretraining.launcher, words[0]) == (("ds", "-n", "2"), "t/pretrain.py")
    assert words[-4:] == ("--set", "model.fusion=xad", "--set", "seed=1")
    random = by_name["FT, random weights, s1,s2, seed 0"].command
    assert random[random.index("--init") + 1] == "random"
    assert random[random.index("--pretrained") + 1].endswith("pretraining/xad/seed-0/encoder")
    assert "--pretraining-data" not in random
    assert "--pretraining-data" in by_name["FT, XAD, s1, seed 0"].command


def test_weights_that_are_given_are_scored_and_never_pretrained(tmp_path):
    listed = steps(EXPERIMENT, places(tmp_path, **{"dino-mm": "W.pth"}), (0,))
    mine = [step for step in listed if "DINO-MM" in step.name]
    assert len(mine) == 6
    assert all("dino-mm:W.pth" in step.command for step in mine)
    listed = steps(EXPERIMENT, places(tmp_path, **{"dino-mm": "W.toml"}), (0,))
    assert sum("W.toml" in step.command for step in listed) == 6


def test_an_encoder_of_ours_that_is_given_takes_the_place_of_its_pretraining(tmp_path):
    data = tmp_path / "ben"
    data.mkdir()
    (data / "dataset.json").write_text("{}")
    digest = hashlib.sha256(b"{}").hexdigest()
    for seed, seen in ((0, [digest]), (1, ["ab"])):
        folder = tmp_path / f"seed-{seed}" / "encoder"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"manifest_sha256": seen}))
    given = {"xad": str(tmp_path / "seed-{seed}" / "encoder")}
    where = Places(Path("h"), Path("t"), tmp_path, {"ben": str(data)}, given, ("ds",), "py")
    by_name = {step.name: step.command for step in steps(EXPERIMENT, where, (0, 1))}
    assert "pretraining, XAD, seed 0" not in by_name
    assert "pretraining, XAE&D, seed 0" in by_name
    for seed in (0, 1):
        words = by_name[f"FT, XAD, s1, seed {seed}"]
        assert words[words.index("--pretrained") + 1].endswith(f"seed-{seed}/encoder")
        # Its overlap is counted where the card says that it has seen these data.
        assert ("--pretraining-data" in words) == (seed == 0)
    with pytest.raises(ValueError, match="--weights xae=: the table's are dino-mm, xad, xae-d"):
        steps(EXPERIMENT, places(tmp_path, xae="E"), (0,))


def test_data_to_pretrain_on_are_not_needed_where_all_encoders_are_given(tmp_path):
    apart = replace(EXPERIMENT, pretrain=replace(EXPERIMENT.pretrain, data="other"))
    given = {"xad": "A", "xae-d": "B"}
    listed = steps(apart, places(tmp_path, **given), (0,))
    assert not [step for step in listed if step.name.startswith("pretraining")]
    with pytest.raises(ValueError, match="--data other=PATH"):
        steps(apart, places(tmp_path, xad="A"), (0,))


def test_weights_that_do_not_fit_end_a_table_before_its_first_step(tmp_path, encoder):
    satvit = replace(
        EXPERIMENT, systems=(System("SatViT", weights="satvit-v1"), System("XAD")), questions=()
    )
    torch.save(satvit_state(3, 16, 384), tmp_path / "V1.pt")
    with pytest.raises(ValueError, match=r"channels = \[3 of VV"):
        check_weights(satvit, places(tmp_path, **{"satvit-v1": str(tmp_path / "V1.pt")}), (0,))
    ours = str(encoder)
    check_weights(EXPERIMENT, places(tmp_path, **{"xae-d": ours}), (0,))
    with pytest.raises(ValueError, match=r"one with fusion=xae_xad, not XAD \(model.fusion=xad\)"):
        check_weights(EXPERIMENT, places(tmp_path, xad=ours), (0,))


def test_shares_of_attention_are_measured_after_the_pretraining(tmp_path):
    seen = replace(EXPERIMENT, attention=("XAD",))
    names = [step.name for step in steps(seen, places(tmp_path), (0,))]
    after = names.index("attention, XAD, seed 0") - names.index("pretraining, XAD, seed 0")
    assert after == 1 and "attention, XAE&D, seed 0" not in names
    with pytest.raises(ValueError, match="'DINO-MM'"):
        replace(EXPERIMENT, attention=("DINO-MM",))


def test_a_protocol_of_some_sensors_is_run_on_these_alone(tmp_path):
    both = replace(TUNED, sensors=("s1,s2",))
    some = replace(EXPERIMENT, protocols=(PROBE, both))
    names = [step.name for step in steps(some, places(tmp_path), (0,))]
    assert [name for name in names if name.startswith("FT, XAD")] == ["FT, XAD, s1,s2, seed 0"]
    assert sum(name.startswith("LP 1 %, XAD") for name in names) == 3
    with pytest.raises(ValueError, match=r"protocol 'FT' has sensors 's3', the table has"):
        replace(some, protocols=(PROBE, replace(TUNED, sensors=("s3",))))
    asked = Question("?", "FT", ("XAD", "s1"), ("XAD", "s1,s2"))
    with pytest.raises(ValueError, match="asks for what is not in the table"):
        replace(some, questions=(asked,))


def test_dataset_that_is_not_given_is_named(tmp_path):
    with pytest.raises(ValueError, match="--data ben=PATH"):
        steps(EXPERIMENT, Places(Path(), Path(), tmp_path, {}, {}, (), ""), (0,))


def result(macro, micro=0.5, num_test=100):
    return {
        "format": PROBE_FORMAT,
        "options": {"recipe": {"test_split": "test"}, "manifest_sha256": "ab"},
        "dataset": "ben",
        "simulated": True,
        "num_test": num_test,
        "num_classes": 19,
        "num_labels": 7,
        "headline": "mean",
        "results": {"mean": {"macro_map": macro, "micro_map": micro, "reliance": {"s1": 0.1}}},
    }


def write(out, protocol, row, sensors, seed, macro, num_test=100, **more):
    folder = result_folder(out, protocol, row, sensors, seed)
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(result(macro, num_test=num_test) | more))


def test_table_shows_means_the_papers_numbers_and_the_answer(tmp_path):
    for seed, (xad, both) in enumerate([(0.5, 0.62), (0.52, 0.60)]):
        write(tmp_path, PROBE, "XAD", "s1,s2", seed, xad)
        write(tmp_path, PROBE, "XAE&D", "s1,s2", seed, both)
    table = gather(EXPERIMENT, tmp_path, (0, 1))
    assert table["answers"][0]["differences"] == pytest.approx({"0": 12.0, "1": 8.0})
    assert table["without_weights"] == ["DINO-MM"]
    still_to_come = gather(EXPERIMENT, tmp_path, (0, 1), {"dino-mm": "W"})
    assert still_to_come["without_weights"] == []
    page = markdown(table, EXPERIMENT)
    assert "| DINO-MM | - | - | - | 52.7 | 58.7 | 60.3 |" in page
    assert "| XAD | - | - | 51.0 ± 1.4 |  |  |  |" in page
    assert "+10.0 points of macro mAP (least +8.0, greatest +12.0)" in page
    assert "| Points of macro mAP lost with a sensor's test images exchanged" in page
    assert "| XAD, S1+S2 | 10.0 ± 0.0 |" in page
    assert "`-`: not run." in page
    table |= {"wall_s": 3600.0, "commits": ["ab" * 20, "ab" * 20 + "-dirty"]}
    assert (
        "Wall time of what this table ran: 1.00 h, by commit ababababab, ababababab-dirty."
        in markdown(table, EXPERIMENT)
    )
    assert "Steps of the pretrainings" not in page
    assert "chosen on val; test was read once by this run of the table." in page
    assert "Simulated data" in page and "Without weights, so not run: DINO-MM" in page


def test_rows_say_which_weights_were_given_and_which_were_tuned_before(tmp_path):
    told = {"label": "DINO-MM", "image_px": 112, "patch_px": 8, "tuned": "T/backbone.safetensors"}
    write(tmp_path, PROBE, "DINO-MM", "s1", 0, 0.5, encoder="dino.toml", backbone=told)
    mine = {"label": "Fus-MAE, xad", "simulated": True, "tuned": ""}
    write(tmp_path, PROBE, "XAD", "s1", 0, 0.5, encoder="RUN/encoder", backbone=mine)
    write(tmp_path, PROBE, "random weights", "s1", 0, 0.4, backbone=told)
    write(tmp_path, PROBE, "XAE&D", "s1", 0, 0.6)
    run = pretraining_folder(tmp_path, EXPERIMENT.systems[2], 0)
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"step": 1, "samples": 64, "loss": 1.0}\n')
    page = markdown(gather(EXPERIMENT, tmp_path, (0,)), EXPERIMENT)
    assert "| DINO-MM, tuned before | 50.0 | - | - | 52.7" in page
    assert "| XAD | 50.0 |" in page and "| random weights | 40.0 |" in page
    assert (
        "DINO-MM: weights that were given, dino.toml (DINO-MM, 112 px in tokens of 8 px, "
        "fine-tuned since: T/backbone.safetensors)." in page
    )
    assert "XAD: weights that were given, RUN/encoder (Fus-MAE, xad, trained on simulated" in page
    assert "XAE&D: weights" not in page and "Without weights" not in page


def test_results_of_different_tests_make_no_table(tmp_path):
    write(tmp_path, PROBE, "XAD", "s1", 0, 0.5)
    write(tmp_path, PROBE, "XAE&D", "s1", 0, 0.5, num_test=99)
    with pytest.raises(ValueError, match=r"metrics.json: its test samples is 99, the others' is"):
        gather(EXPERIMENT, tmp_path, (0,))


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_tables_of_the_project_name_recipes_and_options_that_exist(path, tmp_path):
    experiment = load_experiment(path)
    data = dict.fromkeys(experiment.data, "DATA")
    weights = {system.weights: "W" for system in experiment.systems if system.weights}
    where = Places(path.parent, ROOT / "train", tmp_path, data, weights, ("deepspeed",), "python")
    listed = steps(experiment, where, experiment.seeds)
    scripts, shared = {}, (ROOT / "fusmae" / "set_option.py").read_text()
    for step in listed:
        words = step.command
        if words[1] == "-m":
            words = (words[0], str(ROOT / f"{words[2].replace('.', '/')}.py"), *words[3:])
        script = next(word for word in words if word.endswith(".py"))
        if script not in scripts:
            scripts[script] = Path(script).read_text() + shared
        for word, value in itertools.pairwise(words):
            if word.startswith("--") and word not in ("--deepspeed_config", "--resume"):
                assert f'"{word}"' in scripts[script], (step.name, word)
            if word in ("--recipe", "--deepspeed_config"):
                assert Path(value).is_file(), (step.name, value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("systems", "must be pretrained here"),
        ("paper", "expected a protocol"),
        ("question", "asks for what is not in the table"),
    ],
)
def test_experiment_that_contradicts_itself_is_refused(change, told):
    parts = {
        "systems": {"systems": EXPERIMENT.systems[:1], "questions": ()},
        "paper": {"systems": (*EXPERIMENT.systems, System("x", paper={"LP 1 %": (1.0,)}))},
        "question": {"questions": (Question("?", "LP 1 %", ("nobody", "s1"), ("XAD", "s1")),)},
    }[change]
    with pytest.raises(ValueError, match=told):
        Experiment(**{**vars(EXPERIMENT), **parts})
