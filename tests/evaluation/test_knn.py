"""kNN votes against scikit-learn's neighbours, and what they must do by construction."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from fusmae.evaluation import knn
from fusmae.evaluation.knn import knn_scores

RNG = np.random.default_rng(0)
FEATURES = torch.tensor(RNG.normal(size=(60, 8)), dtype=torch.float32)
QUERIES = torch.tensor(RNG.normal(size=(23, 8)), dtype=torch.float32)


def test_multi_label_votes_equal_a_plain_loop_over_scikit_learns_neighbours() -> None:
    votes = torch.tensor(RNG.integers(0, 2, (60, 5)), dtype=torch.float32)
    got = knn_scores(FEATURES, votes, QUERIES, k=7, temperature=0.07)
    finder = NearestNeighbors(n_neighbors=7, metric="cosine").fit(FEATURES)
    expected = []
    for distances, rows in zip(*finder.kneighbors(QUERIES), strict=True):
        weights = np.exp((1 - distances) / 0.07)
        expected.append(weights @ votes[rows].numpy() / weights.sum())
    # float32 similarities over a temperature of 0.07.
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert got.min() >= 0 and got.max() <= 1 + 1e-6


def test_single_label_votes_equal_scikit_learns_weighted_classifier() -> None:
    target = RNG.integers(0, 4, 60)
    oracle = KNeighborsClassifier(9, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.1))
    expected = oracle.fit(FEATURES, target).predict_proba(QUERIES)
    votes = torch.nn.functional.one_hot(torch.tensor(target), 4).float()
    got = knn_scores(FEATURES, votes, QUERIES, k=9, temperature=0.1)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_lengths_of_features_and_blocks_of_queries_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    votes = torch.eye(60)
    whole = knn_scores(FEATURES, votes, QUERIES, k=5, temperature=0.07)
    monkeypatch.setattr(knn, "_MAX_SIMILARITIES", 60 * 4)  # 6 blocks of at most 4 queries
    longer = knn_scores(FEATURES * 3, votes, QUERIES * 0.2, k=5, temperature=0.07)
    torch.testing.assert_close(whole, longer, rtol=1e-4, atol=1e-5)


def test_more_neighbours_than_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="k = 61 neighbours of 60 labelled samples: lower k"):
        knn_scores(FEATURES, torch.eye(60), QUERIES, k=61, temperature=0.07)
