"""A dataset at a URL of fsspec: its small files are mirrored in the cache, its shards are not.

A mirror is a dataset's folder like any other, `CACHE/NAME-HASH`, the hash being that of
`dataset.json`: a dataset that was changed has another folder. Only its shards come later, when
they are needed (`prefetch.py`); its `origin.json` says from where. A copy of a mirror, or one that
was moved, is a dataset on disk.
"""

import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from fusmae.data.cache import POLL_S, Cache, Pause, Pins, UnfetchableError
from fusmae.data.cached_file import CachedFile, why_bad
from fusmae.data.claim import claim, is_claimed, lock_of
from fusmae.data.origin import Origin
from fusmae.manifest import MANIFEST_NAME, FileRecord, Manifest, ShardRecord, from_json

ORIGIN_NAME = "origin.json"
SAMPLES_NAME = "samples.parquet"
# Room that windows leave to an evaluation beside the training: the shard that it reads, the next.
_SPARE_SHARDS = 2


def locate_dataset(location: str | Path, cache: Path | str) -> Path:
    """The folder to read a dataset from, absolute: `location` itself, or the mirror of a URL.

    Args:
        location: a folder, or a URL such as `s3://bucket/DATASET`, `gs://`, `https://` or `hf://`.
        cache: the folder of the mirrors, on a local disk; a path as `location` does not touch it.

    Raises:
        ValueError: the URL cannot be read, what it holds is no dataset or a broken one,
            something else is where its mirror belongs, `location` or `cache` is no path, or
            `cache` is or lies in a dataset.
    """
    if "://" not in str(location):
        return local_folder(location)
    cache_folder = _cache_folder(cache)
    origin = Origin(str(location))
    text = origin.read_manifest()
    manifest = from_json(text.decode("utf-8", "replace"), f"{origin.url}/{MANIFEST_NAME}")
    _check_paths(origin, manifest)
    name = re.sub(r"[^\w.-]", "_", manifest.name)
    folder = cache_folder / f"{name}-{hashlib.sha256(text).hexdigest()[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(lock_of(folder)):  # one rank of a node fetches, the others find it done
            claim(folder)
            for record in _small_files(manifest):
                if not (folder / record.path).exists():
                    _fetch_whole(origin, record, folder / record.path)
            _write(folder / ORIGIN_NAME, json.dumps({"url": origin.url}).encode())
            _write(folder / MANIFEST_NAME, text)
    except OSError as error:
        raise ValueError(f"cannot write the cache {folder}: {error.strerror}") from None
    return folder


def local_folder(dataset: str | Path) -> Path:
    """The folder of a dataset that is here, as an absolute path: a later `os.chdir` moves nothing.

    Raises:
        ValueError: it is a URL, or no path.
    """
    if "://" in str(dataset):
        raise ValueError(
            f"{dataset} is a URL and a folder is wanted: give locate_dataset(URL, CACHE) instead"
        )
    return as_path("dataset", dataset).absolute()


def as_path(name: str, value: object) -> Path:
    """A caller's path; ValueError, which calls it `name`, if it is of another kind."""
    if not isinstance(value, str | Path):
        raise ValueError(f"{name} = {value!r} must be a path, a str or a pathlib.Path")
    return Path(value)


def _cache_folder(cache: Path | str) -> Path:
    """The cache's resolved folder; ValueError if it would put its files into a dataset."""
    folder = as_path("cache", cache).resolve()
    try:
        around = [one for one in (folder, *folder.parents) if (one / MANIFEST_NAME).exists()]
    except OSError as error:
        raise ValueError(f"cannot use {folder} as a cache: {error.strerror}") from None
    if around:
        raise ValueError(
            f"the cache {folder} would be in the dataset {around[0]}: choose a folder outside of "
            "it, which may lie beside it"
        )
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            # Closing alone would leave it held by a process that was forked meanwhile.
            fcntl.flock(lock, fcntl.LOCK_UN)


