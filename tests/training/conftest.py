"""Ranks as a launcher would start them, and the dataset, recipe and options they train with."""

import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from ..data.tiny_dataset import write_tiny_dataset  # noqa: TID252

pytest.register_assert_rewrite(f"{__package__}.script")  # so that a failure shows both sides

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "train" / "pretrain.py"
# Without it every rank takes every core, which is ten times slower.
# The ranks here are CPU ranks, also on a machine that has GPUs.
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "DS_ACCELERATOR": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
}

RECIPE = """
seed = 3

[model]
preset = "tiny"
image_px = 12
patch_px = 3
width = 20
depth = 2
heads = 2
decoder_width = 12
decoder_depth = 1
decoder_heads = 2

[data.bands]
s1 = ["VV", "VH"]
s2 = ["B02", "B8A", "B01"]

[optim]
lr = 1e-3
global_batch = 8
epochs = 4
warmup_epochs = 1
clip_norm = 5.0

[run]
save_every_steps = 6
log_every_steps = 3
keep_checkpoints = 2
"""
# ceil(4 * 41 / 8)
TOTAL_STEPS = 21

InProcess = Callable[..., tuple[int, str, str]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def without_ranks(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that no launcher started, whoever started the tests."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {name: value for name, value in environment.items() if name not in names}


def start_ranks(count: int, script: Path, *arguments: object) -> list[subprocess.Popen[str]]:
    """`count` ranks of a script in the background, as torchrun would start them: with no
    launcher above them, which costs another ten seconds."""
    port = str(free_port())
    processes = []
    for rank in range(count):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        place |= {"LOCAL_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        processes.append(
            subprocess.Popen(
                [sys.executable, script, *map(str, arguments)],
                env=ENVIRONMENT | place,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return processes


def wait_for(processes: list[subprocess.Popen[str]], at_most_s: float = 240) -> str:
    """All output of ranks that end by themselves; fails if one does not exit with 0."""
    outputs = [process.communicate(timeout=at_most_s)[0] for process in processes]
    text = "\n".join(outputs)
    assert [process.returncode for process in processes] == [0] * len(processes), text
    return text


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """41 train samples in 4 shards."""
    return write_tiny_dataset(tmp_path_factory.mktemp("tiny"), {"train": (12, 12, 12, 5)})


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="session")
def ds_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ds") / "zero1.json"
    path.write_text('{"train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": 1}}')
    return path


@pytest.fixture
def options(recipe: Path, tiny_dataset: Path, ds_json: Path) -> list[str]:
    return [
        *("--recipe", str(recipe), "--data", str(tiny_dataset)),
        *("--deepspeed_config", str(ds_json)),
    ]


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> InProcess:
    """The script's `main` as rank 0 of 1, for what ends before any rank is joined: exit code,
    stdout and stderr. Saves three seconds of imports each time."""
    spec = importlib.util.spec_from_file_location("pretrain_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)

    def call(*options: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options])
        code = 0
        try:
            script.main()
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    return call


def fill(path: Path) -> None:
    """Write a file until the disk is full."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
