"""The output's room is looked at before the first block is written."""

import shutil
from types import SimpleNamespace

import pytest

from .conftest import BOTH

FOUR_A_SHARD = ("--samples-per-shard", 4)


@pytest.fixture
def set_free(monkeypatch):
    def set_(num_bytes):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=num_bytes))

    return set_


@pytest.fixture
def run(archive_v1, fusmae_ingest, paths, tmp_path):
    def run_(*options):
        args = ("bigearthnet", *paths(archive_v1), "--out", tmp_path / "d", *FOUR_A_SHARD)
        return fusmae_ingest(*args, *options)

    return run_


def shard_bytes(out):
    return sum(tar.stat().st_size for tar in out.glob("shards/*/*.tar"))


def test_what_will_be_written_is_said_to_the_megabyte(run, tmp_path):
    result = run()
    written = f"{shard_bytes(tmp_path / 'd') / 1e6:,.0f} MB of shards"
    assert f"Converting 24 samples: {written}; {tmp_path / 'd'} has " in result.stderr


def test_a_disk_without_room_is_refused_before_anything_is_written(run, set_free, tmp_path):
    set_free(24 * 280_000)
    result = run()
    assert (
        result.returncode == 1 and "d has room for 7 MB, and 24 samples take 7 MB" in result.stderr
    )
    assert not (tmp_path / "d" / "shards").exists()
    set_free(24 * 281_000)
    assert run().returncode == 0


def test_a_rerun_counts_what_is_still_to_be_written(run, set_free, tmp_path):
    run()
    first, second = sorted((tmp_path / "d").glob("shards/train/*.tar"))[:2]
    first.unlink()
    second.unlink()
    set_free(8 * 280_000)
    assert "8 samples take 2 MB" in run().stderr
    set_free(8 * 281_000)
    assert run().returncode == 0 and first.is_file()


def test_files_that_will_be_replaced_give_their_room(run, set_free, tmp_path):
    run()
    (tmp_path / "d" / "dataset.json").unlink()
    set_free(0)
    assert run().returncode == 0


def test_zarr_that_may_not_fit_is_a_warning(run, set_free, tmp_path):
    set_free(24 * 281_000 + 5_000_000)
    result = run(*BOTH)
    assert result.returncode == 0
    assert "enough only if zarr compresses its 7 MB to 5 MB" in result.stderr
