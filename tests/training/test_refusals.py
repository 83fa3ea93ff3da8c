"""What `train/pretrain.py` refuses: one line, nothing written."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fusmae.training.run_lock import run_lock

from .conftest import ENVIRONMENT, ROOT, SCRIPT, InProcess, start_ranks


@pytest.mark.parametrize(
    ("extra", "code", "said"),
    [
        (["--set", "optim.lrr=1"], 1, "unknown key optim.lrr"),
        (["--set", "model.sensor_dropout=1"], 1, "must be at least 0 and below 1"),
        (["--set", "optim.global_batch=10"], 1, "10 is not a multiple of micro-batch 4"),
        (
            ["--set", "run.validate_every_steps=5"],
            1,
            "no split run.val_split = 'val', it has ['train']",
        ),
        (["--set", "data.split=validation"], 1, "no split 'validation'"),
        (["--set", 'data.bands.s2=["B10"]'], 1, "sensor 's2' has no band 'B10'"),
        (["--data", "another"], 1, "2 datasets are given with --data, the recipe has 1"),
        (["--set", 'data.subset.keys="no.txt"'], 1, "cannot read the list of keys no.txt"),
        (["--set", "data.sources=[{quota=5}, {quota=3}]"], 1, "1 datasets are given with --data"),
        (["--resume", "always"], 2, "'always' is not 'auto'"),
        (["--bogus"], 2, "No such option"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(
    options: list[str],
    tmp_path: Path,
    extra: list[str],
    code: int,
    said: str,
    in_process: InProcess,
) -> None:
    got, _, error = in_process(*options, "--out", str(tmp_path / "run"), *extra)
    assert got == code
    (line,) = error.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert not (tmp_path / "run").exists()


def test_an_error_of_all_ranks_is_told_by_one(options: list[str], tmp_path: Path) -> None:
    arguments = [*options, "--out", tmp_path / "run", "--set", "optim.lrr=1"]
    ranks = start_ranks(2, SCRIPT, *arguments)
    first, second = (rank.communicate(timeout=60)[0] for rank in ranks)
    assert [rank.returncode for rank in ranks] == [1, 1]
    assert len(first.splitlines()) == 1
    assert second == ""


def test_a_folder_that_another_process_writes_into_is_refused(
    options: list[str], tmp_path: Path, in_process: InProcess
) -> None:
    run = tmp_path / "run"
    with run_lock(run):
        code, _, error = in_process(*options, "--out", str(run), "--resume", "auto")
        assert code == 1
        assert f"another process writes into {run}" in error
        assert list(run.iterdir()) == []
    assert not run.exists()  # nothing was written


def test_a_port_in_use_is_one_line(options: list[str], tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1"}
        done = subprocess.run(
            [sys.executable, SCRIPT, *options, "--out", tmp_path / "run"],
            env=ENVIRONMENT | place | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 1
    assert f"error: port {port} is in use" in done.stderr
    assert "Traceback" not in done.stderr
