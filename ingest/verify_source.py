"""The GeoTIFFs of an archive, read again with rasterio and compared with a dataset's samples.

`verify` opens the archives and hands each sample's pixels over; nothing here knows of shards.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fusmae.manifest import Manifest
from fusmae.sensors import ArraySpec

from .archives import Spooling, delete_opened, open_archive, open_kept, refuse_lack_of_room
from .bigearthnet_archive import map_file, version_of
from .bigearthnet_checks import first_kinds
from .geotiff import decode_by_rasterio
from .geotiff_fast import Transform
from .patches import Archive, FileBytes, MissingFile, Patch
from .wording import say

# As in `sen12ms_sample`: files of a triplet share their ground to far less than this.
_SAME_GROUND_M = 0.01

_SOURCE_FOLDER = re.compile(r"source-\d+")

# What of KEY.json a comparison needs.
NEEDED_FACTS = ("crs", "transform", "s1_name", "s2v1_name", "season")


@dataclass(frozen=True)
class SourceDifferences:
    """Lines about files that say something else than the dataset, and about files not found.

    Of the latter one a sample.
    """

    different: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def __add__(self, other: "SourceDifferences") -> "SourceDifferences":
        return SourceDifferences(self.different + other.different, self.missing + other.missing)


NO_DIFFERENCES = SourceDifferences()


@dataclass(frozen=True)
class SourceFile:
    """One file: the array that holds its bands, and which band; None is all of them."""

    name: str
    spec: ArraySpec
    band: int | None = None


@dataclass(frozen=True)
class SourcePatch:
    """The files of one folder of an archive; `group` is the folder around it, if there is one."""

    name: str
    group: str | None
    files: tuple[SourceFile, ...]


def source_patches(
    arrays: Sequence[ArraySpec], key: str, facts: Mapping[str, Any]
) -> list[SourcePatch]:
    """Where the archive keeps a sample's pixels; `facts` are those of KEY.json."""
    if "season" in facts:
        return list(_sen12ms_patches(arrays, key, str(facts["season"])))
    return list(_bigearthnet_patches(arrays, key, facts))


def _sen12ms_patches(arrays: Sequence[ArraySpec], key: str, season: str) -> Iterator[SourcePatch]:
    scene, _, patch = key.removeprefix(f"{season}_").partition("_")
    for spec in arrays:
        file = SourceFile(f"{season}_{spec.name}_{scene}_{patch}.tif", spec)
        yield SourcePatch(f"{spec.name}_{scene}", season, (file,))


def _bigearthnet_patches(
    arrays: Sequence[ArraySpec], key: str, facts: Mapping[str, Any]
) -> Iterator[SourcePatch]:
    # v2 has folders of scenes and tiles around its patches, and alone knows the names of v1.
    grouped = facts["s2v1_name"] is not None
    s1_name, tile = str(facts["s1_name"]), key.rsplit("_", 2)[0] if grouped else None
    for sensor, name, group in (
        ("s1", s1_name, s1_name.rsplit("_", 3)[0] if grouped else None),
        ("s2", key, tile),
    ):
        files = [
            SourceFile(f"{name}_{band}.tif", spec, place)
            for spec in arrays
            if spec.sensor == sensor
            for place, band in enumerate(spec.band_names)
        ]
        yield SourcePatch(name, group, tuple(files))
    for spec in arrays:
        if spec.name == "map":
            yield SourcePatch(key, tile, (SourceFile(map_file(key), spec, 0),))


def open_sources(
    paths: Sequence[Path], spooling: Spooling, manifest: Manifest
) -> tuple[Archive, ...]:
    """The archives at these paths; what an earlier run unpacked or indexed of them is used.

    Raises:
        ValueError: a path is missing, a file where only folders will do (SEN12MS), or of another
            version of BigEarthNet than the dataset; or as `open_archive`.
    """
    sen12ms = any(spec.name == "s2" for spec in manifest.arrays)
    _refuse_repetition(paths)
    for path in paths:
        if not path.exists():
            raise ValueError(f"--source {path} does not exist: give an archive or its folder")
        if sen12ms and not path.is_dir():
            raise ValueError(f"--source {path} is a file: of SEN12MS give the folder of seasons")
    if not sen12ms:
        _warn_of_forgotten(paths, manifest)
    # All that is kept first, so that what has to be made finds a folder that none of these is in.
    kept = {path: open_kept(path, spooling) for path in paths}
    numbers = (n for n in itertools.count() if spooling.of(_option(n)) not in spooling.locks)
    new = {path: _option(next(numbers)) for path in paths if kept[path] is None}
    refuse_lack_of_room([(option, path) for path, option in new.items()], spooling)
    archives = []
    for path in paths:
        archive = kept[path] or open_archive(path, new[path], spooling)
        if not sen12ms:
            _refuse_other_version(path, archive, manifest)
        archives.append(archive)
    return tuple(archives)


def _warn_of_forgotten(paths: Sequence[Path], manifest: Manifest) -> None:
    """Say which archives seem not to be given: at the end it would cost the whole comparison."""
    held = set().union(*map(first_kinds, paths))
    wanted = {"--s2": "S2 patches", "--s1": "S1 patches"}
    if any(spec.name == "map" for spec in manifest.arrays):
        wanted["--maps"] = "reference maps"
    forgotten = [what for option, what in wanted.items() if option not in held]
    if held and forgotten:
        say(
            f"warning: no --source seems to hold {' or '.join(forgotten)}: give all archives that "
            "ingest was given"
        )


