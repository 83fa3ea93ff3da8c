"""What the preview page says in words, as HTML: splits, samples left out, facts of a sample."""

import html
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusmae.labels import label_column
from fusmae.manifest import Manifest

from .preview_samples import centre
from .wording import counted

_FLAGS = {"seasonal_snow": "seasonal snow", "cloud_or_shadow": "cloud or shadow"}
_TIMES = {"time_s2": "Sentinel-2", "time_s1": "Sentinel-1"}

# In a reason: a path or a file's name, of which what follows the last underscore is kept; a number.
_FILE = re.compile(r"\S*[/_]\S*?(_[^\s_/]+?\.\w+)")
_NUMBER = re.compile(r"(?<![\w.])\d(?:[\d,.]*\d)?(?!\w)")


def split_table(manifest: Manifest) -> str:
    """A row a split: samples, shards and bytes."""
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{split.num_samples:,}</td>"
        f"<td>{len(split.shards):,}</td><td>{_size(sum(s.bytes for s in split.shards))}</td>"
        f"<td>{_size(sum(file.bytes for file in split.zarr))}</td></tr>\n"
        for name, split in manifest.splits.items()
    )
    heads = "".join(
        f"<th>{h}</th>" for h in ("Split", "Samples", "Shards", "Shard bytes", "Zarr bytes")
    )
    return f"<table><tr>{heads}</tr>\n{rows}</table>\n"


def _size(num_bytes: int) -> str:
    """Bytes in decimal units, to three digits."""
    if not num_bytes:
        return "\N{EN DASH}"
    size = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"


def left_out_table(root: Path, manifest: Manifest) -> str:
    """How many samples were left out as bad, by reason; an example of each reason.

    Raises:
        ValueError: quarantine.jsonl is missing, though the manifest lists it, or broken.
    """
    path = root / "quarantine.jsonl"
    if path.name not in {file.path for file in manifest.files}:
        return '<p class="note">No sample was left out as bad.</p>\n'
    try:
        entries = [json.loads(line) for line in path.read_text().splitlines()]
        reasons = Counter(_kind(entry["reason"]) for entry in entries)
        examples = {_kind(entry["reason"]): entry for entry in reversed(entries)}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}; see fusmae-ingest verify {root}") from None
    rows = "".join(
        f'<tr><td>{count:,}</td><td class="text">{html.escape(reason)}</td>'
        f'<td class="text">{_breakable(examples[reason]["reason"])}</td></tr>\n'
        for reason, count in reasons.most_common()
    )
    return (
        f"<h2>{counted(len(entries), 'sample')} left out as bad</h2>\n"
        '<table><tr><th>Samples</th><th class="text">Reason</th><th class="text">For example</th>'
        f"</tr>\n{rows}</table>\n"
    )


def _kind(reason: str) -> str:
    """A reason without what differs from sample to sample: names and numbers."""
    return _NUMBER.sub("#", _FILE.sub(r"…\1", reason))


def _breakable(text: str) -> str:
    """Text, escaped, whose long names a browser breaks between their fields."""
    return re.sub("([_/])", r"\1<wbr>", html.escape(text))


def sample_facts(manifest: Manifest, row: Mapping[str, Any]) -> str:
    """Key, dates, place, labels and flags of a sample, from its row of samples.parquet."""
    lon, lat = centre(row["footprint"])
    place = [
        f"{abs(lat):.3f}° {'N' if lat >= 0 else 'S'}, {abs(lon):.3f}° {'E' if lon >= 0 else 'W'}"
    ]
    place += [row[name] for name in ("country", "scene") if row.get(name)]
    dates = [
        f"{name} {row[column]:%Y-%m-%d %H:%M} UTC"
        for column, name in _TIMES.items()
        if row.get(column)
    ]
    flags = [name for column, name in _FLAGS.items() if row.get(column)]
    parts = [f"<h3>{_breakable(row['key'])}</h3>", f"<p>{html.escape(', '.join(place))}</p>"]
    if dates:
        parts.append(f"<p>{'<br>'.join(map(html.escape, dates))}</p>")
    if flags:
        marks = " ".join(f'<span class="flag">{html.escape(name)}</span>' for name in flags)
        parts.append(f"<p>{marks}</p>")
    parts += [_labels(manifest, name, row) for name in manifest.label_sets]
    return f"<div>{''.join(parts)}</div>"


def _labels(manifest: Manifest, label_set: str, row: Mapping[str, Any]) -> str:
    """The classes of a label set, with the fraction of the sample where that is known."""
    labels = row[label_column(label_set)] or ["none"]
    classes = manifest.label_sets[label_set]
    fractions = row.get("fractions")
    if fractions and len(fractions) == len(classes):
        share = dict(zip(classes, fractions, strict=True))
        labels = [
            f"{name} {100 * share[name]:.0f}\N{NO-BREAK SPACE}%" if name in share else name
            for name in labels
        ]
    text = html.escape("; ".join(labels))
    return f'<p><span class="note">{html.escape(label_set)}:</span> {text}</p>'
