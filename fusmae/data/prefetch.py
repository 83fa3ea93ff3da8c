"""A remote split as a ring's source: its shards are fetched ahead, in the order of their use.

The order is cut into stretches, which are windows in training. The shards of a stretch are held
in the cache, all at once, from before its first sample is read until its last one has been; the
next stretch is fetched meanwhile, and more if they are small. Which samples are read never depends
on when a shard arrives.
"""

import functools
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fusmae.data.cache import POLL_S, Pins
from fusmae.data.cached_file import why_bad
from fusmae.data.reader import SplitReader
from fusmae.data.shard import OpenShard, most_open
from fusmae.data.source import Ids, Samples
from fusmae.data.stretches import Stretch
from fusmae.sensors import ArraySpec

# Shards that a process fetches at once.
NUM_FETCHERS = 8


class _StoppedError(Exception):
    """The source was stopped while a thread waited."""


@dataclass
class _Held:
    """A stretch whose shards are pinned: those still to come, and the bad ones with the reason."""

    stretch: Stretch
    pins: Pins
    pending: set[int]
    num_unread: int
    bad: dict[int, str] = field(default_factory=dict)
    # Ranks in the stretch of the samples of good shards, once a bad one is found; ascending.
    good: Ids | None = None

    def holds(self, position: int) -> bool:
        return self.stretch.first <= position < self.stretch.stop


