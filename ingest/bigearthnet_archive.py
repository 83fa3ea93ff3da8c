"""The folders of BigEarthNet-MM, v1 and v2, and which pairs there are in v1's.

Stands before the plan: it lists, pairs S1 with S2, and attaches splits and flags; it reads
no pixels. v2's pairs are in its tables: `bigearthnet_v2`. Layouts: Sumbul et al. 2021 (v1,
arXiv:2105.07921), Clasen et al. 2024 (v2 / reBEN, arXiv:2407.03653).
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from fusmae.splits import google_split

from .bigearthnet_tables import NameLists
from .patches import Archive, NoPatch, Patch
from .tar_archive import TarArchive
from .wording import LEAVE_OUT

_V1_S2 = re.compile(r"S2[AB]_MSIL2A_\d{8}T\d{1,6}_\d+_\d+")
V1_S1 = re.compile(r"S1[AB]_IW_GRDH_1SDV_\d{8}T\d{6}_\d{2}[A-Z]{3}_\d+_\d+")
V2_TILE = re.compile(r"S2[AB]_MSIL2A_\d{8}T\d{6}_N\d{4}_R\d{3}_T\d{2}[A-Z]{3}")
V2_S2 = re.compile(V2_TILE.pattern + r"_\d+_\d+")
_V2_TILE_OR_PATCH = re.compile(V2_TILE.pattern + r"(_\d+_\d+)?")
_V2_SCENE = re.compile(r"S1[AB]_IW_GRDH_1SDV_\d{8}T\d{6}")
_S2_KINDS = {"v1": _V1_S2, "v2": _V2_TILE_OR_PATCH}
# S1 patches are called the same in both; v2 has folders of scenes around them.
_S1_KINDS = {"v1": V1_S1, "v2": _V2_SCENE}


@dataclass(frozen=True, slots=True)
class Pair:
    """One S1/S2 pair: where its files lie and what the archive's tables say of it.

    `name` is the S2 patch's name and becomes the sample's key. Splits and flags are None
    where nothing known says anything. `labels_19` is set by v2's table; v1 keeps its
    labels in the patch's JSON file. `time_s1` is what S1's JSON file says in v1, unchecked.
    """

    version: str
    name: str
    s2: Patch
    s1: Patch
    map: Patch | None = None
    labels_19: tuple[str, ...] | None = None
    time_s1: str | None = None
    country: str | None = None
    s2v1_name: str | None = None
    split_google: str | None = None
    split_official: str | None = None
    split_v2: str | None = None
    seasonal_snow: bool | None = None
    cloud_or_shadow: bool | None = None

    @property
    def position(self) -> Any:
        """Sorts pairs as their archive does."""
        return self.s2.position

    def bare(self, message: str) -> str:
        """A message about this pair without the place where its archives lie."""
        for patch in filter(None, (self.s2, self.s1, self.map)):
            message = message.replace(patch.where(""), f"{patch.name}/")
        return message


def detect_version(s2: Archive, s1: Archive) -> str:
    """`v1` or `v2`, from the names of the folders inside.

    Raises:
        ValueError: an archive is missing, one is the other sensor's, of another version, or of
            neither layout.
    """
    optical, radar = version_inside("--s2", s2), version_inside("--s1", s1)
    refuse_mixture(f"--s2 {s2}", optical, f"--s1 {s1}", radar)
    return optical


def version_inside(option: str, archive: Archive) -> str:
    """`v1` or `v2`, from the names in the archive that `--s2` or `--s1` gives.

    Raises:
        ValueError: it is missing, or not of this sensor.
    """
    version = _version(archive, {"--s2": _S2_KINDS, "--s1": _S1_KINDS}[option])
    if version is None:
        raise ValueError(_explain(option, archive, archive.names()))
    return version


def refuse_mixture(s2: str, s2_version: str, s1: str, s1_version: str) -> None:
    """Raises ValueError: S2 and S1 are of two versions."""
    if s2_version != s1_version:
        raise ValueError(
            f"{s2} has the layout of BigEarthNet {s2_version}, but {s1} that of {s1_version}: "
            "give both from the same version"
        )


def file_kind(path: str) -> tuple[str, str | None] | None:
    """(`--s2`, `--s1` or `--maps`, version) of a file in a tar; None for a file of no patch.

    S1's version shows only in a patch's JSON (v1) or in a folder of a scene around it (v2).
    """
    outer, patch, file = ("", "", *path.split("/"))[-3:]
    if file == map_file(patch):
        return "--maps", "v2"
    for version, kind in (("v1", _V1_S2), ("v2", V2_S2)):
        if kind.fullmatch(patch):
            return "--s2", version
    if V1_S1.fullmatch(patch):
        if file == label_file(patch):
            return "--s1", "v1"
        return "--s1", "v2" if _V2_SCENE.fullmatch(outer) else None
    return None


def version_of(archive: Archive) -> str | None:
    """`v1` or `v2`, from an archive of either sensor or of maps; None for neither layout."""
    return _version(archive, _S2_KINDS) or _version(archive, _S1_KINDS)


def _version(archive: Archive, kinds: Mapping[str, re.Pattern[str]]) -> str | None:
    names = archive.names()
    found = next((v for v, kind in kinds.items() if any(map(kind.fullmatch, names))), None)
    if found and kinds is _S1_KINDS and isinstance(archive, TarArchive):
        # Folders do not count in a tar, but only v1 keeps labels beside its S1 pixels.
        return "v1" if archive.has_files_like(label_file("")) else "v2"
    return found


def _explain(option: str, archive: Archive, names: Sequence[str]) -> str:
    other = "S1" if option == "--s2" else "S2"
    if any(name.startswith(other) for name in names):
        return other_kind_told(option, archive, f"{other} folders", f"--{other.lower()}")
    inside = [name for name in names if name.startswith("BigEarthNet")]
    if inside:
        return f"{option} {archive} holds {', '.join(sorted(inside))}: give one of these folders"
    kind = "BigEarthNet-v1.0 or BigEarthNet-S2" if option == "--s2" else "BigEarthNet-S1"
    return f"{option} {archive} holds no patch folders: give the archive's {kind} folder"


def other_kind_told(option: str, archive: Archive | Path, held: str, other: str) -> str:
    """What to say of an archive that holds what belongs to another option."""
    wanted = {"--s2": "S2 archive", "--s1": "S1 archive", "--maps": "archive of maps"}[option]
    # `--s2` is looked at first, so at another option it was found to be right.
    swapped = f"; or are --s2 and {other} swapped?" if option == "--s2" else ""
    return f"{option} {archive} holds {held}: give the {wanted} there{swapped}"


def scan_v1(
    s2: Archive,
    s1: Archive,
    lists: Path | None,
    tolerant: bool,
    progress: Callable[[int, int], None],
) -> tuple[list[Pair], list[str]]:
    """Every pair of a v1 archive, paired by the S1 patches' JSON files.

    Args:
        tolerant: S2 patches without an S1 patch make pairs that fail when they are read.

    The second value names the S2 patches that S1 patches ask for and that are not there.
    `progress(done, total)` counts S1 patches.

    Raises:
        ValueError: a name list is missing, or without `tolerant` an S1 JSON file is broken or
            an S2 patch has no S1 patch or two.
    """
    s1_of, broken = _partners(s1, tolerant, progress)
    pairs = []
    for patch in s2.patches():
        name = patch.name
        if not _V1_S2.fullmatch(name):
            continue
        partner, time_s1 = s1_of.get(name) or _Partner(_no_partner(name, s1, broken), "")
        if isinstance(partner, NoPatch) and not tolerant:
            raise ValueError(f"{partner.reason}; {LEAVE_OUT}")
        split = google_split(name)
        pairs.append(Pair("v1", name, patch, partner, time_s1=time_s1, split_google=split))
    absent = sorted(s1_of.keys() - {pair.name for pair in pairs})
    if lists is None:
        return pairs, absent
    known = NameLists(lists, v2_table=True)
    return [with_lists(pair, pair.name, known) for pair in pairs], absent


class _Partner(NamedTuple):
    """The S1 patch of an S2 patch, and the time that its JSON file says."""

    patch: Patch
    time: str


def _partners(
    s1: Archive, tolerant: bool, progress: Callable[[int, int], None]
) -> tuple[dict[str, _Partner], dict[str, str]]:
    """The S1 patch of each S2 patch by name, and what is wrong with S1 patches that name none."""
    s1_of: dict[str, _Partner] = {}
    broken: dict[str, str] = {}
    radar = [patch for patch in s1.patches() if V1_S1.fullmatch(patch.name)]
    for done, patch in enumerate(radar):
        progress(done, len(radar))
        try:
            partner, time = _partner(patch)
        except ValueError as error:
            if not tolerant:
                error.add_note(LEAVE_OUT)
                raise
            broken[patch.name] = str(error)
            continue
        if partner in s1_of:
            where = patch.where(label_file(patch.name))
            told = f"{where} and {s1_of[partner].patch.name} both claim the S2 patch {partner}"
            if not tolerant:
                raise ValueError(f"{told}; {LEAVE_OUT}")
            s1_of[partner] = _Partner(NoPatch(str(s1), told), "")
        else:
            s1_of[partner] = _Partner(patch, time)
    progress(len(radar), len(radar))
    return s1_of, broken


def _partner(s1: Patch) -> tuple[str, str]:
    """What an S1 patch's JSON file says: the name of its S2 patch, and the time, unchecked.

    Raises:
        ValueError: the file is missing or broken, or names none.
    """
    name = label_file(s1.name)
    (file,) = s1.load([name])
    told = parse_json(file.head, s1.where(name))
    partner = told.get("corresponding_s2_patch")
    if not isinstance(partner, str):
        raise ValueError(f"{s1.where(name)} names no corresponding_s2_patch")
    return partner, str(told.get("acquisition_time"))


def _no_partner(name: str, s1: Archive, broken: Mapping[str, str]) -> NoPatch:
    """What stands for the S1 patch that an S2 patch lacks; tells the JSON file that may be why."""
    absent = f"{name} has no S1 patch in {s1}/"
    # The place in the tile, the names' last two numbers, is the same in both mostly.
    place = name.split("_")[-2:]
    near = sorted(broken, key=lambda other: (other.split("_")[-2:] != place, other))
    why = f"one cannot be paired: {broken[near[0]]}" if near else "see that this archive is whole"
    return NoPatch(str(s1), f"{absent}: {why}")


def with_lists(pair: Pair, v1_name: str | None, lists: NameLists) -> Pair:
    """The pair with what the published lists say of the v1 patch; as it is where that is None."""
    if v1_name is None:
        return pair
    return replace(
        pair,
        split_official=lists.split_of.get(v1_name),
        split_v2=pair.split_v2 or lists.v2_split_of.get(v1_name),
        seasonal_snow=v1_name in lists.snow,
        cloud_or_shadow=v1_name in lists.cloud,
    )


def label_file(patch: str) -> str:
    """The name of a v1 patch's JSON file in its folder."""
    return f"{patch}_labels_metadata.json"


def map_file(patch: str) -> str:
    """The name of a v2 patch's reference map in its folder."""
    return f"{patch}_reference_map.tif"


def read_json(path: Path) -> dict[str, object]:
    """The JSON object in a file.

    Raises:
        ValueError: the file is missing or holds no JSON object; the message names it.
    """
    try:
        return parse_json(path.read_bytes(), str(path))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; extract the patch again") from None


def parse_json(data: bytes | memoryview, where: str) -> dict[str, object]:
    """The JSON object in these bytes.

    Raises:
        ValueError: they hold none; the message begins with `where`.
    """
    try:
        table = json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not valid JSON ({error}); extract it again") from None
    if not isinstance(table, dict):
        raise ValueError(f"{where} holds no JSON object")
    return table
