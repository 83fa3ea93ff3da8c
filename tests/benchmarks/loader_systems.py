"""The systems of the loader benchmark: ours and its peers, each as an endless row of epochs.

A system is given the folder of `loader_data.prepare` and a number of workers (threads or
processes; 0 reads in this process) and yields one iterable of batches an epoch. A batch
is a dictionary of torch tensors: the arrays at native resolution and `index`, the sample's number.
Workers of peers stay from epoch to epoch, which spares them a restart.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from loader_data import ARRAYS, SPLIT
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fusmae.config import DataConfig
from fusmae.data import Batch, SplitReader, TrainLoader, open_dataset
from fusmae.torchvision_repair import repair_torchvision

BATCH = 128
# Samples that webdataset's buffer holds, in each worker.
WDS_BUFFER = 1000
SEED = 0

Epochs = Iterator[Iterator[dict[str, Tensor]]]


def tensors(batch: Batch, start: int = 0, stop: int | None = None) -> dict[str, Tensor]:
    """Rows of one of our batches, as every system here gives them."""
    part = batch.rows(start, len(batch) if stop is None else stop)
    return {"index": part.sample_ids, **part.arrays}


def cut_epochs(batches: Iterator[Batch], num_samples: int) -> Epochs:
    """An endless sequence cut at each epoch's end; the batch across it is given as two parts."""
    rest: tuple[Batch, int] | None = None

    def epoch(end: int) -> Iterator[dict[str, Tensor]]:
        nonlocal rest
        while True:
            batch, start = rest or (next(batches), 0)
            rest = None
            stop = min(len(batch), end - int(batch.positions[0]))
            yield tensors(batch, start, stop)
            if stop < len(batch):
                rest = batch, stop
            if int(batch.positions[0]) + stop == end:
                return

    end = 0
    while True:
        end += num_samples
        yield epoch(end)


def ours(data: Path, workers: int, window: int = 0, stored: str = "dataset") -> Epochs:
    pin = torch.cuda.is_available()
    loader = TrainLoader(
        data / stored,
        DataConfig(split=SPLIT, window=window),
        SEED,
        BATCH,
        0,
        1,
        BATCH,
        num_threads=workers,
        pin=pin,
    )
    with loader:
        yield from cut_epochs(loader, loader.num_samples)


def stream(data: Path, workers: int) -> Epochs:
    """`ds.stream`: the same order and threads, and each batch the caller's own."""
    view = open_dataset(data / "dataset", SPLIT)
    batches = (
        Batch(
            {name: batch[name] for name in view.bands},
            batch["positions"],
            batch["sample_ids"],
            torch.ones(len(batch["positions"])),
        )
        for batch in view.stream(BATCH, SEED, num_threads=workers)
    )
    yield from cut_epochs(batches, len(view))


def _loader_options(workers: int) -> dict[str, Any]:
    options: dict[str, Any] = {"num_workers": workers, "pin_memory": torch.cuda.is_available()}
    return options | ({"persistent_workers": True} if workers else {})


def webdataset(data: Path, workers: int, buffer: int = WDS_BUFFER) -> Epochs:
    """On our own shards; the JSON member is left out, which plain `decode()` would parse."""
    reader = SplitReader(data / "dataset", SPLIT)
    urls = [str(data / "dataset" / shard.path) for shard in reader.record.shards]
    return webdataset_of(reader, urls, workers, buffer)


def webdataset_of(reader: SplitReader, urls: list[str], workers: int, buffer: int) -> Epochs:
    """webdataset on the shards at `urls`, whose keys `reader` numbers."""
    import webdataset

    number = {key: index for index, key in enumerate(reader.keys())}
    pipeline = (
        webdataset.WebDataset(
            urls, shardshuffle=len(urls), select_files=lambda name: name.endswith(".npy")
        )
        .shuffle(buffer)
        .decode()
        .to_tuple("__key__", *(f"{name}.npy" for name in ARRAYS))
        .batched(BATCH)
    )
    loader = DataLoader(pipeline, batch_size=None, **_loader_options(workers))

    def epoch() -> Iterator[dict[str, Tensor]]:
        for keys, *arrays in loader:
            index = torch.tensor([number[key] for key in keys])
            # In this process, without workers, batches come as numpy arrays.
            yield {"index": index, **dict(zip(ARRAYS, map(torch.as_tensor, arrays), strict=True))}

    while True:
        yield epoch()


