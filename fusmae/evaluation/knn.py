"""The kNN probe: no training, the nearest labelled samples vote.

As DINO's (Caron et al. 2021, arXiv:2104.14294, after Wu et al. 2018, arXiv:1805.01978, sec. 3.4):
cosine similarity s, weights exp(s / T), T = 0.07, k = 20. Votes are multi-hot, so a class may
have any share of them; features are standardised first, as for the linear probe, which is OUR
choice: it lets features of unlike scales be compared.
"""

import torch
from torch import Tensor
from torch.nn import functional

# N labelled samples, M queries, D feature width, C classes, K neighbours.

# Similarities in memory at once: 2**26 float32 are 256 MiB.
_MAX_SIMILARITIES = 2**26


def knn_scores(
    features: Tensor, votes: Tensor, queries: Tensor, k: int, temperature: float
) -> Tensor:
    """The share of its neighbours' weighted votes that each class has, (M, C) in [0, 1].

    Args:
        features: (N, D) of the labelled samples.
        votes: (N, C), 0 or 1, what each of them speaks for.
        queries: (M, D).
        k: neighbours that vote.
        temperature: the lower, the more the nearest outweigh the others.

    Raises:
        ValueError: there are fewer than k labelled samples.
    """
    if len(features) < k:
        raise ValueError(
            f"k = {k} neighbours of {len(features)} labelled samples: lower k (--set k=...)"
        )
    known = functional.normalize(features, dim=1)
    rows = max(1, _MAX_SIMILARITIES // len(known))
    parts = []
    for part in torch.split(queries, rows):
        similarity = functional.normalize(part, dim=1) @ known.T  # (M, N)
        nearest = similarity.topk(k, dim=1)
        weights = torch.softmax(nearest.values / temperature, dim=1)  # (M, K)
        parts.append(torch.einsum("mk,mkc->mc", weights, votes[nearest.indices]))
    return torch.cat(parts)
