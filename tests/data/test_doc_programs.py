"""The Python programs of README.md and docs/STREAMING.md run as they are printed."""

import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fusmae.data import Order
from fusmae.sensors import BIGEARTHNET_ARRAYS

from .tiny_dataset import write_tiny_dataset

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def programs(tiny_dataset, tiny_sen12ms, tmp_path, monkeypatch):
    """Gives the Python blocks of a page, to be run beside the datasets that they name.

    Of `ben` no flags are known, as without --split-lists; of `reben` they are.
    """
    shutil.copytree(tiny_dataset, tmp_path / "ben")
    table = pq.read_table(tiny_dataset / "samples.parquet")
    for flag in ("seasonal_snow", "cloud_or_shadow"):
        place = table.column_names.index(flag)
        table = table.set_column(place, flag, pa.nulls(len(table), pa.bool_()))
    pq.write_table(table, tmp_path / "ben" / "samples.parquet")
    (tmp_path / "reben").symlink_to(tiny_dataset)
    (tmp_path / "sen12ms").symlink_to(tiny_sen12ms)
    monkeypatch.chdir(tmp_path)

    def blocks(page):
        text = (Path(__file__).parents[2] / page).read_text()
        return re.findall(r"```python\n(.*?)```", text, re.DOTALL)

    return blocks


def test_the_readmes_ten_lines_run(programs):
    (block,) = (block for block in programs("README.md") if "open_dataset" in block)
    assert len([line for line in block.splitlines() if line]) <= 10
    names = {}
    exec(block, names)
    shapes = {name: tuple(image.shape) for name, image in names["images"].items()}
    assert shapes == {"s1": (41, 2, 120, 120), "s2": (41, 2, 120, 120)}
    assert names["batch"]["positions"].tolist() == list(range(2 * 41, 3 * 41))


def test_the_programs_of_the_streaming_page_run(programs, monkeypatch):
    subset, mixture, ranks, _ = programs("docs/STREAMING.md")
    names = {}
    exec(subset, names)
    assert len(names["half"]) == 20
    assert len(names["clear"]) == 16  # half of the 32 without snow
    assert [sample["key"] for sample in names["three"]] == names["half"].keys_of(
        names["half"].subset_ids[:3]
    )
    exec(mixture, names)
    shapes = {name: tuple(image.shape) for name, image in names["images"].items()}
    assert shapes == {"s1": (64, 2, 120, 120), "s2": (64, 2, 120, 120)}
    assert names["batch"].sample_ids[:, 0].bincount().tolist() == [48, 16]
    rows = names["batch"].sample_ids.tolist()
    samples = [names["views"][source][row]["key"] for source, row in rows]
    assert names["keys"] == samples and len(set(samples)) > 40
    order = Order((12, 12, 12, 5), 0).samples(0, 64).tolist()
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        exec(ranks, names)
        ids = order[32 * rank : 32 * rank + 16]
        assert torch.equal(names["labels"], names["ds"].labels_of(ids))
        assert names["steps"] == 41 / 64
        assert names["batch"].sample_ids.tolist() == ids
        assert names["images"]["s2"].shape == (16, 2, 120, 120)
        assert names["num_seen"] == (4, 3)[rank]  # of 7


def test_the_program_with_crops_runs_on_arrays_of_full_size(programs, tmp_path, monkeypatch):
    *_, crops = programs("docs/STREAMING.md")
    write_tiny_dataset(tmp_path / "full" / "ben", {"train": (8,)}, BIGEARTHNET_ARRAYS)
    monkeypatch.chdir(tmp_path / "full")
    names = {}
    exec(crops, names)
    for image in names["images"].values():
        assert image.shape == (8, 2, 96, 96)
    vv = names["crops"]["s1"][:, 0]
    mean, std = names["ds"].manifest.band_statistics("s1", "VV")
    torch.testing.assert_close(names["images"]["s1"][:, 0], (vv - mean) / std)  # not resampled
