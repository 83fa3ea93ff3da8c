"""Files of a folder at a URL of fsspec, asked for again where the store fails and checked.

fsspec is imported when the first file is read: a dataset on disk never needs it.
"""

import hashlib
import os
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from threading import Thread
from typing import Any, BinaryIO

from fusmae.data.cache import Pause, UnfetchableError
from fusmae.manifest import MANIFEST_NAME, FileRecord, ShardRecord

# One request asks for so much: large against its latency, small against a thread's memory.
PIECE_BYTES = 16 << 20
# A request that takes longer has failed; 16 MiB in this time is 0.3 MB/s.
TIMEOUT_S = 60.0
# A failed request is made again after each of these, then the file is given up.
DELAYS_S = (0.5, 1.0, 2.0, 4.0, 8.0)
# After so long without an answer somebody who waits is told why.
TELL_S = 3.0
# Whole fetches of a file whose sha256 is wrong.
_NUM_FETCHES = 3


class Origin:
    """The folder at a URL, read whole files at a time; safe to use from many threads."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._opened: tuple[int, Any, str] | None = None
        self._is_told = False

    def _place(self) -> tuple[Any, str]:
        """The store and the folder's name in it; of this process, since stores do not survive a
        fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                import fsspec

                self._opened = (os.getpid(), *fsspec.core.url_to_fs(self.url))
            except ModuleNotFoundError as error:
                raise ValueError(
                    f"{self.url} needs the package {error.name}: pip install 'fusmae[remote]'"
                ) from None
            except (ImportError, ValueError) as error:
                raise ValueError(f"{self.url}: {error}") from None
        return self._opened[1:]

    def fetch(self, record: FileRecord | ShardRecord, sink: BinaryIO, pause: Pause) -> None:
        """Write a file's content into `sink`; what was written before a failure is overwritten.

        Raises:
            UnfetchableError: it cannot be read, or is not what the manifest says, also when asked
                for again; the message names the URL.
            OSError: `sink` cannot be written.
            Exception: whatever `pause` raises; it is called before each piece, too.
        """
        found = ""
        for _ in range(_NUM_FETCHES):
            sink.seek(0)
            digest = hashlib.sha256()
            for piece in self._pieces(record, pause):
                digest.update(piece)
                sink.write(piece)
            found = digest.hexdigest()
            if found == record.sha256:
                return
        raise UnfetchableError(
            f"{self.url}/{record.path} has sha256 {found}, its manifest says {record.sha256}: "
            "upload the file again"
        )

    def _pieces(self, record: FileRecord | ShardRecord, pause: Pause) -> Iterator[bytes]:
        start = 0
        while start < record.bytes:
            pause(0)  # nobody may want the rest any more
            stop = min(start + PIECE_BYTES, record.bytes)
            piece = self._retried(record.path, start, stop, record.bytes, pause)
            yield piece
            start += len(piece)

    def _retried(self, path: str, start: int, stop: int, size: int, pause: Pause) -> bytes:
        """Bytes start ... stop - 1, or all `size` from a server that cannot give a part."""
        started_s = time.monotonic()
        for delay_s in (*DELAYS_S, None):
            try:
                piece = self._read(path, start, stop)
                self._is_told = False
                if len(piece) == stop - start:
                    return piece
                if len(piece) == size:
                    return piece[start:]
                reason = f"{len(piece)} of {stop - start} bytes came from byte {start} on"
            except (FileNotFoundError, PermissionError) as error:
                raise UnfetchableError(f"cannot read {self.url}/{path}: {_text(error)}") from None
            except Exception as error:  # packages behind fsspec have exceptions of their own
                reason = _text(error)
            if delay_s is not None:
                self._tell(path, started_s, reason)
                pause(delay_s)
        raise UnfetchableError(
            f"cannot read {self.url}/{path}, asked {len(DELAYS_S) + 1} times: {reason}"
        )

    def _tell(self, path: str, started_s: float, reason: str) -> None:
        """Warn, once until the store answers again, that a request is made again and again."""
        if time.monotonic() - started_s >= TELL_S and not self._is_told:
            self._is_told = True
            warnings.warn(
                f"cannot read {self.url}/{path} so far: {reason}; it is asked up to "
                f"{len(DELAYS_S) + 1} times",
                stacklevel=2,
            )

    def _read(self, path: str, start: int | None = None, stop: int | None = None) -> bytes:
        fs, root = self._place()
        name = f"{root}/{path}"
        if not fs.async_impl:
            return _in_time(lambda: fs.cat_file(name, start=start, end=stop))
        from fsspec.asyn import sync

        data: bytes = sync(fs.loop, fs._cat_file, name, start=start, end=stop, timeout=TIMEOUT_S)
        return data

    def read_manifest(self) -> bytes:
        """The bytes of `dataset.json`.

        Raises:
            ValueError: it is not there or cannot be read.
        """
        self._place()  # what it refuses, it refuses for good
        started_s = time.monotonic()
        for delay_s in (*DELAYS_S, None):
            try:
                return self._read(MANIFEST_NAME)
            except FileNotFoundError:
                raise ValueError(
                    f"there is no {self.url}/{MANIFEST_NAME}; is it a finished dataset of "
                    "fusmae-ingest?"
                ) from None
            except Exception as error:  # among them some that are ValueErrors: of a certificate
                reason = _text(error)
            if delay_s is not None:
                self._tell(MANIFEST_NAME, started_s, reason)
                time.sleep(delay_s)
        raise ValueError(
            f"cannot read {self.url}/{MANIFEST_NAME}, asked {len(DELAYS_S) + 1} times: {reason}"
        )


def _in_time(read: Callable[[], bytes]) -> bytes:
    """What `read` gives; TimeoutError if that takes longer than `TIMEOUT_S`.

    Then its thread is left behind: nothing ends a request of a store without asyncio. Such a
    thread keeps no program from ending, and only one inside torch would abort it at its end.
    """
    answer: Future[bytes] = Future()

    def ask() -> None:
        try:
            answer.set_result(read())
        except BaseException as error:  # whatever it is, who asked raises it
            answer.set_exception(error)

    Thread(target=ask, name="fusmae-ask", daemon=True).start()
    return answer.result(TIMEOUT_S)


def _text(error: Exception) -> str:
    """One line about an error, also about one without a message."""
    if isinstance(error, TimeoutError) and not str(error):
        return f"no answer in {TIMEOUT_S:g} s"
    return " ".join(str(error).split()) or type(error).__name__
