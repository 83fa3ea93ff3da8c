"""croissant.json: what a dataset is and holds, for machines, in Croissant 1.1 and GeoCroissant 1.0.

http://mlcommons.org/croissant/1.1 and http://mlcommons.org/croissant/geo/1.0. Paths are relative
to the document, so a dataset can be read where it lies; `mlcroissant` iterates its record sets.
"""

import json
from collections.abc import Sequence
from typing import Any

from fusmae.manifest import FileRecord, Manifest
from fusmae.sample import member_names

from .coverage import Coverage
from .croissant_records import (
    class_records,
    members_id,
    pixel_records,
    samples_records,
    splits_records,
)
from .facts import Fact
from .geocroissant import geography
from .layout import store_path

CROISSANT_NAME = "croissant.json"

# The context of the specification's appendix 1, as mlcroissant 1.1 expects it, and the
# namespaces of GeoCroissant and of provenance.
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "geocr": "http://mlcommons.org/croissant/geo/",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
    "parentField": "cr:parentField",
    "path": "cr:path",
    "prov": "http://www.w3.org/ns/prov#",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "sdVersion": "cr:sdVersion",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}

_SIMULATED = "SIMULATED: no pixel or label here was ever observed. "

_ENCODING = {
    "idx": "application/octet-stream",
    "json": "application/json",
    "jsonl": "application/jsonlines",
    "npy": "application/octet-stream",
    "parquet": "application/x-parquet",
    "sqlite": "application/vnd.sqlite3",
    "tar": "application/x-tar",
    "uuid": "text/plain",
    "yaml": "application/yaml",
}


def croissant_json(manifest: Manifest, coverage: Coverage, facts: Sequence[Fact]) -> str:
    """The text of `croissant.json`: a function of its arguments alone, without a clock.

    `facts` are the columns of `samples.parquet` that their kind of archive adds.
    """
    records = [splits_records(manifest), *class_records(manifest), samples_records(manifest, facts)]
    if any(split.shards for split in manifest.splits.values()):
        records += [pixel_records(spec) for spec in manifest.arrays]
    document = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": [
            "http://mlcommons.org/croissant/1.1",
            "http://mlcommons.org/croissant/geo/1.0",
        ],
        **_about(manifest),
        **geography(manifest.arrays, coverage),
        "distribution": _distribution(manifest),
        "recordSet": records,
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _about(manifest: Manifest) -> dict[str, Any]:
    """Who made it, when, under which licence; of the source archive, but for simulated ones."""
    source = manifest.source
    creators = [{"@type": "sc:Person", "name": name} for name in source["creators"]]
    simulator = {"@type": "sc:Organization", "name": "fusmae-ingest simulate"}
    about: dict[str, Any] = {
        "name": manifest.name,
        "description": _SIMULATED * manifest.simulated + summary(manifest),
        # A simulated dataset has no page: it is where this document is.
        "url": "./" if manifest.simulated else source["url"],
        "license": source["licence_url"],
        "citeAs": source["bibtex"],
        "creator": creators or [simulator],
        "datePublished": source["published"],
        "version": source["version"],
        "sdVersion": f"{manifest.format_version}.0",
        "keywords": ["earth observation", "Sentinel-1", "Sentinel-2", "SAR", "multispectral"],
    }
    if manifest.simulated:
        about["keywords"].insert(0, "simulated")
        return about
    publisher = {"@type": "sc:Organization", "name": source["publisher"]}
    return {**about, "publisher": publisher, "prov:wasDerivedFrom": {"@id": source["url"]}}


def summary(manifest: Manifest) -> str:
    """A paragraph on what the dataset is and how many samples it holds."""
    samples = {name: split.num_samples for name, split in manifest.splits.items()}
    counts = ", ".join(f"{count:,} {name}" for name, count in samples.items())
    return (
        f"{manifest.source['title']}, {sum(samples.values()):,} samples ({counts}). "
        f"{manifest.source['processing']} Pixels are the source's, bit for bit."
    )


def _distribution(manifest: Manifest) -> list[dict[str, Any]]:
    """Every file by itself, with its size and checksum, then sets of what lies in many files."""
    splits = manifest.splits.values()
    shards = [shard for split in splits for shard in split.shards]
    indexes = [split.index for split in splits if split.index]
    every = [*manifest.files, *indexes, *(FileRecord(s.path, s.bytes, s.sha256) for s in shards)]
    files = [
        {
            "@type": "cr:FileObject",
            "@id": file.path,
            "name": file.path.rpartition("/")[2],
            "contentUrl": file.path,
            "contentSize": f"{file.bytes} B",
            "encodingFormat": _ENCODING[file.path.rpartition(".")[2]],
            "sha256": file.sha256,
        }
        for file in every
    ]
    members = member_names(manifest.layout) if shards else ()
    sets = [_members(member, [shard.path for shard in shards]) for member in members]
    return [*files, *sets, *(_store(name) for name, split in manifest.splits.items() if split.zarr)]


def _members(member: str, shards: Sequence[str]) -> dict[str, Any]:
    kind = member.rpartition(".")[2]
    return {
        "@type": "cr:FileSet",
        "@id": members_id(member),
        "name": members_id(member),
        "description": f"KEY.{member} of every sample, in the tar shards.",
        "containedIn": [{"@id": path} for path in shards],
        "encodingFormat": _ENCODING[kind],
        "includes": f"*.{member}",
    }


def _store(split: str) -> dict[str, Any]:
    """A zarr store is one thing in many files; dataset.json has the checksum of each."""
    path = store_path(split)
    return {
        "@type": "cr:FileSet",
        "@id": path,
        "name": path,
        "description": f"All samples of the {split} split as a zarr v3 store.",
        "encodingFormat": "application/vnd.zarr; version=3",
        "includes": f"{path}/**",
    }
