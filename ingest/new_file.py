"""A file of a store while it is being written: hashed as it grows, named when it is whole."""

import hashlib
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol

from fusmae.manifest import FileRecord

Part = bytes | bytearray | memoryview


class Sink(Protocol):
    """Where the bytes of one new file go; each kind of store has its own."""

    def open(self) -> None:
        """Get ready for the first bytes."""

    def append(self, parts: Sequence[Part]) -> None:
        """Take the parts, in their order."""

    def close(self, complete: bool, before_naming: Callable[[], None]) -> None:
        """Give the file its name if it is `complete`, after `before_naming`; else drop it."""


class NewFile:
    """A file being written, hashed as it grows; `record` holds its size and sha256 at the end.

    `before_naming` is called when all is written; if it raises, there will be no such file.
    """

    def __init__(self, path: str, sink: Sink) -> None:
        self._path = path
        self._sink = sink
        self._sha256 = hashlib.sha256()
        self._size = 0
        self.record: FileRecord | None = None
        self.before_naming: Callable[[], None] = lambda: None

    def write(self, *parts: Part) -> None:
        """Append the parts, in their order."""
        self._sink.append(parts)
        for part in parts:
            self._sha256.update(part)
            self._size += len(part)

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._size

    @property
    def sha256(self) -> str:
        """The sha256 of these bytes, in hex."""
        return self._sha256.hexdigest()

    def __enter__(self) -> "NewFile":
        self._sink.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._sink.close(kind is None, self.before_naming)
        if kind is None:
            self.record = FileRecord(self._path, self._size, self.sha256)
