"""`dataset.json`: what a dataset holds. Written last by `ingest`, read first by everyone else.

Its presence means that the dataset is complete. `docs/FORMAT.md` is its specification.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from fusmae.sample import ShardLayout
from fusmae.sensors import ArraySpec, Band, dataset_sensor

T = TypeVar("T")

MANIFEST_NAME = "dataset.json"
FORMAT_NAME = "fusmae-dataset"
FORMAT_MAJOR = 1
FORMAT_MINOR = 2

# Stands for the digest where the digest is made, as in a tar header's checksum.
_BLANK_DIGEST = 64 * "0"
# What to do about a file that is cut short or damaged.
REPAIR = "copy it again, or remove it and give the command again that made the dataset"

# Formats whose manifests have no digest.
_WITHOUT_DIGEST = ("1.0", "1.1")


@dataclass(frozen=True)
class FileRecord:
    """One file of the dataset: its path relative to the dataset, size and sha256 in hex."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardRecord:
    """One tar shard; `num_samples` samples in it."""

    path: str
    bytes: int
    sha256: str
    num_samples: int


@dataclass(frozen=True)
class SplitRecord:
    """One split: its shards in order, its offset index and its zarr objects.

    `index` is a `.npy` of int64, shape (num_samples,): the byte at which each sample of
    the split starts in its shard. `zarr` is empty where no zarr store was asked for.
    `class_counts` has the number of samples that hold each class, by label set, in the order of
    the set's classes; a name like `sen12ms-igbp10/label_single` counts that column's one class
    of the label set. Empty in datasets of a format before 1.2.
    """

    num_samples: int
    shards: tuple[ShardRecord, ...]
    index: FileRecord | None
    zarr: tuple[FileRecord, ...] = ()
    class_counts: dict[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class BandStatistics:
    """Statistics of one array over a split, a number for each band, in stored units.

    `count` is the number of pixels of each band; `std` is the population's. `percentiles` are
    nearest-rank, by names like `p98`: exact for integers, to 0.005 dB for SAR; empty in
    datasets of format 1.0.
    """

    count: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]
    percentiles: dict[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """The whole of `dataset.json`.

    `source` says where the pixels come from (archive, version, processing levels, licence,
    citation); `simulated` is true for archives made by `fusmae-ingest simulate`.
    `statistics` maps an array to its statistics over `statistics_split`. `options` are the
    choices that ingest was run with and that change the bytes.
    """

    name: str
    simulated: bool
    source: dict[str, Any]
    seed: int
    samples_per_shard: int
    arrays: tuple[ArraySpec, ...]
    label_sets: dict[str, tuple[str, ...]]
    splits: dict[str, SplitRecord]
    statistics: dict[str, BandStatistics]
    statistics_split: str
    options: dict[str, Any]
    files: tuple[FileRecord, ...] = ()
    format_version: str = field(default=f"{FORMAT_MAJOR}.{FORMAT_MINOR}")

    @property
    def layout(self) -> ShardLayout:
        return ShardLayout(self.arrays)

    @property
    def num_samples(self) -> int:
        """Those of all splits."""
        return sum(split.num_samples for split in self.splits.values())

    def split(self, name: str) -> SplitRecord:
        """The record of one split.

        Raises:
            ValueError: the dataset has no such split.
        """
        if name not in list(self.splits):  # a list may be asked for any name, hashable or not
            raise ValueError(f"there is no split {name!r}; the dataset has {list(self.splits)}")
        return self.splits[name]

    def counted_classes(self) -> dict[str, tuple[str, ...]]:
        """The classes behind each name of the splits' `class_counts`, in the order of counts."""
        names = [name for split in self.splits.values() for name in split.class_counts]
        return {name: self.label_sets[name.partition("/")[0]] for name in dict.fromkeys(names)}

    def band_statistics(self, array: str, band: str) -> tuple[float, float]:
        """(mean, std) of one band in stored units.

        Raises:
            ValueError: the dataset has no such array or band.
        """
        for spec in self.arrays:
            if spec.name == array and band in spec.band_names:
                index = spec.band_names.index(band)
                return self.statistics[array].mean[index], self.statistics[array].std[index]
        raise ValueError(f"the dataset has no band {band!r} in array {array!r}")

    def find_band(self, sensor: str, band: str) -> tuple[ArraySpec, int]:
        """The array that holds a sensor's band, and the band's place in it.

        `sensor` may be a group of a sensor's bands, named after it: `s2_20m`, `s2_red_edge`.

        Raises:
            ValueError: the dataset has no such sensor or band; the known ones are named.
        """
        known = [spec for spec in self.arrays if spec.sensor == dataset_sensor(sensor)]
        if not known:
            sensors = sorted({spec.sensor for spec in self.arrays})
            raise ValueError(f"the dataset has no sensor {sensor!r}; it has {sensors}")
        for spec in known:
            if band in spec.band_names:
                return spec, spec.band_names.index(band)
        names = [name for spec in known for name in spec.band_names]
        raise ValueError(f"sensor {sensor!r} has no band {band!r}; it has {names}")


def all_files(manifest: Manifest) -> list[FileRecord]:
    """Every file that the manifest vouches for."""
    files = list(manifest.files)
    for split in manifest.splits.values():
        files += [FileRecord(s.path, s.bytes, s.sha256) for s in split.shards]
        files += [*([split.index] if split.index else []), *split.zarr]
    return files


def to_json(manifest: Manifest) -> str:
    """The text of `dataset.json`: fields in their order here, the digest, one trailing newline."""
    table: dict[str, Any] = {"format": FORMAT_NAME, **asdict(manifest)}
    offsets = manifest.layout.offsets
    for spec, entry in zip(manifest.arrays, table["arrays"], strict=True):
        # Spelled out for readers in other languages; our own reader recomputes it.
        entry["shape"] = list(spec.shape)
        entry["offset"] = offsets[spec.name]
    table["digest"] = _BLANK_DIGEST
    text = json.dumps(table, indent=1, ensure_ascii=False) + "\n"
    return _with_digest(text, _BLANK_DIGEST, _digest(text, _BLANK_DIGEST))


def _with_digest(text: str, old: str, new: str) -> str:
    """The text with its last field, the digest, exchanged."""
    before, _, after = text.rpartition(old)
    return before + new + after


def _digest(text: str, told: str) -> str:
    """The sha256 of a `dataset.json` text with 64 zeros in place of the digest it tells."""
    return hashlib.sha256(_with_digest(text, told, _BLANK_DIGEST).encode()).hexdigest()


def _digest_problem(text: str, table: dict[str, Any]) -> str | None:
    """What tells that the text of this table was changed; None for formats without a digest."""
    told = table.get("digest")
    if not told:
        if table["format_version"] in _WITHOUT_DIGEST:
            return None
        return "has no digest, which belongs into every manifest since format 1.2"
    found = _digest(text, str(told))
    return None if found == told else f"its sha256 is {found}, its digest says {told}"


def from_json(text: str, where: str = MANIFEST_NAME) -> Manifest:
    """The manifest in a `dataset.json` text.

    Raises:
        ValueError: not a manifest, a newer major version, a broken or missing field, or not the
            text that its digest was made of; `where` names the file in the message.
    """
    try:
        table = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not valid JSON ({error}): {REPAIR}") from None
    if not isinstance(table, dict) or table.get("format") != FORMAT_NAME:
        raise ValueError(f"{where} is not the manifest of a fusmae dataset")
    version = str(table.get("format_version"))
    if version.partition(".")[0] != str(FORMAT_MAJOR):
        raise ValueError(
            f"{where} has format version {version}; this fusmae reads {FORMAT_MAJOR}.x: "
            "install the fusmae that wrote it"
        )
    try:
        manifest = _parse(table)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{where} has a broken or missing field ({error}): {REPAIR}") from None
    problem = _digest_problem(text, table)
    if problem:
        raise ValueError(f"{where} was changed ({problem}): {REPAIR}")
    return manifest


def _known(cls: type[T], entry: dict[str, Any]) -> T:
    """A record of the fields that it knows; those of a newer minor version are ignored."""
    return cls(**{f.name: entry[f.name] for f in fields(cls) if f.name in entry})  # type: ignore[arg-type]


def _parse(table: dict[str, Any]) -> Manifest:
    arrays = tuple(
        ArraySpec(
            entry["name"],
            entry["sensor"],
            tuple(_known(Band, band) for band in entry["bands"]),
            entry["size_px"],
            entry["dtype"],
            entry["unit"],
            entry["long_name"],
        )
        for entry in table["arrays"]
    )
    for spec, entry in zip(arrays, table["arrays"], strict=True):
        if entry["offset"] != ShardLayout(arrays).offsets[spec.name]:
            raise ValueError(f"array {spec.name!r}: offset {entry['offset']} is not its layout's")
    splits = {
        name: SplitRecord(
            entry["num_samples"],
            tuple(_known(ShardRecord, shard) for shard in entry["shards"]),
            _known(FileRecord, entry["index"]) if entry["index"] else None,
            tuple(_known(FileRecord, item) for item in entry["zarr"]),
            {name: tuple(counts) for name, counts in entry.get("class_counts", {}).items()},
        )
        for name, entry in table["splits"].items()
    }
    statistics = {
        name: BandStatistics(
            count=entry["count"],
            **{key: tuple(entry[key]) for key in ("mean", "std", "min", "max")},
            percentiles={k: tuple(values) for k, values in entry.get("percentiles", {}).items()},
        )
        for name, entry in table["statistics"].items()
    }
    return Manifest(
        name=table["name"],
        simulated=table["simulated"],
        source=table["source"],
        seed=table["seed"],
        samples_per_shard=table["samples_per_shard"],
        arrays=arrays,
        label_sets={name: tuple(classes) for name, classes in table["label_sets"].items()},
        splits=splits,
        statistics=statistics,
        statistics_split=table["statistics_split"],
        options=table["options"],
        files=tuple(_known(FileRecord, entry) for entry in table["files"]),
        format_version=table["format_version"],
    )


def read_manifest(dataset: Path) -> Manifest:
    """The manifest of the dataset in this folder.

    Raises:
        ValueError: the folder or its `dataset.json` is missing, or it is not readable.
    """
    text = _read(dataset).decode(errors="replace")
    return from_json(text, str(dataset / MANIFEST_NAME))


def manifest_sha256(dataset: Path) -> str:
    """The sha256 of a dataset's manifest, in hex: which dataset a result is of.

    Raises:
        ValueError: as `read_manifest`, where the file cannot be read.
    """
    return hashlib.sha256(_read(dataset)).hexdigest()


def _read(dataset: Path) -> bytes:
    path = dataset / MANIFEST_NAME
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"cannot read {path}: {error.strerror}; is {dataset} a finished dataset of "
            "fusmae-ingest?"
        ) from None
