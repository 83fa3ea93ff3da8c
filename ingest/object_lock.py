"""The lock of a run on a dataset in an object store: an object that the run renews.

Such a store has no lock that ends with its process, and its clients share no clock. So a run at
work rewrites the lock again and again, and another may replace one that it has itself watched
for long enough without a change. It is only ever written in the place of what was seen there;
where the store cannot compare, whoever wrote last has it, and all wait to see who that was.
"""

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from .layout import LOCK
from .wording import say

# Between two renewals, and what all wait where the store cannot compare. A lock that did not
# change for three times as long is a dead run's.
LOCK_RENEWAL_S = 10.0


def takeover_s() -> float:
    """Seconds without a renewal after which another run may have the lock."""
    return 3 * LOCK_RENEWAL_S


@dataclass(frozen=True)
class Seen:
    """An object as it was found; its ETag is that of this content or of an older one."""

    content: bytes
    etag: str


class Objects(Protocol):
    """What a lock needs of its store; see `object_store.ObjectStore`."""

    def look(self, path: str) -> Seen | None: ...

    def replace(self, path: str, seen: Seen | None, data: bytes) -> bool: ...

    def refuses(self, path: str, seen: Seen | None, data: bytes) -> bool: ...

    def remove(self, path: str) -> None: ...


class RunLock:
    """A run's claim; `token` tells it from others. Another process gets a copy by pickle."""

    def __init__(self, token: str) -> None:
        self.token = token
        # By time.monotonic(). A copy is not renewed: that is for the run's own process to watch.
        self._renewed_s = math.inf
        self._trouble = "it was stopped"

    def __reduce__(self) -> tuple[type["RunLock"], tuple[str]]:
        return RunLock, (self.token,)

    @contextmanager
    def held(self, store: Objects) -> Iterator[None]:
        """Take the lock, keep it renewed, and remove it if it is still this run's.

        Raises:
            ValueError: another run has it.
            OSError: the store does not answer.
        """
        self._take(store)
        stop = threading.Event()
        thread = threading.Thread(target=self._renew_until, args=(store, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(LOCK_RENEWAL_S)
            self._release(store)

    def require(self, store: Objects) -> None:
        """Look whether this run may still write.

        Raises:
            ValueError: it may not; what has become of the lock.
        """
        seen = store.look(LOCK)
        if seen is None:
            raise ValueError(
                f"{store}/{LOCK}, the lock of this run, was removed: run the same command again "
                "to go on"
            )
        if not self._is_in(seen):
            raise ValueError(
                f"another run has taken {store} over, since this one's lock had not been renewed "
                f"for {takeover_s():g} s: wait for it, or stop it"
            )
        if time.monotonic() - self._renewed_s > takeover_s():
            raise ValueError(
                f"{store}/{LOCK} was not renewed for {takeover_s():g} s ({self._trouble}), and "
                "another run may take it: run the same command again to go on"
            )

    def _is_in(self, seen: Seen | None) -> bool:
        return seen is not None and seen.content.startswith(self.token.encode())

    def _content(self, beat: int) -> bytes:
        return f"{self.token} {beat}\n".encode()

    def _take(self, store: Objects) -> None:
        seen = _wait_for_a_dead_run(store)
        now_s = time.monotonic()
        taken = store.replace(LOCK, seen, self._content(0))
        # Where the store compares, the same again is refused: this run's lock is there now. Any
        # other answer does not tell, so there is a wait to see who wrote last.
        if taken and not store.refuses(LOCK, seen, self._content(1)):
            time.sleep(LOCK_RENEWAL_S)
        if not taken or not self._is_in(store.look(LOCK)):
            raise _busy(store)
        self._renewed_s = now_s

    def _renew_until(self, store: Objects, stop: threading.Event) -> None:
        """Renew until told to stop or the lock is lost, which `require` sees for itself."""
        beat, failures, wait_s = 1, 0, LOCK_RENEWAL_S
        while not stop.wait(wait_s):
            beat += 1
            now_s = time.monotonic()
            try:
                seen = store.look(LOCK)
                if not self._is_in(seen) or not store.replace(LOCK, seen, self._content(beat)):
                    return
            except OSError as error:
                self._trouble = error.strerror or str(error)
                failures += 1
                wait_s = LOCK_RENEWAL_S * min(1.0, 2**failures / 16)
            else:
                self._renewed_s, failures, wait_s = now_s, 0, LOCK_RENEWAL_S

    def _release(self, store: Objects) -> None:
        try:
            if self._is_in(store.look(LOCK)):
                store.remove(LOCK)
        except OSError as error:
            say(
                f"warning: {error.filename}: {error.strerror}; the next run will wait "
                f"{takeover_s():g} s for this one's lock"
            )


def _wait_for_a_dead_run(store: Objects) -> Seen | None:
    """What to take the place of: nothing, or a lock that has not changed for long enough.

    Raises:
        ValueError: it is being renewed.
    """
    first = store.look(LOCK)
    if first is None:
        return None
    say(f"{store} is locked: looking for {takeover_s():g} s whether that run is alive")
    deadline_s = time.monotonic() + takeover_s()
    while time.monotonic() < deadline_s:
        time.sleep(LOCK_RENEWAL_S / 4)
        now = store.look(LOCK)
        if now is None:
            return None
        if now != first:
            raise _busy(store)
    return first


def _busy(store: Objects) -> ValueError:
    return ValueError(f"another run is writing {store}: wait for it, or stop it")
