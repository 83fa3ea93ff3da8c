"""Locks of single bytes of a file, which a killed process gives back (F_OFD_SETLK, Linux).

They belong to the file as it was opened, so two threads of one process exclude each other too.
"""

import fcntl
import os
import struct
from pathlib import Path


def open_locks(path: Path) -> int:
    """A new descriptor of a file of locks, which is made if need be."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


def try_lock(fd: int, byte: int, kind: int, length: int = 1) -> bool:
    """Take, change or give back the lock of one byte; false if another open file is in the way.

    Args:
        fd: from `open_locks`.
        byte: its place, from 0 to 2**63 - 1.
        kind: `fcntl.F_RDLCK`, `F_WRLCK` or `F_UNLCK`.
        length: bytes from there on; 0 for all.
    """
    # struct flock of 64-bit Linux: type, whence, start, length (0: to the end), process (0 for
    # such locks).
    request = struct.pack("hhqqi0q", kind, os.SEEK_SET, byte, length, 0)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, request)
    except (BlockingIOError, PermissionError):
        return False
    return True


def close_locks(fd: int) -> None:
    """Give back all locks of a descriptor, and close it.

    Closing alone would leave them held by a process that was forked meanwhile and has a copy.
    """
    try_lock(fd, 0, fcntl.F_UNLCK, length=0)
    os.close(fd)


def close_locks_of(process: int, fd: int) -> None:
    """As `close_locks`, but in a fork of the process that holds them close its copy alone."""
    if os.getpid() == process:
        close_locks(fd)
    else:
        os.close(fd)
