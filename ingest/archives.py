"""Opens what the user calls an archive: a folder of patches, a tar, or a compressed tar.

A tar is indexed, a compressed one unpacked first (`spool`), in a folder of its own beside the
dataset.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import click

from .decompress import compression
from .layout import SCRATCH, UNNAMED
from .patches import Archive, FolderArchive
from .progress import LongWork
from .spool import (
    PUBLISHED_MD5,
    TAR_NAME,
    Spool,
    delete_spool,
    is_spooled,
    kept_spool,
    spool,
)
from .spool_lock import SpoolLock, holds_other_files
from .spool_room import require_room
from .storage import LocalStore, Store, local_path, refuse_inside_dataset
from .tar_archive import TarArchive
from .wording import say


@dataclass(frozen=True)
class Spooling:
    """Where archives are unpacked and indexed, and how. A `with` block holds what is open in it.

    `folder` is local. `keep` keeps what was unpacked; indexes of plain tars are always kept.
    `check_md5` refuses an archive of a published name that is not the published one. An error
    that leaves the block says where unpacked archives are kept.
    """

    folder: Path
    keep: bool
    check_md5: bool
    locks: dict[Path, SpoolLock] = field(default_factory=dict, repr=False, compare=False)

    def of(self, option: str) -> Path:
        """The folder of the archive that was given by `--option`."""
        return self.folder / option.lstrip("-")

    def lock(self, folder: Path) -> SpoolLock:
        """The one lock of this run on a folder: a second would lock the run itself out."""
        return self.locks.setdefault(folder, SpoolLock(folder))

    def __enter__(self) -> "Spooling":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        tars = []
        if error is not None:
            # What another run reads, too, is not to be removed.
            alone = [lock.folder for lock in self.locks.values() if lock.is_alone()]
            tars = [folder / TAR_NAME for folder in alone if (folder / TAR_NAME).is_file()]
        if tars and error is not None:
            size = sum(tar.stat().st_size for tar in tars)
            error.add_note(
                f"what is unpacked stays for the next run; rm -r "
                f"{' '.join(str(tar.parent) for tar in tars)} frees its {size / 1e9:.1f} GB"
            )
        for lock in self.locks.values():
            lock.release()
        if self.locks:
            with suppress(OSError):
                self.folder.rmdir()
        self.locks.clear()


def spool_folder(dataset: str, given: Path | None) -> Path:
    """Where archives of a dataset are unpacked: the folder given, or DATASET.spool."""
    local = local_path(dataset)
    if given is None and local is None:
        # Where nothing is unpacked, indexes of tars are all that comes here.
        return Path(dataset.rstrip("/").rpartition("/")[2] + ".spool")
    if given is not None:
        return given
    path = Path(str(local))
    # `.` and `..` are no names to put an ending to.
    return Path(f"{path.resolve() if path.name in ('', '..') else path}.spool")


# What may lie in a spool beside the marked folders of archives: notes, and what a run that was
# killed at one leaves.
_NOTE = re.compile(r"made-[0-9a-f]{16}\.json")


def refuse_spool_place(folder: Path, places: Iterable[tuple[str, str | Path]]) -> None:
    """Look at a folder before anything is unpacked there; `places` are (option, path or URL).

    Raises:
        ValueError: it lies in, around or at one of the places, or holds what is no spool, such
            as a dataset.
    """
    mine = folder.resolve()
    for option, place in places:
        local = local_path(str(place))
        if local is None:
            continue
        path = Path(local)
        other = path.resolve()
        if mine == other:
            where = "is"
        elif mine.is_relative_to(other):
            where = "lies in"
        elif other.is_relative_to(mine):
            where = "lies around"
        else:
            continue
        raise ValueError(
            f"--spool {folder} {where} {option} {path}: give --spool a folder of its own"
        )
    _refuse_other_contents(folder)


def refuse_out_place(out: str, sources: Iterable[tuple[str, Path]]) -> None:
    """Raises ValueError: the dataset would lie in a source, (option, path), or another dataset."""
    local = local_path(out)
    if local is None:
        return
    for option, path in sources:
        if Path(str(local)).resolve().is_relative_to(path.resolve()):
            raise ValueError(f"--out {out} lies in {option} {path}: give a folder of its own")
    refuse_inside_dataset(Path(str(local)))


def _refuse_other_contents(folder: Path) -> None:
    """Raises ValueError: the folder holds what ingest does not put into a spool."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"--spool {folder} is no folder: give --spool a folder of its own")
    for path in sorted(folder.iterdir()):
        if path.name == SCRATCH:
            # Left by a note that was being written.
            known = all(file.name == Path(UNNAMED).name for file in path.glob("*"))
        elif path.is_dir():
            known = not holds_other_files(path)
        else:
            known = _NOTE.fullmatch(path.name) is not None
        if not known:
            raise ValueError(
                f"--spool {folder} holds {path.name}, which is no part of a spool: give --spool a "
                "folder of its own"
            )


