"""A dataset in an object store (s3://, gs://, ...): the only user of fsspec here.

Such stores have no rename, so a file is one PUT or one completed multipart upload, which is
there as a whole or not at all; what marks a block as done is written after its files as ever.
Requests that fail in passing are repeated by fsspec's packages (s3fs and botocore for S3).
"""

import errno
import hashlib
import io
import os
import urllib.parse
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any

import fsspec

from .layout import SCRATCH
from .new_file import NewFile, Part
from .object_lock import RunLock, Seen

# Pieces in which files are read to be hashed.
_PIECE_BYTES = 64 << 20


def refuse_url(url: str) -> None:
    """Look at a URL before anything is asked of its store.

    Raises:
        ValueError: it names no place, none that is known or outlives this process, or a password;
            or the environment sends S3 to what is no address.
    """
    protocol, _, rest = url.rpartition("://")
    if not rest.strip("/"):
        raise ValueError(f"{url!r} names no place: give a URL as s3://bucket/name")
    if protocol.rpartition("::")[2] not in fsspec.available_protocols():
        raise ValueError(
            f"{url}: nothing is known of {protocol}://: give a folder, or a URL as s3://bucket/name"
        )
    if protocol == "memory":
        raise ValueError(
            f"{url}: memory:// is gone when the command ends: give a folder, or a URL as "
            "s3://bucket/name"
        )
    user, _, host = rest.partition("/")[0].rpartition("@")
    if ":" in user:
        raise ValueError(
            f"{protocol}://{host}: the URL holds a password, which would get into messages: "
            "leave it to the environment or to the configuration of fsspec"
        )
    if protocol in ("s3", "s3a"):
        _refuse_endpoint()


def _refuse_endpoint() -> None:
    """Raises ValueError: what the environment calls S3's address is none."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        endpoint = os.environ.get(name)
        if endpoint and not _is_http(endpoint):
            raise ValueError(
                f"{name}={endpoint} is no address of an object store: set it to one such as "
                "http://host:9000, or unset it"
            )


def _is_http(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port  # raises where it is none
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and " " not in url


class ObjectStore:
    """The folder at a URL of fsspec."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        # Whether a PUT may have a condition. Other packages of fsspec only look, then write.
        self._compares = url.startswith(("s3://", "s3a://"))
        self._lock: RunLock | None = None

    def __str__(self) -> str:
        return self.url

    def __getstate__(self) -> dict[str, Any]:
        # Connections stay where they are.
        return {name: value for name, value in vars(self).items() if name != "_place"}

    @cached_property
    def _place(self) -> tuple[Any, str]:
        # Listings and sizes that fsspec keeps would hide what other processes write.
        try:
            return fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except ImportError as error:
            how = ": pip install 'fusmae[s3]'" if self._compares else ""
            raise ValueError(f"{self.url}: {error}{how}") from None
        except Exception as error:  # packages behind fsspec have exceptions of their own
            raise ValueError(f"{self.url}: {error}") from None

    @contextmanager
    def _at(self, path: str) -> Iterator[tuple[Any, str]]:
        """The file system and the object's name there; what goes wrong gets its URL."""
        fs, root = self._place
        fs.invalidate_cache()  # Hugging Face's file system keeps listings all the same
        with _naming(f"{self}/{path}"):
            yield fs, f"{root}/{path}"

    def create(self, path: str) -> NewFile:
        return NewFile(path, _ObjectSink(self, path))

    def put(self, path: str, data: bytes, **condition: str) -> None:
        """Write one object as a whole."""
        with self._at(path) as (fs, full):
            fs.pipe_file(full, data, **condition)

    def look(self, path: str) -> Seen | None:
        """An object as it is now, or None."""
        try:
            with self._at(path) as (fs, full):
                # In this order: a condition on the ETag of an older content fails.
                etag = fs.info(full).get("ETag", "")
                return Seen(fs.cat_file(full), etag)
        except FileNotFoundError:
            return None

    def replace(self, path: str, seen: Seen | None, data: bytes) -> bool:
        """Write an object if what was seen is still there (None: if nothing is); whether it was.

        As S3 does it: https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
        Where the store does not compare, the object is written in any case.
        """
        try:
            self.put(path, data, **(_condition(seen) if self._compares else {}))
        except OSError as error:
            if error.errno == errno.ENOSYS and self._compares:
                self._compares = False
                return self.replace(path, seen, data)
            # Refused; or done, and the answer was lost; or neither.
            now = self.look(path)
            if now == seen:
                raise
            return now is not None and now.content == data
        return True

    def refuses(self, path: str, seen: Seen | None, data: bytes) -> bool:
        """Whether a PUT for what was seen is refused where something else is now.

        A request that failed in passing, or whose answer was lost, was not refused. A store that
        ignores conditions writes the data.
        """
        if not self._compares:
            return False
        try:
            self.put(path, data, **_condition(seen))
        except OSError as error:
            # What s3fs makes of S3's PreconditionFailed (412).
            return error.errno == errno.EINVAL
        return False

    def read(self, path: str) -> bytes:
        with self._at(path) as (fs, full):
            data: bytes = fs.cat_file(full)
        return data

    def sizes(self, folder: str = "") -> dict[str, int]:
        if self.url.startswith(("http://", "https://")):
            raise ValueError(
                f"{self}: an HTTP server does not list its files: give a copy of the dataset, or "
                "the mirror of it in a cache"
            )
        with self._at(folder) as (fs, full):
            found = fs.find(full, detail=True)
        root = len(self._place[1]) + 1
        # A name that ends with a slash is what a web console makes of a new folder; a folder, what
        # s3fs answers where the first file came just now.
        paths = sorted(
            path for path in found if not path.endswith("/") and found[path]["type"] == "file"
        )
        return {path[root:]: int(found[path]["size"]) for path in paths}

    def exists(self, path: str) -> bool:
        # fsspec's own isfile says no where the store does not answer.
        try:
            with self._at(path) as (fs, full):
                return bool(fs.info(full)["type"] == "file")
        except FileNotFoundError:
            return False

    def hash(self, path: str) -> tuple[int, str]:
        digest, size = hashlib.sha256(), 0
        with (
            self._at(path) as (fs, full),
            fs.open(full, "rb", block_size=_PIECE_BYTES) as file,
        ):
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
                size += len(piece)
        return size, digest.hexdigest()

    def remove(self, path: str) -> None:
        with self._at(path) as (fs, full):
            fs.rm_file(full)

    def remove_folder(self, folder: str) -> None:
        for path in self.sizes(folder):
            # Two runs that find a dataset complete tidy up at once.
            with suppress(FileNotFoundError):
                self.remove(path)

    def holds_other_files(self) -> bool:
        paths = self.sizes()
        return bool(paths) and not any(path.startswith(f"{SCRATCH}/") for path in paths)

    @contextmanager
    def locked(self) -> Iterator[None]:
        self._lock = RunLock(uuid.uuid4().hex)
        with self._lock.held(self):
            yield

    def require_lock(self) -> None:
        assert self._lock is not None
        self._lock.require(self)

    def zarr_location(self, path: str) -> str:
        return f"{self.url}/{path}"


