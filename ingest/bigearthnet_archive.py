"""The folders of BigEarthNet-MM, v1 and v2: which pairs there are and what is known of each.

Stands before the plan: it lists, pairs S1 with S2, and attaches splits and flags; it reads
no pixels. Layouts: Sumbul et al. 2021 (v1, arXiv:2105.07921), Clasen et al. 2024 (v2 /
reBEN, arXiv:2407.03653).
"""

import bz2
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fusmae.splits import V2_SPLIT_NAMES, google_split

_V1_S2 = re.compile(r"S2[AB]_MSIL2A_\d{8}T\d{1,6}_\d+_\d+")
_V1_S1 = re.compile(r"S1[AB]_IW_GRDH_1SDV_\d{8}T\d{6}_\d{2}[A-Z]{3}_\d+_\d+")
_V2_TILE = re.compile(r"S2[AB]_MSIL2A_\d{8}T\d{6}_N\d{4}_R\d{3}_T\d{2}[A-Z]{3}")
_V2_S2 = re.compile(_V2_TILE.pattern + r"_\d+_\d+")
_V2_SCENE = re.compile(r"S1[AB]_IW_GRDH_1SDV_\d{8}T\d{6}")

# Names of the published v1 lists, with or without .bz2; one name (or "s2,s1") a line.
SPLIT_LISTS = {"train": "train.csv", "val": "val.csv", "test": "test.csv"}
SNOW_LIST = "patches_with_seasonal_snow.csv"
CLOUD_LIST = "patches_with_cloud_and_shadow.csv"


@dataclass(frozen=True)
class Pair:
    """One S1/S2 pair: where its files lie and what the archive's tables say of it.

    `name` is the S2 patch's name and becomes the sample's key. Splits and flags are None
    where nothing known says anything. `labels_19` is set by v2's table; v1 keeps its
    labels in the patch's JSON file.
    """

    version: str
    name: str
    s2: Path
    s1: Path
    map: Path | None = None
    labels_19: tuple[str, ...] | None = None
    country: str | None = None
    s2v1_name: str | None = None
    split_google: str | None = None
    split_official: str | None = None
    split_v2: str | None = None
    seasonal_snow: bool | None = None
    cloud_or_shadow: bool | None = None

    @property
    def s1_name(self) -> str:
        return self.s1.name

    @property
    def position(self) -> str:
        """Sorts pairs as their archive does."""
        return self.name


def detect_version(s2: Path, s1: Path) -> str:
    """`v1` or `v2`, from the names of the folders inside.

    Raises:
        ValueError: a folder is missing, the two are swapped, of two versions, or neither
            layout.
    """
    found = {}
    for option, root, kinds in (
        ("--s2", s2, {"v1": _V1_S2, "v2": _V2_TILE}),
        ("--s1", s1, {"v1": _V1_S1, "v2": _V2_SCENE}),
    ):
        names = [entry.name for entry in _folders(root, option)]
        versions = [v for v, kind in kinds.items() if any(kind.fullmatch(n) for n in names)]
        if not versions:
            raise ValueError(_explain(option, root, names))
        found[option] = versions[0]
    if found["--s2"] != found["--s1"]:
        raise ValueError(
            f"--s2 {s2} has the layout of BigEarthNet {found['--s2']}, but --s1 {s1} that of "
            f"{found['--s1']}: give both from the same version"
        )
    return found["--s2"]


def _explain(option: str, root: Path, names: Sequence[str]) -> str:
    other = "S1" if option == "--s2" else "S2"
    if any(name.startswith(other) for name in names):
        return f"{option} {root} holds {other} folders: --s1 and --s2 are swapped"
    inside = [name for name in names if name.startswith("BigEarthNet")]
    if inside:
        return f"{option} {root} holds {', '.join(sorted(inside))}: give one of these folders"
    kind = "BigEarthNet-v1.0 or BigEarthNet-S2" if option == "--s2" else "BigEarthNet-S1"
    return f"{option} {root} holds no patch folders: give the archive's {kind} folder"


def _folders(root: Path, option: str) -> list[Path]:
    try:
        return sorted(entry for entry in root.iterdir() if entry.is_dir())
    except OSError as error:
        raise ValueError(f"{option} {root}: {error.strerror}") from None


def scan_v1(s2: Path, s1: Path, lists: Path | None) -> tuple[list[Pair], int]:
    """Every pair of a v1 archive, paired by the S1 patches' JSON files.

    The second value is the number of S1 patches whose S2 patch is not there.

    Raises:
        ValueError: an S1 JSON file is broken, an S2 patch has no S1 patch or two, or a name
            list is missing.
    """
    s1_of: dict[str, Path] = {}
    for folder in _folders(s1, "--s1"):
        if not _V1_S1.fullmatch(folder.name):
            continue
        partner = read_json(folder / f"{folder.name}_labels_metadata.json").get(
            "corresponding_s2_patch"
        )
        if not isinstance(partner, str):
            raise ValueError(f"{folder}: its JSON file names no corresponding_s2_patch")
        if partner in s1_of:
            raise ValueError(f"{folder} and {s1_of[partner]} both claim the S2 patch {partner}")
        s1_of[partner] = folder
    pairs = []
    for folder in _folders(s2, "--s2"):
        if not _V1_S2.fullmatch(folder.name):
            continue
        if folder.name not in s1_of:
            raise ValueError(f"{folder} has no S1 patch in {s1}: is that archive complete?")
        google = google_split(folder.name)
        pairs.append(Pair("v1", folder.name, folder, s1_of[folder.name], split_google=google))
    absent = len(s1_of) - len(pairs)
    if lists is None:
        return pairs, absent
    known = _NameLists(lists)
    return [_with_lists(pair, pair.name, known) for pair in pairs], absent