class RemoteSource:
    """The samples at positions of an order, from shards that are fetched ahead by threads.

    With `skip`, the sample of a bad shard is replaced by the next one, in the order and around
    the end of its stretch, whose shard is good: a function of the order and of which shards are
    bad, the same for any number of ranks. Its position, and so its weight and masks, stays.
    """

    def __init__(
        self,
        reader: SplitReader,
        samples: Samples,
        stretches: Iterator[Stretch],
        skip: bool,
        share: float,
    ) -> None:
        """Start the threads, which `stop` ends.

        Args:
            reader: of a split whose dataset is a mirror.
            samples: the ids at given positions.
            stretches: in ascending order; they hold every position that will be read.
            skip: whether bad shards are skipped instead of ending the run.
            share: the part of the cache that this loader may count on.

        Raises:
            ValueError: the disk has no room for the cache.
        """
        assert reader.mirror is not None, "a dataset that is here needs no fetching"
        self._reader, self._samples, self._skip = reader, samples, skip
        self._mirror = reader.mirror
        self._shards = reader.record.shards
        self._mirror.cache.check_disk([self._mirror.file(shard) for shard in self._shards])
        # All that is open is pinned with its stretch.
        self._open_shard = functools.lru_cache(most_open(len(self._shards)))(self._open)
        # Small stretches are held ahead up to half of it; the rest is for others.
        self._cache_bytes = int(self._mirror.cache.limit_bytes * share)
        self._stopped = threading.Event()
        # Guards what follows, and tells of every change of it.
        self._changed = threading.Condition()
        self._held: list[_Held] = []
        # Stretches that are held or soon will be, each with its bytes, until the consumer has
        # passed them; and the position after the samples that it waits for.
        self._planned: deque[tuple[Stretch, int]] = deque()
        self._wanted_stop = 0
        self._tasks: deque[tuple[_Held, int]] = deque()
        self._replaced: dict[int, int] = {}
        self._error: BaseException | None = None
        self._num_starving = 0
        work: dict[str, Callable[[], None]] = {"plan": functools.partial(self._plan, stretches)}
        work |= {f"fetch-{number}": self._fetch for number in range(NUM_FETCHERS)}
        try:
            for name, target in work.items():
                threading.Thread(target=target, name=f"fusmae-{name}", daemon=True).start()
        except BaseException:
            self.stop()
            raise

    @property
    def arrays(self) -> tuple[ArraySpec, ...]:
        return self._reader.arrays

    def read(self, position: int, ids: Ids, out: Mapping[str, npt.NDArray[Any]]) -> None:
        """As `Source.read`; waits for shards.

        Raises:
            ValueError: a shard cannot be fetched or read, there is no room for it, or the
                source is stopped.
            OSError: the cache's disk failed.
        """
        done = 0
        while done < len(ids):
            held = self._wait_for(position + done)
            stop = min(len(ids), held.stretch.stop - position)
            ids[done:stop] = self._chosen(held, position + done, stop - done)
            rows = {name: array[done:stop] for name, array in out.items()}
            self._reader.read_into(ids[done:stop], rows, self._open_shard)
            if self._stopped.is_set():
                self._open_shard.cache_clear()  # which `stop` had emptied
            self._count_read(held, stop - done)
            done = stop

    def want(self, position: int, count: int) -> None:
        """As `Source.want`: stretches before these samples make room for others."""
        with self._changed:
            self._wanted_stop = position + count
            while self._planned and self._planned[0][0].stop <= position:
                self._planned.popleft()
            self._changed.notify_all()

    def take_num_replaced(self, position: int, count: int) -> int:
        """How many of the samples read at these positions stand in for one of a bad shard.

        Asked once: the numbers are forgotten.
        """
        if not self._replaced:
            return 0
        with self._changed:
            mine = [at for at in self._replaced if position <= at < position + count]
            return sum(self._replaced.pop(at) for at in mine)

    def stop(self) -> None:
        """End the threads and let go of the shards; reads that wait raise.

        A thread that waits for the store ends when that answers or its time is over.
        """
        self._stopped.set()
        self._open_shard.cache_clear()
        with self._changed:
            for held in self._held:
                held.pins.release()
            self._changed.notify_all()

    def _open(self, shard: int) -> OpenShard:
        record = self._shards[shard]
        return OpenShard(self._mirror.folder / record.path, record)

    def _chosen(self, held: _Held, position: int, count: int) -> Ids:
        """The ids at positions, with those of bad shards replaced."""
        if not held.bad:
            return self._samples(position, count)
        if not self._skip:
            raise ValueError(f"{next(iter(held.bad.values()))} (or set data.on_bad_shard = 'skip')")
        first = held.stretch.first
        ids = self._samples(first, held.stretch.stop - first)
        with self._changed:
            if held.good is None:
                is_bad = np.isin(self._reader.shards_of(ids), list(held.bad))
                held.good = np.flatnonzero(~is_bad)
                for reason in held.bad.values():
                    warnings.warn(f"skipped: {reason}", stacklevel=1)
            if len(held.good) == 0:
                raise ValueError(
                    f"no shard of a window is readable: {next(iter(held.bad.values()))}"
                )
            ranks = np.arange(position - first, position - first + count)
            chosen = held.good[np.searchsorted(held.good, ranks) % len(held.good)]
            num_replaced = int((chosen != ranks).sum())
            if num_replaced:
                self._replaced[position] = num_replaced
        return ids[chosen]

    def _wait_for(self, position: int) -> _Held:
        """The stretch that holds a position, once all its shards are settled."""
        with self._changed:
            while not self._stopped.is_set():
                held = next((held for held in self._held if held.holds(position)), None)
                if held is not None and not held.pending:
                    return held
                if self._error is not None:
                    raise self._error
                self._num_starving += held is None
                self._changed.wait()
                self._num_starving -= held is None
        raise ValueError("this loader is closed")

    def _count_read(self, held: _Held, count: int) -> None:
        with self._changed:
            held.num_unread -= count
            if held.num_unread == 0:
                self._held.remove(held)
                # Evicted files keep their room on the disk as long as they are open.
                self._open_shard.cache_clear()
                held.pins.release()
                self._changed.notify_all()

    def _plan(self, stretches: Iterator[Stretch]) -> None:
        """In a thread: hold the shards of one stretch after another, ahead of their use."""
        try:
            for stretch in stretches:
                shards = self._shards_in_order(stretch)
                files = [self._mirror.file(self._shards[shard]) for shard in shards]
                num_bytes = sum(file.bytes for file in files)
                with self._changed:
                    while not (self._stopped.is_set() or self._may_hold(stretch, num_bytes)):
                        self._changed.wait()
                    self._planned.append((stretch, num_bytes))
                pins = self._mirror.cache.pin(files, self._pause, self._is_starving)
                with self._changed:
                    held = _Held(stretch, pins, set(shards), stretch.num_own)
                    self._held.append(held)
                    self._tasks.extend((held, shard) for shard in shards)
                    self._changed.notify_all()
                if self._stopped.is_set():
                    pins.release()
                    return
        except _StoppedError:
            return
        except BaseException as error:  # whatever it is, the readers wait for it and raise it
            self._fail(error)

    def _is_starving(self) -> bool:
        return self._num_starving > 0

    def _may_hold(self, stretch: Stretch, num_bytes: int) -> bool:
        """Whether to hold another stretch: one ahead, or enough small ones for all fetchers.

        What is ahead is counted from the consumer on, not from the ring, and has to fit into the
        cache: a rank whose ring has done with a stretch would hold the room that a later rank
        needs for it, while its consumer waits for that rank.
        """
        if stretch.first < self._wanted_stop:
            return True
        num_pending = sum(len(held.pending) for held in self._held)
        total = num_bytes + sum(planned for _, planned in self._planned)
        if len(self._planned) < 2:
            return not self._planned or total <= self._cache_bytes
        return num_pending < NUM_FETCHERS and total <= self._cache_bytes // 2

    def _shards_in_order(self, stretch: Stretch) -> list[int]:
        """The shards of a stretch in the order of their first use."""
        shards = self._reader.shards_of(self._samples(stretch.first, stretch.stop - stretch.first))
        _, places = np.unique(shards, return_index=True)
        return [int(shards[place]) for place in np.sort(places)]

    def _fetch(self) -> None:
        """In a thread: fetch the shards of what is held, in order."""
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._stopped.is_set() or self._tasks)
                    if self._stopped.is_set():
                        return
                    held, shard = self._tasks.popleft()
                record = self._shards[shard]
                if not self._mirror.settle(record, self._pause):
                    with self._changed:
                        self._tasks.append((held, shard))
                    self._pause(POLL_S)
                    continue
                reason = why_bad(self._mirror.folder / record.path)
                with self._changed:
                    if reason is not None:
                        held.bad[shard] = reason
                    held.pending.remove(shard)
                    self._changed.notify_all()
        except _StoppedError:
            return
        except BaseException as error:  # whatever it is, the readers wait for it and raise it
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def _pause(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise _StoppedError