def _condition(seen: Seen | None) -> dict[str, str]:
    return {"IfMatch": seen.etag} if seen else {"IfNoneMatch": "*"}


class _ObjectSink:
    """Held in memory until it is whole: a shard is a few hundred MB."""

    def __init__(self, store: ObjectStore, path: str) -> None:
        self._store = store
        self._path = path

    def open(self) -> None:
        # Its `getvalue` gives its own bytes, where `bytes(bytearray)` would be a second copy.
        self._content = io.BytesIO()

    def append(self, parts: Sequence[Part]) -> None:
        for part in parts:
            self._content.write(part)

    def close(self, complete: bool, before_naming: Callable[[], None]) -> None:
        if complete:
            before_naming()
            self._store.put(self._path, self._content.getvalue())
        del self._content


# Many packages raise these without a number.
_NUMBERS = {
    FileNotFoundError: errno.ENOENT,
    FileExistsError: errno.EEXIST,
    PermissionError: errno.EACCES,
}


# What packages behind fsspec call a store that is out of reach: botocore, aiohttp, httpx, Python.
_OUT_OF_REACH = {
    *("ConnectionError", "ConnectError", "ClientConnectorError", "gaierror"),
    *("TimeoutError", "ReadTimeoutError", "ConnectTimeout"),
}
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"}


@contextmanager
def _naming(place: str) -> Iterator[None]:
    """Put the object's place into whatever goes wrong with it.

    Raises:
        OSError: FileNotFoundError and the like where it is that.
        ValueError: there are no credentials for the store, or its bucket does not exist.
    """
    try:
        yield
    except Exception as error:  # packages behind fsspec have exceptions of their own
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if kinds & _NO_CREDENTIALS:
            raise ValueError(
                f"{place}: {error}: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from None
        if _code(error) == "NoSuchBucket":
            bucket = place.partition("://")[2].partition("/")[0]
            raise ValueError(f"{place}: there is no bucket {bucket}: create it first") from None
        number, told = errno.EIO, str(error) or type(error).__name__
        if kinds & _OUT_OF_REACH:
            told = "no answer from the store: see that the network is up and the address right"
            if place.startswith("s3"):
                told += " (AWS_ENDPOINT_URL)"
        elif isinstance(error, OSError):
            known = [number for kind, number in _NUMBERS.items() if isinstance(error, kind)]
            number = known[0] if known else error.errno or errno.EIO
            told = error.strerror or (os.strerror(number) if known else str(error))
        raise OSError(number, told, place) from None


def _code(error: BaseException) -> str | None:
    """What S3 calls the error, of which s3fs makes one of Python's."""
    response = getattr(error.__cause__, "response", None) or {}
    code: str | None = response.get("Error", {}).get("Code")
    return code
