"""What an archive tells of its samples beyond pixels, labels and grid, as columns.

A request carries the facts of its kind of archive; `samples_table` makes columns of them and
`coordinates` the zarr store's coordinates. Their values lie in KEY.json under the same names.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["string", "flag", "time", "fractions"]


@dataclass(frozen=True)
class Fact:
    """One fact: its name in KEY.json and samples.parquet, what its values are and mean.

    A `string`, a `flag` (true or false) may be null where unknown; a `time` is ISO 8601 in
    UTC; `fractions` are a number from 0 to 1 for each class of the label set `label_set`, and
    a `string` with a `label_set` is one of its classes. `coordinate` is its name in the zarr
    stores; None keeps it out of them.
    """

    name: str
    kind: Kind
    meaning: str
    coordinate: str | None = None
    label_set: str | None = None


# In the order of the columns.
BIGEARTHNET_FACTS = (
    Fact("time_s1", "time", "Acquisition by Sentinel-1, UTC.", coordinate="time_s1"),
    Fact("time_s2", "time", "Acquisition by Sentinel-2, UTC.", coordinate="time"),
    Fact("s1_name", "string", "Name of the Sentinel-1 patch."),
    Fact("s2_name", "string", "Name of the Sentinel-2 patch."),
    Fact("s2v1_name", "string", "Name of the Sentinel-2 patch in BigEarthNet v1; v2 only."),
    Fact("country", "string", "Country of the patch; v2 only."),
    Fact("split_google", "string", "Split by the hash of the name; null where unknown."),
    Fact("split_official", "string", "Split by the lists of v1; null where unknown."),
    Fact("split_v2", "string", "Split by the tables of v2; null where unknown."),
    Fact("seasonal_snow", "flag", "Whether there is seasonal snow; null where unknown."),
    Fact("cloud_or_shadow", "flag", "Whether there is cloud or its shadow; null where unknown."),
)

SEN12MS_FACTS = (
    Fact("season", "string", "Season as the archive names it.", coordinate="season"),
    Fact("scene", "string", "Scene that the patch is cut from.", coordinate="scene"),
)
# Only where there is land cover.
SEN12MS_LC_FACTS = (
    Fact(
        "label_single",
        "string",
        "Class that covers most of the patch.",
        coordinate="label_single",
        label_set="sen12ms-igbp10",
    ),
    Fact(
        "fractions",
        "fractions",
        "Fraction of the patch that each class covers.",
        coordinate="fractions",
        label_set="sen12ms-igbp10",
    ),
)

ALL_FACTS = (*BIGEARTHNET_FACTS, *SEN12MS_FACTS, *SEN12MS_LC_FACTS)
