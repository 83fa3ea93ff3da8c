"""Which bytes of a sample one system call reads, and what must stand between its arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fusmae.sample import array_bytes, npy_header
from fusmae.sensors import ArraySpec

# Between neighbouring arrays lie padding, a tar header and a .npy header, at most 1,151 bytes:
# cheaper to read along than to ask for twice. An array that is not wanted is skipped.
_MAX_GAP_BYTES = 4096


@dataclass(frozen=True)
class Piece:
    """One array of a run: the bytes in front of it, which end in `header`, then its pixels."""

    name: str
    gap_bytes: int
    header: bytes


@dataclass(frozen=True)
class Run:
    """Arrays that one system call reads, `start` bytes after their sample's first byte."""

    start: int
    num_bytes: int
    pieces: tuple[Piece, ...]


def array_runs(specs: Sequence[ArraySpec], offsets: Mapping[str, int]) -> list[Run]:
    """The wanted arrays as runs of near neighbours; `specs` in stored order."""
    runs: list[Run] = []
    start, end = 0, 0
    pieces: list[Piece] = []
    for spec in specs:
        header = npy_header(spec)
        offset = offsets[spec.name]
        if pieces and offset - end > _MAX_GAP_BYTES:
            runs.append(Run(start, end - start, tuple(pieces)))
            pieces = []
        if not pieces:
            start = end = offset - len(header)
        pieces.append(Piece(spec.name, offset - end, header))
        end = offset + array_bytes(spec)
    return [*runs, Run(start, end - start, tuple(pieces))]
