"""A table's steps, their resumption and what becomes of their results."""

import hashlib
import importlib.util
import itertools
import json
import shlex
import socket
import subprocess
import sys
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
    words = by_name["pretraining, XAD, seed 1"].command
    assert words[:4] == ("ds", "-n", "2", "t/pretrain.py")
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


def write(out, protocol, row, sensors, seed, *numbers, **more):
    folder = result_folder(out, protocol, row, sensors, seed)
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(result(*numbers, **more)))


def test_table_shows_means_the_papers_numbers_and_the_answer(tmp_path):
    for seed, (xad, both) in enumerate([(0.5, 0.62), (0.52, 0.60)]):
        write(tmp_path, PROBE, "XAD", "s1,s2", seed, xad)
        write(tmp_path, PROBE, "XAE&D", "s1,s2", seed, both)
    table = gather(EXPERIMENT, tmp_path, (0, 1), {})
    assert table["answers"][0]["differences"] == pytest.approx({"0": 12.0, "1": 8.0})
    assert table["without_weights"] == ["DINO-MM"]
    page = markdown(table, EXPERIMENT)
    assert "| DINO-MM | - | - | - | 52.7 | 58.7 | 60.3 |" in page
    assert "| XAD | - | - | 51.0 ± 1.4 |  |  |  |" in page
    assert "+10.0 points of macro mAP (least +8.0, greatest +12.0)" in page
    assert "| XAD, S1+S2 | 10.0 ± 0.0 |" in page
    assert "Simulated data" in page and "Without weights, so not run: DINO-MM" in page


def test_results_of_different_tests_make_no_table(tmp_path):
    write(tmp_path, PROBE, "XAD", "s1", 0, 0.5)
    write(tmp_path, PROBE, "XAE&D", "s1", 0, 0.5, num_test=99)
    with pytest.raises(ValueError, match=r"metrics.json: its test samples is 99, the others' is"):
        gather(EXPERIMENT, tmp_path, (0,), {})


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_tables_of_the_project_name_recipes_and_options_that_exist(path, tmp_path):
    experiment = load_experiment(path)
    data = dict.fromkeys(experiment.data, "DATA")
    weights = {system.weights: "W" for system in experiment.systems if system.weights}
    where = Places(path.parent, ROOT / "train", tmp_path, data, weights, ("deepspeed",), "python")
    listed = steps(experiment, where, experiment.seeds)
    scripts = {}
    for step in listed:
        words = step.command
        if words[1] == "-m":
            words = (words[0], str(ROOT / f"{words[2].replace('.', '/')}.py"), *words[3:])
        script = next(word for word in words if word.endswith(".py"))
        if script not in scripts:
            scripts[script] = Path(script).read_text()
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


# A step that counts its runs. With seed 1 it fails as long as a file named FAIL lies beside it, and
# stops early, as a trainer at a signal, as long as one named STOP does.
FAKE = f"""
import json, sys
from pathlib import Path
out = Path(sys.argv[sys.argv.index("--out") + 1])
if Path(__file__).with_name("FAIL").exists() and "seed-1" in str(out):
    sys.exit("Error: no luck")
with Path(__file__).with_name("runs").open("a") as runs:
    runs.write(f"{{out}}\\n")
if Path(__file__).with_name("STOP").exists() and "seed-1" in str(out):
    sys.exit(0)
pretrains = Path(__file__).stem == "pretrain"
product = out / ("encoder/config.json" if pretrains else "metrics.json")
product.parent.mkdir(parents=True, exist_ok=True)
product.write_text({json.dumps(result(0.5))!r})
"""