@dataclass(frozen=True)
class Mirror:
    """A mirror's folder, where its shards come from, and the cache that they come into."""

    folder: Path
    origin: Origin
    cache: Cache

    def file(self, shard: ShardRecord) -> CachedFile:
        return CachedFile(self.folder / shard.path, shard.bytes)

    def settle(self, shard: ShardRecord, pause: Pause) -> bool:
        """Fetch a shard that is pinned, as `Cache.settle`."""

        def fetch(sink: BinaryIO) -> None:
            try:
                self.origin.fetch(shard, sink, pause, is_read=True)
            except UnfetchableError:
                pause(0)  # one that nobody waits for any more does not call the shard bad
                raise

        return self.cache.settle(self.file(shard), fetch)

    def hold(self, shard: ShardRecord, pause: Pause) -> Pins:
        """Pin a shard that is there, fetched if need be.

        Raises:
            ValueError: it cannot be fetched, is larger than the cache, or others have held
                the whole cache for `ROOM_WAIT_S`.
            Exception: whatever `pause` raises.
        """
        pins = self.cache.pin([self.file(shard)], pause)
        try:
            while not self.settle(shard, pause):
                pause(POLL_S)
            reason = why_bad(self.folder / shard.path)
            if reason is not None:
                raise ValueError(reason)
        except BaseException:
            pins.release()
            raise
        return pins

    def window(self, shards: Sequence[ShardRecord], window: int, share: float) -> int:
        """The shuffle window, in shards, that `data.window` stands for; 0 is all of them.

        By default all, where the cache holds them, or else the half of what it holds, so that
        the next window is fetched while this one is read; with two shards' room to spare. `share`
        is the part of the cache that it may count on.

        Raises:
            ValueError: the cache cannot hold a window.
        """
        largest = max((shard.bytes for shard in shards), default=0)
        if largest == 0:
            return window  # the order refuses a split without samples
        limit = int(self.cache.limit_bytes * share)
        if window:
            # Loaders that are read in turns must never wait for each other's room. And a training
            # holds its window while it is evaluated, one shard after another.
            num_windows = 1 if share == 1 else 2
            needed = (num_windows * min(window, len(shards)) + 1) * largest
            if needed > limit:
                raise ValueError(
                    f"data.window = {window}, shards of up to {largest:,} bytes, needs, with one "
                    f"more for an evaluation, {needed:,} and the cache may hold {limit:,}: lower "
                    "data.window or raise data.cache_gb (window of a stream, cache_gb of a view)"
                )
            return window
        room = limit // largest - _SPARE_SHARDS
        if len(shards) <= room:
            return 0
        if room < 2:
            raise ValueError(
                f"the shards of {self.origin.url} have up to {largest:,} bytes and the cache may "
                f"hold {limit:,}, which must be {2 + _SPARE_SHARDS} times as much or more: raise "
                "data.cache_gb"
            )
        return room // 2

    def stream_window(self, shards: Sequence[ShardRecord], window: int) -> int:
        """As `window`, for who needs a shard at a time: 1 where two windows do not fit.

        Raises:
            ValueError: as `window`, for windows of 2 shards and more.
        """
        largest = max((shard.bytes for shard in shards), default=0)
        if window in (0, 1) and self.cache.limit_bytes < (2 + _SPARE_SHARDS) * largest:
            return 1
        return self.window(shards, window, share=1.0)


def location_of(dataset: Path | str) -> str:
    """Where a dataset comes from: the URL of a mirror, or the absolute path.

    Raises:
        ValueError: it is a URL, or no path, or the mirror's `origin.json` is broken.
    """
    folder = local_folder(dataset).resolve()
    origin = _origin_of(folder) if is_claimed(folder) else None
    return origin.url if origin else str(folder)


def mirror_of(
    dataset: Path, cache_gb: float, split: str, shards: Sequence[ShardRecord]
) -> Mirror | None:
    """What fetches the shards of a mirror; None for a dataset that is here as a whole.

    Raises:
        ValueError: `cache_gb` is not enough for a shard, the mirror's `origin.json` is broken, the
            cache cannot be written, the mirror's shards lie elsewhere, or this is a copy of a
            mirror that lacks some of the split's `shards`.
    """
    if not isinstance(cache_gb, int | float) or not cache_gb > 0:
        raise ValueError(f"cache_gb = {cache_gb!r} must be a number above 0, in 10^9 bytes")
    folder = dataset.resolve()
    origin = _origin_of(folder)
    if origin is None:
        return None
    if is_claimed(folder):
        limit = int(cache_gb * 1e9)
        largest = max((shard.bytes for shard in shards), default=0)
        if limit < largest:
            raise ValueError(
                f"cache_gb = {cache_gb} is less than a shard of {origin.url}, up to {largest:,} "
                "bytes: raise data.cache_gb (cache_gb of a view)"
            )
        for place in {(folder / shard.path).parent for shard in shards}:
            if place.resolve() != place:
                raise ValueError(
                    f"{place} leads to {place.resolve()}, whose files are not the cache's to "
                    "delete: remove the link"
                )
        return Mirror(folder, origin, Cache(folder.parent, limit))
    missing = sum(not (folder / shard.path).exists() for shard in shards)
    if missing:
        raise ValueError(
            f"{dataset} is a copy of a mirror of {origin.url} that lacks {missing} of "
            f"{len(shards)} shards of split {split!r}: read it from {origin.url}, or copy "
            "the shards from there"
        )
    return None


def _origin_of(dataset: Path) -> Origin | None:
    path = dataset / ORIGIN_NAME
    try:
        return Origin(json.loads(path.read_text())["url"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"cannot read {path}: {error}; delete {dataset}") from None


def _small_files(manifest: Manifest) -> list[FileRecord]:
    indices = [split.index for split in manifest.splits.values() if split.index]
    return indices + [file for file in manifest.files if file.path == SAMPLES_NAME]


def _check_paths(origin: Origin, manifest: Manifest) -> None:
    """Raises ValueError if a file that would be fetched lies outside of the dataset."""
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    for name in [record.path for record in _small_files(manifest)] + [s.path for s in shards]:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{origin.url}/{MANIFEST_NAME} names a file outside of it: {path}")


def _fetch_whole(origin: Origin, record: FileRecord, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    with temporary.open("wb") as sink:
        origin.fetch(record, sink, time.sleep, is_read=False)
        sink.flush()
        os.fsync(sink.fileno())
    temporary.replace(path)


def _write(path: Path, data: bytes) -> None:
    """Write a small file whole or not at all, if it is not there like this already."""
    if path.exists() and path.read_bytes() == data:
        return
    temporary = _temporary(path)
    temporary.write_bytes(data)
    temporary.replace(path)


def _temporary(path: Path) -> Path:
    return path.with_name(f".tmp-{path.name}")
