"""The headers of a tar archive, read as its bytes flow by: names, places and sizes of the files.

First step of reading a published archive in place: nothing is extracted, and a header that
is not fully understood ends the reading. Formats: POSIX.1-2017 pax, "ustar Interchange
Format" and "pax Header Block"; GNU tar 1.35 manual, "Basic Tar Format" (long names, base-256
sizes).
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

BLOCK = 512
# Name within the archive, position of its first byte in the tar, size in bytes. A plain
# tuple: there are 9 million of them, and a class costs three times as much to make.
Member = tuple[str, int, int]

_FIELDS = struct.Struct("100s24x12s12x8sc100x8s80x155s12x")
_ZEROS = bytes(BLOCK)
_POSIX, _GNU = b"ustar\x0000", b"ustar  \x00"
_DIRECTORY, _LONG_NAME, _PAX, _PAX_GLOBAL = b"5", b"L", b"x", b"g"
# b"\0" is the mark of files from before POSIX, b"7" that of contiguous files.
_FILES = frozenset((b"0", b"\x00", b"7"))
_REFUSED = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a named pipe",
    b"K": "a link with a long target",
    b"S": "a sparse file",
    b"M": "a part of a tar of many volumes",
    b"V": "a volume label",
}
# Longer than any path that a file system takes; a size above it is damage.
_MAX_EXTENSION = 1 << 16
# More than any storage holds; places up to there and their sums fit into 64 bits with a sign.
_MAX_SIZE = 1 << 60
# What a pax header may say of a file that changes neither its name nor its bytes.
_HARMLESS = (
    *("atime", "comment", "ctime", "gid", "gname", "mtime", "uid", "uname"),
    *("LIBARCHIVE.creationtime", "LIBARCHIVE.xattr.", "RHT.security.", "SCHILY.acl."),
    *("SCHILY.dev", "SCHILY.fflags", "SCHILY.ino", "SCHILY.nlink", "SCHILY.xattr."),
)


class TarScanner:
    """Finds the files of one tar whose bytes are fed to it in order.

    Between two calls of `feed` the caller may leave bytes out: see `jump`. Names come out
    plain: `.` parts and doubled `/` are dropped; a file whose name begins with `/` or holds a
    `..` part is refused. Directories are passed over, whatever they are called.
    """

    def __init__(self, archive: Path) -> None:
        self._archive = archive
        # Position of the first byte of what is fed next, less what was carried over.
        self._start = 0
        self._carry = b""
        self._next_at = 0
        self._ended = False

    def feed(self, chunk: bytes) -> list[Member]:
        """The files whose headers end in this chunk, of any length, of the tar.

        Raises:
            ValueError: a header is damaged, or is one that this reader does not take; the
                message names the archive and the byte.
        """
        if self._carry:
            chunk = self._carry + chunk
        found: list[Member] = []
        at = self._next_at - self._start
        while at + BLOCK <= len(chunk) and not self._ended:
            unit = self._read_unit(chunk, at)
            if unit is None:
                break
            at, member = unit
            if member is not None:
                found.append(member)
        if self._ended:
            self._refuse_bytes_after_the_end(chunk, at)
            at = len(chunk)
        self._next_at = self._start + at
        # A unit that is only begun is read again from its first byte when more has come.
        self._carry = chunk[at:]
        self._start += min(at, len(chunk))
        return found

    def jump(self) -> int:
        """Position of the next byte to feed, past those of a file that need not be read."""
        fed = self._start + len(self._carry)
        if self._next_at > fed:
            self._start = fed = self._next_at
        return fed

    def finish(self, size: int) -> None:
        """Say that the tar has ended after `size` bytes.

        Raises:
            ValueError: it ended in the middle.
        """
        if not self._ended:
            raise ValueError(
                f"{self._archive} ends at byte {size} without the mark of a tar's end: it was cut "
                "short, or is no tar; download it again"
            )

    def _refuse_bytes_after_the_end(self, chunk: bytes, at: int) -> None:
        rest = chunk[at:]
        if rest.count(0) != len(rest):
            raise self._error(at, "there are bytes after the mark of the tar's end")

    def _error(self, at: int, what: str) -> ValueError:
        return ValueError(
            f"{self._archive}, byte {self._start + at}: {what}; download the archive again, or "
            "make it again of plain files with GNU tar"
        )

    def _read_unit(self, chunk: bytes, at: int) -> tuple[int, Member | None] | None:
        """Where the next unit begins and what this one was; None where the chunk ends in it.

        A unit is the headers that extend a file's header, the header, and the file's bytes.
        """
        long_name: str | None = None
        long_size: int | None = None
        begin = at
        while at + BLOCK <= len(chunk):
            fields = self._header(chunk, at)
            if fields is None:
                if at != begin:
                    raise self._error(at, "a header is announced, but there is none")
                self._ended = True
                return at + BLOCK, None
            kind, size, raw = fields
            at += BLOCK
            if kind in _FILES or kind == _DIRECTORY:
                name = self._text(raw, begin) if long_name is None else long_name
                if kind == _DIRECTORY or (kind == b"\x00" and name.endswith("/")):
                    return at, None
                size = size if long_size is None else long_size
                if size > _MAX_SIZE:
                    raise self._error(begin, f"{name!r} is said to hold {size} bytes")
                member = (self._plain(name, begin), self._start + at, size)
                return at + _padded(size), member
            if size > _MAX_EXTENSION:
                raise self._error(at - BLOCK, f"a header's extension of {size} bytes")
            extension = chunk[at : at + size]
            if len(extension) < size:
                return None
            if kind == _LONG_NAME and long_name is None:
                long_name = self._text(extension.partition(b"\0")[0], begin)
            elif kind == _PAX and long_name is None and long_size is None:
                long_name, long_size = self._pax(extension, at)
            elif kind == _PAX_GLOBAL and at == begin + BLOCK:
                if self._pax(extension, at) != (None, None):
                    raise self._error(begin, "a name or size for all files that follow")
                return at + _padded(size), None
            else:
                raise self._error(begin, f"a header of the kind {kind!r} in this place")
            at += _padded(size)
        return None

    def _header(self, chunk: bytes, at: int) -> tuple[bytes, int, bytes] | None:
        """(kind, size, name as it stands) of one header block; None for a block of zeros."""
        block = chunk[at : at + BLOCK]
        name, octal_size, octal_sum, kind, magic, prefix = _FIELDS.unpack(block)
        # The low half of an Adler-32 begun at 0 is the sum of the bytes modulo 65,521; the
        # checksum's own 8 bytes count as spaces.
        adler = zlib.adler32(block[156:], zlib.adler32(block[:148], 0))
        said = _octal(octal_sum)
        if said is None or (said - (adler & 0xFFFF) - 8 * 32) % 65_521:
            if block == _ZEROS:
                return None
            raise self._error(at, "this is no header of a tar (its checksum is wrong)")
        if magic != _GNU and magic != _POSIX:
            raise self._error(at, f"a header of an unknown tar format ({magic!r})")
        if kind in _REFUSED:
            shown = name.partition(b"\0")[0].decode(errors="replace")
            raise self._error(at, f"{shown!r} is {_REFUSED[kind]}, which is not read")
        size = _octal(octal_size)
        if size is None:
            # The first bit marks a number to base 256, the second a negative one.
            if octal_size[0] != 0x80:
                raise self._error(at, f"a size of {octal_size!r}")
            size = int.from_bytes(octal_size[1:], "big")
        name = name.partition(b"\0")[0]
        # GNU keeps times where POSIX keeps the front of a long name.
        if prefix[0] and magic == _POSIX:
            name = prefix.partition(b"\0")[0] + b"/" + name
        return kind, size, name

    def _pax(self, records: bytes, at: int) -> tuple[str | None, int | None]:
        """The name and the size that a pax header gives, None where it gives none."""
        name: str | None = None
        size: int | None = None
        for key, value in self._pax_records(records, at):
            if key == b"path":
                name = self._text(value, at)
            elif key == b"size" and value.isdigit() and len(value) < 20:
                size = int(value)
            elif not key.decode(errors="replace").startswith(_HARMLESS):
                raise self._error(at, f"a pax header with {key!r}: {value[:40]!r}")
        return name, size

    def _pax_records(self, records: bytes, at: int) -> Iterator[tuple[bytes, bytes]]:
        """The pairs of "LENGTH KEY=VALUE\\n", LENGTH being that of the whole record."""
        while records:
            digits = records[:8].partition(b" ")[0]
            length = int(digits) if digits.isdigit() else 0
            record, records = records[:length], records[length:]
            key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
            if len(record) != length or not equals or record[-1:] != b"\n":
                raise self._error(at, "a damaged pax header")
            yield key, value

    def _text(self, name: bytes, at: int) -> str:
        try:
            return name.decode()
        except UnicodeDecodeError:
            raise self._error(at, f"the name {name!r} is not UTF-8") from None

    def _plain(self, name: str, at: int) -> str:
        """The name without `.` parts and doubled slashes."""
        # The common case, in the cheapest order.
        ends_well = name[:1] not in ("", ".", "/") and name[-1] != "/"
        if ends_well and "/." not in name and "//" not in name and "\0" not in name:
            return name
        parts = name.split("/")
        # Only names are used and nothing is ever extracted; these say that something is wrong.
        if name[:1] in ("", "/") or ".." in parts or parts[-1] in ("", ".") or "\0" in name:
            raise self._error(at, f"the file name {name!r} is not one inside the archive")
        return "/".join(part for part in parts if part not in ("", "."))


def _padded(size: int) -> int:
    return (size + BLOCK - 1) // BLOCK * BLOCK


def _octal(field: bytes) -> int | None:
    """The number that octal digits give, ended by spaces or zero bytes."""
    digits = field.rstrip(b" \0").lstrip(b" ")
    try:
        return int(digits, 8) if digits.isdigit() else None
    except ValueError:
        return None
