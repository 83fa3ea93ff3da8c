"""CPU time and memory of this process and all its descendants; Linux's /proc, nothing else."""

import os
import resource
import statistics
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self


def descendants(pid: int) -> list[int]:
    """Every living process below `pid`."""
    found = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *descendants(child)]
    except OSError:
        # It has ended meanwhile.
        pass
    return found


def cpu_s() -> float:
    """User and system seconds so far, of descendants that live or were waited for, too.

    The living are asked by their CPU clocks, to the nanosecond; /proc counts in ticks of 10 ms.
    """
    waited_for = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = time.process_time() + waited_for.ru_utime + waited_for.ru_stime
    for pid in descendants(os.getpid()):
        try:
            # clock_getcpuclockid(3): a process's clock is its number's complement, shifted by 3,
            # and 2 asks for the scheduler's count.
            total += time.clock_gettime((~pid << 3) | 2)
        except OSError:
            continue
    return total


def own_bytes() -> int:
    """Memory that cannot be dropped: anonymous and shared, a shared page counted once.

    The page cache and the code of libraries are left out. From `smaps_rollup`, whose
    proportional sizes may be added up over processes.
    """
    total = 0
    for pid in (os.getpid(), *descendants(os.getpid())):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        sizes = {key: rest for key, _, rest in (line.partition(":") for line in lines)}
        total += sum(1024 * int(sizes[key].split()[0]) for key in ("Pss_Anon", "Pss_Shmem"))
    return total


class MemoryWatch:
    """Samples `own_bytes` from a thread while it is entered; that takes a little CPU time."""

    def __init__(self, interval_s: float = 0.01) -> None:
        self._interval_s = interval_s
        self._stopped = threading.Event()
        self._sizes: list[int] = [own_bytes()]
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._stopped.wait(self._interval_s):
            self._sizes.append(own_bytes())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()
        self._thread.join()

    @property
    def peak_bytes(self) -> int:
        return max(self._sizes)

    def quarters_bytes(self) -> tuple[float, float]:
        """Medians of the first and of the last quarter of the time."""
        quarter = max(1, len(self._sizes) // 4)
        return statistics.median(self._sizes[:quarter]), statistics.median(self._sizes[-quarter:])
