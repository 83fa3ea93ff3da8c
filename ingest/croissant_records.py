"""The record sets of croissant.json: splits, classes, the table of samples, the shards' arrays."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fusmae.labels import label_column
from fusmae.manifest import Manifest
from fusmae.sensors import ArraySpec

from .facts import Fact
from .geocroissant import band_properties
from .samples_table import TABLE_NAME

# Croissant's names of the splits that it knows (sec. "Splits").
_SPLIT_URLS = {"train": "cr:TrainingSplit", "val": "cr:ValidationSplit", "test": "cr:TestSplit"}

# The data type of each kind of fact.
_KINDS = {
    "string": "sc:Text",
    "flag": "sc:Boolean",
    "time": "sc:DateTime",
    "fractions": "sc:Float",
}

_ANY_LENGTH = "-1"


def members_id(member: str) -> str:
    """The id of the file set of one member of every sample, like `s1.npy` or `json`."""
    return f"shard-members/{member}"


def splits_records(manifest: Manifest) -> dict[str, Any]:
    """The splits that hold samples."""
    names = [name for name, split in manifest.splits.items() if split.num_samples]
    return {
        "@type": "cr:RecordSet",
        "@id": "splits",
        "name": "splits",
        "description": "The splits.",
        "dataType": "cr:Split",
        "key": {"@id": "splits/name"},
        "field": [
            _field("splits", "name", "sc:Text", "Name of the split."),
            _field("splits", "url", "sc:URL", "What it is for."),
        ],
        "data": [{"splits/name": name, "splits/url": _SPLIT_URLS[name]} for name in names],
    }


def class_records(manifest: Manifest) -> list[dict[str, Any]]:
    """A record set for each label set: its classes in the order of multi-hot columns."""
    return [
        {
            "@type": "cr:RecordSet",
            "@id": name,
            "name": name,
            "description": f"The classes of the label set {name}.",
            "dataType": "sc:Enumeration",
            "key": {"@id": f"{name}/name"},
            "field": [
                _field(name, "index", "sc:Integer", "Column of the class in multi-hot labels."),
                _field(name, "name", "sc:Text", "Name of the class."),
            ],
            "data": [{f"{name}/index": i, f"{name}/name": text} for i, text in enumerate(classes)],
        }
        for name, classes in manifest.label_sets.items()
    ]


def samples_records(manifest: Manifest, facts: Sequence[Fact]) -> dict[str, Any]:
    """The rows of samples.parquet, column by column in their order there."""
    fields = [
        _column("key", "sc:Text", "Key of the sample: the name of its members in the shard."),
        {
            **_column("split", "sc:Text", "Split of the sample."),
            # The specification's short form, without "field", is not read by mlcroissant 1.1.
            "references": {"field": {"@id": "splits/name"}},
        },
        _column("shard", "sc:Integer", "Number of the shard in its split."),
        _column("row", "sc:Integer", "Row of the sample in its shard."),
        _column("offset", "sc:Integer", "Byte at which the sample starts in its shard."),
        *(
            _column(label_column(name), ["sc:Text", "cr:Label"], f"Classes of {name}.", _ANY_LENGTH)
            for name in manifest.label_sets
        ),
        _column("crs", "sc:Text", "Coordinate reference system of the sample's grid, EPSG:...."),
        _column(
            "transform",
            "sc:Float",
            "Affine transform of the finest grid: a, b, c, d, e, f, in metres.",
            "6",
        ),
        # Croissant has no type for bytes; mlcroissant gives bytes for sc:Text.
        _column("footprint", "sc:Text", "WKB polygon; longitude and latitude in degrees."),
        *(_fact(manifest, fact) for fact in facts),
    ]
    return {
        "@type": "cr:RecordSet",
        "@id": "samples",
        "name": "samples",
        "description": "A record a sample: where it lies, its labels, place and time.",
        "key": {"@id": "samples/key"},
        "field": fields,
    }


def pixel_records(spec: ArraySpec) -> dict[str, Any]:
    """One array of every sample, as the bytes of its `.npy` member in the shards.

    A reader of Croissant hands out files and does not decode npy, so the field has no
    `arrayShape`; what `numpy.load` makes of the bytes is in the description.
    """
    member = {"fileSet": {"@id": members_id(f"{spec.name}.npy")}}
    key = {
        **_field(spec.name, "key", "sc:Text", "Key of the sample, as in samples/key."),
        "source": {
            **member,
            "extract": {"fileProperty": "filename"},
            "transform": {"regex": r"^([^.]+)\..*$"},
        },
    }
    text = (
        f"npy file, {np.dtype(spec.dtype)}, shape {spec.shape}, in {spec.unit}; bands "
        f"{', '.join(spec.band_names)}."
    )
    properties = band_properties(spec.bands)
    resolution = properties.pop("geocr:spatialResolution")
    npy = {
        **_field(spec.name, "npy", "sc:Text", text),
        "source": {**member, "extract": {"fileProperty": "content"}},
        **properties,
    }
    return {
        "@type": "cr:RecordSet",
        "@id": spec.name,
        "name": spec.name,
        "description": f"{spec.long_name}, a record a sample. mlcroissant unpacks the shards into "
        "$CROISSANT_CACHE by their relative paths: give each dataset a cache of its own.",
        "geocr:spatialResolution": resolution,
        "key": {"@id": f"{spec.name}/key"},
        "field": [key, npy],
    }


def _fact(manifest: Manifest, fact: Fact) -> dict[str, Any]:
    if fact.kind == "fractions":
        assert fact.label_set is not None
        shape = str(len(manifest.label_sets[fact.label_set]))
        return _column(fact.name, _KINDS[fact.kind], fact.meaning, shape)
    kind = _KINDS[fact.kind]
    return _column(fact.name, [kind, "cr:Label"] if fact.label_set else kind, fact.meaning)


def _column(
    name: str, data_type: str | list[str], description: str, shape: str | None = None
) -> dict[str, Any]:
    """A field of `samples`; `shape` makes it an array."""
    array = {} if shape is None else {"isArray": True, "arrayShape": shape}
    return {
        **_field("samples", name, data_type, description),
        **array,
        "source": {"fileObject": {"@id": TABLE_NAME}, "extract": {"column": name}},
    }


def _field(
    record_set: str, name: str, data_type: str | list[str], description: str
) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"{record_set}/{name}",
        "name": name,
        "description": description,
        "dataType": data_type,
    }