@pytest.fixture
def toy(tmp_path):
    """`train/table.py` beside scripts that do nothing but count."""
    home = tmp_path / "train"
    home.mkdir()
    (home / "table.py").write_text((ROOT / "train" / "table.py").read_text())
    for name in ("pretrain", "linear_probe"):
        (home / f"{name}.py").write_text(FAKE)
    (home / "toy.toml").write_text(
        'title = "Toy"\nsensors = ["s1"]\nseeds = [0, 1]\n'
        '[pretrain]\nrecipe = "r"\nds_config = "c"\ndata = "ben"\n'
        '[[systems]]\nname = "ours"\n'
        '[[protocols]]\nname = "LP"\nscript = "linear_probe"\nrecipe = "r"\n'
        'metrics = ["macro_map"]\ndata = "ben"\n'
    )
    (home / "r").write_text("epochs = 1")
    launcher = shlex.quote(sys.executable)

    def run(*more):
        command = [sys.executable, home / "table.py", home / "toy.toml", "--data", "ben=DATA"]
        command += ["--out", tmp_path / "out", "--launcher", launcher, *more]
        return subprocess.run(list(map(str, command)), capture_output=True, text=True)

    run.home, run.out = home, tmp_path / "out"
    return run


def test_table_goes_on_where_it_failed_and_runs_nothing_twice(toy):
    (toy.home / "FAIL").touch()
    failed = toy()
    assert failed.returncode == 1
    assert "seed 1 ended with code 1: Error: no luck" in failed.stderr
    assert len((toy.home / "runs").read_text().splitlines()) == 4
    (toy.home / "FAIL").unlink()
    assert len(toy("--dry-run").stdout.splitlines()) == 4
    assert toy().returncode == 0
    runs = (toy.home / "runs").read_text().splitlines()
    assert len(runs) == len(set(runs)) == 8
    again = toy()
    assert (again.returncode, again.stderr) == (0, "")
    assert (toy.home / "runs").read_text().splitlines() == runs
    assert "# Toy" in again.stdout and (toy.out / "toy.md").read_text() in again.stdout
    told = json.loads((toy.out / "toy.json").read_text())
    assert told["wall_s"] >= 0 and len(told["commits"]) == 1


def test_a_step_that_was_asked_to_stop_is_not_taken_for_done(toy):
    (toy.home / "STOP").touch()
    stopped = toy()
    assert stopped.returncode == 1
    assert "pretraining, ours, seed 1 was stopped before its end" in stopped.stderr
    (toy.home / "STOP").unlink()
    assert toy().returncode == 0


def test_the_time_of_attempts_that_failed_counts_and_of_other_recipes_does_not(toy):
    name = "pretraining, ours, seed 1"

    def entries():
        return json.loads((toy.out / "steps.json").read_text())

    (toy.home / "FAIL").touch()
    assert toy().returncode == 1
    failed = entries()
    assert failed[name]["unfinished"] and "git_commit" in failed[name]
    failed[name]["wall_s"] = 5000.0
    (toy.out / "steps.json").write_text(json.dumps(failed))
    (toy.home / "FAIL").unlink()
    assert toy().returncode == 0
    assert entries()[name]["wall_s"] >= 5000 and "unfinished" not in entries()[name]
    assert json.loads((toy.out / "toy.json").read_text())["wall_s"] >= 5000
    (toy.home / "r").write_text("epochs = 2")
    assert toy().returncode == 0
    assert entries()[name]["wall_s"] < 5000


def test_deepspeed_gets_a_port_of_its_own_unless_one_is_named():
    spec = importlib.util.spec_from_file_location("table", ROOT / "train" / "table.py")
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    first, port, *rest = table.with_free_port(("bin/deepspeed", "-x", "pretrain.py"))
    assert (first, rest) == ("bin/deepspeed", ["-x", "pretrain.py"])
    with socket.socket() as free:
        free.bind(("", int(port.removeprefix("--master_port="))))
    after = table.with_free_port(("env", "OMP_NUM_THREADS=1", "deepspeed", "x"))
    assert after[2] == "deepspeed" and after[3].startswith("--master_port=") and after[4] == "x"
    for command in (("deepspeed", "--master_port", "29777", "x"), ("python", "x.py")):
        assert table.with_free_port(command) == command


def test_an_edited_recipe_or_a_lost_result_runs_its_steps_again(toy):
    assert toy().returncode == 0
    assert toy("--dry-run").stdout == ""
    (toy.out / "runs" / "lp" / "ours" / "s1" / "seed-0" / "metrics.json").unlink()
    assert len(toy("--dry-run").stdout.splitlines()) == 1
    (toy.home / "r").write_text("epochs = 2")
    assert len(toy("--dry-run").stdout.splitlines()) == 8
