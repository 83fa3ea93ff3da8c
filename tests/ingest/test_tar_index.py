"""The index of a tar: patches read through it against the files that went in."""

import io
import json
import os
import pickle
import posixpath
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusmae_ingest import tar_archive, tar_index
from fusmae_ingest.patches import fill
from fusmae_ingest.tar_archive import TarArchive, TarPatch
from fusmae_ingest.tar_index import index_tar, read_head

V1 = "BigEarthNet-v1.0"
NAMES = [f"S2A_MSIL2A_20170613T101031_{i}_48" for i in (87, 9, 30, 31)]


def no_progress(done: int, total: int) -> None:
    pass


def patch_files(patch: str, seed: int = 0) -> dict[str, bytes]:
    """Files of one patch, of different lengths."""
    draw = random.Random(f"{patch}{seed}")
    kinds = ("_B01.tif", "_B02.tif", "_B8A.tif", "_labels_metadata.json")
    return {f"{patch}{kind}": draw.randbytes(draw.randint(0, 3000)) for kind in kinds}


def write_tar(path: Path, files: list[tuple[str, bytes]], format: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_patches(path: Path, names: list[str] = NAMES) -> Path:
    return write_tar(
        path, [(f"{V1}/{p}/{f}", data) for p in names for f, data in patch_files(p).items()]
    )


def opened(tar: Path, index: Path) -> TarArchive:
    index_tar(tar, index, no_progress)
    return TarArchive(tar, index)


def contents(patch: TarPatch) -> dict[str, bytes]:
    files = patch.files()
    return {name: bytes(file.whole()) for name, file in zip(files, patch.load(files), strict=True)}


def header_places(data: bytes) -> list[int]:
    """The bytes of a tar that belong to headers, what extends them, or its end."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        files = {at for info in tar for at in range(info.offset_data, info.offset_data + info.size)}
    return [at for at in range(len(data)) if at not in files]


def mend_checksums(data: bytearray) -> None:
    """Write the right checksum into whatever looks like a header."""
    for at in range(0, len(data), 512):
        header = data[at : at + 512]
        if b"ustar" in header[257:265]:
            total = sum(header[:148]) + sum(header[156:]) + 8 * 32
            data[at + 148 : at + 156] = b"%06o\0 " % total


def by_tarfile(tar: Path) -> dict[str, bytes]:
    """What Python's own reader finds, by the patch's and the file's name."""
    with tarfile.open(tar) as opened:
        return {
            "/".join(posixpath.normpath(f"./{info.name}").rsplit("/", 2)[-2:]): reader.read()
            for info in opened
            if info.isfile() and (reader := opened.extractfile(info))
        }


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    return write_patches(tmp_path / "some.tar")


def test_patches_read_back_as_they_went_in(tar, tmp_path):
    archive = opened(tar, tmp_path / "index")
    assert archive.names() == [patch.name for patch in archive.patches()] == NAMES
    for name in NAMES:
        patch = archive.patch(name)
        assert patch.name == name
        assert contents(patch) == patch_files(name)
        file, data = next(iter(patch_files(name).items()))
        assert [bytes(loaded.whole()) for loaded in patch.load([file])] == [data]


def test_positions_are_in_the_order_of_the_archive(tar, tmp_path):
    archive = opened(tar, tmp_path / "index")
    positions = [archive.patch(name).position for name in NAMES]
    assert positions == sorted(set(positions))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000))
def test_files_of_a_patch_may_lie_anywhere(tmp_path_factory, seed):
    folder = tmp_path_factory.mktemp("shuffled")
    files = [(f"t/{p}/{f}", data) for p in NAMES for f, data in patch_files(p, seed).items()]
    files += [("t/README", b"read me"), ("top", b""), (f"t/{NAMES[0]}/other.txt", b"other")]
    random.Random(seed).shuffle(files)
    archive = opened(write_tar(folder / "a.tar", files), folder / "index")
    expected: dict[str, dict[str, bytes]] = {}
    for path, data in files:
        parent = path.rpartition("/")[0].rpartition("/")[2] or "."
        expected.setdefault(parent, {})[path.rpartition("/")[2]] = data
    assert archive.names() == list(expected)
    assert {p: contents(archive.patch(p)) for p in archive.names()} == expected