def mosaicml(data: Path, workers: int) -> Epochs:
    return mosaicml_at({"local": str(data / "mds")}, workers)


def mosaicml_at(place: dict[str, str], workers: int) -> Epochs:
    """`py1e`, its default shuffle, whose blocks of 262,144 samples hold this set whole."""
    repair_torchvision()
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    dataset = StreamingDataset(**place, shuffle=True, batch_size=BATCH)
    loader = DataLoader(dataset, batch_size=BATCH, **_loader_options(workers))
    while True:
        yield iter(loader)


def litdata(data: Path, workers: int, batch_decode: str | None = None) -> Epochs:
    if batch_decode is not None:
        os.environ["LITDATA_BATCH_DECODE"] = batch_decode
    return litdata_at(str(data / "litdata"), workers)


def litdata_at(place: str, workers: int, **options: Any) -> Epochs:
    """The dataset at `place`; `options` are those of its reader."""
    repair_torchvision()
    from litdata import StreamingDataLoader, StreamingDataset

    dataset = StreamingDataset(place, shuffle=True, **options)
    loader = StreamingDataLoader(dataset, batch_size=BATCH, **_loader_options(workers))
    while True:
        yield iter(loader)


class _Files(Dataset[dict[str, Any]]):
    """What a project writes at first: the GeoTIFFs as they are, through rasterio."""

    def __init__(self, data: Path) -> None:
        import json

        from real_content import S1_ROOT, S2_ROOT

        from fusmae.data import SplitReader

        partner = {}
        for path in (data / "archive" / S1_ROOT).glob("*/*.json"):
            partner[json.loads(path.read_text())["corresponding_s2_patch"]] = path.parent
        keys = SplitReader(data / "dataset", SPLIT).keys()
        self._folders = [
            {"s1": partner[key], "s2": data / "archive" / S2_ROOT / key} for key in keys
        ]

    def __len__(self) -> int:
        return len(self._folders)

    def __getitem__(self, index: int) -> dict[str, Any]:
        import numpy as np
        import rasterio

        sample: dict[str, Any] = {"index": index}
        for spec in ARRAYS.values():
            folder = self._folders[index][spec.sensor]
            bands = []
            for band in spec.band_names:
                with rasterio.open(folder / f"{folder.name}_{band}.tif") as file:
                    bands.append(file.read(1))
            sample[spec.name] = np.stack(bands)
        return sample


def rasterio_files(data: Path, workers: int) -> Epochs:
    loader = DataLoader(_Files(data), batch_size=BATCH, shuffle=True, **_loader_options(workers))
    while True:
        yield iter(loader)


@dataclass(frozen=True)
class System:
    """What the table says of a system.

    epochs: opens it on a folder with a number of workers.
    stored: the folder of its format.
    shuffle: how far it shuffles.
    package: what must be installed for it.
    slow: ten seconds or a minute an epoch: one round, one timed epoch.
    """

    epochs: Callable[[Path, int], Epochs]
    stored: str
    shuffle: str
    package: str = "torch"
    slow: bool = False


GLOBAL = "global"
# Where memory is limited, in each worker.
SMALL_BUFFER = 200
OURS = {
    "ours": System(ours, "dataset", GLOBAL),
    "ours, many shards": System(partial(ours, stored="many"), "many", GLOBAL),
    "ours by ds.stream": System(stream, "dataset", GLOBAL),
    "ours, window of 4 shards": System(partial(ours, window=4), "dataset", "4 shards together"),
}
# Beside the peers, for little memory.
SMALL = {
    "webdataset, small buffer": System(
        partial(webdataset, buffer=SMALL_BUFFER),
        "dataset",
        f"shards, then a buffer of {SMALL_BUFFER} a worker",
        "webdataset",
    ),
}
PEERS = {
    "webdataset": System(
        webdataset, "dataset", f"shards, then a buffer of {WDS_BUFFER} a worker", "webdataset"
    ),
    "mosaicml": System(mosaicml, "mds", "py1e, global at this size", "streaming"),
    "litdata": System(
        litdata, "litdata", "chunks, then windows within a chunk", "litdata", slow=True
    ),
    "litdata, LITDATA_BATCH_DECODE=0": System(
        partial(litdata, batch_decode="0"),
        "litdata",
        "chunks, then windows within a chunk",
        "litdata",
    ),
    "rasterio files": System(rasterio_files, "archive", GLOBAL, "rasterio", slow=True),
}
