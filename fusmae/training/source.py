"""A dataset that a run trains on: which samples, how many a step, its stream and its images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fusmae.config import DataConfig, PretrainRecipe, RunConfig
from fusmae.data import MixedPreprocess, MixtureLoader, Preprocess, SplitReader, TrainLoader
from fusmae.data.mixture import cut_quotas, source_seed
from fusmae.data.subset import list_keys, subset_ids
from fusmae.manifest import Manifest, manifest_sha256, read_manifest
from fusmae.training.durable import replace_file
from fusmae.training.ranks import Ranks


@dataclass(frozen=True)
class Source:
    """One dataset of a run.

    `data` is the recipe's, with the subset of this dataset; `keys` lists the samples in that,
    one a line, None for the whole split. `num_samples` is an epoch's, `quota` a global batch's.
    """

    path: Path
    manifest: Manifest
    manifest_sha256: str
    data: DataConfig
    quota: int
    num_samples: int
    keys: str | None


def read_sources(recipe: PretrainRecipe, paths: Sequence[Path]) -> tuple[Source, ...]:
    """The recipe's sources with the datasets in `paths`, in their order.

    Raises:
        ValueError: there are more datasets than sources or fewer, or a dataset is broken or lacks
            the split, a band or the subset.
    """
    wanted = recipe.sources
    if len(paths) != len(wanted):
        raise ValueError(
            f"{len(paths)} datasets are given with --data, the recipe has {len(wanted)}: "
            "give --data once for each [[data.sources]] of the recipe, in their order"
        )
    return tuple(
        _read_source(path, replace(recipe.data, sources=(), subset=source.subset), source.quota)
        for path, source in zip(paths, wanted, strict=True)
    )


def _read_source(path: Path, data: DataConfig, quota: int) -> Source:
    manifest = read_manifest(path)
    for sensor, bands in data.bands.items():
        for band in bands:
            manifest.find_band(sensor, band)
    num_samples, keys = manifest.split(data.split).num_samples, None
    if not data.subset.is_whole:
        reader = SplitReader(path, data.split)
        ids = subset_ids(reader, data.subset)
        assert ids is not None
        num_samples, keys = len(ids), list_keys(reader, ids)
    return Source(path, manifest, manifest_sha256(path), data, quota, num_samples, keys)


def open_stream(
    sources: Sequence[Source],
    seed: int,
    ranks: Ranks,
    micro_batch: int,
    device: torch.device,
    num_threads: int = RunConfig.read_threads,
) -> MixtureLoader:
    """One rank's endless stream of the sources' samples, on `device`; `num_threads` read each.

    Raises:
        ValueError: the quotas do not divide, or a dataset is broken.
    """
    quotas = [source.quota for source in sources]
    shares = cut_quotas(quotas, ranks.world_size, micro_batch)
    loaders = [
        TrainLoader(
            source.path,
            source.data,
            seed=source_seed(seed, number),
            global_batch=source.quota,
            rank=ranks.rank,
            world_size=ranks.world_size,
            micro_batch=share,
            num_threads=num_threads,
            pin=device.type == "cuda",
            device=device,
            cache_share=1 / len(sources),
        )
        for number, (source, share) in enumerate(zip(sources, shares, strict=True))
    ]
    return MixtureLoader(loaders)


def make_preprocess(sources: Sequence[Source], sizes_px: Mapping[str, int]) -> MixedPreprocess:
    """What brings the sources' samples to the model's bands and grid."""
    return MixedPreprocess(
        [
            Preprocess(source.manifest, source.data.bands, sizes_px, source.data.resample)
            for source in sources
        ]
    )


def save_subsets(sources: Sequence[Source], run: Path) -> None:
    """Write RUN/subset-N.txt, the keys of source N's samples, where that is not a whole split.

    A recipe's `keys` reads them back.
    """
    for number, source in enumerate(sources):
        if source.keys is not None:
            replace_file(run / f"subset-{number}.txt", source.keys.encode())