def test_files_together_are_read_at_once_and_files_apart_are_not(tmp_path, monkeypatch):
    near, far = NAMES[:2]
    files = [(f"t/{near}/{f}", data) for f, data in patch_files(near).items()]
    first, *rest = patch_files(far).items()
    files += [(f"t/{far}/{first[0]}", first[1]), ("t/between/x", bytes(1 << 20))]
    files += [(f"t/{far}/{f}", data) for f, data in rest]
    archive = opened(write_tar(tmp_path / "a.tar", files), tmp_path / "index")
    sizes: list[int] = []

    def counted(descriptor: int, offset: int, size: int, targets: list[memoryview]) -> int:
        sizes.append(size)
        return fill(descriptor, offset, size, targets)

    monkeypatch.setattr(tar_archive, "fill", counted)
    assert contents(archive.patch(near)) == patch_files(near)
    assert len(sizes) == 1
    sizes.clear()
    assert contents(archive.patch(far)) == patch_files(far)
    assert sorted(sizes) == sorted(len(data) for data in patch_files(far).values())


def test_names_that_only_seem_to_follow_the_patch_stay_apart(tmp_path):
    files = [("t/P/Px", b"1"), ("t/P/x", b"2"), ("t/P/P", b"3"), ("t/PP/PPx", b"4")]
    archive = opened(write_tar(tmp_path / "a.tar", files), tmp_path / "index")
    assert contents(archive.patch("P")) == {"Px": b"1", "x": b"2", "P": b"3"}
    assert [bytes(file.head) for file in archive.patch("P").load(["x", "Px"])] == [b"2", b"1"]
    assert contents(archive.patch("PP")) == {"PPx": b"4"}


READ = """
import pickle, sys
patch = pickle.load(sys.stdin.buffer)
sys.stdout.buffer.write(b"".join(file.head for file in patch.load(sorted(patch.files()))))
"""


def test_a_patch_is_small_and_reads_in_another_process(tar, tmp_path):
    patch = opened(tar, tmp_path / "index").patch(NAMES[1])
    pickled = pickle.dumps(patch)
    assert len(pickled) < 600
    child = subprocess.run([sys.executable, "-c", READ], input=pickled, stdout=subprocess.PIPE)
    assert child.stdout == b"".join(data for _, data in sorted(patch_files(NAMES[1]).items()))


def test_the_arrays_are_plain_and_small(tar, tmp_path):
    index_tar(tar, tmp_path / "index", no_progress)
    found = {path.name for path in (tmp_path / "index").iterdir()}
    assert found == {"index.json", "members.npy", "patches.npy"}
    members = np.load(tmp_path / "index" / "members.npy", mmap_mode="r", allow_pickle=False)
    assert members.dtype.itemsize == 18
    patches = np.load(tmp_path / "index" / "patches.npy", mmap_mode="r", allow_pickle=False)
    assert [name.decode() for name in patches["name"]] == NAMES


def test_an_index_is_used_again_until_the_tar_changes(tar, tmp_path, monkeypatch):
    index = tmp_path / "index"
    first = index_tar(tar, index, no_progress)
    with monkeypatch.context() as patched:
        patched.setattr(tar_index, "TarScanner", None)
        assert index_tar(tar, index, no_progress) == first
    patch = TarArchive(tar, index).patch(NAMES[0])
    write_patches(tar, NAMES[:2])
    with pytest.raises(ValueError, match=r"is not the index of .* as it is now"):
        TarArchive(tar, index)
    with pytest.raises(ValueError, match="has changed since it was indexed"):
        contents(patch)
    assert opened(tar, index).names() == NAMES[:2]


