"""samples.parquet: a row a sample, GeoParquet 1.1, for pandas, geopandas and our own readers."""

import io
import json
import struct
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fusmae.labels import label_column

from .facts import Fact
from .record import BlockRecord

TABLE_NAME = "samples.parquet"

# The column type of each kind of fact.
_TYPES: dict[str, pa.DataType] = {
    "string": pa.string(),
    "flag": pa.bool_(),
    "time": pa.timestamp("ms"),
    "fractions": pa.list_(pa.float64()),
}


def encode_table(
    records: Sequence[BlockRecord], label_sets: Sequence[str], told: Sequence[Fact]
) -> bytes:
    """The file's bytes; rows in the order of splits, shards and samples.

    Footprints are WKB polygons in OGC:CRS84 (longitude, latitude in degrees). `told` are the
    facts that become columns, in their order.
    """
    rows = [
        {"split": r.split, "shard": r.index, "row": i, **row}
        for r in records
        for i, row in enumerate(r.rows)
    ]
    facts = [row["facts"] for row in rows]
    columns: dict[str, Any] = {
        "key": pa.array([row["key"] for row in rows], pa.string()),
        "split": pa.array([row["split"] for row in rows], pa.string()),
        "shard": pa.array([row["shard"] for row in rows], pa.int32()),
        "row": pa.array([row["row"] for row in rows], pa.int32()),
        "offset": pa.array([row["offset"] for row in rows], pa.int64()),
    }
    for name in label_sets:
        columns[label_column(name)] = pa.array(
            [entry["labels"].get(name) for entry in facts], pa.list_(pa.string())
        )
    columns["crs"] = pa.array([entry["crs"] for entry in facts], pa.string())
    columns["transform"] = pa.array([entry["transform"] for entry in facts], pa.list_(pa.float64()))
    columns["footprint"] = pa.array([_wkb(row["footprint"]) for row in rows], pa.binary())
    for fact in told:
        values = [entry[fact.name] for entry in facts]
        if fact.kind == "time":
            values = [datetime.fromisoformat(value) for value in values]
        columns[fact.name] = pa.array(values, _TYPES[fact.kind])
    table = pa.table(columns).replace_schema_metadata({"geo": json.dumps(_geo(rows))})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _wkb(ring: Sequence[Sequence[float]]) -> bytes:
    """A polygon of one closed ring as little-endian WKB (OGC 06-103r4, sec. 8.2)."""
    points = [value for point in ring for value in point]
    return struct.pack(f"<BIII{len(points)}d", 1, 3, 1, len(ring), *points)


def _geo(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """GeoParquet 1.1.0 file metadata; an absent crs means OGC:CRS84."""
    lon = [point[0] for row in rows for point in row["footprint"]]
    lat = [point[1] for row in rows for point in row["footprint"]]
    return {
        "version": "1.1.0",
        "primary_column": "footprint",
        "columns": {
            "footprint": {
                "encoding": "WKB",
                "geometry_types": ["Polygon"],
                "orientation": "counterclockwise",
                "bbox": [min(lon), min(lat), max(lon), max(lat)],
            }
        },
    }
