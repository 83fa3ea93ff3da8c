"""A dataset in an object store (s3://, gs://, ...): the only user of fsspec here.

Such stores have no rename, so a file is one PUT or one completed multipart upload, which is
there as a whole or not at all; what marks a block as done is written after its files as ever.
"""

import hashlib
import json
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import click
import fsspec

from .storage import SCRATCH, NewFile, Part

_LOCK = f"{SCRATCH}/lock"
# A run at work renews its lock each so many seconds; one that does not change for three times
# as long belongs to a run that is dead. No clocks of two machines are compared.
LOCK_RENEWAL_S = 10.0
# Pieces in which files are read to be hashed.
_PIECE_BYTES = 64 << 20


class ObjectStore:
    """The folder at a URL of fsspec."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def __str__(self) -> str:
        return self.url

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url}  # connections stay where they are

    @cached_property
    def _place(self) -> tuple[Any, str]:
        try:
            return fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise ValueError(f"{self.url}: {error}") from None

    @property
    def _fs(self) -> Any:
        return self._place[0]

    def _full(self, path: str) -> str:
        return f"{self._place[1]}/{path}"

    def create(self, path: str) -> NewFile:
        return _ObjectFile(self, path)

    def put(self, path: str, data: bytes) -> None:
        """Write one object as a whole."""
        with _naming(f"{self}/{path}"):
            self._fs.pipe_file(self._full(path), data)

    def read(self, path: str) -> bytes:
        with _naming(f"{self}/{path}"):
            data: bytes = self._fs.cat_file(self._full(path))
        return data

    def sizes(self, folder: str = "") -> dict[str, int]:
        # fsspec keeps listings: ask the store itself.
        self._fs.invalidate_cache()
        root = len(self._full(""))
        with _naming(f"{self}/{folder}"):
            found = self._fs.find(self._full(folder), detail=True)
        return {path[root:]: int(found[path]["size"]) for path in sorted(found)}

    def exists(self, path: str) -> bool:
        self._fs.invalidate_cache()
        with _naming(f"{self}/{path}"):
            return bool(self._fs.isfile(self._full(path)))

    def hash(self, path: str) -> tuple[int, str]:
        digest, size = hashlib.sha256(), 0
        with (
            _naming(f"{self}/{path}"),
            self._fs.open(self._full(path), "rb", block_size=_PIECE_BYTES) as file,
        ):
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
                size += len(piece)
        return size, digest.hexdigest()

    def remove(self, path: str) -> None:
        with _naming(f"{self}/{path}"):
            self._fs.rm_file(self._full(path))

    def remove_folder(self, folder: str) -> None:
        for path in self.sizes(folder):
            self.remove(path)

    def holds_other_files(self) -> bool:
        paths = self.sizes()
        return bool(paths) and not any(path.startswith(f"{SCRATCH}/") for path in paths)

    @contextmanager
    def locked(self) -> Iterator[None]:
        own = uuid.uuid4().hex
        self._wait_for_a_dead_run()
        stop = threading.Event()

        def renew() -> None:
            beat = 0
            while not stop.wait(LOCK_RENEWAL_S):
                beat += 1
                self.put(_LOCK, json.dumps([own, beat]).encode())

        self.put(_LOCK, json.dumps([own, 0]).encode())
        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            if self.exists(_LOCK):
                self.remove(_LOCK)

    def _wait_for_a_dead_run(self) -> None:
        """Return when no lock is there, or none that is alive."""
        if not self.exists(_LOCK):
            return
        seen = self.read(_LOCK)
        click.echo(
            f"{self} is locked: looking for {3 * LOCK_RENEWAL_S:g} s whether that run is alive",
            err=True,
        )
        deadline = time.monotonic() + 3 * LOCK_RENEWAL_S
        while time.monotonic() < deadline:
            time.sleep(LOCK_RENEWAL_S / 4)
            if not self.exists(_LOCK):
                return
            if self.read(_LOCK) != seen:
                raise ValueError(f"another run is writing {self}: wait for it, or stop it")

    def zarr_location(self, path: str) -> str:
        return f"{self.url}/{path}"


class _ObjectFile(NewFile):
    """Held in memory until it is whole: a shard is a few hundred MB."""

    def __init__(self, store: ObjectStore, path: str) -> None:
        super().__init__(path)
        self._store = store

    def _open(self) -> None:
        self._content = bytearray()

    def _append(self, parts: Sequence[Part]) -> None:
        for part in parts:
            self._content += part

    def _close(self, complete: bool) -> None:
        if complete:
            self.before_naming()
            self._store.put(self._path, bytes(self._content))
        del self._content


@contextmanager
def _naming(place: str) -> Iterator[None]:
    """Put the object's place into whatever goes wrong with it."""
    try:
        yield
    except OSError as error:
        raise type(error)(f"{place}: {error.strerror or error}") from None
    except Exception as error:  # packages behind fsspec have exceptions of their own
        raise OSError(f"{place}: {error or type(error).__name__}") from None
