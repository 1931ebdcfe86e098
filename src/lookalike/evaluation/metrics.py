"""Retrieval metrics as pure functions over ranked relevance: bool (queries, ranks), True where the hit is relevant."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Relevance = NDArray[np.bool_]
PerQuery = NDArray[np.float64]


def precision(relevance: Relevance, k: int) -> PerQuery:
    """Share of relevant hits among the first ``k``, per query."""
    return np.asarray(relevance[:, :k].mean(1), np.float64)


def recall(relevance: Relevance, counts: NDArray[np.integer], k: int) -> PerQuery:
    """Relevant hits among the first ``k`` over all relevant ones (``counts``, each at least 1), per query."""
    return np.asarray(relevance[:, :k].sum(1) / counts, np.float64)


def found(relevance: Relevance, k: int) -> PerQuery:
    """1 where any of the first ``k`` hits is relevant, else 0, per query: what DeepFashion's In-Shop calls Recall@k."""
    return np.asarray(relevance[:, :k].any(1), np.float64)


def r_precision(relevance: Relevance, counts: NDArray[np.integer]) -> PerQuery:
    """Share of relevant hits among the first R, R being the number of relevant ones (``counts``, 1 to ranks), per query."""
    within = np.arange(relevance.shape[1]) < counts[:, None]
    return np.asarray((relevance & within).sum(1) / counts, np.float64)


def average_precision_at_r(relevance: Relevance, counts: NDArray[np.integer]) -> PerQuery:
    """Precision at each relevant hit among the first R, summed, over R (``counts``, 1 to ranks): its mean is MAP@R.

    Musgrave et al. 2020, "A Metric Learning Reality Check".
    """
    ranks = np.arange(1, relevance.shape[1] + 1)
    hits = relevance & (ranks <= counts[:, None])
    return np.asarray((np.cumsum(hits, axis=1) / ranks * hits).sum(1) / counts, np.float64)


def reciprocal_rank(relevance: Relevance, k: int = 10) -> PerQuery:
    """1 / rank of the first relevant hit within the first ``k``, 0 where there is none, per query."""
    found = relevance[:, :k]
    return np.where(found.any(1), 1.0 / (found.argmax(1) + 1), 0.0)


def interval(values: PerQuery, seed: int = 0, draws: int = 2000) -> tuple[float, float]:
    """95% interval of the mean by the bootstrap over queries (Efron 1979)."""
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(draws)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def neighbours(vectors: NDArray[np.float32], rows: NDArray[np.int64], k: int = 10) -> NDArray[np.int64]:
    """The ``k`` most similar others of each row of ``vectors`` (n, dim): (rows, k). The row itself is left out, wherever it
    stands among equals; where there are fewer than ``k`` others, all of them.
    """
    order = ranked(vectors, vectors[rows], k + 1)
    return np.array([[n for n in near if n != row][:k] for near, row in zip(order, rows, strict=True)])


def ranked(vectors: NDArray[np.float32], queries: NDArray[np.float32], k: int, batch: int = 64) -> NDArray[np.int64]:
    """Rows of the ``k`` most similar ``vectors`` (n, dim) for each of ``queries`` (q, dim): (q, k), best first."""
    k = min(k, len(vectors))
    out = np.empty((len(queries), k), np.int64)
    for start in range(0, len(queries), batch):
        scores = queries[start : start + batch] @ vectors.T
        part = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(scores, part, 1), axis=1, kind="stable")
        out[start : start + batch] = np.take_along_axis(part, order, 1)
    return out
