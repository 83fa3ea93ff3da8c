"""What is a mirror in a cache's folder, and what lies there that is not the cache's to change."""

import fcntl
import multiprocessing
import shutil
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest

from fusmae.config import DataConfig
from fusmae.data import EvalLoader, TrainLoader, locate_dataset, location_of, open_dataset
from fusmae.data.cache import Cache
from fusmae.data.claim import claimed_files
from fusmae.data.remote import _locked

from ..manifests import edit_manifest  # noqa: TID252
from .remote_batches import DATA, SEED, limit_of
from .remote_rank import digest
from .tiny_dataset import write_tiny_dataset

pytestmark = pytest.mark.timeout(60)


def train(dataset, steps=20, data=DATA):
    with TrainLoader(dataset, data, SEED, 8, 0, 1, 8) as loader:
        return [digest(next(loader)) for _ in range(steps)]


@pytest.fixture
def small(big_window_dataset):
    """A recipe whose cache is too small for an epoch."""
    return replace(DATA, cache_gb=limit_of(big_window_dataset, 4.5))


@pytest.fixture
def precious(tmp_path):
    """The folder of somebody's datasets, one of them in it, and all its files."""
    folder = tmp_path / "data"
    (folder / "precious").mkdir(parents=True)
    write_tiny_dataset(folder / "precious", {"train": (8,) * 5}, seed=9)
    (folder / "precious/shards/train/mine.part").write_text("not a part of anything")
    files = files_below(folder)
    yield folder
    assert files_below(folder).items() >= files.items()


def files_below(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_cache_that_is_a_folder_of_datasets_leaves_them_alone(
    url, big_window_dataset, precious, small
):
    dataset = locate_dataset(url, precious)
    assert train(dataset, data=small) == train(big_window_dataset)
    fetched = sum(path.stat().st_size for path in dataset.rglob("*.tar"))
    assert 0 < fetched <= small.cache_gb * 1e9


def test_mirror_behind_a_link_is_kept_in_its_own_cache(
    url, big_window_dataset, precious, small, tmp_path
):
    mirror = locate_dataset(url, tmp_path / "cache")
    link = precious / "ben"
    link.symlink_to(mirror)
    assert train(link, data=small) == train(big_window_dataset)
    assert not (precious / "locks").exists()
    assert location_of(link) == location_of(mirror) == url


def test_link_to_a_mirror_of_another_cache_is_not_followed(url, precious, small, tmp_path):
    other = locate_dataset(url, tmp_path / "cache")
    train(other)
    before = files_below(other)
    (precious / "ben").symlink_to(other)
    train(locate_dataset(url, precious), data=small)
    assert files_below(other) == before


@pytest.mark.parametrize("move", [shutil.copytree, shutil.move])
def test_finished_mirror_that_was_copied_or_moved_is_a_dataset_on_disk(
    url, big_window_dataset, precious, small, tmp_path, move
):
    mirror = locate_dataset(url, tmp_path / "cache")
    train(mirror, data=DataConfig())
    move(mirror, precious / "ben")
    before = files_below(precious)
    assert train(precious / "ben", data=small) == train(big_window_dataset)
    assert files_below(precious) == before
    assert location_of(precious / "ben") == str(precious / "ben")


def test_unfinished_mirror_that_was_copied_is_refused_with_its_url(url, precious, tmp_path):
    shutil.copytree(locate_dataset(url, tmp_path / "cache"), precious / "ben")
    with pytest.raises(ValueError, match=rf"lacks 12 of 12 shards of split 'train'.*{url}"):
        train(precious / "ben")


@pytest.mark.parametrize("inside", [".", "shards/new"])
def test_cache_in_a_dataset_is_refused_before_anything_is_written(url, precious, inside):
    before = files_below(precious)
    with pytest.raises(ValueError, match=r"cache .* would be in the dataset .*/precious: choose"):
        open_dataset(url, cache=precious / "precious" / inside)
    assert files_below(precious) == before and not (precious / "precious/shards/new").exists()


def test_cache_that_was_copied_is_not_taken_over(url, precious, tmp_path):
    mirror = locate_dataset(url, tmp_path / "cache")
    shutil.copytree(mirror, precious / mirror.name)
    with pytest.raises(ValueError, match=rf"was copied or moved from {mirror} and is not touched"):
        locate_dataset(url, precious)


def test_folder_that_stands_where_a_mirror_belongs_is_not_touched(url, precious, tmp_path):
    name = locate_dataset(url, tmp_path / "cache").name
    (precious / "precious").rename(precious / name)
    with pytest.raises(ValueError, match="was not made by this cache and is not touched"):
        locate_dataset(url, precious)
    (precious / name).rename(precious / "precious")


@pytest.mark.parametrize("linked", ["shards", "shards/train"])
def test_mirror_whose_shards_were_linked_to_others_is_refused(url, precious, tmp_path, linked):
    mirror = locate_dataset(url, tmp_path / "cache")
    (mirror / linked).parent.mkdir(exist_ok=True)
    (mirror / linked).symlink_to(precious / "precious" / linked)
    with pytest.raises(ValueError, match=r"leads to .*: remove the link"):
        train(mirror)
    # Nor are they counted or deleted for the sake of another mirror of the cache.
    Cache(tmp_path / "cache", 1)
    assert list(claimed_files(tmp_path / "cache")) == []


def test_mirror_whose_making_was_cut_short_is_made_again(url, big_window_dataset, tmp_path):
    mirror = locate_dataset(url, tmp_path / "cache")
    for path in mirror.iterdir():
        if path.name != "lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (mirror / ".tmp-cached-at").write_text("half")
    assert train(locate_dataset(url, tmp_path / "cache")) == train(big_window_dataset)


def test_lock_of_a_mirror_does_not_outlive_its_holder_in_a_fork(tmp_path):
    release, wait = multiprocessing.Pipe()
    with _locked(tmp_path / "lock"):
        child = multiprocessing.get_context("fork").Process(target=wait.recv)
        child.start()
    try:
        with (tmp_path / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert child.is_alive()
    finally:
        release.send(None)
        child.join(20)


def test_empty_split_of_a_mirror_is_refused_as_one_on_disk_is(big_window_dataset, tmp_path):
    place = tmp_path / "empty"
    shutil.copytree(big_window_dataset, place)
    np.save(place / "index/val.npy", np.zeros(0, np.int64))
    index = (place / "index/val.npy").read_bytes()
    record = {"path": "index/val.npy", "bytes": len(index), "sha256": sha256(index).hexdigest()}
    empty = {"num_samples": 0, "shards": [], "index": record}
    edit_manifest(place, lambda manifest: manifest["splits"]["val"].update(empty))
    for dataset in (place, locate_dataset(f"file://{place}", tmp_path / "cache")):
        with pytest.raises(ValueError, match=r"split 'val' of .* has no samples"):
            train(dataset, data=replace(DATA, split="val"))
        with pytest.raises(ValueError, match=r"has no samples; .*'train': 74, 'val': 0"):
            EvalLoader(dataset, "val", DATA, 8)
