"""The pairs of BigEarthNet v2: what its metadata tables list and its folders hold.

Stands before the plan, beside `bigearthnet_archive`; reads no pixels. Layout: Clasen et al.
2024 (reBEN, arXiv:2407.03653).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fusmae.splits import V2_SPLIT_NAMES, google_split

from .bigearthnet_archive import V1_S1, V2_S2, V2_TILE, Pair, with_lists
from .bigearthnet_tables import NameLists, read_table, refuse_unlisted
from .patches import Archive, Patch

Row = dict[str, Any]


def scan_v2(
    s2: Archive,
    s1: Archive,
    tables: Sequence[Path],
    maps: Archive | None,
    lists: Path | None,
    progress: Callable[[int, int], None],
) -> tuple[list[Pair], list[str]]:
    """Every pair of a v2 archive that the metadata tables list and whose S2 patch is there.

    The second value names the listed patches whose S2 patch is not there. `progress(done, total)`
    counts S2 patches.

    Raises:
        ValueError: a table lacks a column or cannot be read, an S2 patch is in no table, a
            patch is twice in the tables or the archive, or a row holds what tables never do.
    """
    listed = _rows(tables)
    present: dict[str, Patch] = {}
    for patch in s2.patches(V2_TILE):
        if not V2_S2.fullmatch(patch.name):
            continue
        if patch.name in present:
            twice = f"{present[patch.name].where('')} and {patch.where('')}"
            raise ValueError(f"{twice} are the same S2 patch: remove the one that is wrong")
        present[patch.name] = patch
    refuse_unlisted(str(s2), present, listed.values())
    known = NameLists(lists, v2_table=False) if lists else None
    pairs: list[Pair] = []
    for name, patch in present.items():
        progress(len(pairs), len(present))
        pair = _pair(listed[name], patch, s1, maps)
        pairs.append(with_lists(pair, pair.s2v1_name, known) if known else pair)
    progress(len(pairs), len(present))
    return pairs, sorted(listed.keys() - present.keys())


def _rows(tables: Sequence[Path]) -> dict[str, Row]:
    """The tables' rows by patch.

    Raises:
        ValueError: a table cannot be read, a row has no patch, or two rows have the same.
    """
    listed: dict[str, Row] = {}
    table_of: dict[str, Path] = {}
    for table in tables:
        for number, row in enumerate(read_table(table)):
            name = row["patch_id"]
            if not isinstance(name, str):
                raise ValueError(f"--metadata {table}: row {number} has the patch_id {name!r}")
            if name in listed:
                raise ValueError(
                    f"--metadata {table}: {name} is in two rows, the first in {table_of[name]}: "
                    "give each table once, as published"
                )
            listed[name], table_of[name] = row, table
    return listed


def _pair(row: Row, s2: Patch, s1: Archive, maps: Archive | None) -> Pair:
    name, s1_name, v1_name = row["patch_id"], str(row["s1_name"]), _text(row, "s2v1_name")
    scene, tile = s1_name.rsplit("_", 3)[0], name.rsplit("_", 2)[0]
    # Names from a table become paths: nothing but one plain folder name may pass.
    if not V1_S1.fullmatch(s1_name):
        raise ValueError(f"metadata row {name}: s1_name {s1_name!r} is not an S1 patch name")
    labels, split = row["labels"], V2_SPLIT_NAMES.get(str(row["split"]))
    whole = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
    if not whole or split is None:
        raise ValueError(
            f"metadata row {name}: labels {labels!r} or split {row['split']!r} is not what the "
            f"published tables hold (a list; one of {', '.join(V2_SPLIT_NAMES)})"
        )
    return Pair(
        "v2",
        name,
        s2,
        s1.patch(s1_name, scene),
        map=maps.patch(name, tile) if maps else None,
        labels_19=tuple(labels),
        country=_text(row, "country"),
        s2v1_name=v1_name,
        split_google=None if v1_name is None else google_split(v1_name),
        split_v2=split,
        seasonal_snow=_flag(row, "contains_seasonal_snow"),
        cloud_or_shadow=_flag(row, "contains_cloud_or_shadow"),
    )


def _text(row: Row, column: str) -> str | None:
    value = row[column]
    if value is None or isinstance(value, str):
        return value
    raise ValueError(f"metadata row {row['patch_id']}: {column} {value!r} is no text")


def _flag(row: Row, column: str) -> bool | None:
    value = row[column]
    if value is None or isinstance(value, bool):
        return value
    raise ValueError(
        f"metadata row {row['patch_id']}: {column} {value!r} is neither true nor false"
    )
