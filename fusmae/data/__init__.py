"""Streaming: shards to pinned batches in a pure, resumable order, and device transforms."""

from fusmae.config import SubsetConfig
from fusmae.data.augment import random_crops, random_flips
from fusmae.data.bands import arrays_for
from fusmae.data.eval_loader import EvalLoader
from fusmae.data.loader import TrainLoader
from fusmae.data.mixture import MixedBatch, MixedPreprocess, MixtureLoader
from fusmae.data.order import Order
from fusmae.data.preprocess import Preprocess
from fusmae.data.reader import SplitReader
from fusmae.data.remote import locate_dataset, location_of
from fusmae.data.ring import Batch
from fusmae.data.sample_stream import SampleStream
from fusmae.data.transforms import (
    clip_percentiles,
    normalise,
    percentile_limits,
    resample,
)
from fusmae.data.view import DatasetView, open_dataset

__all__ = [
    "Batch",
    "DatasetView",
    "EvalLoader",
    "MixedBatch",
    "MixedPreprocess",
    "MixtureLoader",
    "Order",
    "Preprocess",
    "SampleStream",
    "SplitReader",
    "SubsetConfig",
    "TrainLoader",
    "arrays_for",
    "clip_percentiles",
    "locate_dataset",
    "location_of",
    "normalise",
    "open_dataset",
    "percentile_limits",
    "random_crops",
    "random_flips",
    "resample",
]


def __dir__() -> list[str]:
    """The public names; the modules behind them are not part of the interface."""
    return __all__
