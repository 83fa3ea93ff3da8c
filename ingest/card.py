"""README.md of a dataset: what it is and how to read it, with Hugging Face front matter."""

from fusmae.manifest import Manifest

_READ_SHARDS = """\
WebDataset, one dict a sample:

```python
import glob, webdataset
shards = sorted(glob.glob("shards/{split}/*.tar"))
sample = next(iter(webdataset.WebDataset(shards, shardshuffle=False).decode()))
sample["s1.npy"]  # (2, 120, 120) float32, dB, VV then VH
```
"""

_READ_ZARR = """
xarray, every sample of a split as one array:

```python
import xarray
xarray.open_zarr("zarr/{split}.zarr").s2_10m[0]
```
"""

_READ_TABLE = """
pandas, a row a sample: keys, splits, labels, footprints, times:

```python
import pandas
pandas.read_parquet("samples.parquet")
```
"""


def card_text(manifest: Manifest) -> str:
    """The card: source, licence, splits, bands with their statistics, how to read it."""
    split = manifest.statistics_split
    lines = [
        "---",
        f"pretty_name: {manifest.name}",
        f"license: {manifest.source['licence_id']}",
        "task_categories: [image-feature-extraction, image-classification]",
        "tags: [earth-observation, sentinel-1, sentinel-2, webdataset, zarr]",
        "---",
        "",
        f"# {manifest.name}",
        "",
    ]
    if manifest.simulated:
        lines += ["**Simulated: no pixel or label here was ever observed.**", ""]
    lines += [
        f"{manifest.source['title']}. {manifest.source['processing']}",
        f"Licence: {manifest.source['licence']}. Citation: {manifest.source['citation']}",
        "",
        "| split | samples | shards |",
        "|---|---|---|",
        *(f"| {n} | {s.num_samples:,} | {len(s.shards)} |" for n, s in manifest.splits.items()),
        "",
        f"Statistics below are those of the {split} split, in stored units.",
        "",
        "| array | band | GSD | unit | mean | std | min | max |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for spec in manifest.arrays:
        stats = manifest.statistics[spec.name]
        for i, band in enumerate(spec.bands):
            lines.append(
                f"| {spec.name} | {band.name} | {band.gsd_m} m | {spec.unit} | "
                f"{stats.mean[i]:.3f} | {stats.std[i]:.3f} | {stats.min[i]:g} | {stats.max[i]:g} |"
            )
    text = "\n".join(lines) + "\n\n## Read it\n\n"
    if manifest.splits[split].shards:
        text += _READ_SHARDS.format(split=split)
    if manifest.splits[split].zarr:
        text += _READ_ZARR.format(split=split)
    return text + _READ_TABLE
