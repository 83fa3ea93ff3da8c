"""The header reader against Python's own `tarfile`, and on archives that it must refuse."""

import io
import posixpath
import struct
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusmae_ingest.tar_headers import TarScanner

ARCHIVE = Path("some.tar")
FORMATS = {"gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT, "ustar": tarfile.USTAR_FORMAT}


def make_tar(files: dict[str, bytes], format: int = tarfile.GNU_FORMAT, **fields: object) -> bytes:
    """A tar of the files; `fields` are set on every header."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in fields.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return out.getvalue()


def scan(tar: bytes, step: int = 1 << 20) -> list[tuple[str, int, int]]:
    """All files, the bytes fed `step` at a time."""
    scanner = TarScanner(ARCHIVE)
    found = [m for at in range(0, len(tar), step) for m in scanner.feed(tar[at : at + step])]
    scanner.finish(len(tar))
    return found


def by_tarfile(tar: bytes) -> list[tuple[str, int, int]]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        return [(posixpath.normpath(i.name), i.offset_data, i.size) for i in opened if i.isfile()]


# Anything a path may hold but surrogates, NUL, and the parts that are refused.
part = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=70
).filter(lambda text: text != "..")
plain_part = st.text(st.sampled_from("abcB_09.-"), min_size=1, max_size=90).filter(
    lambda text: text.strip(".") != ""
)
data = st.one_of(st.sampled_from([0, 1, 511, 512, 513, 1024, 3000]), st.integers(0, 2000)).map(
    lambda size: bytes(i * 7 % 251 for i in range(size))
)


def paths(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(parts, min_size=1, max_size=6).map("/".join).filter(lambda p: p[-1] != ".")


@settings(deadline=None, max_examples=80)
@given(
    files=st.dictionaries(paths(part), data, max_size=6),
    format=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    step=st.integers(1, 5000),
    end_blocks=st.integers(0, 5),
)
def test_files_are_those_of_tarfile_however_the_bytes_are_cut(files, format, step, end_blocks):
    tar = make_tar(files, format) + bytes(512 * end_blocks)
    assert scan(tar, step) == by_tarfile(tar)


@settings(deadline=None, max_examples=60)
@given(directory=plain_part, patch=plain_part, file=plain_part, contents=data)
def test_names_split_over_the_two_fields_of_ustar_are_joined(directory, patch, file, contents):
    tar = make_tar({f"{directory}/{patch}/{file}": contents}, tarfile.USTAR_FORMAT)
    assert scan(tar, 700) == by_tarfile(tar)


@pytest.mark.parametrize("length", [99, 100, 101, 155, 256, 257, 1000, 5000])
@pytest.mark.parametrize("format", ["gnu", "pax"])
def test_long_names_come_whole(length, format):
    name = ("d/" + "n" * length)[:length]
    tar = make_tar({name: b"abc", "after": b"x" * 700}, FORMATS[format])
    assert [m[0] for m in scan(tar)] == [name, "after"]
    assert scan(tar) == by_tarfile(tar)


def test_offsets_lead_to_the_bytes_and_directories_are_passed_over():
    files = {"a/P/P_B01.tif": b"first" * 300, "a/P/empty": b"", "a/Q/q": b"last"}
    tar = make_tar({"a": b""}, type=tarfile.DIRTYPE)[:512] + make_tar(files)
    assert {name: tar[at : at + size] for name, at, size in scan(tar)} == files


def test_sizes_of_eight_gibibytes_and_more_are_read_in_both_notations():
    size = 9 << 30
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        info = tarfile.TarInfo("a/P/huge")
        info.size = size
        header = info.tobuf(format)
        scanner = TarScanner(ARCHIVE)
        assert scanner.feed(header) == [("a/P/huge", len(header), size)]
        assert scanner.jump() == len(header) + size
        assert scanner.feed(make_tar({"a/P/next": b"1"})) == [
            ("a/P/next", len(header) + size + 512, 1)
        ]


@pytest.mark.parametrize("size", [2**60 + 1, 2**63 - 1, 2**63, 2**80, 10**19 - 1])
def test_sizes_beyond_any_storage_are_refused_by_name_and_place(size):
    for format in ("gnu", "pax"):
        if format == "pax" and size >= 10**19:
            continue  # refused already for its 20 digits
        info = tarfile.TarInfo("a/P/huge")
        info.size = size
        tar = make_tar({"a/P/x": b"1"})[:1024] + info.tobuf(FORMATS[format])
        with pytest.raises(ValueError, match=rf"some\.tar, byte 1024: 'a/P/huge' .* {size} bytes"):
            scan(tar)


def test_dots_and_doubled_slashes_leave_the_names():
    tar = make_tar({"./a//P/./x": b"1", "a/.hidden": b"2"})
    assert [name for name, _, _ in scan(tar)] == ["a/P/x", "a/.hidden"]


def test_comments_for_the_whole_archive_are_passed_over():
    out = io.BytesIO()
    with tarfile.open(
        fileobj=out, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "commit 1"}
    ) as tar:
        tar.addfile(tarfile.TarInfo("a/P/x"))
    assert scan(out.getvalue()) == by_tarfile(out.getvalue())


@pytest.mark.parametrize("name", ["/etc/passwd", "a/../b", "../b", "a/..", "a/b/."])
def test_names_outside_the_archive_are_refused(name):
    with pytest.raises(ValueError, match=r"some\.tar, byte 0: the file name .* is not one inside"):
        scan(make_tar({name: b"1"}))


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (tarfile.SYMTYPE, "symbolic link"),
        (tarfile.LNKTYPE, "hard link"),
        (tarfile.CHRTYPE, "character device"),
        (tarfile.FIFOTYPE, "named pipe"),
    ],
)
def test_links_and_devices_are_refused_by_name(kind, what):
    tar = make_tar({"a/P/x": b"1"})[:1024] + make_tar({"a/P/y": b""}, type=kind, linkname="x")
    with pytest.raises(ValueError, match=f"byte 1024: 'a/P/y' is a {what}"):
        scan(tar)


def test_sparse_files_are_refused_in_both_notations():
    gnu = bytearray(make_tar({"a/P/x": b"1"}))
    gnu[156:157] = b"S"
    gnu[148:156] = b"%06o\0 " % (sum(gnu[:148]) + 256 + sum(gnu[156:512]))
    with pytest.raises(ValueError, match="'a/P/x' is a sparse file"):
        scan(bytes(gnu))
    pax = make_tar({"a/P/x": b"1"}, tarfile.PAX_FORMAT, pax_headers={"GNU.sparse.major": "1"})
    with pytest.raises(ValueError, match=r"pax header with b'GNU\.sparse\.major'"):
        scan(pax)


def test_a_global_name_or_size_is_refused():
    out = io.BytesIO()
    with tarfile.open(
        fileobj=out, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"size": "3"}
    ) as tar:
        tar.addfile(tarfile.TarInfo("a/P/x"))
    with pytest.raises(ValueError, match="byte 0: a name or size for all files"):
        scan(out.getvalue())


def test_names_that_are_not_utf8_are_refused():
    tar = make_tar({"a/P/\udcff": b"1"})
    with pytest.raises(ValueError, match="is not UTF-8"):
        scan(tar)


@given(at=st.integers(0, 511), value=st.integers(0, 255))
@settings(deadline=None, max_examples=200)
def test_no_changed_byte_of_a_header_passes(at, value):
    good = make_tar({"a/P/x": b"1" * 600, "a/P/y": b"2"})
    bad = bytearray(good)
    bad[at] = value
    if bytes(bad) == good or at in range(148, 156):
        return
    with pytest.raises(ValueError, match="byte 0: this is no header of a tar"):
        scan(bytes(bad))


def test_a_tar_cut_short_anywhere_is_refused():
    tar = make_tar({"a/P/" + "n" * 200: b"1" * 600, "a/P/y": b"2"})
    end = struct.calcsize("512x512x512x1024x512x512x")
    assert tar[end:].strip(b"\0") == b""
    for size in range(0, end + 512, 37):
        with pytest.raises(ValueError, match=f"ends at byte {size} without the mark"):
            scan(tar[:size])
    assert len(scan(tar[: end + 512])) == 2


def test_bytes_after_the_end_are_refused_and_not_lost():
    tar = make_tar({"a/P/x": b"1"})
    with pytest.raises(ValueError, match=f"byte {len(tar)}: there are bytes after the mark"):
        scan(tar + tar, len(tar))
