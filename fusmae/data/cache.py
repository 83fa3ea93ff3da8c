"""A folder of bounded size whose files are fetched once for all processes of a node.

What a process needs it pins; only what nobody has pinned is evicted. Pins and fetches are locks
of bytes of one file, `locks` (`locks.py`), so whatever a killed process held is free at once.
"""

import fcntl
import hashlib
import os
import shutil
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fusmae.data.cached_file import (
    BAD,
    PART,
    CachedFile,
    beside,
    disk_named,
    has_part,
    is_settled,
    size_of,
    stat_of,
)
from fusmae.data.claim import claimed_files
from fusmae.data.locks import close_locks, close_locks_of, open_locks, try_lock

# Bytes of `locks`: for looking at and changing what is there, held for milliseconds; then two for
# each file, by a hash of its path; then one for each limit, for having the turn among those who
# wait for room below it. Files whose hashes fall together, 1 in 2**56, only wait for each other.
_CHANGE, _FIRST_PIN, _FIRST_TURN = 0, 2, 1 << 58
_HASH_DIGITS = 14
# How often something that another process holds is asked for again.
POLL_S = 0.02
# How long the one whose turn it is has the first choice of room; many times as often as it looks.
# Then others may take what is enough for them: it may be waiting for just those to go on.
TURN_S = 0.5
# How long somebody may be kept from going on because others have filled the cache, and after how
# long he is told that he is.
ROOM_WAIT_S, ROOM_WARN_S = 900.0, 10.0

# Sleeps for so many seconds, or raises what ends the wait; for 0 s it is asked only for the latter.
Pause = Callable[[float], None]


class UnfetchableError(ValueError):
    """A file could not be fetched, for a reason that lies with the store or the object."""


class Pins:
    """A hold on files; none of them is evicted before `release`."""

    def __init__(self, fd: int) -> None:
        self._release = weakref.finalize(self, close_locks_of, os.getpid(), fd)

    def release(self) -> None:
        """Let go of the files. May be called again; so is what is dropped."""
        self._release()


