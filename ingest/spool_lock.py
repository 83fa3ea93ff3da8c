"""The lock of a spool's folder: shared while it is read, exclusive while it is changed.

The operating system lets go of it even after SIGKILL.
"""

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import IO

LOCK_NAME = "lock"
# What the lock holds from the first: it tells a folder of ours from one of the user's.
_MARK = b"fusmae-ingest unpacks and indexes an archive here, and removes that again.\n"


class SpoolLock:
    """Makes `folder` when it is first taken; `with` lets go at its end, as does the process's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: IO[bytes] | None = None

    def __enter__(self) -> "SpoolLock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def share(self) -> None:
        """Keep others from changing what is there.

        Raises:
            ValueError: another run is changing it; the folder is no spool and not empty.
            OSError: the folder cannot be written.
        """
        if not self._take(fcntl.LOCK_SH):
            raise ValueError(f"another run is unpacking in {self.folder}: wait for it, or stop it")

    def exclude(self) -> None:
        """Keep others out, in place of sharing.

        Raises:
            ValueError: another run is there; the folder is no spool and not empty.
            OSError: the folder cannot be written.
        """
        if not self.is_alone():
            raise ValueError(
                f"another run is using {self.folder}, which holds what it unpacked: wait for it, "
                "or give another --spool"
            )

    def is_alone(self) -> bool:
        """Take the lock for this run alone; where another has it, hold none."""
        return self._take(fcntl.LOCK_EX)

    def release(self) -> None:
        """Let go. A folder that holds nothing but the lock goes too, if no other run holds it."""
        if self._file is not None and self.is_alone():
            with suppress(OSError):
                if [path.name for path in self.folder.iterdir()] == [LOCK_NAME]:
                    self.remove()
        self._close()

    def remove(self) -> None:
        """Remove the lock that this run has alone, and the folder if nothing else is in it."""
        with suppress(OSError):
            (self.folder / LOCK_NAME).unlink()
            self.folder.rmdir()
        self._close()

    def _take(self, kind: int) -> bool:
        while True:
            file = self._file = self._file or self._open()
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                self._close()
                return False
            # Another run may have removed the file between its opening and its locking.
            with suppress(FileNotFoundError):
                if os.fstat(file.fileno()).st_ino == (self.folder / LOCK_NAME).stat().st_ino:
                    return True
            self._close()

    def _open(self) -> IO[bytes]:
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Gone again where another run removes it as its own.
            with suppress(FileNotFoundError):
                if holds_other_files(self.folder):
                    raise ValueError(
                        f"{self.folder} holds files that are not fusmae-ingest's: give --spool a "
                        "folder of its own"
                    )
                file = (self.folder / LOCK_NAME).open("ab", buffering=0)
                if not os.fstat(file.fileno()).st_size:
                    file.write(_MARK)
                return file

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def holds_other_files(folder: Path) -> bool:
    """Whether there is something in a folder in which no `SpoolLock` has been taken."""
    # Twice: another run that ends may have removed its lock after the first look.
    return _is_foreign(folder) and _is_foreign(folder)


def _is_foreign(folder: Path) -> bool:
    with suppress(FileNotFoundError):
        if all(path.name == LOCK_NAME for path in folder.iterdir()):
            return False
        return not (folder / LOCK_NAME).read_bytes().startswith(_MARK)
    return folder.exists()