def test_an_index_without_its_head_or_of_another_format_is_made_again(tar, tmp_path):
    index = tmp_path / "index"
    index_tar(tar, index, no_progress)
    head = index / "index.json"
    good = head.read_text()
    head.unlink()
    assert read_head(index) is None
    index_tar(tar, index, no_progress)
    assert head.read_text() == good
    head.write_text(json.dumps(json.loads(good) | {"format": 0, "something": 1}))
    index_tar(tar, index, no_progress)
    assert head.read_text() == good


@pytest.fixture(scope="module")
def indexed(tmp_path_factory) -> tuple[Path, Path]:
    """A small tar and its index, both to be spoilt and put right again."""
    folder = tmp_path_factory.mktemp("indexed")
    tar = write_patches(folder / "some.tar", NAMES[:2])
    index_tar(tar, folder / "index", no_progress)
    return tar, folder / "index"


@settings(deadline=None, max_examples=60)
@given(
    file=st.sampled_from(["index.json", "members.npy", "patches.npy"]),
    at=st.floats(0, 1, exclude_max=True),
    flip=st.integers(1, 255),
)
def test_no_changed_byte_of_an_index_passes_and_it_is_made_again(indexed, file, at, flip):
    tar, index = indexed
    good = (index / file).read_bytes()
    bad = bytearray(good)
    bad[int(at * len(good))] ^= flip
    (index / file).write_bytes(bad)
    assert read_head(index) is None
    with pytest.raises(ValueError, match="index it again"):
        TarArchive(tar, index)
    index_tar(tar, index, no_progress)
    assert (index / file).read_bytes() == good


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"null", b"3", b"{}", b'{"format": 1}', b"[" * 100_000, b"\xff\xfe\0"]
)
def test_an_index_whose_head_is_something_else_is_made_again(indexed, text):
    tar, index = indexed
    good = (index / "index.json").read_bytes()
    (index / "index.json").write_bytes(text)
    assert read_head(index) is None
    index_tar(tar, index, no_progress)
    assert (index / "index.json").read_bytes() == good


def test_an_index_without_one_of_its_arrays_is_made_again(indexed):
    tar, index = indexed
    good = (index / "patches.npy").read_bytes()
    (index / "patches.npy").unlink()
    assert read_head(index) is None
    index_tar(tar, index, no_progress)
    assert (index / "patches.npy").read_bytes() == good


# Where `tarfile` is no oracle: it stops in silence at a mode, owner, time or device that is no
# number, which are nothing to us, and takes what GNU keeps after byte 345 for the front of a name.
NOT_NUMBERS = [(100, 124), (136, 148), (329, 345)]
NOT_COMPARED = {
    tarfile.GNU_FORMAT: [*NOT_NUMBERS, (345, 512)],
    tarfile.PAX_FORMAT: NOT_NUMBERS,
    tarfile.USTAR_FORMAT: NOT_NUMBERS,
}


@settings(deadline=None, max_examples=100)
@given(
    flips=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=3
    ),
    format=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT]),
    mend=st.booleans(),
)
def test_a_tar_with_changed_bytes_is_read_as_tarfile_does_or_refused_in_a_line(
    tmp_path_factory, flips, format, mend
):
    tar = tmp_path_factory.mktemp("flipped") / "some.tar"
    names = ["t/P/P_B01.tif", "t/P/P_B02.tif", "t/" + "Q" * 110 + "/Q_B01.tif"]
    write_tar(tar, [(name, bytes([len(name)]) * 700) for name in names], format)
    data = bytearray(tar.read_bytes())
    headers = header_places(data)
    for at, flip in flips:
        # Most bytes are pixels, which no header reader looks at.
        place = headers[int(at * len(headers))]
        if not any(low <= place % 512 < high for low, high in NOT_COMPARED[format]):
            data[place] ^= flip
    if mend:
        mend_checksums(data)
    tar.write_bytes(data)
    try:
        index_tar(tar, tar.with_suffix(".index"), no_progress)
    except ValueError as error:
        assert "some.tar" in str(error) and "\n" not in str(error)
        return
    archive = TarArchive(tar, tar.with_suffix(".index"))
    found = {
        f"{p}/{f}": data for p in archive.names() for f, data in contents(archive.patch(p)).items()
    }
    assert found == by_tarfile(tar)


