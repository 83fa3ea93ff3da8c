"""Reliance: what a score loses with one sensor's images exchanged, held against a changed disk."""

import importlib.util
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from fusmae.config import DataConfig
from fusmae.data import EvalLoader, SplitReader
from fusmae.evaluation.reliance import derangement, exchangeable, exchanged_batches
from fusmae.manifest import read_manifest

ROOT = Path(__file__).parents[2]
FAST = ("--set", "epochs=1", "--set", "warmup_epochs=0", "--set", "lrs=[1e-3]")


@given(st.integers(2, 200), st.integers(0, 2**32))
def test_every_sample_gets_another_ones_image_and_each_is_used_once(count: int, seed: int) -> None:
    partner = derangement(count, seed).tolist()
    assert sorted(partner) == list(range(count))
    assert all(place != other for place, other in enumerate(partner))
    assert derangement(count, seed).tolist() == partner


def test_a_single_sample_has_no_other() -> None:
    with pytest.raises(ValueError, match="1 samples cannot exchange images"):
        derangement(1, 0)


def test_groups_of_one_sensors_bands_are_exchanged_together(dataset: Path) -> None:
    bands = {"s1": ("VV",), "s2_10m": ("B02",), "s2_20m": ("B11",)}
    assert exchangeable(DataConfig(bands=bands)) == ["s1", "s2"]
    assert exchangeable(DataConfig(bands={name: bands[name] for name in list(bands)[1:]})) == []
    ids = torch.tensor([3, 5, 8, 13, 21])

    def open_loader(ids: torch.Tensor, data: DataConfig) -> EvalLoader:
        return EvalLoader(dataset, "test", data, 2, sample_ids=ids.numpy())

    reader = SplitReader(dataset, "test")
    stored = {s.name: np.zeros((23, *s.shape), s.dtype) for s in reader.arrays}
    reader.read_into(np.arange(23), stored)
    partner = ids[derangement(5, 4)]
    seen = 0
    for batch in exchanged_batches(open_loader, ids, DataConfig(bands=bands), "s2", 4):
        for row, number in enumerate(batch.sample_ids.tolist()):
            assert number == ids[seen]
            sources = {"s1": number, "s2_10m": partner[seen], "s2_20m": partner[seen]}
            for name, source in sources.items():
                assert np.array_equal(batch.arrays[name][row].numpy(), stored[name][source])
            seen += 1
    assert seen == 5


def exchange_on_disk(dataset: Path, names: Sequence[str], seed: int) -> None:
    """Give each test sample of 23 the arrays `names` of its partner, in the shard itself."""
    manifest = read_manifest(dataset)
    (shard,) = manifest.splits["test"].shards
    starts = np.load(dataset / "index" / "test.npy").tolist()
    data = (dataset / shard.path).read_bytes()
    changed = bytearray(data)
    for spec in manifest.arrays:
        if spec.name not in names:
            continue
        offset = manifest.layout.offsets[spec.name]
        size = int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize
        for start, other in zip(starts, derangement(23, seed).tolist(), strict=True):
            source = starts[other] + offset
            changed[start + offset : start + offset + size] = data[source : source + size]
    (dataset / shard.path).write_bytes(changed)


@pytest.mark.parametrize(
    ("name", "recipe", "more"),
    [
        ("linear_probe", "probe", ()),
        ("linear_probe", "probe", ("--head", "knn")),
        ("finetune", "finetune", FAST),
    ],
    ids=["linear", "knn", "finetune"],
)
def test_reliance_is_the_loss_on_a_dataset_whose_test_images_were_exchanged(
    dataset: Path, encoder: Path, tmp_path: Path, name: str, recipe: str, more: Sequence[str]
) -> None:
    spec = importlib.util.spec_from_file_location(name, ROOT / "train" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def scores(data: Path, out: str, *options: str) -> dict[str, dict[str, float]]:
        arguments = ["--recipe", str(ROOT / "train" / "recipes" / f"{recipe}.toml")]
        arguments += ["--data", str(data), "--pretrained", str(encoder), "--seed", "6"]
        arguments += ["--out", str(tmp_path / out), "--sensors", "s1,s2", *more, *options]
        done = CliRunner().invoke(script.main, arguments)
        assert done.exit_code == 0, done.output
        return json.loads((tmp_path / out / "metrics.json").read_text())["results"]

    whole = scores(dataset, "whole")
    for sensor, arrays in (("s1", ["s1"]), ("s2", ["s2_10m", "s2_20m", "s2_60m"])):
        changed = shutil.copytree(dataset, tmp_path / sensor)
        exchange_on_disk(changed, arrays, 6)
        exchanged = scores(changed, f"out-{sensor}", "--set", "reliance=false")
        for pooling, score in whole.items():
            assert "reliance" not in exchanged[pooling]
            lost = score["macro_map"] - exchanged[pooling]["macro_map"]
            assert score["reliance"][sensor] == pytest.approx(lost, abs=1e-6)
            assert lost != 0
