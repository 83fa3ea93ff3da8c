"""Streaming: shards to pinned batches in a pure, resumable order, and device transforms."""

from fusmae.data.loader import EvalLoader, TrainLoader
from fusmae.data.order import Order
from fusmae.data.reader import SplitReader, arrays_for
from fusmae.data.remote import locate_dataset, location_of
from fusmae.data.ring import Batch
from fusmae.data.transforms import Preprocess, resample

__all__ = [
    "Batch",
    "EvalLoader",
    "Order",
    "Preprocess",
    "SplitReader",
    "TrainLoader",
    "arrays_for",
    "location_of",
    "locate_dataset",
    "resample",
]