class Cache:
    """The shards below `FOLDER/DATASET/shards`, together at most `limit_bytes`.

    Only of datasets that are claimed (`claim.py`): all other files of the folder are neither
    counted nor touched. Safe to use from several threads and processes; each may come with a
    limit of its own.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        """Make the folder if need be, and sweep what killed processes have left in it.

        Raises:
            ValueError: the folder cannot be written.
        """
        # Whatever links lead here, there is one `locks`, and one byte of it for a file.
        self.folder, self.limit_bytes = folder.resolve(), limit_bytes
        self._locks = self.folder / "locks"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            close_locks(open_locks(self._locks))
        except OSError as error:
            raise ValueError(f"cannot use {folder} as a cache: {error.strerror}") from None
        with self._changing() as fd:
            for path in claimed_files(self.folder):
                if path.suffix in (PART, BAD):
                    self._remove_unpinned(fd, path)

    def check_disk(self, files: Sequence[CachedFile]) -> None:
        """Raises ValueError if the disk has no room for what of `files` will be here at once."""
        wanted = min(self.limit_bytes, sum(file.bytes for file in files))
        there = sum(size_of(path) for path in claimed_files(self.folder))
        free = shutil.disk_usage(self.folder).free
        if wanted > free + there:
            raise ValueError(
                f"the cache {self.folder} will grow to {wanted:,} bytes and its disk has "
                f"{free + there:,} for it: lower data.cache_gb, or choose another --cache"
            )

    def pin(
        self,
        files: Sequence[CachedFile],
        pause: Pause,
        is_urgent: Callable[[], bool] = lambda: True,
    ) -> Pins:
        """Hold all of `files` at once, with room for those that are still to be fetched.

        It takes all or nothing, so nobody waits for room while sitting on some. Those who wait
        take turns, in which nobody of the same limit makes room for himself before them; but
        not for longer than `TURN_S`. Files that are there, or for which another process has
        made room, are held without waiting.

        Args:
            files: what is needed at once.
            pause: called again and again while there is no room.
            is_urgent: whether somebody waits for these files now; who only looks ahead does not
                keep others waiting.

        Raises:
            ValueError: the files are larger than the cache, or what is urgent has waited for
                `ROOM_WAIT_S`.
            OSError: the disk failed, told with the file and what to do.
            Exception: whatever `pause` raises.
        """
        total = sum(file.bytes for file in files)
        if total > self.limit_bytes:
            raise ValueError(
                f"{_count(files)} must be in the cache {self.folder} at once and it may hold "
                f"{self.limit_bytes:,}: raise data.cache_gb"
            )
        waited_s, warned = 0.0, False
        turn = open_locks(self._locks)
        try:
            while True:
                urgent = is_urgent()
                has_turn = try_lock(turn, _FIRST_TURN + self.limit_bytes, fcntl.F_WRLCK)
                pins = self._try_pin(files, has_turn or (urgent and waited_s >= TURN_S))
                if pins is not None:
                    return pins
                if not urgent:
                    try_lock(turn, _FIRST_TURN + self.limit_bytes, fcntl.F_UNLCK)
                elif waited_s >= ROOM_WAIT_S:
                    raise ValueError(self._full(files, ROOM_WAIT_S))
                elif waited_s >= ROOM_WARN_S and not warned:
                    warned = True
                    warnings.warn(self._full(files, ROOM_WARN_S), stacklevel=2)
                pause(POLL_S)
                waited_s += POLL_S if urgent else 0
        finally:
            close_locks(turn)

    def _full(self, files: Sequence[CachedFile], waited_s: float) -> str:
        return (
            f"no room for {_count(files)}: for {waited_s:g} s other loaders, or views of other "
            f"processes, have held the whole cache {self.folder} of {self.limit_bytes:,} bytes: "
            "raise data.cache_gb (cache_gb of a view), lower data.window, or give each run its own "
            "cache"
        )

    def settle(self, file: CachedFile, fetch: Callable[[BinaryIO], None]) -> bool:
        """Fetch a pinned file, unless it is there, known as bad or being fetched by another.

        Args:
            file: a file that this process has pinned.
            fetch: writes the content, checked, or raises `UnfetchableError`.

        Returns:
            Whether the file is settled: there, or bad. If not, ask again later.

        Raises:
            OSError: the disk failed, told with the file and what to do.
            Exception: whatever else `fetch` raises.
        """
        if is_settled(file.path):
            return True
        fd = open_locks(self._locks)
        try:
            # With a pin of its own: it may still run when its caller has let go of the file. Who
            # is in the way of that pin may be about to evict it.
            if not try_lock(fd, self._pin_byte(file.path), fcntl.F_RDLCK):
                return False
            if not try_lock(fd, self._fetch_byte(file.path), fcntl.F_WRLCK):
                return False
            if not is_settled(file.path):
                self._fetch(file.path, fetch)
            return True
        finally:
            close_locks(fd)

    def _fetch(self, path: Path, fetch: Callable[[BinaryIO], None]) -> None:
        part = beside(path, PART)
        with disk_named(part):
            try:
                with part.open("r+b") as sink:
                    fetch(sink)
                    sink.flush()
                    os.fsync(sink.fileno())
            except UnfetchableError as error:
                bad = beside(path, BAD + PART)
                bad.write_text(str(error))
                bad.replace(beside(path, BAD))
            else:
                part.replace(path)

    def _try_pin(self, files: Sequence[CachedFile], may_grow: bool) -> Pins | None:
        pins = open_locks(self._locks)
        kept = False
        try:
            with self._changing() as fd:
                for file in files:
                    byte = self._pin_byte(file.path)
                    # Nobody has it: a reason of another run is no reason today, and a file of
                    # another size was not made here.
                    if try_lock(pins, byte, fcntl.F_WRLCK):
                        beside(file.path, BAD).unlink(missing_ok=True)
                        if size_of(file.path) != file.bytes:
                            file.path.unlink(missing_ok=True)
                    shared = try_lock(pins, byte, fcntl.F_RDLCK)
                    assert shared, "only one process at a time changes the cache"
                missing = [f for f in files if not is_settled(f.path) and not has_part(f)]
                if missing and not (may_grow and self._make_room(fd, missing)):
                    return None
                for file in missing:
                    part = beside(file.path, PART)
                    with disk_named(part):
                        part.parent.mkdir(parents=True, exist_ok=True)
                        with part.open("wb") as empty:
                            empty.truncate(file.bytes)
            kept = True
            return Pins(pins)
        finally:
            if not kept:
                close_locks(pins)

    def _make_room(self, fd: int, missing: Sequence[CachedFile]) -> bool:
        """Evict until the missing files fit; false, and nothing is evicted, if they cannot.

        Oldest first. Epochs visit shards in unrelated orders, so no other choice is better.
        """
        sizes = {path: stat_of(path) for path in claimed_files(self.folder)}
        excess = sum(size for _, size in sizes.values()) - self.limit_bytes
        excess += sum(file.bytes for file in missing)
        evicted: list[Path] = []
        for path in sorted(sizes, key=lambda path: sizes[path]):
            if excess <= 0:
                break
            if sizes[path][1] and self._is_unpinned(fd, path):
                evicted.append(path)
                excess -= sizes[path][1]
        if excess > 0:
            return False
        for path in evicted:
            self._remove_unpinned(fd, path)
        return True

    def _is_unpinned(self, fd: int, path: Path) -> bool:
        byte = self._pin_byte(path)
        free = try_lock(fd, byte, fcntl.F_WRLCK)
        if free:
            try_lock(fd, byte, fcntl.F_UNLCK)
        return free

    def _remove_unpinned(self, fd: int, path: Path) -> None:
        if self._is_unpinned(fd, path):
            path.unlink(missing_ok=True)

    @contextmanager
    def _changing(self) -> Iterator[int]:
        """The right to pin and evict, as the descriptor that holds it."""
        fd = open_locks(self._locks)
        try:
            while not try_lock(fd, _CHANGE, fcntl.F_WRLCK):
                time.sleep(POLL_S / 10)
            yield fd
        finally:
            close_locks(fd)

    def _pin_byte(self, path: Path) -> int:
        name = str(path.relative_to(self.folder)).removesuffix(PART).removesuffix(BAD)
        digest = hashlib.sha256(name.encode()).hexdigest()
        return _FIRST_PIN + 2 * int(digest[:_HASH_DIGITS], 16)

    def _fetch_byte(self, path: Path) -> int:
        return self._pin_byte(path) + 1


def _count(files: Sequence[CachedFile]) -> str:
    shards = "1 shard" if len(files) == 1 else f"{len(files)} shards"
    return f"{shards} of {sum(file.bytes for file in files):,} bytes"
