"""The published v1 lists: official split, seasonal snow, cloud and shadow, by v1's S2 names."""

import bz2
from pathlib import Path

# Names of the published v1 lists, with or without .bz2; one name (or "s2,s1") a line.
SPLIT_LISTS = {"train": "train.csv", "val": "val.csv", "test": "test.csv"}
SNOW_LIST = "patches_with_seasonal_snow.csv"
CLOUD_LIST = "patches_with_cloud_and_shadow.csv"


class NameLists:
    """The lists in one folder."""

    def __init__(self, folder: Path) -> None:
        """Read them all.

        Raises:
            ValueError: one is missing.
        """
        self.split_of = {
            name: split for split, file in SPLIT_LISTS.items() for name in _read_names(folder, file)
        }
        self.snow = set(_read_names(folder, SNOW_LIST))
        self.cloud = set(_read_names(folder, CLOUD_LIST))


def _read_names(folder: Path, file: str) -> list[str]:
    for path, opener in ((folder / file, open), (folder / f"{file}.bz2", bz2.open)):
        if path.is_file():
            with opener(path, "rt") as lines:
                return [line.strip().partition(",")[0] for line in lines if line.strip()]
    raise ValueError(f"--split-lists {folder} has neither {file} nor {file}.bz2")
