"""The shard contract: how one sample lies in a tar, byte for byte.

`ingest` writes samples with `encode`; `fusmae.data` finds arrays by `ShardLayout.offsets`
without parsing the tar; `decode` is the slow and plain reader that tests hold both against.

A sample is a run of tar members with one key: its arrays as `.npy`, in the manifest's order,
then `KEY.json`. Arrays have fixed shapes and so fixed sizes, json comes last: every array's
data lies at a constant distance from the sample's first byte.
"""

import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fusmae.sensors import ArraySpec

TAR_BLOCK = 512
# Two zero blocks end a tar.
TAR_END = bytes(2 * TAR_BLOCK)
# ustar stores names of up to 100 bytes in one header.
_MAX_NAME = 100


# `json.dumps` would make an encoder a call.
_JSON = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"))

# Where a ustar header holds its name and its checksum (POSIX.1-1988).
_NAME, _CHECKSUM = slice(0, 100), slice(148, 156)


@lru_cache(maxsize=1024)
def npy_header(spec: ArraySpec) -> bytes:
    """The version 1.0 `.npy` header of an array of this shape and dtype, C order."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": spec.dtype, "fortran_order": False, "shape": spec.shape}
    )
    return buffer.getvalue()


def _tar_header(name: str, size: int) -> bytes:
    """One ustar header; owner, mode and time are constants, so equal input gives equal bytes.

    Raises:
        ValueError: the name is longer than 100 bytes or not ASCII.
    """
    if len(name) > _MAX_NAME or not name.isascii():
        raise ValueError(f"tar member name {name!r} must be ASCII and at most {_MAX_NAME} bytes")
    template, checksum = _nameless_header(size)
    letters = name.encode()
    # A name adds its bytes to the checksum, the sum of all bytes with its own field as spaces.
    total = b"%06o\0 " % (checksum + sum(letters))
    middle = template[_NAME.stop : _CHECKSUM.start]
    return letters.ljust(_NAME.stop, b"\0") + middle + total + template[_CHECKSUM.stop :]


@lru_cache(maxsize=4096)
def _nameless_header(size: int) -> tuple[bytes, int]:
    """The header of a file without a name, and its checksum: `tarfile` takes 20 us for one."""
    info = tarfile.TarInfo("")
    info.size = size
    info.mode = 0o644
    header = info.tobuf(tarfile.USTAR_FORMAT)
    return header, int(header[_CHECKSUM].rstrip(b"\0 "), 8)


def _padding(size: int) -> int:
    return -size % TAR_BLOCK


def array_bytes(spec: ArraySpec) -> int:
    """The size of the array's pixels in bytes."""
    return int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize


class _ArrayMember(NamedTuple):
    """An array's member of a tar: `size` and `padding` are what lies behind its tar header."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    npy_header: bytes
    size: int
    padding: bytes


def _member(spec: ArraySpec) -> _ArrayMember:
    header = npy_header(spec)
    size = len(header) + array_bytes(spec)
    return _ArrayMember(
        spec.name, spec.shape, np.dtype(spec.dtype), header, size, bytes(_padding(size))
    )


@dataclass(frozen=True)
class ShardLayout:
    """The arrays of a sample in their order, and the constants that follow from it."""

    arrays: tuple[ArraySpec, ...]

    @cached_property
    def _members(self) -> tuple[_ArrayMember, ...]:
        """What is the same of each array in all samples."""
        return tuple(_member(spec) for spec in self.arrays)

    @property
    def offsets(self) -> dict[str, int]:
        """Distance in bytes from a sample's first byte to each array's first pixel byte."""
        offsets: dict[str, int] = {}
        position = 0
        for member in self._members:
            offsets[member.name] = position + TAR_BLOCK + len(member.npy_header)
            position += TAR_BLOCK + member.size + len(member.padding)
        return offsets

    @property
    def json_offset(self) -> int:
        """Distance in bytes from a sample's first byte to the text of its KEY.json."""
        last = self.arrays[-1]
        end = self.offsets[last.name] + array_bytes(last)
        return end + _padding(end) + TAR_BLOCK


def encode(
    layout: ShardLayout,
    key: str,
    arrays: Mapping[str, npt.NDArray[Any]],
    info: Mapping[str, Any],
) -> bytes:
    """The tar members of one sample, without the tar's end marker: `encode_parts`, joined."""
    return b"".join(encode_parts(layout, key, arrays, info))


def encode_parts(
    layout: ShardLayout,
    key: str,
    arrays: Mapping[str, npt.NDArray[Any]],
    info: Mapping[str, Any],
) -> list[bytes | memoryview]:
    """The tar members of one sample, in pieces; pixels are views of the arrays, not copies.

    Args:
        layout: the arrays expected.
        key: the sample's key; no dots and no slashes, since webdataset cuts names there.
        arrays: each array by name, of exactly the layout's shapes and dtypes.
        info: JSON-ready facts about the sample; written with sorted keys.

    Raises:
        ValueError: the key holds a dot or slash, or an array is missing or of another shape
            or dtype than the layout says.
    """
    if "." in key or "/" in key or not key:
        raise ValueError(f"sample key {key!r} must not be empty or hold a dot or a slash")
    parts: list[bytes | memoryview] = []
    padding = b""
    for member in layout._members:
        array = arrays.get(member.name)
        if array is None:
            raise ValueError(f"sample {key}: array {member.name!r} is missing")
        if array.shape != member.shape or array.dtype != member.dtype:
            raise ValueError(
                f"sample {key}: array {member.name!r} is {array.dtype}{array.shape}, "
                f"expected {member.dtype}{member.shape}"
            )
        header = _tar_header(f"{key}.{member.name}.npy", member.size)
        pixels = np.ascontiguousarray(array).data.cast("B")
        parts += (padding + header + member.npy_header, pixels)
        padding = member.padding
    text = encode_info(info)
    header = _tar_header(f"{key}.json", len(text))
    parts.append(padding + header + text + bytes(_padding(len(text))))
    return parts


def encode_info(info: Mapping[str, Any]) -> bytes:
    """The bytes of KEY.json: UTF-8, sorted keys, no spaces."""
    return _JSON.encode(info).encode()


def decode(data: bytes) -> list[dict[str, Any]]:
    """Every sample of a whole shard, in order: see `samples_in`.

    Raises:
        ValueError: as `samples_in`.
    """
    return list(samples_in(data))


def samples_in(data: bytes) -> Iterator[dict[str, Any]]:
    """The samples of a whole shard, one after another: `__key__`, each array by name, and `json`.

    The plain reader: `tarfile` and `numpy.load`, no constants of ours.

    Raises:
        ValueError: a member's name is not `KEY.NAME.npy` or `KEY.json`.
    """
    sample: dict[str, Any] = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            key, _, name = member.name.partition(".")
            payload = tar.extractfile(member)
            if payload is None:
                raise ValueError(f"{member.name} is not a file")
            if sample and sample["__key__"] != key:
                yield sample
                sample = {}
            sample["__key__"] = key
            if name == "json":
                sample["json"] = json.loads(payload.read())
            elif name.endswith(".npy"):
                array = np.load(io.BytesIO(payload.read()), allow_pickle=False)
                sample[name.removesuffix(".npy")] = array
            else:
                raise ValueError(f"{member.name}: expected KEY.NAME.npy or KEY.json")
    if sample:
        yield sample


def member_names(layout: ShardLayout) -> Sequence[str]:
    """The members of a sample without the key, in the order in which they lie in a shard."""
    return [f"{spec.name}.npy" for spec in layout.arrays] + ["json"]
