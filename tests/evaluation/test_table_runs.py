"""`train/table.py` with scripts that do nothing but count: resumption, failures, times, ports."""

import importlib.util
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from ..data.tiny_dataset import write_tiny_dataset  # noqa: TID252
from .published import dino_mm_checkpoint, satvit_state
from .test_experiment import ROOT, result

# A step that counts its runs. With seed 1 it fails, with its content for last words, as long as a
# file named FAIL lies beside it, and stops early, as a trainer at a signal, as long as one named
# STOP does. Beside SLEEP it tells who it is and sleeps, beside TAKE it leaves a product as it is.
FAKE = f"""
import json, os, sys, time
from pathlib import Path
out = Path(sys.argv[sys.argv.index("--out") + 1])
if Path(__file__).with_name("FAIL").exists() and "seed-1" in str(out):
    sys.exit(Path(__file__).with_name("FAIL").read_text())
if Path(__file__).with_name("SLEEP").exists():
    Path(__file__).with_name("sleeper").write_text(str(os.getpid()))
    time.sleep(100)
with Path(__file__).with_name("runs").open("a") as runs:
    runs.write(f"{{out}}\\n")
if Path(__file__).with_name("STOP").exists() and "seed-1" in str(out):
    sys.exit(0)
pretrains = Path(__file__).stem == "pretrain"
product = out / ("encoder/config.json" if pretrains else "metrics.json")
if Path(__file__).with_name("TAKE").exists() and product.exists():
    sys.exit(0)
product.parent.mkdir(parents=True, exist_ok=True)
product.write_text({json.dumps(result(0.5))!r})
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_tiny_dataset(tmp_path_factory.mktemp("ben"), {"train": (2,)})


@pytest.fixture
def toy(tmp_path, dataset):
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

    def run(*more, data=dataset):
        command = [*run.command, "--data", f"ben={data}", *more]
        return subprocess.run(command, capture_output=True, text=True)

    run.home, run.out = home, tmp_path / "out"
    run.command = [sys.executable, str(home / "table.py"), str(home / "toy.toml")]
    run.command += ["--out", str(run.out), "--launcher", launcher]
    return run


def test_table_goes_on_where_it_failed_and_runs_nothing_twice(toy):
    (toy.home / "FAIL").write_text("Error: no luck")
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


@pytest.mark.parametrize(
    ("log", "told"),
    [
        ("Error: first\nerror: no luck\n[ERROR] [launch.py] exits with 1", "error: no luck"),
        ("Traceback:\nKeyError: 3", "KeyError: 3"),
    ],
)
def test_a_failure_is_told_by_the_scripts_last_error_not_by_its_launchers_words(toy, log, told):
    (toy.home / "FAIL").write_text(log)
    assert f"ended with code 1: {told} (" in toy("--seeds", "1").stderr


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

    (toy.home / "FAIL").write_text("Error: no luck")
    assert toy().returncode == 1
    failed = entries()
    assert failed[name]["unfinished"] and len(failed[name]["git_commits"]) == 1
    failed[name]["wall_s"] = 5000.0
    (toy.out / "steps.json").write_text(json.dumps(failed))
    (toy.home / "FAIL").unlink()
    assert toy().returncode == 0
    assert entries()[name]["wall_s"] >= 5000 and "unfinished" not in entries()[name]
    assert json.loads((toy.out / "toy.json").read_text())["wall_s"] >= 5000
    (toy.home / "r").write_text("epochs = 2")
    assert toy().returncode == 0
    assert entries()[name]["wall_s"] < 5000


def test_the_launcher_is_no_part_of_what_a_step_is_known_by(toy):
    assert toy().returncode == 0
    assert toy("--launcher", "elsewhere --nodes 2", "--dry-run").stdout == ""
    entries = json.loads((toy.out / "steps.json").read_text())
    for entry in entries.values():  # as an older version wrote them
        entry["command"] = f"deepspeed {entry['command']}"
    (toy.out / "steps.json").write_text(json.dumps(entries))
    assert toy("--dry-run").stdout == ""


def test_a_step_that_goes_on_by_other_words_keeps_its_time_and_its_commits(toy, dataset):
    """A pretraining with another ds_config, a probe that finds its dataset elsewhere."""
    assert toy().returncode == 0
    pretraining, probe = "pretraining, ours, seed 0", "LP, ours, s1, seed 0"
    entries = json.loads((toy.out / "steps.json").read_text())
    for name in (pretraining, probe):
        entries[name] |= {"wall_s": 5000.0, "git_commits": ["old"]}
    (toy.out / "steps.json").write_text(json.dumps(entries))
    starts = [{"git_commit": commit} for commit in ("first", "second", "second")]
    run = toy.out / "pretraining" / "ours" / "seed-0"
    (run / "run.json").write_text(json.dumps({"starts": starts}))
    (toy.home / "TAKE").touch()
    text = (toy.home / "toy.toml").read_text()
    (toy.home / "toy.toml").write_text(text.replace('ds_config = "c"', 'ds_config = "d"'))
    (toy.home / "elsewhere").symlink_to(dataset)
    assert toy(data=toy.home / "elsewhere").returncode == 0
    entries = json.loads((toy.out / "steps.json").read_text())
    assert entries[pretraining]["wall_s"] >= 5000 and entries[probe]["wall_s"] >= 5000
    assert entries[pretraining]["git_commits"] == ["first", "second"]
    assert entries[probe]["git_commits"] == ["old"]
    commits = json.loads((toy.out / "toy.json").read_text())["commits"]
    assert {"first", "second", "old"} <= set(commits)
    assert toy("--dry-run", data=toy.home / "elsewhere").stdout == ""


def test_other_weights_of_others_run_their_steps_again(toy):
    """NAME:FILE and the file that a TOML names are no paths in the command."""
    text = (toy.home / "toy.toml").read_text()
    for name in ("dino-mm", "satvit-v1"):
        text += f'[[systems]]\nname = "{name}"\nweights = "{name}"\n'
    (toy.home / "toy.toml").write_text(text)
    dino, satvit = dino_mm_checkpoint(), satvit_state(3, 16, 384)
    torch.save(dino, toy.home / "dino.pth")
    torch.save(satvit, toy.home / "satvit.pt")
    spec = toy.home / "satvit.toml"
    spec.write_text('name = "satvit-v1"\nweights = "satvit.pt"\nchannels = ["B04", "VV", "VH"]')
    given = ["--seeds", "0", "--weights", f"dino-mm={toy.home / 'dino.pth'}"]
    given += ["--weights", f"satvit-v1={spec}"]
    assert toy(*given).returncode == 0
    assert toy(*given, "--dry-run").stdout == ""
    torch.save(dino | {"epoch": 1}, toy.home / "dino.pth")
    assert "dino-mm:" in toy(*given, "--dry-run").stdout
    torch.save(dino, toy.home / "dino.pth")
    assert toy(*given, "--dry-run").stdout == ""
    name, tensor = next(iter(satvit.items()))
    torch.save(satvit | {name: tensor + 1}, toy.home / "satvit.pt")
    (left,) = toy(*given, "--dry-run").stdout.splitlines()
    assert "satvit.toml" in left


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


@pytest.mark.parametrize("option", [(), ("--dry-run",)])
def test_a_wrong_dataset_ends_a_table_before_its_first_step(toy, option):
    failed = toy(*option, data="nowhere")
    assert failed.returncode == 1
    assert "cannot read nowhere/dataset.json" in failed.stderr
    assert not (toy.home / "runs").exists()


def test_a_table_that_is_stopped_stops_its_step_first(toy, dataset):
    (toy.home / "SLEEP").touch()
    table = subprocess.Popen([*toy.command, "--data", f"ben={dataset}"], stderr=subprocess.PIPE)
    sleeper, until = toy.home / "sleeper", time.monotonic() + 60
    while not (sleeper.exists() and sleeper.read_text()):
        assert time.monotonic() < until and table.poll() is None
        time.sleep(0.05)
    table.send_signal(signal.SIGTERM)
    table.communicate(timeout=60)
    assert table.returncode == 143
    with pytest.raises(ProcessLookupError):
        os.kill(int(sleeper.read_text()), 0)
    (toy.home / "SLEEP").unlink()
    assert toy().returncode == 0
