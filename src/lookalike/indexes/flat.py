"""Flat scans behind the one interface: float32, which is exact, and int8, a quarter of the memory."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import UsageError
from lookalike.indexes.base import BLOCK, Progress, Vectors, blocks, write_settings
from lookalike.indexes.exact import GATHER_BELOW, scan, top


class Exact:
    """The vectors themselves."""

    kind = "exact"
    gathered = 0

    def __init__(self, vectors: NDArray[np.float32], settings: dict[str, Any] | None = None):
        self.vectors = vectors
        self.settings: dict[str, Any] = settings or {"rerank": {"least": 1, "per_hit": 1}}
        self.ladder: list[dict[str, Any]] = []

    @classmethod
    def build(cls, vectors: NDArray[np.float32], progress: Progress | None = None) -> Exact:
        """Nothing to build."""
        return cls(vectors)

    @classmethod
    def load(cls, directory: Path, vectors: Any, settings: dict[str, Any]) -> Exact:
        """Nothing to load."""
        return cls(vectors, settings)

    @property
    def nbytes(self) -> int:
        """Of all vectors: each is read for each query."""
        return self.vectors.nbytes

    def candidates(
        self, query: NDArray[np.float32], n: int, allowed: NDArray[np.bool_] | None = None
    ) -> NDArray[np.intp]:
        """The ``n`` best."""
        return top(scan(self.vectors, query, allowed), n)

    def carried(self, vectors: Any, old: NDArray[np.int64], progress: Progress | None = None) -> Exact:
        """The other vectors."""
        return Exact(vectors, self.settings)

    def save(self, directory: Path) -> None:
        """Nothing but its settings."""
        write_settings(directory, self, len(self.vectors))


class Int8:
    """A byte for each number, one scale for all, scanned by numkong's vector instructions: a quarter of the memory."""

    kind = "int8"
    gathered = 10_000

    def __init__(self, codes: NDArray[np.int8], scale: float, settings: dict[str, Any]):
        self._cdist = _numkong().cdist
        self.codes, self.scale, self.settings = codes, scale, settings
        self.ladder = [{"rerank": {"least": n, "per_hit": n / 10}} for n in (10, 20, 50, 100, 200, 500, 1000)]

    @classmethod
    def build(cls, vectors: NDArray[np.float32], progress: Progress | None = None) -> Int8:
        """Two passes over ``vectors``: the largest number, then the codes."""
        _numkong()
        scale = (largest(vectors) or 1.0) / 127
        index = cls(np.empty(vectors.shape, np.int8), scale, {"rerank": {"least": 100, "per_hit": 3}})
        index._fill(vectors, np.full(len(vectors), -1), progress)
        return index

    def _fill(self, vectors: Vectors, old: NDArray[np.int64], progress: Progress | None) -> None:
        for start in range(0, len(old), BLOCK):
            new = start + np.flatnonzero(old[start : start + BLOCK] < 0)
            self.codes[new] = rounded(vectors[new], self.scale)
            if progress:
                progress(min(len(old), start + BLOCK), len(old))

    @classmethod
    def load(cls, directory: Path, vectors: Vectors, settings: dict[str, Any]) -> Int8:
        """Map the codes."""
        return cls(np.load(directory / "int8.npy", mmap_mode="r"), settings["scale"], settings)

    @property
    def nbytes(self) -> int:
        """Of all codes: each is read for each query."""
        return self.codes.nbytes

    def candidates(
        self, query: NDArray[np.float32], n: int, allowed: NDArray[np.bool_] | None = None
    ) -> NDArray[np.intp]:
        """The ``n`` best by the rounded numbers of query and vectors."""
        code = rounded(query, (float(np.abs(query).max(initial=0)) or 1.0) / 127)[None]
        few = allowed is not None and np.count_nonzero(allowed) < GATHER_BELOW * len(self.codes)
        rows = np.flatnonzero(allowed) if few and allowed is not None else None
        scores = self._scores(code, self.codes if rows is None else self.codes[rows])
        if allowed is not None and rows is None:
            scores[~allowed] = -np.inf
        best = top(scores, n)
        return best if rows is None else rows[best]

    def _scores(self, query: NDArray[np.int8], codes: NDArray[np.int8]) -> NDArray[np.float32]:
        scores = np.empty(len(codes), np.float32)
        for start in range(0, len(codes), 1 << 18):  # its answers are float64, which need not be held for all
            part = np.asarray(codes[start : start + (1 << 18)])
            scores[start : start + len(part)] = np.asarray(self._cdist(query, part, "dot"))[0]
        return scores

    def carried(self, vectors: Vectors, old: NDArray[np.int64], progress: Progress | None = None) -> Int8:
        """Codes as they were, with the same scale; all anew where a number of the new rows is beyond it."""
        fresh = np.flatnonzero(old < 0)
        parts = (vectors[fresh[start : start + BLOCK]] for start in range(0, len(fresh), BLOCK))
        if max((float(np.abs(part).max(initial=0)) for part in parts), default=0.0) > 127.5 * self.scale:
            index = Int8.build(vectors[:], progress)
            index.settings = deepcopy(self.settings)
            return index
        codes = np.empty(vectors.shape, np.int8)
        kept = old >= 0
        codes[kept] = self.codes[old[kept]]
        index = Int8(codes, self.scale, deepcopy(self.settings))
        index._fill(vectors, old, progress)
        return index

    def save(self, directory: Path) -> None:
        """Codes and settings."""
        np.save(directory / "int8.npy", self.codes)
        self.settings["scale"] = self.scale
        write_settings(directory, self, len(self.codes))


def largest(vectors: Vectors) -> float:
    """The largest number of all vectors, without its sign."""
    return max((float(np.abs(part).max(initial=0)) for _, part in blocks(vectors)), default=0.0)


def rounded(vectors: NDArray[np.float32], scale: float) -> NDArray[np.int8]:
    """Numbers as multiples of ``scale``, −127 … 127; what is beyond is cut."""
    return np.asarray(np.clip(np.rint(vectors / np.float32(scale)), -127, 127), np.int8)


def _numkong() -> Any:
    try:
        import numkong
    except ImportError:
        raise UsageError("the index int8 wants numkong: pip install 'lookalike[hnsw]'") from None
    return numkong
