"""Opens what the user calls an archive: a folder of patches, a tar, or a compressed tar.

A tar is indexed, a compressed one unpacked first (`spool`), in a folder of its own beside the
dataset.
"""

from dataclasses import dataclass
from pathlib import Path

import click

from .decompress import compression
from .patches import Archive, FolderArchive
from .progress import LongWork
from .spool import delete_spool, kept_spool, spool
from .tar_archive import TarArchive

# An option's type. Whether the path can be read shows when it is read, in one line without usage.
SOURCE_PATH = click.Path(path_type=Path, readable=False)


@dataclass(frozen=True)
class Spooling:
    """Where archives are unpacked and indexed, and how.

    `folder` is local. `keep` keeps what was unpacked; indexes of plain tars are always kept.
    `check_md5` refuses an archive of a published name that is not the published one.
    """

    folder: Path
    keep: bool
    check_md5: bool

    def of(self, option: str) -> Path:
        """The folder of the archive that was given by `--option`."""
        return self.folder / option.lstrip("-")


def spool_folder(dataset: str, given: Path | None) -> Path:
    """Where archives of a dataset are unpacked: the folder given, or DATASET.spool."""
    if given is None and "://" in dataset:
        # Where nothing is unpacked, indexes of tars are all that comes here.
        return Path(dataset.rstrip("/").rpartition("/")[2] + ".spool")
    return given or Path(dataset.rstrip("/") + ".spool")


def open_archive(path: Path, option: str, spooling: Spooling) -> Archive:
    """The archive at `path`, unpacked and indexed if it has to be; shows the progress of that.

    Raises:
        ValueError: there is no such archive, it is damaged, or there is no room to unpack it;
            the message names it.
        OSError: a file cannot be written.
    """
    if not path.is_file():
        return FolderArchive(path, option)
    verb = "Indexing" if compression(path) is None else "Unpacking"
    with LongWork(f"{verb} {path.name}", in_bytes=True) as work:
        made = spool(path, spooling.of(option), work.update, spooling.check_md5)
    return TarArchive(made.tar, made.index, path)


def open_kept(path: Path, spooling: Spooling) -> Archive | None:
    """The archive at `path` from what an earlier run unpacked or indexed, under any option."""
    if not path.is_file():
        return None
    for folder in sorted(spooling.folder.glob("*/")):
        made = kept_spool(path, folder)
        if made:
            return TarArchive(made.tar, made.index, path)
    return None


def is_unpacked(path: Path, option: str, spooling: Spooling) -> bool:
    """Whether `open_archive` has nothing to unpack."""
    if not path.is_file() or compression(path) is None:
        return True
    return (spooling.of(option) / "index").exists()


def delete_unpacked(path: Path, option: str, spooling: Spooling) -> None:
    """Remove what `open_archive` unpacked, unless it is to be kept."""
    if spooling.keep or not path.is_file() or compression(path) is None:
        return
    delete_spool(spooling.of(option))
    if spooling.folder.is_dir() and not any(spooling.folder.iterdir()):
        spooling.folder.rmdir()
