"""The room that unpacked archives take, and shards of them, before the first is unpacked.

`output_room` looks again at the output's when the samples are known.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .decompress import compression, unpacked_size
from .spool import MAKE_ROOM, PARTIAL, TAR_NAME, is_spooled, unpacks_to
from .storage import LocalStore
from .wording import say

# Bytes of a sample in a shard and of a pair in the tars: of the 6 real pairs of v1.
_SHARDS_OF_TARS = 280_576 / 296_619


@dataclass(frozen=True)
class _Need:
    """What will lie in a folder: `likely` bytes, not fewer than `least`; `left` is there now."""

    folder: Path
    told: str
    least: int
    likely: int
    left: int


def require_room(archives: Mapping[Path, Path], output: LocalStore | None = None) -> None:
    """Look whether what is still to be unpacked fits on the disks; `archives` are by folder.

    Only what is known is refused: an archive is larger than its file, or as large as it says.
    What likely does not fit, also with shards of all samples in `output`, gets one warning.

    Raises:
        ValueError: there is no room; or an archive is damaged, see `unpacked_size`.
    """
    needs = [
        _unpacked(folder, archive)
        for folder, archive in archives.items()
        if compression(archive) is not None and not is_spooled(archive, folder)
    ]
    if needs and output is not None:
        needs.append(_shards(output, archives, needs))
    on_device: dict[int, list[_Need]] = {}
    for need in needs:
        on_device.setdefault(_disk(need.folder).stat().st_dev, []).append(need)
    for group in on_device.values():
        room = shutil.disk_usage(_disk(group[0].folder)).free + sum(need.left for need in group)
        has = f"{group[0].folder} has {room / 1e6:,.0f} MB free, "
        if room < sum(need.least for need in group):
            told = ", ".join(need.told for need in group if need.least)
            raise ValueError(f"{has}but {told}: {MAKE_ROOM}")
        if room < sum(need.likely for need in group):
            told = ", ".join(need.told for need in group)
            fix = "make room there, or give another --spool"
            say(f"warning: {has}and {told}, which may not fit: {fix}")


def _unpacked(folder: Path, archive: Path) -> _Need:
    size = unpacked_size(archive)
    # What is swept before.
    paths = [folder / name for name in (PARTIAL, TAR_NAME)]
    left = sum(path.stat().st_size for path in paths if path.is_file())
    return _Need(folder, unpacks_to(archive), size.least, size.likely, left)


def _shards(output: LocalStore, archives: Mapping[Path, Path], unpacked: list[_Need]) -> _Need:
    """Of all samples: which of them an option leaves out shows in the archives alone."""
    tars = sum(path.stat().st_size for path in archives.values() if compression(path) is None)
    size = round(_SHARDS_OF_TARS * (tars + sum(need.likely for need in unpacked)))
    told = f"shards of all samples take about {size / 1e6:,.0f} MB in {output}"
    return _Need(Path(output.root), told, 0, size, sum(output.sizes("shards").values()))


def _disk(folder: Path) -> Path:
    """The folder, or the nearest that is there and will hold it."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())
