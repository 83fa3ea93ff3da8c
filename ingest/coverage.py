"""Where and when the samples of a dataset lie, from its block records."""

from collections.abc import Sequence
from dataclasses import dataclass

from .facts import Fact
from .record import BlockRecord


@dataclass(frozen=True)
class Coverage:
    """The ground and the days that the samples cover together.

    `bbox` is (west, south, east, north) in degrees of longitude and latitude; `crs` are the
    `EPSG:...` names of the samples' grids, sorted; `first` and `last` acquisition in ISO 8601,
    None where the archive has no times.
    """

    bbox: tuple[float, float, float, float]
    crs: tuple[str, ...]
    first: str | None
    last: str | None


def coverage_of(records: Sequence[BlockRecord], facts: Sequence[Fact]) -> Coverage:
    """The coverage of all samples of these records; there is at least one."""
    rows = [row for record in records for row in record.rows]
    lon = [point[0] for row in rows for point in row["footprint"]]
    lat = [point[1] for row in rows for point in row["footprint"]]
    told = [row["facts"] for row in rows]
    names = [fact.name for fact in facts if fact.kind == "time"]
    times = sorted({entry[name] for entry in told for name in names})
    return Coverage(
        (min(lon), min(lat), max(lon), max(lat)),
        tuple(sorted({entry["crs"] for entry in told})),
        times[0] if times else None,
        times[-1] if times else None,
    )
