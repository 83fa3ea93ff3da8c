"""Where a dataset lies, and files in it that are complete or absent.

Everything ingest writes goes through a `Store`: a local folder here, an object store in
`object_store`. A SIGKILL leaves at most temporary files, which the next run sweeps away.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol

from fusmae.manifest import MANIFEST_NAME, FileRecord, Manifest, from_json

from .layout import LOCK, SCRATCH, UNNAMED
from .new_file import NewFile, Part


class Store(Protocol):
    """A dataset's place. Paths are relative to it, with slashes; it travels to workers by pickle.

    `str(store)` is the place as a user writes it.
    """

    def create(self, path: str) -> NewFile:
        """A file that appears under its name only when its `with` block ends without an error."""

    def read(self, path: str) -> bytes:
        """A whole file.

        Raises:
            FileNotFoundError: there is none.
        """

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Bytes of every file below a folder, by path, sorted; empty if it is absent."""

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""

    def hash(self, path: str) -> tuple[int, str]:
        """(size in bytes, sha256 in hex) of a file."""

    def remove(self, path: str) -> None:
        """Remove one file."""

    def remove_folder(self, folder: str) -> None:
        """Remove all below a folder; one that is absent is no error."""

    def holds_other_files(self) -> bool:
        """Whether there is something, and nothing that ingest began."""

    def locked(self) -> AbstractContextManager[None]:
        """Hold the dataset's lock: one writer a dataset.

        Raises:
            ValueError: another run holds it.
        """

    def require_lock(self) -> None:
        """To call before a write that marks something as done; in workers of the run too.

        Raises:
            ValueError: the lock was lost; nothing more must be written.
        """

    def zarr_location(self, path: str) -> str:
        """What zarr-python opens to read a store at this path."""


def write_file(store: Store, path: str, data: bytes) -> FileRecord:
    """Write one whole file, complete or not at all."""
    with store.create(path) as file:
        file.write(data)
    assert file.record is not None
    return file.record


def read_json_object(store: Store, path: str) -> dict[str, Any] | None:
    """The JSON object in a file, None where there is no file or it is cut short."""
    try:
        table = json.loads(store.read(path)) if store.exists(path) else None
    except ValueError:
        return None
    return table if isinstance(table, dict) else None


def manifest_of(store: Store) -> Manifest:
    """The manifest of the dataset in this place.

    Raises:
        ValueError: there is none, it is no manifest, or it is not what was written.
        OSError: the place cannot be read.
    """
    where = f"{store}/{MANIFEST_NAME}"
    try:
        text = store.read(MANIFEST_NAME).decode(errors="replace")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(
            f"cannot read {where}: {error.strerror}; is {store} a finished dataset of "
            "fusmae-ingest? If it was, give the command again that made it"
        ) from None
    return from_json(text, where)


