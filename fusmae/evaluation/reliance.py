"""Reliance on a sensor: what a score loses when that sensor's images are other samples'.

Permutation importance (Breiman 2001, sec. 10; Fisher et al. 2019, arXiv:1801.01489) with a sensor
as the feature: the classifier stays as it is, each sample keeps its labels and its other sensors.
Unlike a missing sensor, which an encoder may do without, a false one is seen for what it is worth.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fusmae.config import DataConfig
from fusmae.data import Batch, EvalLoader
from fusmae.sensors import dataset_sensor

# N samples.

# Opens the samples of these ids (N,), in their order, with the arrays that the bands need.
OpenLoader = Callable[[Tensor, DataConfig], EvalLoader]


def derangement(count: int, seed: int) -> Tensor:
    """A permutation of 0 ... count - 1, (N,) int64, that leaves no number in its place.

    One cycle through all of them, each such cycle as likely as any other.

    Raises:
        ValueError: `count` is below 2.
    """
    if count < 2:
        raise ValueError(
            f"{count} samples cannot exchange images: reliance needs 2 or more test samples "
            "(--set reliance=false)"
        )
    cycle = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    partner = torch.empty_like(cycle)
    partner[cycle] = cycle.roll(1)
    return partner


def exchangeable(data: DataConfig) -> list[str]:
    """The dataset's sensors that may be exchanged: all of them, or none where one is alone.

    Groups of a sensor's bands, such as `s2_10m` and `s2_20m`, are one sensor here.
    """
    sensors = list(dict.fromkeys(dataset_sensor(name) for name in data.bands))
    return sensors if len(sensors) > 1 else []


def exchanged_batches(
    open_loader: OpenLoader, ids: Tensor, data: DataConfig, sensor: str, seed: int
) -> Iterator[Batch]:
    """The samples `ids` with the arrays of `sensor` from other samples among them.

    The exchange is `derangement(N, seed)`, the same for every sensor. Batches live as those of
    `EvalLoader`.
    """
    bands = {name: b for name, b in data.bands.items() if dataset_sensor(name) == sensor}
    others = open_loader(ids[derangement(len(ids), seed)], replace(data, bands=bands))
    for batch, other in zip(open_loader(ids, data), others, strict=True):
        yield replace(batch, arrays=batch.arrays | other.arrays)


def reliance(
    whole: Mapping[str, Any], exchanged: Mapping[str, Mapping[str, Any]], metric: str
) -> dict[str, float]:
    """By sensor, `metric` of the samples as they are less that with this sensor exchanged."""
    return {sensor: whole[metric] - scores[metric] for sensor, scores in exchanged.items()}
