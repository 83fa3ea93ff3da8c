"""Files of a folder at a URL of fsspec, asked for again where the store fails and checked.

fsspec is imported when the first file is read: a dataset on disk never needs it.
"""

import functools
import hashlib
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from threading import Thread
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from fusmae.data.cache import Pause, UnfetchableError
from fusmae.manifest import MANIFEST_NAME, FileRecord, ShardRecord

# Of these URLs fsspec would ask again and again without a host or bucket.
_WITH_HOST = ("http", "https", "s3", "gs")
# One request asks for so much: large against its latency, small against a thread's memory.
# Eight at once of 16, 8 and 4 MiB took 268, 142 and 75 MiB from HTTP.
PIECE_BYTES = 8 << 20
# A request that takes longer has failed; 8 MiB in this time is 0.14 MB/s.
TIMEOUT_S = 60.0
# A failed request is made again after each of these, then the file is given up: soon while a
# dataset is opened, or where a body is too short; once it is read, minutes are waited for.
DELAYS_S = (0.5, 1.0, 2.0, 4.0, 8.0)
READ_DELAYS_S = (*DELAYS_S, 16.0, *(30.0,) * 9)
# Nor is it made again after so long, however slow its failures are: of several ranks the others
# wait meanwhile, for at most 10 minutes under NCCL's default.
PATIENCE_S = 300.0
# After so long without an answer somebody who waits is told why.
TELL_S = 3.0
# HTTP answers that another request would not change: not authorised, forbidden, gone.
_REFUSED = (401, 403, 410)
# Whole fetches of a file whose sha256 is wrong.
_NUM_FETCHES = 3


class _ShortError(Exception):
    """A body has another size than what was asked for."""


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

                parts = urlsplit(self.url)
                if parts.scheme in _WITH_HOST and not parts.netloc:
                    raise ValueError(f"it names no host or bucket, as in {parts.scheme}://NAME/ben")
                self._opened = (os.getpid(), *fsspec.core.url_to_fs(self.url))
            except ModuleNotFoundError as error:
                raise ValueError(
                    f"{self.url} needs the package {error.name}: pip install 'fusmae[remote]'"
                ) from None
            except (ImportError, ValueError) as error:
                raise ValueError(f"{self.url}: {error}") from None
        return self._opened[1:]

    def fetch(
        self, record: FileRecord | ShardRecord, sink: BinaryIO, pause: Pause, is_read: bool
    ) -> None:
        """Write a file's content into `sink`; what was written before a failure is overwritten.

        Args:
            record: the file in its manifest.
            sink: is written from its start on.
            pause: called before each piece, and while the store fails.
            is_read: whether an outage of minutes is waited for, because the dataset is being read
                and not opened.

        Raises:
            UnfetchableError: it cannot be read, or is not what the manifest says, also when asked
                for again; the message names the URL.
            OSError: `sink` cannot be written.
            Exception: whatever `pause` raises.
        """
        delays_s, found = READ_DELAYS_S if is_read else DELAYS_S, ""
        for _ in range(_NUM_FETCHES):
            sink.seek(0)
            digest = hashlib.sha256()
            for piece in self._pieces(record, delays_s, pause):
                digest.update(piece)
                sink.write(piece)
            found = digest.hexdigest()
            if found == record.sha256:
                return
        raise UnfetchableError(
            f"{self.url}/{record.path} has sha256 {found}, its manifest says {record.sha256}: "
            "upload the file again"
        )

    def _pieces(
        self, record: FileRecord | ShardRecord, delays_s: Sequence[float], pause: Pause
    ) -> Iterator[bytes]:
        path, size, start = record.path, record.bytes, 0
        while start < size:
            pause(0)  # nobody may want the rest any more
            stop = min(start + PIECE_BYTES, size)
            read = functools.partial(self._read_piece, path, start, stop, size)
            try:
                piece = self._retried(path, read, delays_s, pause)
            except (FileNotFoundError, PermissionError) as error:
                raise UnfetchableError(f"cannot read {self.url}/{path}: {_text(error)}") from None
            yield piece
            start += len(piece)

    def _read_piece(self, path: str, start: int, stop: int, size: int) -> bytes:
        """Bytes start ... stop - 1, or all from there on of a server that cannot give a part."""
        piece = self._read(path, start, stop)
        if len(piece) == stop - start:
            return piece
        if len(piece) == size:
            return piece[start:]
        raise _ShortError(f"{len(piece)} of {stop - start} bytes came from byte {start} on")

    def _retried(
        self, path: str, read: Callable[[], bytes], delays_s: Sequence[float], pause: Pause
    ) -> bytes:
        """What `read` gives, asked again after each delay.

        Raises:
            UnfetchableError: it has failed each time.
            FileNotFoundError, PermissionError: at once.
        """
        started_s, number = time.monotonic(), 0
        while True:
            number += 1
            try:
                data = read()
                self._is_told = False
                return data
            except (FileNotFoundError, PermissionError):
                raise
            except Exception as error:  # packages behind fsspec have exceptions of their own
                reason = _text(error)
                if _status(error) in _REFUSED:
                    raise PermissionError(reason) from None
                most = len(DELAYS_S) if isinstance(error, _ShortError) else len(delays_s)
            waited_s = time.monotonic() - started_s
            if number > most or waited_s >= PATIENCE_S:
                raise UnfetchableError(
                    f"cannot read {self.url}/{path}, asked {number} times: {reason}"
                )
            if waited_s >= TELL_S:
                self._tell(f"cannot read {self.url}/{path} so far: {reason}", most + 1)
            pause(delays_s[number - 1])

    def _tell(self, told: str, most: int) -> None:
        """Warn, once until the store answers again, that a request is made again and again."""
        if not self._is_told:
            self._is_told = True
            warnings.warn(f"{told}; it is asked up to {most} times", stacklevel=2)

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
        read = functools.partial(self._read, MANIFEST_NAME)
        try:
            return self._retried(MANIFEST_NAME, read, DELAYS_S, time.sleep)
        except FileNotFoundError:
            raise ValueError(
                f"there is no {self.url}/{MANIFEST_NAME}; is it a finished dataset of "
                "fusmae-ingest?"
            ) from None
        except PermissionError as error:
            raise ValueError(f"cannot read {self.url}/{MANIFEST_NAME}: {_text(error)}") from None


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


def _status(error: Exception) -> int | None:
    """The HTTP status in an error of aiohttp, gcsfs or huggingface_hub."""
    answer = getattr(error, "response", None)
    for holder, name in ((error, "status"), (answer, "status_code"), (error, "code")):
        status = getattr(holder, name, None)
        if isinstance(status, int):
            return status
    return None


def _text(error: Exception) -> str:
    """One line about an error, also about one without a message."""
    if isinstance(error, TimeoutError) and not str(error):
        return f"no answer in {TIMEOUT_S:g} s"
    if isinstance(error, FileNotFoundError):
        return "it is not there"  # its text is the URL again
    return " ".join(str(error).split()) or type(error).__name__
