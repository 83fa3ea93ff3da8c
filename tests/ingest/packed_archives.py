"""Archives that are packed, the words that give them to a command, and what it told."""

import gzip
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import zstandard


@dataclass
class Told:
    """What a run said, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of a run that was refused."""
        assert self.code == 1 and "Traceback" not in self.err, self.err
        (line,) = (line for line in self.err.splitlines() if line.startswith("error: "))
        return line


def pack(folder: Path, out: Path) -> Path:
    """A tar of a folder as GNU tar makes it, compressed as the name says."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        tar.add(folder, folder.name)
    data = buffer.getvalue()
    if out.suffix == ".gz":
        data = gzip.compress(data, 1, mtime=0)
    elif out.suffix == ".zst":
        # Two frames, as parallel compressors write them.
        parts = (data[: len(data) // 2], data[len(data) // 2 :])
        data = b"".join(zstandard.ZstdCompressor().compress(part) for part in parts)
    out.write_bytes(data)
    return out


def metadata(tables: list[Path]) -> list[object]:
    return [word for table in tables for word in ("--metadata", table)]


def v2(packed: dict[str, Path]) -> list[object]:
    return ["bigearthnet", "--s2", packed["v2-s2"], "--s1", packed["v2-s1"]]
