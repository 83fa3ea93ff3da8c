"""What an archive tells of its samples beyond pixels, labels and grid, as columns.

A request carries the facts of its kind of archive; `samples_table` makes columns of them and
`coordinates` the zarr store's coordinates. Their values lie in KEY.json under the same names.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["string", "flag", "time", "fractions"]


@dataclass(frozen=True)
class Fact:
    """One fact: its name in KEY.json and samples.parquet, and what its values are.

    A `string`, a `flag` (true or false) may be null where unknown; a `time` is ISO 8601 in
    UTC; `fractions` are a number from 0 to 1 for each class of the label set `label_set`.
    `coordinate` is its name in the zarr stores; None keeps it out of them.
    """

    name: str
    kind: Kind
    coordinate: str | None = None
    label_set: str | None = None


# In the order of the columns.
BIGEARTHNET_FACTS = (
    Fact("time_s1", "time", coordinate="time_s1"),
    Fact("time_s2", "time", coordinate="time"),
    Fact("s1_name", "string"),
    Fact("s2_name", "string"),
    Fact("s2v1_name", "string"),
    Fact("country", "string"),
    Fact("split_google", "string"),
    Fact("split_official", "string"),
    Fact("split_v2", "string"),
    Fact("seasonal_snow", "flag"),
    Fact("cloud_or_shadow", "flag"),
)

SEN12MS_FACTS = (
    Fact("season", "string", coordinate="season"),
    Fact("scene", "string", coordinate="scene"),
)
# Only where there is land cover.
SEN12MS_LC_FACTS = (
    Fact("label_single", "string", coordinate="label_single"),
    Fact("fractions", "fractions", coordinate="fractions", label_set="sen12ms-igbp10"),
)
