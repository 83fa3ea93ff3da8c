"""What the loaders have in common before they read: the rank, the device, the split."""

from pathlib import Path

import torch

from fusmae.config import DataConfig
from fusmae.data.bands import arrays_for
from fusmae.data.reader import SplitReader
from fusmae.data.remote import local_folder
from fusmae.data.whole import whole
from fusmae.manifest import read_manifest

Device = torch.device | str | None


def open_split(dataset: Path | str, split: str | None, data: DataConfig) -> SplitReader:
    """The reader of `split`, or of the one that `data` names."""
    if not isinstance(data, DataConfig):
        raise ValueError(
            f"data = {data!r} must be a fusmae.config.DataConfig, such as "
            "DataConfig(bands={'s1': ('VV', 'VH')})"
        )
    dataset = local_folder(dataset)
    arrays = arrays_for(read_manifest(dataset), data.bands)
    reader = SplitReader(dataset, data.split if split is None else split, arrays, data.cache_gb)
    reader.check_shards()
    return reader


def resolve_device(device: Device) -> torch.device:
    try:
        resolved = torch.device(device or "cpu")
    except (RuntimeError, TypeError):
        raise ValueError(f"device = {device!r} must be one of torch's, such as 'cuda'") from None
    if resolved.type == "cuda" and resolved.index is None and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return resolved


def check_rank(rank: int, world_size: int) -> None:
    if whole("rank", rank, least=0) >= whole("world_size", world_size):
        raise ValueError(f"rank = {rank} must be from 0 to world_size - 1 = {world_size - 1}")


def no_len(loader: object) -> str:
    """What an endless loader says to `len`, which a `DataLoader` asks for."""
    name = type(loader).__name__
    return (
        f"a {name} is endless and has no len: iterate it itself, it reads ahead by threads of its "
        "own; for a torch DataLoader there is open_dataset(...).stream(...)"
    )
