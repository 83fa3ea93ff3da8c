"""The part of a dataset's card that shows how to read it: one short example a library.

Examples are run from the dataset's folder, as they stand; only what the dataset holds is shown.
"""

import numpy as np

from fusmae.manifest import Manifest, SplitRecord
from fusmae.sensors import ArraySpec

from .layout import store_path


def reading_text(manifest: Manifest) -> str:
    """Markdown: an example for each library that can read what was written."""
    split = manifest.statistics_split
    record = manifest.splits[split]
    spec = _shown(manifest)
    examples = []
    if record.shards:
        examples += [_webdataset(record, spec), _datasets(split, spec)]
    if record.zarr:
        examples.append(_xarray(split, spec))
    examples += [_tables(split), _MLCROISSANT]
    return "\n".join(examples)


def _shown(manifest: Manifest) -> ArraySpec:
    """The array that examples show: the first optical one, or else the first."""
    return next((spec for spec in manifest.arrays if spec.sensor == "s2"), manifest.arrays[0])


def _pixels(spec: ArraySpec) -> str:
    return f"{np.dtype(spec.dtype)}, {spec.shape}"


def brace_url(record: SplitRecord) -> str:
    """All shards of a split as webdataset writes it: `NAME-{000000..000123}.tar`."""
    first, last = record.shards[0].path, record.shards[-1].path
    stem, _, number = first.removesuffix(".tar").rpartition("-")
    end = last.removesuffix(".tar").rpartition("-")[2]
    return first if first == last else f"{stem}-{{{number}..{end}}}.tar"


def _webdataset(record: SplitRecord, spec: ArraySpec) -> str:
    return f"""\
WebDataset, one dict a sample:

```python
import webdataset
shards = "{brace_url(record)}"
sample = next(iter(webdataset.WebDataset(shards, shardshuffle=False).decode()))
sample["{spec.name}.npy"]  # {_pixels(spec)}; {", ".join(spec.band_names)}
```
"""


def _datasets(split: str, spec: ArraySpec) -> str:
    return f"""\
Hugging Face datasets, from this folder; from the hub, `load_dataset("OWNER/NAME")` will do:

```python
import datasets, numpy
files = {{"{split}": "shards/{split}/*.tar"}}
shards = datasets.load_dataset("webdataset", data_files=files, split="{split}", streaming=True)
numpy.array(next(iter(shards))["{spec.name}.npy"])  # {_pixels(spec)}
```
"""


def _xarray(split: str, spec: ArraySpec) -> str:
    return f"""\
xarray, every sample of a split as one array:

```python
import xarray
store = xarray.open_zarr("{store_path(split)}")
store["{spec.name}"][0].values  # {_pixels(spec)}
```
"""


def _tables(split: str) -> str:
    return f"""\
pandas, a row a sample: keys, splits, labels, footprints and more (with geometry: geopandas):

```python
import pandas, geopandas
samples = pandas.read_parquet("samples.parquet").query("split == '{split}'")
geopandas.read_parquet("samples.parquet").total_bounds  # west, south, east, north
```
"""


_MLCROISSANT = """\
mlcroissant, the same rows by the description in `croissant.json`:

```python
import mlcroissant
samples = mlcroissant.Dataset("croissant.json").records("samples")
next(iter(samples))["samples/key"]
```
"""