def scan_v2(
    s2: Path, s1: Path, tables: Sequence[Path], maps: Path | None, lists: Path | None
) -> tuple[list[Pair], int]:
    """Every pair of a v2 archive that the metadata tables list and whose S2 folder is there.

    The second value is the number of listed patches whose S2 folder is not there.

    Raises:
        ValueError: no table was given, one lacks a column or cannot be read, an S2 patch on
            disk is in no table, or nothing on disk is listed.
    """
    if not tables:
        raise ValueError("BigEarthNet v2 keeps its labels and pairs in a table: give --metadata")
    rows = [row for table in tables for row in _read_table(table)]
    listed = {str(row["patch_id"]): row for row in rows}
    present = {
        patch.name: patch
        for tile in _folders(s2, "--s2")
        if _V2_TILE.fullmatch(tile.name)
        for patch in _folders(tile, "--s2")
        if _V2_S2.fullmatch(patch.name)
    }
    unlisted = sorted(present.keys() - listed.keys())
    if unlisted:
        raise ValueError(
            f"{present[unlisted[0]]} and {len(unlisted) - 1} more patches are in no --metadata "
            "table; the table of patches with snow, cloud or shadow is a second one: give both"
        )
    known = _NameLists(lists) if lists else None
    pairs = []
    for name in sorted(present):
        pair = _v2_pair(listed[name], present[name], s1, maps)
        pairs.append(_with_lists(pair, str(pair.s2v1_name), known) if known else pair)
    return pairs, len(listed) - len(present)


def _v2_pair(row: dict[str, object], s2: Path, s1: Path, maps: Path | None) -> Pair:
    name, s1_name, v1_name = str(row["patch_id"]), str(row["s1_name"]), str(row["s2v1_name"])
    scene, tile = s1_name.rsplit("_", 3)[0], name.rsplit("_", 2)[0]
    # Names from a table become paths: nothing but one plain folder name may pass.
    if not _V1_S1.fullmatch(s1_name):
        raise ValueError(f"metadata row {name}: s1_name {s1_name!r} is not an S1 patch name")
    labels, split = row["labels"], V2_SPLIT_NAMES.get(str(row["split"]))
    if not isinstance(labels, list) or split is None:
        raise ValueError(
            f"metadata row {name}: labels {labels!r} or split {row['split']!r} is not what the "
            f"published tables hold (a list; one of {', '.join(V2_SPLIT_NAMES)})"
        )
    return Pair(
        "v2",
        name,
        s2,
        s1 / scene / s1_name,
        map=maps / tile / name / f"{name}_reference_map.tif" if maps else None,
        labels_19=tuple(labels),
        country=str(row["country"]),
        s2v1_name=v1_name,
        split_google=google_split(v1_name),
        split_v2=split,
        seasonal_snow=bool(row["contains_seasonal_snow"]),
        cloud_or_shadow=bool(row["contains_cloud_or_shadow"]),
    )


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


def _read_table(path: Path) -> Iterable[dict[str, object]]:
    import pyarrow
    import pyarrow.parquet

    try:
        missing = set(_V2_COLUMNS) - set(pyarrow.parquet.read_schema(path).names)
        if missing:
            raise ValueError(f"--metadata {path} lacks the columns {sorted(missing)}")
        table = pyarrow.parquet.read_table(path, columns=list(_V2_COLUMNS))
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"--metadata {path}: {' '.join(str(error).split())}") from None
    rows: list[dict[str, object]] = table.to_pylist()
    return rows


class _NameLists:
    """The published v1 lists in one folder: official split, snow, cloud and shadow."""

    def __init__(self, folder: Path) -> None:
        self.split_of = {
            name: split for split, file in SPLIT_LISTS.items() for name in _read_names(folder, file)
        }
        self.snow = set(_read_names(folder, SNOW_LIST))
        self.cloud = set(_read_names(folder, CLOUD_LIST))


def _with_lists(pair: Pair, v1_name: str, lists: _NameLists) -> Pair:
    return replace(
        pair,
        split_official=lists.split_of.get(v1_name),
        seasonal_snow=v1_name in lists.snow,
        cloud_or_shadow=v1_name in lists.cloud,
    )


def _read_names(folder: Path, file: str) -> list[str]:
    for path, opener in ((folder / file, open), (folder / f"{file}.bz2", bz2.open)):
        if path.is_file():
            with opener(path, "rt") as lines:
                return [line.strip().partition(",")[0] for line in lines if line.strip()]
    raise ValueError(f"--split-lists {folder} has neither {file} nor {file}.bz2")


def read_json(path: Path) -> dict[str, object]:
    """The JSON object in a file.

    Raises:
        ValueError: the file is missing or holds no JSON object; the message names it.
    """
    try:
        table = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; extract the patch again") from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); extract it again") from None
    if not isinstance(table, dict):
        raise ValueError(f"{path} holds no JSON object")
    return table
