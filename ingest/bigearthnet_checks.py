"""What can be told of `fusmae-ingest bigearthnet`'s options before archives are unpacked.

Unpacking takes an hour and tens of GB; a wrong path, a swapped archive or a table without a
column shows in the first of its bytes.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .bigearthnet_archive import (
    file_kind,
    other_kind_told,
    refuse_mixture,
    version_inside,
)
from .bigearthnet_tables import (
    NameLists,
    open_table,
    refuse_repeated_table,
    refuse_unlisted,
    tables_digest,
)
from .glimpse import first_files
from .patches import FolderArchive


@dataclass(frozen=True)
class Asked:
    """The verb's own options as given; `archives` by option, `--maps` only where it is given."""

    archives: dict[str, Path]
    metadata: tuple[Path, ...]
    split: str | None
    split_lists: Path | None
    excluded: frozenset[str]
    partial: bool


def check_early(asked: Asked) -> str | None:
    """Look at every path and combination of options; `v1` or `v2` where the archives show it.

    Raises:
        ValueError: a path cannot be read or is of another kind than its option wants, or the
            options do not go together.
    """
    _refuse_repetition(asked.archives)
    first = {o: first_files(path) for o, path in asked.archives.items() if path.is_file()}
    version = _look_inside(asked.archives, first)
    if version is not None:
        split_rule(asked, version)
    tables = [open_table(path) for path in asked.metadata]
    refuse_repeated_table(asked.metadata)
    if version == "v2" and "--s2" in first:
        patches = {file.split("/")[-2] for file in first["--s2"] if _is_s2(file)}
        rows = (row for table in tables for row in _names_and_flags(table))
        refuse_unlisted(f"--s2 {asked.archives['--s2']}", patches, rows)
    if asked.split_lists is not None:
        NameLists(asked.split_lists, not asked.metadata)
    return version


def split_rule(asked: Asked, version: str) -> str:
    """The rule of `--split`, the version's own by default.

    Raises:
        ValueError: an option does not go with this version, or one that it needs is missing.
    """
    rule = asked.split or {"v1": "google", "v2": "v2"}[version]
    if version == "v1" and (asked.metadata or "--maps" in asked.archives):
        raise ValueError("--metadata and --maps belong to BigEarthNet v2; these archives are v1")
    if version == "v2" and not asked.metadata:
        raise ValueError("BigEarthNet v2 keeps its labels and pairs in a table: give --metadata")
    if rule == "v2" and version == "v1":
        raise ValueError("--split v2 needs BigEarthNet v2; v1 has google and official")
    if asked.excluded and version == "v1" and asked.split_lists is None:
        raise ValueError(
            "--exclude needs to know which patches have snow or cloud: give --split-lists"
        )
    if rule == "official" and asked.split_lists is None:
        raise ValueError("--split official needs --split-lists, the folder of the published lists")
    return rule


def recorded(asked: Asked) -> dict[str, Any]:
    """What the plan keeps of the options: nothing about paths, only what changes the samples."""
    lists = asked.split_lists
    return {
        "exclude": sorted(asked.excluded),
        "maps": "--maps" in asked.archives,
        "metadata": tables_digest(asked.metadata),
        "split_lists": NameLists(lists, not asked.metadata).digest() if lists else None,
    }


def _refuse_repetition(archives: dict[str, Path]) -> None:
    seen: dict[Path, str] = {}
    for option, path in archives.items():
        if (other := seen.setdefault(path.resolve(), option)) != option and path.exists():
            raise ValueError(f"{other} and {option} are both {path}: give each its own archive")


def _is_s2(file: str) -> bool:
    kind = file_kind(file)
    return kind is not None and kind[0] == "--s2"


def _names_and_flags(table: Any) -> list[dict[str, object]]:
    columns = ["patch_id", "contains_seasonal_snow", "contains_cloud_or_shadow"]
    rows: list[dict[str, object]] = table.select(columns).to_pylist()
    return rows


def _look_inside(archives: dict[str, Path], first: dict[str, list[str]]) -> str | None:
    """The version of `--s2` and `--s1`, None where S2's first files do not show it.

    `first` has the first files of those archives that are no folders.
    """
    versions = {
        option: _version_of_tar(option, path, first[option])
        if option in first
        else _version_of_folder(option, path)
        for option, path in archives.items()
    }
    s2, s1 = versions["--s2"], versions["--s1"]
    if s2 is not None and s1 is not None:
        refuse_mixture(f"--s2 {archives['--s2']}", s2, f"--s1 {archives['--s1']}", s1)
    return s2


def first_kinds(path: Path) -> set[str]:
    """`--s2`, `--s1`, `--maps`: whose files the first ones are in an archive or its folder.

    Raises:
        ValueError: an archive is damaged or none.
    """
    if path.is_file():
        files = first_files(path)
    else:
        tifs = (tif for depth in ("*/*.tif", "*/*/*.tif") for tif in path.glob(depth))
        files = [str(tif.relative_to(path.parent)) for tif in itertools.islice(tifs, 1)]
    return {kind[0] for file in files if (kind := file_kind(file))}


def _version_of_folder(option: str, path: Path) -> str | None:
    archive = FolderArchive(path, option)
    if option != "--maps":
        return version_inside(option, archive)
    archive.names()
    _refuse_other_kind(option, path, first_kinds(path))
    return "v2"


def _version_of_tar(option: str, path: Path, first: list[str]) -> str | None:
    kinds = [kind for file in first if (kind := file_kind(file))]
    _refuse_other_kind(option, path, {kind for kind, _ in kinds})
    return next((version for _, version in kinds if version is not None), None)


def _refuse_other_kind(option: str, path: Path, found: set[str]) -> None:
    if not found or option in found:
        return
    held = {"--s2": "S2 folders", "--s1": "S1 folders", "--maps": "reference maps"}
    raise ValueError(other_kind_told(option, path, held[min(found)], min(found)))