def _refuse_repetition(paths: Sequence[Path]) -> None:
    seen: dict[Path, Path] = {}
    for path in paths:
        if (other := seen.setdefault(path.resolve(), path)) is not path:
            same = "is given twice" if other == path else f"and --source {other} are the same"
            raise ValueError(f"--source {path} {same}: give each archive once")


def _refuse_other_version(path: Path, archive: Archive, manifest: Manifest) -> None:
    found, made_of = version_of(archive), manifest.name.rpartition("-")[2]
    if found != made_of and made_of in ("v1", "v2"):
        holds = f"holds BigEarthNet {found}" if found else "holds no patches of BigEarthNet"
        raise ValueError(
            f"--source {path} {holds}, and this dataset was made from {made_of}: give the archives "
            "or folders that ingest was given"
        )


def _option(number: int) -> str:
    """Names the folder of an archive that `verify` unpacks or indexes, and ingest does not."""
    return f"--source-{number}"


def forget_sources(spooling: Spooling) -> None:
    """Remove what `open_sources` unpacked and indexed, in this run or one that was stopped."""
    if not spooling.locks:
        return
    for folder in sorted(spooling.folder.glob("*/")):
        if _SOURCE_FOLDER.fullmatch(folder.name):
            delete_opened(folder.name, spooling)


class _Sources:
    """The archives that this process looks into, and for each kind of folder the last that had it.

    Users may cut an archive into several, so where a patch lies is tried, the likely place first.
    """

    def __init__(self, archives: Sequence[Archive]) -> None:
        self._archives = list(archives)
        self._likely: dict[str, Archive] = {}

    def load(self, wanted: SourcePatch) -> tuple[Patch, list[FileBytes]]:
        """The files' bytes, valid until the next call, and their patch.

        Raises:
            MissingFile: no archive has them all; the message is that of the likely one.
            OSError: a file cannot be read.
        """
        kind = "+".join(sorted({file.spec.name for file in wanted.files}))
        likely = self._likely.get(kind, self._archives[0])
        reason: MissingFile | None = None
        for archive in (likely, *(other for other in self._archives if other is not likely)):
            patch = archive.patch(wanted.name, wanted.group)
            try:
                loaded = patch.load([file.name for file in wanted.files])
            except MissingFile as error:
                reason = reason or error
                continue
            self._likely[kind] = archive
            return patch, loaded
        assert reason is not None
        raise reason


# What this process compares with; set once in each.
_sources: _Sources | None = None


def set_sources(archives: Sequence[Archive]) -> None:
    """Compare with these archives in this process from now on."""
    global _sources
    _sources = _Sources(archives)


def compare_with_sources(
    arrays: Sequence[ArraySpec],
    key: str,
    facts: Mapping[str, Any],
    pixels: Mapping[str, npt.NDArray[Any]],
) -> SourceDifferences:
    """How a sample's pixels, by array, and its grid differ from those of its GeoTIFFs."""
    assert _sources is not None
    different: list[str] = []
    absent: list[str] = []
    for wanted in source_patches(arrays, key, facts):
        try:
            patch, loaded = _sources.load(wanted)
        except MissingFile as error:
            absent.append(f"{wanted.name}/{error.where.rpartition('/')[2]}")
            continue
        except (ValueError, OSError) as error:
            different.append(f"{key}: {error}")
            continue
        for file, held in zip(wanted.files, loaded, strict=True):
            where = patch.where(file.name)
            try:
                read, epsg, transform = decode_by_rasterio(bytes(held.whole()), where)
            except ValueError as error:
                different.append(f"{key}: {error}")
                continue
            told = pixels[file.spec.name]
            different += _pixel_differences(key, file, where, told, read)
            exact = file.spec is arrays[0]
            if not _same_grid(facts, epsg, transform, file.spec.gsd_m, exact):
                different.append(
                    f"{key}: {where} lies at EPSG:{epsg} {transform}, "
                    f"its KEY.json says {facts['crs']} {tuple(facts['transform'])}"
                )
    missing = (f"{key} ({', '.join(absent)})",) if absent else ()
    return SourceDifferences(tuple(different), missing)


def _pixel_differences(
    key: str, file: SourceFile, where: str, told: npt.NDArray[Any], read: npt.NDArray[Any]
) -> Iterator[str]:
    places = range(len(told)) if file.band is None else (file.band,)
    if read.shape != (len(places), *told.shape[1:]) or read.dtype != told.dtype:
        yield f"{key}: {where} holds {read.dtype}{read.shape}, {file.spec.name} is of {told.dtype}"
        return
    # By bits, so that neither NaN nor the sign of zero hides or makes a difference.
    bits = f"u{told.dtype.itemsize}"
    for place, band in zip(places, read, strict=True):
        one, other = np.ascontiguousarray(told[place]), np.ascontiguousarray(band)
        num = int((one.view(bits) != other.view(bits)).sum())
        if num:
            yield (
                f"{key}: {file.spec.name} {file.spec.band_names[place]} differs in "
                f"{num:,} of {one.size:,} pixels from {where}"
            )


def _same_grid(
    facts: Mapping[str, Any], epsg: int, transform: Transform, gsd_m: int, exact: bool
) -> bool:
    """Whether a file lies where KEY.json says; exactly for the array whose grid that is."""
    _, b, left, d, _, top = facts["transform"]
    apart = np.abs(np.subtract(transform, (gsd_m, b, left, d, -gsd_m, top))).max()
    limit = 0.0 if exact else _SAME_GROUND_M
    return facts["crs"] == f"EPSG:{epsg}" and bool(apart <= limit)
