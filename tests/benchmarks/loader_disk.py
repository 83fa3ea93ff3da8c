"""Files out of the page cache, what is left of them there, and how fast the disk gives them."""

import os
import time
from pathlib import Path

# The kernel's own reading ahead does the rest.
_READ_BYTES = 1 << 20
# Places of a file that are asked for.
_PROBES = 8


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _is_cached(fd: int, offset: int) -> bool:
    try:
        os.preadv(fd, [bytearray(1)], offset, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    return True


def evict(folder: Path) -> float:
    """Drop a folder's files from the page cache; the share of probed pages that stay.

    `fadvise`, because dropping all caches needs root and would hit everybody on the machine.
    """
    os.sync()
    probes = []
    for path in _files(folder):
        fd = os.open(path, os.O_RDONLY)
        try:
            size = os.fstat(fd).st_size
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            probes += [_is_cached(fd, size * probe // _PROBES) for probe in range(_PROBES)]
        finally:
            os.close(fd)
    return sum(probes) / max(1, len(probes))


def sequential_mb_a_s(folder: Path) -> float:
    """The rate at which a folder's files come from the disk, one after another, in order."""
    evict(folder)
    buffer = bytearray(_READ_BYTES)
    total, start_s = 0, time.perf_counter()
    for path in _files(folder):
        with path.open("rb", buffering=0) as file:
            while read := file.readinto(buffer):
                total += read
    return total / 1e6 / (time.perf_counter() - start_s)
