"""`train/pretrain.py` as its users start it: launched, killed, stopped, resumed."""

import json
import random
import re
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from fusmae.manifest import read_manifest
from fusmae.model import load_encoder
from fusmae.training.checkpoint import find_checkpoint, newest_state, read_weights

from ..data.object_store import LoopbackStore  # noqa: TID252
from ..ingest.s3_server import KEYS, serving  # noqa: TID252
from .conftest import ENVIRONMENT, SCRIPT, TOTAL_STEPS, InProcess, start_ranks, wait_for
from .script import (
    alone,
    assert_same_encoder,
    assert_same_run,
    launch,
    lines_of,
    steps_written,
    wait_until_step,
)


@pytest.fixture(scope="module")
def undisturbed(
    recipe: Path, tiny_dataset: Path, ds_json: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished run of 2 ranks under the deepspeed launcher; nothing may be compiled for it."""
    run, extensions = tmp_path_factory.mktemp("runs") / "run", tmp_path_factory.mktemp("ext")
    arguments = ["--recipe", str(recipe), "--data", str(tiny_dataset), "--out", str(run)]
    launched = launch([*arguments, "--deepspeed_config", str(ds_json)], extensions)
    wait_for([launched])
    assert list(extensions.iterdir()) == []
    return run


def test_a_run_writes_its_metrics_record_and_encoder(undisturbed: Path, tiny_dataset: Path) -> None:
    lines = lines_of(undisturbed)
    assert [line["step"] for line in lines] == [*range(3, TOTAL_STEPS, 3), TOTAL_STEPS]
    assert all(line["loss"] == pytest.approx(line["s1"] + line["s2"]) for line in lines)
    assert lines[-1]["loss"] < lines[0]["loss"]

    record = json.loads((undisturbed / "run.json").read_text())
    assert record["recipe"]["optim"]["global_batch"] == 8
    (start,) = record["starts"]
    assert (start["world_size"], start["step"]) == (2, 0)
    assert start["deepspeed_config"]["train_batch_size"] == 8
    assert start["versions"]["deepspeed"]

    encoder, card = load_encoder(undisturbed / "encoder")
    manifest = read_manifest(tiny_dataset)
    assert card.bands == {"s1": ("VV", "VH"), "s2": ("B02", "B8A", "B01")}
    assert card.mean["s2"][1] == manifest.band_statistics("s2_20m", "B8A")[0]
    assert card.simulated
    checkpoint = find_checkpoint(undisturbed)
    assert checkpoint is not None
    weights = read_weights(checkpoint)
    for name, parameter in encoder.named_parameters():
        assert np.array_equal(parameter.detach(), weights[f"encoder.{name}"])


def test_a_finished_run_is_left_alone(
    undisturbed: Path, options: list[str], in_process: InProcess
) -> None:
    before = (undisturbed / "run.json").read_bytes()
    code, output, _ = in_process(*options, "--out", str(undisturbed), "--resume", "auto")
    assert code == 0
    assert "is complete" in output
    assert (undisturbed / "run.json").read_bytes() == before


@contextmanager
def in_s3(folder: Path) -> Iterator[LoopbackStore]:
    """An S3 API that holds the folder at s3://datasets, behind a store that counts."""
    with serving() as s3, pytest.MonkeyPatch.context() as patch:
        for path in filter(Path.is_file, folder.rglob("*")):
            s3.upload_file(str(path), "datasets", str(path.relative_to(folder)))
        address = urlsplit(s3.meta.endpoint_url)
        with LoopbackStore((address.hostname, address.port)) as store:
            for name, value in (KEYS | {"AWS_ENDPOINT_URL": store.url}).items():
                patch.setenv(name, value)
                patch.setitem(ENVIRONMENT, name, value)
            yield store


@pytest.mark.parametrize("protocol", ["http", "s3"])
def test_a_run_from_a_url_is_that_from_the_disk(
    undisturbed: Path,
    options: list[str],
    tiny_dataset: Path,
    tmp_path: Path,
    in_process: InProcess,
    protocol: str,
) -> None:
    run, where = tmp_path / "run", options.index("--data") + 1
    s3 = protocol == "s3"
    with in_s3(tiny_dataset) if s3 else LoopbackStore(tiny_dataset) as store:
        url, bucket = ("s3://datasets", "datasets/") if s3 else (store.url, "")
        options[where : where + 1] = [url, "--cache", str(tmp_path / "cache")]
        wait_for(start_ranks(2, SCRIPT, *options, "--out", str(run)))
        assert lines_of(run) == lines_of(undisturbed)
        assert json.loads((run / "run.json").read_text())["dataset"]["path"] == url
        shards = [shard.path for shard in read_manifest(tiny_dataset).splits["train"].shards]
        assert [store.gets[f"{bucket}{shard}"] for shard in shards] == [1] * len(shards)
        # The dataset is the same one, wherever it lies.
        finished = [*options, "--out", str(undisturbed), "--resume", "auto"]
        assert "is complete" in in_process(*finished)[1]


def test_samples_of_a_bad_shard_are_counted_in_the_metrics(
    options: list[str], tiny_dataset: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(tiny_dataset, tmp_path / "data")
    shard = read_manifest(data).splits["train"].shards[0]
    (data / shard.path).unlink()
    where = options.index("--data") + 1
    with LoopbackStore(data) as store:
        options[where : where + 1] = [store.url, "--cache", str(tmp_path / "cache")]
        options += ["--set", "optim.warmup_epochs=0.1", "--set", "optim.epochs=1"]
        failed = alone(*options, "--out", str(tmp_path / "failed"))
        (line,) = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
        assert f"rank 0: cannot read {store.url}/{shard.path}" in line
        skip = ["--set", "data.on_bad_shard=skip", "--set", "run.log_every_steps=1"]
        skipped = alone(*options, "--out", str(tmp_path / "run"), *skip)
        assert skipped.returncode == 0, skipped.stderr
        assert f"skipped: cannot read {store.url}/{shard.path}" in skipped.stderr
    lines = lines_of(tmp_path / "run")
    total = sum(line.get("replaced", 0) for line in lines)
    # The last step of an epoch of 41 samples in steps of 8 reads into the next one.
    assert shard.num_samples <= total < shard.num_samples + 8


def test_a_dry_run_writes_nothing_and_refuses_what_a_run_refuses(
    undisturbed: Path, options: list[str], tmp_path: Path, in_process: InProcess
) -> None:
    out = tmp_path / "run"
    ranks = start_ranks(2, SCRIPT, *options, "--out", out, "--dry-run")
    text = wait_for(ranks)
    batch = "batch       8 = micro-batch 4 x 2 ranks x accumulation 1"
    assert f"{batch}\nsteps       {TOTAL_STEPS} (4 epochs)" in text
    for word in ("data", "speed", "time", "memory", "checkpoints"):
        assert len(re.findall(rf"^{word} ", text, flags=re.MULTILINE)) == 1
    assert not out.exists()
    dry = [*options, "--dry-run"]
    for wrong, said in (
        (["--out", str(out), "--set", "optim.global_batch=10"], "is not a multiple of"),
        (["--out", str(undisturbed)], "is not empty"),
        (["--out", str(undisturbed), "--resume", "auto", "--set", "seed=9"], "started with seed"),
    ):
        code, _, error = in_process(*dry, *wrong)
        assert code == 1 and said in error


def test_looking_at_a_run_does_not_change_it(
    undisturbed: Path, options: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for change in ("val_split=train", "probe_every_epochs=1", "picture_every_epochs=2"):
        options += ["--set", f"run.{change}"]
    options += ["--set", "run.keep_every_steps=5"]
    wait_for(start_ranks(2, SCRIPT, *options, "--out", run))
    probed = [line for line in lines_of(run) if "knn" in line]
    assert [line["step"] for line in probed] == [6, 12, 18]  # ceil(41 / 8) steps an epoch
    (picture,) = (run / "pictures").iterdir()
    assert picture.name == "step-00000011.png"
    assert [line for line in lines_of(run) if "knn" not in line] == lines_of(undisturbed)
    assert_same_encoder(run, undisturbed)
    # Kept for good, and the newest two.
    kept = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
    assert kept == [f"step-{step:08d}" for step in (5, 10, 15, 20, TOTAL_STEPS)]


def kill_at(run: Path, step: int, delay_s: float, arguments: list[str]) -> None:
    """Start 2 ranks and kill both without warning, `delay_s` after that step is logged."""
    processes = start_ranks(2, SCRIPT, *arguments)
    wait_until_step(run, step, processes)
    time.sleep(delay_s)
    for process in processes:
        process.kill()
    for process in processes:
        process.communicate()


def test_a_killed_run_resumes_to_the_same_end(
    undisturbed: Path, options: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = [*options, "--out", str(run), "--resume", "auto"]
    kill_at(run, 9, 0.0, arguments)
    assert steps_written(run) < TOTAL_STEPS
    wait_for(start_ranks(2, SCRIPT, *arguments))
    assert_same_run(run, undisturbed)
    first, second = json.loads((run / "run.json").read_text())["starts"]
    assert first["step"] == 0
    assert second["step"] >= 6


def test_a_run_without_a_whole_checkpoint_is_not_begun_anew(
    undisturbed: Path, options: list[str], tmp_path: Path
) -> None:
    run = shutil.copytree(undisturbed, tmp_path / "run")
    shutil.rmtree(run / "encoder")  # else it is complete
    manifests = list(run.glob("checkpoints/*/manifest.json"))
    for manifest in manifests:
        manifest.unlink()
    before = sorted(path for path in run.rglob("*") if path.is_file())
    refused = alone(*options, "--out", str(run), "--resume", "auto")
    assert refused.returncode == 1
    (error,) = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert all(manifest.parent.name in error for manifest in manifests) and len(manifests) == 2
    assert f"error: rank 0: {run / 'checkpoints'} has no whole checkpoint" in error
    assert sorted(path for path in run.rglob("*") if path.is_file()) == before
    assert lines_of(run) == lines_of(undisturbed)


@pytest.mark.slow
def test_kills_of_all_ranks_at_random_points(
    undisturbed: Path, options: list[str], tmp_path: Path
) -> None:
    rng = random.Random(0)
    for number in range(5):
        run = tmp_path / f"run-{number}"
        arguments = [*options, "--out", str(run), "--resume", "auto"]
        for step in sorted(rng.sample(range(0, 18, 3), 2)):
            if steps_written(run) < TOTAL_STEPS:
                kill_at(run, step, rng.uniform(0, 0.3), arguments)
        wait_for(start_ranks(2, SCRIPT, *arguments))
        assert_same_run(run, undisturbed)
        assert not list((run / "checkpoints").glob(".tmp-*"))


def test_sigterm_to_one_rank_saves_and_a_single_process_goes_on(
    undisturbed: Path, options: list[str], tmp_path: Path, in_process: InProcess
) -> None:
    run = tmp_path / "run"
    arguments = [*options, "--out", str(run)]
    processes = start_ranks(2, SCRIPT, *arguments)
    wait_until_step(run, 3, processes)
    processes[1].send_signal(signal.SIGTERM)
    assert "asked to stop" in wait_for(processes)
    state = newest_state(run)
    assert state is not None
    assert 3 <= state["step"] < TOTAL_STEPS

    code, _, error = in_process(*arguments)
    assert code == 1
    assert f"error: {run} is not empty: continue its run with --resume auto" in error

    result = alone(*arguments, "--resume", "auto")
    assert result.returncode == 0, result.stderr
    mine, expected = lines_of(run), lines_of(undisturbed)
    assert [line["step"] for line in mine] == [line["step"] for line in expected]
    # Another world size sums in another order, as in test_engine; Adam carries it for 21 steps.
    for key in ("s1", "s2", "loss"):
        assert [line[key] for line in mine] == pytest.approx(
            [line[key] for line in expected], rel=1e-5
        )


needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="there is no C++ compiler"
)


@pytest.mark.slow
@needs_compiler
@pytest.mark.timeout(1200)
def test_a_compiled_run_has_the_losses_of_an_eager_one(
    undisturbed: Path, options: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = [*options, "--out", run, "--set", "run.compile=true"]
    wait_for(start_ranks(2, SCRIPT, *arguments), at_most_s=1100)
    for line, expected in zip(lines_of(run), lines_of(undisturbed), strict=True):
        # Fused kernels sum in another order; as above, Adam carries it for 21 steps.
        for key in ("s1", "s2", "loss"):
            assert line[key] == pytest.approx(expected[key], rel=1e-5)


def test_a_run_is_not_resumed_with_other_numbers(
    undisturbed: Path, options: list[str], in_process: InProcess
) -> None:
    changed = [*options, "--resume", "auto", "--set", "optim.lr=2e-3"]
    code, _, error = in_process(*changed, "--out", str(undisturbed))
    assert code == 1
    (line,) = error.splitlines()
    assert "was started with optim.lr = 0.001, the recipe now says 0.002" in line


def test_the_options_are_these_and_no_more(in_process: InProcess) -> None:
    """A new option needs a reason; it is added here with it."""
    code, output, _ = in_process("--help")
    assert code == 0
    usage, examples = output.split("Examples:")
    assert "deepspeed train/pretrain.py" in examples
    shown = set(re.findall(r"^  (--[\w-]+)", usage, flags=re.MULTILINE))
    named = {"--recipe", "--data", "--cache", "--out", "--deepspeed_config", "--resume", "--set"}
    assert shown == named | {"--dry-run", "--help"}
