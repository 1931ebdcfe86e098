"""The exact scan: one matrix-vector product. The default, and what every approximate index is measured against."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GATHER_BELOW = 0.25
"""Share of rows under which copying the rows that pass a filter is cheaper than scanning all of them."""


def scan(
    vectors: NDArray[np.float32], query: NDArray[np.float32], mask: NDArray[np.bool_] | None = None
) -> NDArray[np.float32]:
    """Cosines of unit ``vectors`` (n, dim) with a unit ``query`` (dim,), else dot products: (n,), −inf where not ``mask``."""
    if mask is None:
        return vectors @ query
    if np.count_nonzero(mask) < GATHER_BELOW * len(vectors):
        rows = np.flatnonzero(mask)
        scores = np.full(len(vectors), -np.inf, np.float32)
        scores[rows] = vectors[rows] @ query
        return scores
    scores = vectors @ query
    scores[~mask] = -np.inf
    return scores


def top(scores: NDArray[np.float32], k: int, rank: NDArray[np.float64] | None = None) -> NDArray[np.intp]:
    """Positions of the ``k`` largest scores, best first, equal ones by ``rank`` (by default their positions); −inf never is."""
    k = min(k, len(scores))
    if k <= 0:
        return np.empty(0, np.intp)
    # Everything at least as good as the k-th, so that ties at the edge are cut in a fixed order.
    edge = np.partition(scores, len(scores) - k)[len(scores) - k]
    rows = np.flatnonzero(scores >= edge) if edge > -np.inf else np.flatnonzero(scores > -np.inf)
    if rank is None:
        return rows[np.argsort(-scores[rows], kind="stable")][:k]
    return rows[np.lexsort((rank[rows], -scores[rows]))][:k]