def test_the_same_tar_gives_the_same_index(tar, tmp_path):
    for index in ("one", "two"):
        index_tar(tar, tmp_path / index, no_progress)
    for name in ("index.json", "members.npy", "patches.npy"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_what_is_missing_is_named(tar, tmp_path):
    archive = opened(tar, tmp_path / "index")
    with pytest.raises(ValueError, match=f"{tar}/{NAMES[0]}/{NAMES[0]}_B10.tif is missing"):
        archive.patch(NAMES[0]).load([f"{NAMES[0]}_B10.tif"])
    absent = archive.patch("nothing")
    with pytest.raises(ValueError, match=f"{tar}/nothing/x.tif is missing"):
        absent.load(["x.tif"])


def test_a_tar_that_is_cut_while_it_is_open_ends_in_an_error(tar, tmp_path):
    patch = opened(tar, tmp_path / "index").patch(NAMES[-1])
    contents(patch)
    os.truncate(tar, tar.stat().st_size // 2)
    with pytest.raises(ValueError, match=r"some\.tar ends at byte \d+, \d+ bytes short"):
        contents(patch)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a/P/x", "b/P/x"], "two folders named 'P', in 'a' and in 'b'"),
        (["a/P/Px", "a/Q/x", "a/P/Px"], "holds 'P/Px' twice"),
        ([], "holds no files"),
        (["a/" + "n" * 256 + "/x"], "a folder of a name too long"),
    ],
)
def test_archives_that_cannot_be_indexed_are_refused(tmp_path, files, message):
    tar = write_tar(tmp_path / "a.tar", [(name, b"1") for name in files])
    with pytest.raises(ValueError, match=message):
        index_tar(tar, tmp_path / "index", no_progress)
    assert read_head(tmp_path / "index") is None


def test_a_plain_tar_cut_short_anywhere_is_refused(tar, tmp_path, monkeypatch):
    # Windows shorter than a header's unit: what is carried over must not repeat or be lost.
    monkeypatch.setattr(tar_index, "_WINDOW", 700)
    whole = index_tar(tar, tmp_path / "whole", no_progress)
    assert whole.num_members == 4 * len(NAMES)
    data = tar.read_bytes()
    end = len(data.rstrip(b"\0")) // 512 * 512 + 512
    for size in [*range(0, end, 997), end]:
        tar.write_bytes(data[:size])
        with pytest.raises(ValueError, match=f"ends at byte {size} without the mark"):
            index_tar(tar, tmp_path / "index", no_progress)


def test_progress_reaches_the_whole(tar, tmp_path, monkeypatch):
    monkeypatch.setattr(tar_index, "_WINDOW", 2048)
    seen: list[tuple[int, int]] = []
    index_tar(tar, tmp_path / "index", lambda done, total: seen.append((done, total)))
    size = tar.stat().st_size
    assert seen == sorted(seen)
    assert seen[-1] == (size, size)


def write_huge_member(path: Path, name: str, size: int) -> Path:
    """A tar with a file of so many zeros, of which the disk holds none."""
    info = tarfile.TarInfo(name)
    info.size = size
    with path.open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(512 + -(-size // 512) * 512 + 1024)
    return path


def test_no_room_is_made_for_a_member_of_absurd_size(tmp_path, monkeypatch):
    patch, size = NAMES[0], 10 << 30
    tar = write_huge_member(tmp_path / "a.tar", f"{V1}/{patch}/{patch}_B01.tif", size)
    archive = opened(tar, tmp_path / "index")

    def no_room(num_bytes: int) -> memoryview:
        raise MemoryError(num_bytes)

    monkeypatch.setattr(tar_archive, "scratch", no_room)
    where = f"{tar}/{patch}/{patch}_B01.tif"
    with pytest.raises(ValueError) as told:
        archive.patch(patch).load([f"{patch}_B01.tif"])
    assert str(told.value) == (
        f"{where} has 10,737,418,240 bytes, expected at most 67,108,864: get it again from the "
        "publisher's archive"
    )
