"""BigEarthNet's tables and lists of names: v2's metadata, v1's published splits and flags.

Read before an archive is unpacked, to see that they are good, and by its listing.
"""

import bz2
import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from fusmae.splits import V2_SPLIT_NAMES

if TYPE_CHECKING:
    import pyarrow

# The published v1 lists; one name (or "s2,s1") a line. Zenodo has them as .csv.gz,
# kai-tub/bigearthnet_common as .csv.bz2.
SPLIT_LISTS = {"train": "train.csv", "val": "val.csv", "test": "test.csv"}
SNOW_LIST = "patches_with_seasonal_snow.csv"
CLOUD_LIST = "patches_with_cloud_and_shadow.csv"
LISTS = (*SPLIT_LISTS.values(), SNOW_LIST, CLOUD_LIST)
# v2's table of the patches without snow, cloud and shadow, on which it is scored.
V2_TABLE = "metadata.parquet"
LISTS_URL = "https://zenodo.org/records/12687186"
V2_URL = "https://zenodo.org/records/10891137"
_OPENERS: dict[str, Callable[..., IO[str]]] = {"": open, ".gz": gzip.open, ".bz2": bz2.open}

_V2_COLUMNS = (
    "patch_id",
    "labels",
    "split",
    "country",
    "s1_name",
    "s2v1_name",
    "contains_seasonal_snow",
    "contains_cloud_or_shadow",
)
# Hex digits of a sha256 that tell tables apart.
_DIGITS = 16


def open_table(path: Path, option: str = "--metadata") -> "pyarrow.Table":
    """The columns of a v2 metadata table, which `option` names, that ingest needs.

    Raises:
        ValueError: it cannot be read, or lacks a column.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        path.open("rb").close()
    except OSError as error:
        raise ValueError(
            f"{option} {path}: {error.strerror}; give a table such as metadata.parquet"
        ) from None
    try:
        missing = set(_V2_COLUMNS) - set(pyarrow.parquet.read_schema(path).names)
        if missing:
            raise ValueError(f"{option} {path} lacks the columns {sorted(missing)}")
        return pyarrow.parquet.read_table(path, columns=list(_V2_COLUMNS))
    except (OSError, pyarrow.ArrowException):
        raise ValueError(
            f"{option} {path} is no parquet table, or is damaged: download it again from {V2_URL}"
        ) from None


def read_table(path: Path) -> Iterable[dict[str, object]]:
    """The rows of a v2 metadata table; see `open_table`."""
    rows: list[dict[str, object]] = open_table(path).to_pylist()
    return rows


def refuse_unlisted(
    archive: str, patches: Iterable[str], rows: Iterable[dict[str, object]]
) -> None:
    """Look whether the rows of all v2 tables list these S2 patches of an archive.

    Raises:
        ValueError: they do not; the message says which table seems to be missing.
    """
    listed, kinds = set(), set()
    for row in rows:
        listed.add(row["patch_id"])
        kinds.add(row["contains_seasonal_snow"] is True or row["contains_cloud_or_shadow"] is True)
    unlisted = sorted(set(patches) - listed)
    if not unlisted:
        return
    advice = "are the tables those of this archive?"
    if kinds == {True}:
        advice = "what is given has snow, cloud or shadow only: give metadata.parquet too"
    elif kinds == {False}:
        advice = "the table of patches with snow, cloud or shadow is a second one: give it too"
    raise ValueError(
        f"{unlisted[0]} of {archive} is in no --metadata table (such patches seen: "
        f"{len(unlisted):,}): {advice}"
    )


def refuse_repeated_table(paths: Sequence[Path]) -> None:
    """Raises ValueError: two of the tables have the same bytes."""
    seen: dict[str, Path] = {}
    for path in paths:
        (digest,) = tables_digest([path])
        if digest in seen:
            same = "is given twice" if path == seen[digest] else f"is the same as {seen[digest]}"
            raise ValueError(
                f"--metadata {path} {same}: give metadata.parquet and the table of snow, cloud and "
                "shadow, each once"
            )
        seen[digest] = path


def tables_digest(paths: Sequence[Path]) -> list[str]:
    """What tells these tables from others, whatever they are called: from their sha256, sorted."""
    digests = []
    for path in paths:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest()[:_DIGITS])
    return sorted(digests)


class NameLists:
    """The published v1 lists in one folder: official split, snow, cloud and shadow.

    With `v2_table`, which is for archives of v1 (those of v2 have --metadata), and as far as its
    `metadata.parquet` lies there too, the splits of v2, by v1 name.

    Raises:
        ValueError: some are missing or cannot be read, or a name is in two splits.
    """

    def __init__(self, folder: Path, v2_table: bool) -> None:
        self.split_of: dict[str, str] = {}
        there = _find_lists(folder)
        for split, file in SPLIT_LISTS.items():
            for name in _read_names(there[file]):
                other = self.split_of.setdefault(name, split)
                if other != split:
                    raise ValueError(
                        f"--split-lists {folder}: {name} is in {SPLIT_LISTS[other]} and in {file}: "
                        "a sample is in one split only; download the lists again"
                    )
        self.snow = set(_read_names(there[SNOW_LIST]))
        self.cloud = set(_read_names(there[CLOUD_LIST]))
        table = folder / V2_TABLE
        self.v2_split_of = _read_v2_splits(table) if v2_table and table.is_file() else {}

    def digest(self) -> str:
        """What tells these lists from others, however they are packed: from a sha256."""
        told: list[object] = [sorted(self.split_of.items()), sorted(self.snow), sorted(self.cloud)]
        if self.v2_split_of:  # datasets of before it was read know the lists alone
            told.append(sorted(self.v2_split_of.items()))
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:_DIGITS]


def _find_lists(folder: Path) -> dict[str, Path]:
    """Where each of the lists is, packed or not.

    Raises:
        ValueError: some are missing; the message names them all.
    """
    there = {}
    for file in LISTS:
        spellings = (folder / f"{file}{ending}" for ending in _OPENERS)
        if path := next(filter(Path.is_file, spellings), None):
            there[file] = path
    missing = [file for file in LISTS if file not in there]
    if missing:
        raise ValueError(
            f"--split-lists {folder} lacks {', '.join(missing)} (or with .gz or .bz2): they lie "
            f"beside the v1 archives at {LISTS_URL}"
        )
    return there


def _read_v2_splits(path: Path) -> dict[str, str]:
    """By v1 name the split of v2, as far as the table says; errors as `open_table`."""
    table = open_table(path, "--split-lists")
    rows = zip(table["s2v1_name"].to_pylist(), table["split"].to_pylist(), strict=True)
    splits = {name: split for name, split in rows if name is not None}
    if strange := set(splits.values()) - V2_SPLIT_NAMES.keys():
        raise ValueError(
            f"--split-lists {path}: its splits {sorted(map(str, strange))} are none of "
            f"{', '.join(V2_SPLIT_NAMES)}: download it again from {V2_URL}"
        )
    return {name: V2_SPLIT_NAMES[split] for name, split in splits.items()}


def _read_names(path: Path) -> list[str]:
    try:
        with _OPENERS["" if path.suffix == ".csv" else path.suffix](path, "rt") as lines:
            return [line.strip().partition(",")[0] for line in lines if line.strip()]
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        told = getattr(error, "strerror", None) or error
        raise ValueError(f"--split-lists {path}: {told}; download it again") from None
