"""A small archive in every compression, and spools of it."""

import gzip
import io
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import zstandard

from fusmae_ingest import spool as module
from fusmae_ingest.spool import Spool, delete_spool
from fusmae_ingest.spool_lock import SpoolLock
from fusmae_ingest.tar_archive import TarArchive

Contents = dict[str, dict[str, bytes]]


def no_progress(done: int, total: int) -> None:
    pass


def spool(archive: Path, folder: Path, progress, check_md5: bool = True) -> Spool:
    """What a run finds or makes in `folder`, which it lets go of at once."""
    with SpoolLock(folder) as lock:
        return module.spool(archive, lock, progress, check_md5)


def delete(folder: Path) -> bool:
    with SpoolLock(folder) as lock:
        return delete_spool(lock)


def make_contents(num_patches: int = 6) -> Contents:
    draw = random.Random(num_patches)
    return {
        f"S1A_IW_GRDH_{i}": {
            f"S1A_IW_GRDH_{i}_{band}.tif": draw.randbytes(draw.randint(1, 4000)) + bytes(2000)
            for band in ("VV", "VH")
        }
        for i in range(num_patches)
    }


def make_tar(contents: Contents) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for patch, files in contents.items():
            for name, data in files.items():
                info = tarfile.TarInfo(f"BigEarthNet-S1/{patch[:11]}/{patch}/{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


CONTENTS = make_contents()
TAR = make_tar(CONTENTS)


def zstd(data: bytes, **options: bool) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(data)


def parts(compress: Callable[[bytes], bytes]) -> bytes:
    """The tar in three pieces, each compressed by itself, the last of nothing."""
    return compress(TAR[:1000]) + compress(TAR[1000:]) + compress(b"")


SKIPPED = b"\x5a\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"note"
COMPRESSED = {
    "one gzip member": gzip.compress(TAR),
    "gzip members": parts(gzip.compress),
    "one zstd frame": zstd(TAR),
    "zstd of unknown size": zstd(TAR, write_content_size=False),
    "zstd frames": parts(zstd),
    "zstd frames and frames to skip": SKIPPED + parts(zstd) + SKIPPED,
}


def contents(tar: Path, index: Path) -> Contents:
    archive = TarArchive(tar, index)
    return {
        patch.name: {file: bytes(patch.load([file])[0].whole()) for file in patch.files()}
        for patch in archive.patches()
    }
