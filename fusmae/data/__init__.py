"""Streaming: shards to pinned batches in a pure, resumable order, and device transforms."""

from fusmae.data.loader import EvalLoader, TrainLoader
from fusmae.data.mixture import MixedBatch, MixedPreprocess, MixtureLoader
from fusmae.data.order import Order
from fusmae.data.reader import SplitReader, arrays_for
from fusmae.data.ring import Batch
from fusmae.data.transforms import Preprocess, resample

__all__ = [
    "Batch",
    "EvalLoader",
    "MixedBatch",
    "MixedPreprocess",
    "MixtureLoader",
    "Order",
    "Preprocess",
    "SplitReader",
    "TrainLoader",
    "arrays_for",
    "resample",
]
