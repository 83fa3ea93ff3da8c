"""The folders of SEN12MS: which triplets there are and what is known of each.

Stands before the plan: it lists files, puts S1, S2 and land cover together and attaches
splits; it reads no pixels. Layout: Schmitt et al. 2019, arXiv:1906.07789.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fusmae.splits import SEN12MS_HOLD_OUT, sen12ms_split

SEASONS = tuple(SEN12MS_HOLD_OUT)
_SEASON = "|".join(SEASONS)
_FOLDER = re.compile(r"(s1|s2|lc)_(\d+)")
_FILE = re.compile(rf"({_SEASON})_(s1|s2|lc)_(\d+)_p(\d+)\.tif")

# Published with NaN in its S1 file and in neither of the authors' lists.
KNOWN_BAD = "ROIs1868_summer_146_p202"


@dataclass(frozen=True)
class Triplet:
    """One S1/S2/land-cover triplet of the archive in `root`; `lc` is false where lc is not read.

    `position` is its place in the archive's order.
    """

    root: Path
    season: str
    scene: int
    patch: int
    position: int
    lc: bool = True

    @property
    def name(self) -> str:
        """The sample's key: a file's name without the sensor."""
        return f"{self.season}_{self.scene}_p{self.patch}"

    def bare(self, message: str) -> str:
        """A message about this triplet without the place where its archive lies."""
        return message.replace(f"{self.root}/", "")

    def path(self, kind: str) -> Path:
        """The file of `s1`, `s2` or `lc`."""
        folder = self.root / self.season / f"{kind}_{self.scene}"
        return folder / f"{self.season}_{kind}_{self.scene}_p{self.patch}.tif"


def scan(root: Path, with_lc: bool) -> tuple[list[Triplet], list[Path]]:
    """Every triplet in the archive's order, and the files that triplets lack.

    A triplet is what has an S1 or S2 file, or with `with_lc` any file of the three kinds.

    Raises:
        ValueError: the folder cannot be read or holds no SEN12MS season.
    """
    kinds = ("s1", "s2", "lc") if with_lc else ("s1", "s2")
    found: dict[str, set[tuple[str, int, int]]] = {kind: set() for kind in kinds}
    for season, kind, scene, patch in _files(root):
        if kind in found:
            found[kind].add((season, scene, patch))
    every = sorted(set().union(*found.values()))
    if not every:
        raise ValueError(
            f"--root {root} holds no SEN12MS patches: give the folder that holds "
            f"{', '.join(SEASONS)} (each with folders such as s1_1, s2_1, lc_1)"
        )
    triplets = [Triplet(root, *place, i, with_lc) for i, place in enumerate(every)]
    missing = [
        triplet.path(kind)
        for triplet, place in zip(triplets, every, strict=True)
        for kind in kinds
        if place not in found[kind]
    ]
    return triplets, missing


def _files(root: Path) -> Iterator[tuple[str, str, int, int]]:
    """(season, kind, scene, patch) of each file that lies and is called as published."""
    for season in SEASONS:
        for folder in _names(root / season):
            place = _FOLDER.fullmatch(folder)
            for file in _names(root / season / folder) if place else ():
                match = _FILE.fullmatch(file)
                if match and match[1] == season and f"{match[2]}_{match[3]}" == folder:
                    yield season, match[2], int(match[3]), int(match[4])


def _names(folder: Path) -> Sequence[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        raise ValueError(f"--root: {folder}: {error.strerror}") from None


def choose(triplets: Sequence[Triplet], test_names: set[str] | None) -> dict[str, str]:
    """The split of each triplet by name; the known bad one is left out.

    Args:
        triplets: what the archive holds.
        test_names: the test patches; None for the authors' hold-out scenes. Other patches are
            train or val by their scene.
    """
    return {
        triplet.name: sen12ms_split(
            triplet.season,
            triplet.scene,
            held_out=None if test_names is None else triplet.name in test_names,
        )
        for triplet in triplets
        if triplet.name != KNOWN_BAD
    }


def read_names(path: Path) -> set[str]:
    """The triplets in a list of patches as the authors publish them, one name a line.

    Such a name is `ROIs1158_spring_s2_124_p100.tif`.

    Raises:
        ValueError: the list cannot be read, or a line is not such a name.
    """
    try:
        lines = path.read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        told = getattr(error, "strerror", None) or "it is no text"
        raise ValueError(f"--split {path}: {told}; give official or a text file") from None
    names = set()
    for line in lines:
        match = _FILE.fullmatch(line)
        if not match:
            raise ValueError(
                f"--split {path}: {line!r} is not a name such as ROIs1158_spring_s2_124_p100.tif"
            )
        names.add(f"{match[1]}_{int(match[3])}_p{int(match[4])}")
    return names