def say_idle(spooling_options: Mapping[str, object], archives: Collection[Path]) -> None:
    """Say which of these options do nothing; the values of those that were not given are false."""
    given = [option for option, value in spooling_options.items() if value]
    files = [path for path in archives if path.is_file()]
    if not any(compression(path) for path in files):
        of_unpacking = [option for option in given if option != "--spool"]
        _say_idle(of_unpacking, "no archive is compressed")
    if not files and "--spool" in given:
        _say_idle(["--spool"], "folders are read in place")


def _say_idle(options: Sequence[str], why: str) -> None:
    if options:
        do = "does" if len(options) == 1 else "do"
        say(f"note: {', '.join(options)} {do} nothing here: {why}")


def refuse_lack_of_room(
    archives: Iterable[tuple[str, Path]], spooling: Spooling, shards: Store | None = None
) -> None:
    """Look for the room of all archives, (option, path), before the first is unpacked.

    `shards` is where shards of all their samples will be written, None where none are.

    Raises:
        ValueError: there is not enough for sure; or an archive is damaged.
    """
    files = {spooling.of(option): path for option, path in archives if path.is_file()}
    require_room(files, shards if isinstance(shards, LocalStore) else None)


def open_archive(path: Path, option: str, spooling: Spooling) -> Archive:
    """The archive at `path`, unpacked and indexed if it has to be; shows the progress of that.

    What was unpacked is held until the `with` block of `spooling` ends.

    Raises:
        ValueError: there is no such archive, it is damaged, or there is no room to unpack it;
            the message names it.
        OSError: a file cannot be written.
    """
    if not path.is_file():
        return FolderArchive(path, option)
    verb = "Indexing" if compression(path) is None else "Unpacking"
    lock = spooling.lock(spooling.of(option))
    with LongWork(f"{verb} {path.name}", in_bytes=True) as work:
        made = spool(path, lock, work.update, spooling.check_md5)
    click.echo(_md5_told(path, made))
    return TarArchive(made.tar, made.index, path)


def _md5_told(path: Path, made: Spool) -> str:
    if made.md5_checked:
        return f"{path}: md5 as published"
    if path.name not in PUBLISHED_MD5:
        return f"{path}: md5 not checked: {path.name} is not the name of a published archive"
    why = "it is not compressed" if made.md5 is None else "this run takes any archive"
    return f"{path}: md5 not compared with the publisher's: {why}"


def open_kept(path: Path, spooling: Spooling) -> Archive | None:
    """The archive at `path` from what an earlier run unpacked or indexed, under any option."""
    if not path.is_file():
        return None
    for folder in sorted(spooling.folder.glob("*/")):
        if kept_spool(path, folder) is None:
            continue
        lock = spooling.lock(folder)
        lock.share()
        made = kept_spool(path, folder)  # another run may have removed it before the lock
        if made:
            return TarArchive(made.tar, made.index, path)
    return None


def is_unpacked(path: Path, option: str, spooling: Spooling) -> bool:
    """Whether `open_archive` has nothing to unpack."""
    if not path.is_file() or compression(path) is None:
        return True
    return is_spooled(path, spooling.of(option))


def delete_unpacked(path: Path, option: str, spooling: Spooling) -> None:
    """Remove what `open_archive` unpacked, unless it is to be kept or another run uses it."""
    if spooling.keep or not path.is_file() or compression(path) is None:
        return
    delete_opened(option, spooling)


def delete_opened(option: str, spooling: Spooling) -> None:
    """Remove what `open_archive` made of an archive, its index too; says if another run uses it."""
    lock = spooling.lock(spooling.of(option))
    if not delete_spool(lock):
        click.echo(f"{lock.folder} is kept: another run uses it")
