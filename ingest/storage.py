"""Files that are complete or absent: written under a temporary name, synced, renamed.

Everything ingest writes goes through here, so a SIGKILL leaves at most temporary files.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from fusmae.manifest import FileRecord

SCRATCH = ".ingest"


class AtomicFile:
    """A file that appears under its name only when the `with` block ends without an error.

    `root` is the dataset's folder, `path` relative to it. Temporary files lie in the
    dataset's scratch folder, on the same file system, and are swept by the next run.
    `record` holds size and sha256 after the block.
    """

    def __init__(self, root: Path, path: str) -> None:
        self._target = root / path
        self._temporary = root / SCRATCH / "tmp" / f"{os.getpid()}-{path.replace('/', '-')}"
        self._path = path
        self._sha256 = hashlib.sha256()
        self._size = 0
        self.record: FileRecord | None = None

    def __enter__(self) -> "AtomicFile":
        self._temporary.parent.mkdir(parents=True, exist_ok=True)
        self._target.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._temporary.open("wb", buffering=0)
        return self

    def write(self, *parts: bytes | memoryview) -> None:
        """Append the parts, in their order."""
        self._append(parts)
        for part in parts:
            self._sha256.update(part)
            self._size += len(part)

    def _append(self, parts: Sequence[bytes | memoryview]) -> None:
        # One system call for all parts and no copy of ours, unless it was cut short by a
        # signal or a disk that fills up, which the next call then reports.
        descriptor = self._file.fileno()
        written = os.writev(descriptor, parts)
        rest = memoryview(b"".join(parts))[written:] if written < sum(map(len, parts)) else b""
        while rest:
            rest = rest[os.write(descriptor, rest) :]

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._size

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                os.fsync(self._file.fileno())
        finally:
            self._file.close()
        if kind is not None:
            self._temporary.unlink(missing_ok=True)
            return
        self._temporary.replace(self._target)
        sync_folder(self._target.parent)
        self.record = FileRecord(self._path, self._size, self._sha256.hexdigest())


def write_file(root: Path, path: str, data: bytes) -> FileRecord:
    """Write one whole file below `root`, complete or not at all."""
    with AtomicFile(root, path) as file:
        file.write(data)
    assert file.record is not None
    return file.record


def sync_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_file(path: Path) -> tuple[int, str]:
    """(size in bytes, sha256 in hex) of a file, read in pieces."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return file.tell(), digest.hexdigest()