class LocalStore:
    """A folder. New files lie in its scratch folder until they are renamed into place."""

    def __init__(self, place: str) -> None:
        self._place = place
        # Workers of a cluster stand in other folders.
        self.root = Path(place).absolute()

    def __str__(self) -> str:
        return self._place

    def create(self, path: str) -> NewFile:
        return NewFile(path, _LocalSink(self.root, path))

    def read(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    def sizes(self, folder: str = "") -> dict[str, int]:
        found: dict[str, int] = {}
        for place, _, names in os.walk(self.root / folder):
            for name in names:
                path = Path(place, name)
                # What another process has just renamed or swept away is not there.
                with suppress(FileNotFoundError):
                    found[str(path.relative_to(self.root))] = path.stat().st_size
        return dict(sorted(found.items()))

    def exists(self, path: str) -> bool:
        return (self.root / path).is_file()

    def hash(self, path: str) -> tuple[int, str]:
        with (self.root / path).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
            return file.tell(), digest.hexdigest()

    def remove(self, path: str) -> None:
        (self.root / path).unlink()

    def remove_folder(self, folder: str) -> None:
        shutil.rmtree(self.root / folder, ignore_errors=True)

    def holds_other_files(self) -> bool:
        # In one look: a run that begins just now makes the scratch folder first.
        try:
            names = [path.name for path in self.root.iterdir()]
        except FileNotFoundError:
            return False
        except NotADirectoryError:
            return True
        return bool(names) and SCRATCH not in names

    @contextmanager
    def locked(self) -> Iterator[None]:
        path = self.root / LOCK
        made = [folder for folder in path.parents if not folder.exists()]
        try:
            with self._lock_file(path):
                try:
                    yield
                finally:
                    self._remove_if_nothing_began(path)
        finally:
            for folder in made:
                with suppress(OSError):
                    folder.rmdir()

    def _lock_file(self, path: Path) -> IO[str]:
        """The open lock; the operating system lets go of it even after SIGKILL."""
        _make_folder(path.parent)
        try:
            with ExitStack() as unless_locked:
                file = unless_locked.enter_context(path.open("w"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    unless_locked.pop_all()
                    return file
        except BlockingIOError:
            raise ValueError(f"another run is writing {self}: wait for it, or stop it") from None
        except FileNotFoundError:
            pass  # removed in between
        raise ValueError(f"another run has just ended in {self}: run again to see it")

    def _remove_if_nothing_began(self, lock: Path) -> None:
        """Leave no lock behind where a run failed before it wrote anything."""
        with suppress(OSError):
            (self.root / UNNAMED).rmdir()
        with suppress(OSError):
            if list(lock.parent.iterdir()) == [lock]:
                lock.unlink()
                lock.parent.rmdir()

    def require_lock(self) -> None:
        """It cannot be lost: the operating system keeps it as long as the run lives."""

    def zarr_location(self, path: str) -> str:
        return str(self.root / path)


class _LocalSink:
    def __init__(self, root: Path, path: str) -> None:
        self._target = root / path
        # Two machines may be at the same block, if a cluster has given one of them up.
        self._temporary = root / UNNAMED / f"{uuid.uuid4().hex}-{path.replace('/', '-')}"

    def open(self) -> None:
        with naming(self._target):
            self._temporary.parent.mkdir(parents=True, exist_ok=True)
            self._target.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._temporary.open("wb", buffering=0)

    def append(self, parts: Sequence[Part]) -> None:
        # One system call for all parts and no copy of ours, unless it was cut short by a
        # signal or a disk that fills up, which the next call then reports.
        descriptor = self._file.fileno()
        with naming(self._target):
            written = os.writev(descriptor, parts)
            rest = memoryview(b"".join(parts))[written:] if written < sum(map(len, parts)) else b""
            while rest:
                rest = rest[os.write(descriptor, rest) :]

    def close(self, complete: bool, before_naming: Callable[[], None]) -> None:
        with naming(self._target):
            try:
                with self._file:
                    if complete:
                        os.fsync(self._file.fileno())
                        before_naming()
            except (OSError, ValueError):
                complete = False
                raise
            finally:
                if not complete:
                    self._temporary.unlink(missing_ok=True)
            if complete:
                self._temporary.replace(self._target)
                sync_folder(self._target.parent)


def _make_folder(folder: Path) -> None:
    """Make a folder that another run may be removing, with those above it."""
    for _ in range(20):
        with suppress(FileNotFoundError, FileExistsError):
            folder.mkdir(parents=True, exist_ok=True)
            return
    folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's own name into what the system says, which names another or none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def sync_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def local_path(place: str) -> str | None:
    """The path of a place on this machine, which may be a file:// URL; None for other URLs."""
    protocol, url, path = place.partition("://")
    if not url:
        return place
    return path if protocol in ("file", "local") else None


def refuse_inside_dataset(out: Path) -> None:
    """Raises ValueError: `out` would lie in a finished dataset, which it is not itself."""
    for folder in out.resolve().parents:
        if (folder / MANIFEST_NAME).is_file():
            raise ValueError(
                f"--out {out} lies in the dataset {folder}, whose {MANIFEST_NAME} lists all its "
                "files: give a path elsewhere"
            )


_URL_CUT_SHORT = re.compile(r"[a-z][a-z0-9]+:/(?!/)")


def open_store(place: str) -> Store:
    """The store at a path, or at a URL of fsspec such as `s3://bucket/dataset`.

    Raises:
        ValueError: it names no place, or the URL is refused; see `object_store.refuse_url`.
    """
    path = local_path(place)
    if path == "":
        raise ValueError(f"{place!r} names no place: give a folder, or a URL as s3://bucket/name")
    if _URL_CUT_SHORT.match(place):
        raise ValueError(f"{place}: is it a URL with a slash too few? Give ./{place} if a folder")
    if path is not None:
        return LocalStore(path)
    from .object_store import ObjectStore, refuse_url

    refuse_url(place)
    return ObjectStore(place)
