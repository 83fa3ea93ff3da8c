"""A run's embeddings in the plane, to see whether classes lie together."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from fusmae.data import SplitReader
from fusmae.evaluation.labelled import smallest_label_set
from fusmae.evaluation.reconstruction import BATCH, Pretrained, read_images
from fusmae.labels import multi_hot
from fusmae.manifest import Manifest

# N samples, D width, C classes

# scikit-learn's default; it must be below the number of samples.
_PERPLEXITY = 30.0
_FEWEST = 10

Plane = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Embedding:
    """Samples in the plane, (N, 2), and the classes that they have, (N, C) bool."""

    points: Plane
    has: npt.NDArray[np.bool_]
    classes: tuple[str, ...]
    label_set: str


def embed_classes(
    pretrained: Pretrained, manifest: Manifest, dataset: Path, split: str, num_samples: int
) -> Embedding | None:
    """t-SNE of the mean sensor tokens of a split's first samples; nothing is masked.

    The classes are those of the dataset's smallest label set. None where it has no labels or there
    are fewer than 10 samples.
    """
    count = min(num_samples, manifest.split(split).num_samples)
    if count < _FEWEST or not manifest.label_sets:
        return None
    label_set = smallest_label_set(manifest)
    classes = manifest.label_sets[label_set]
    labels = SplitReader(dataset, split).labels(label_set)[:count]
    features = pooled_tokens(pretrained, dataset, split, count)
    has = multi_hot(labels, classes).astype(bool)
    return Embedding(to_plane(features.numpy()), has, tuple(classes), label_set)


def pooled_tokens(pretrained: Pretrained, dataset: Path, split: str, count: int) -> Tensor:
    """The mean over all sensors' tokens of the first `count` samples, (N, D)."""
    encoder = pretrained.model.encoder
    batches = track(
        read_images(pretrained, dataset, split, count),
        "Embedding",
        total=-(-count // BATCH),
        console=Console(stderr=True),
    )
    with torch.inference_mode():
        return torch.cat([encoder.pool(encoder(images)) for _, images in batches])


def to_plane(features: Plane) -> Plane:
    """t-SNE (van der Maaten and Hinton 2008) of standardised features, (N, D) to (N, 2).

    From principal components, so without a draw.
    """
    from sklearn.manifold import TSNE  # here, because it takes a second

    scaled = (features - features.mean(0)) / (features.std(0) + 1e-6)
    perplexity = min(_PERPLEXITY, (len(features) - 1) / 3)
    plane: Plane = TSNE(
        n_components=2, perplexity=perplexity, init="pca", random_state=0
    ).fit_transform(scaled)
    return plane
