"""The shards of a mirror that are read in no order known beforehand: fetched when first needed."""

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from weakref import WeakValueDictionary

from torch.utils.data import get_worker_info

from fusmae.data.cache import Pause, Pins
from fusmae.data.remote import Mirror
from fusmae.data.shard import OpenShard, most_open
from fusmae.manifest import ShardRecord

# What is kept open is pinned, and no room for anybody else: an eighth of the cache.
_PART_KEPT = 8
# By id; whoever of a process waits for room also has what its others keep open closed.
_all: WeakValueDictionary[int, "OnDemand"] = WeakValueDictionary()


def _sleep(seconds: float) -> None:
    if seconds:  # sleeping for no time took 350 us on a busy machine, the rest of an opening 120
        time.sleep(seconds)


class OnDemand:
    """Open shards of a mirror, those used last; safe to use from many threads and after a fork.

    All of them are pinned, so what is open is part of what the cache holds, and together they
    are at most an eighth of the cache, or one shard. Of workers of a `DataLoader` all together
    leave room for what the program itself keeps: one that waits for another batch never ends else.
    """

    def __init__(
        self, mirror: Mirror, shards: Sequence[ShardRecord], pause: Pause = _sleep
    ) -> None:
        """Nothing is opened yet; `pause` is called while a shard is waited for."""
        self._mirror, self._shards, self._pause = mirror, shards, pause
        self._begin()
        _all[id(self)] = self

    def _begin(self) -> None:
        self._process = os.getpid()
        self._changing = threading.Lock()
        self._open: OrderedDict[int, tuple[OpenShard, Pins]] = OrderedDict()

    def open(self, shard: int) -> OpenShard:
        """A shard by its place in the split.

        Raises:
            ValueError: as `Mirror.hold`, or the cache has no room for a shard of each worker.
            Exception: whatever `pause` raises.
        """
        if os.getpid() != self._process:
            self._begin()  # the pins are the parent's
        with self._changing:
            found = self._open.get(shard)
            if found is not None:
                self._open.move_to_end(shard)
                return found[0]
            most_bytes = self._most_bytes()
            self._make_room(self._shards[shard].bytes, most_bytes)
        pins = self._mirror.hold(self._shards[shard], self._pause_for_room)
        try:
            opened = OpenShard(self._mirror.folder / self._shards[shard].path, self._shards[shard])
            with self._changing:
                self._pause(0)  # once nobody wants it any more, nobody would close it
                self._make_room(self._shards[shard].bytes, most_bytes)
                # If another thread was faster, this one's is closed at once.
                return self._open.setdefault(shard, (opened, pins))[0]
        except BaseException:
            pins.release()
            raise

    def close(self) -> None:
        """Close all shards; they are opened again if they are needed after all."""
        with self._changing:
            while self._open:
                self._close_one()

    def _most_bytes(self) -> int:
        """How much this process may keep open.

        Raises:
            ValueError: it is a worker of too many for the cache.
        """
        limit, sizes = self._mirror.cache.limit_bytes, [shard.bytes for shard in self._shards]
        kept, worker = limit // _PART_KEPT, get_worker_info()
        if worker is None or sum(sizes) <= limit:
            return kept
        room = limit - max(kept, max(sizes))
        if worker.num_workers * max(sizes) > room:
            raise ValueError(
                f"num_workers = {worker.num_workers} hold a shard each of up to {max(sizes):,} "
                f"bytes, and {limit - room:,} are the program's own; the cache "
                f"{self._mirror.cache.folder} may hold {limit:,}: lower num_workers or raise "
                "cache_gb"
            )
        return min(kept, room // worker.num_workers)

    def _make_room(self, num_bytes: int, most_bytes: int) -> None:
        """Close what was not used for longest, until so many bytes may be opened."""
        while self._open and (
            len(self._open) >= most_open(len(self._shards))
            or num_bytes + sum(self._shards[shard].bytes for shard in self._open) > most_bytes
        ):
            self._close_one()

    def _close_one(self) -> None:
        _, (_, pins) = self._open.popitem(last=False)
        pins.release()

    def _pause_for_room(self, seconds: float) -> None:
        # Who waits sits on nothing that another may be waiting for, and nobody of this process
        # keeps what he does not read. Who is reading a shard has it open, pinned or not.
        if seconds:
            for found in _all.valuerefs():
                other = found()
                if other is not None and other._shares_with(self):
                    other.close()
        self._pause(seconds)

    def _shares_with(self, other: "OnDemand") -> bool:
        """Whether both are of one cache; what was made before a fork is the parent's."""
        mine, others = self._mirror.cache.folder, other._mirror.cache.folder
        return mine == others and self._process == other._process
