"""Binary codes: random hyperplanes, scanned by Hamming distance, sorted out by RaBitQ's estimate, scored exactly at the end.

Charikar, "Similarity Estimation Techniques from Rounding Algorithms" (STOC 2002): a bit for the side of each hyperplane. The
hyperplanes are orthogonal (Ji et al., "Super-Bit Locality-Sensitive Hashing", NIPS 2012) and lie around the vectors' mean;
ITQ (Gong and Lazebnik, "Iterative Quantization", CVPR 2011) learns their rotation, as an option. Of those near by Hamming
distance, the inner product is estimated from the same bits, the query in 4 bits a number: Gao and Long, "RaBitQ" (SIGMOD 2024).
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import UsageError
from lookalike.indexes.base import BLOCK, Progress, Vectors, write_settings
from lookalike.indexes.exact import top

SAMPLE = 50_000
"""Vectors that the mean and ITQ's rotation are taken from."""

ITQ_ROUNDS = 30

LEVELS = 4
"""Bits that a number of the query is rounded to."""


class Lsh:
    """Codes as columns of 64-bit words: a scan reads one word of many rows at a time, which numpy does at memory speed."""

    kind = "lsh"
    gathered = 10_000

    def __init__(
        self,
        words: NDArray[np.uint64],
        factors: NDArray[np.float32],
        mean: NDArray[np.float32],
        planes: NDArray[np.float32],
        settings: dict[str, Any],
    ):
        """``words`` (bits / 64, rows); ``factors`` (rows,): RaBitQ's; ``mean`` (dim,); ``planes`` (dim, bits)."""
        self.words, self.factors, self.mean, self.planes, self.settings = words, factors, mean, planes, settings
        self.ladder = [
            {"nearest": 10 * n, "rerank": {"least": n, "per_hit": n / 10}}
            for n in (50, 100, 200, 500, 1000, 2000, 5000, 10_000)
        ]

    @classmethod
    def build(
        cls,
        vectors: NDArray[np.float32],
        progress: Progress | None = None,
        bits: int = 256,
        rotation: str = "random",
        seed: int = 0,
    ) -> Lsh:
        """One pass over ``vectors``.

        Args:
            vectors: (rows, dim).
            progress: called with rows done and in all.
            bits: of a code, a multiple of 64.
            rotation: "random", or "itq": learnt, with at most ``dim`` bits.
            seed: of what is drawn.

        Raises:
            UsageError: other ``bits`` or another ``rotation``.
        """
        dim = vectors.shape[1]
        if bits % 64 or not 64 <= bits <= 4096:
            raise UsageError(f"bits={bits}: codes have 64 to 4096 bits, a multiple of 64")
        if rotation not in ("random", "itq") or (rotation == "itq" and bits > dim):
            raise UsageError(f"rotation={rotation!r}, bits={bits}: random, or itq with at most {dim} bits")
        sample = np.asarray(vectors[:: max(1, len(vectors) // SAMPLE)], np.float32)
        mean = sample.mean(0) if len(sample) else np.zeros(dim, np.float32)
        rng = np.random.default_rng(seed)
        if rotation == "itq" and len(sample):
            planes = _itq(sample - mean, bits, rng)
        else:
            turns = [np.linalg.qr(rng.normal(size=(dim, dim)))[0] for _ in range(-(-bits // dim))]
            planes = np.concatenate(turns, axis=1)[:, :bits].astype(np.float32)
        words = np.zeros((bits // 64, len(vectors)), np.uint64)
        settings = {"bits": bits, "rotation": rotation, "seed": seed, "nearest": 5000}
        settings["rerank"] = {"least": 500, "per_hit": 20}
        index = cls(words, np.zeros(len(vectors), np.float32), mean, planes, settings)
        index._fill(vectors, np.full(len(vectors), -1), progress)
        return index

    def _fill(self, vectors: Vectors, old: NDArray[np.int64], progress: Progress | None) -> None:
        for start in range(0, len(old), BLOCK):
            new = start + np.flatnonzero(old[start : start + BLOCK] < 0)
            if len(new):
                turned = (vectors[new] - self.mean) @ self.planes
                packed = np.packbits(turned > 0, axis=1, bitorder="little").view(np.uint64)
                self.words[:, new] = packed.T
                # <v, q> is estimated as |v|² / Σ|turned v| times the sum of ± turned q: exact where q is v itself.
                length = np.einsum("ij,ij->i", turned, turned)
                self.factors[new] = length / np.maximum(np.abs(turned).sum(1), 1e-9)
            if progress:
                progress(min(len(old), start + BLOCK), len(old))

    @classmethod
    def load(cls, directory: Path, vectors: Vectors, settings: dict[str, Any]) -> Lsh:
        """Map the codes."""
        words, factors = (np.load(directory / f"{name}.npy", mmap_mode="r") for name in ("words", "factors"))
        return cls(words, factors, np.load(directory / "mean.npy"), np.load(directory / "planes.npy"), settings)

    @property
    def nbytes(self) -> int:
        """Of codes and factors."""
        return self.words.nbytes + self.factors.nbytes

    def candidates(
        self, query: NDArray[np.float32], n: int, allowed: NDArray[np.bool_] | None = None
    ) -> NDArray[np.intp]:
        """The ``n`` best by the estimate, of the ``nearest`` by Hamming distance (10 n where that is more)."""
        turned = query @ self.planes
        near = self._near(np.packbits(turned > 0, bitorder="little").view(np.uint64), n, allowed)
        return near[top(self._estimates(turned, near), n)] if len(near) > n else near

    def _near(self, code: NDArray[np.uint64], n: int, allowed: NDArray[np.bool_] | None) -> NDArray[np.intp]:
        """Rows of the smallest Hamming distances, ties by row."""
        rows, far = self.words.shape[1], 64 * len(code) + 1
        n = min(rows, max(n, self.settings["nearest"]))
        distances = np.empty(rows, np.uint16)
        count = np.empty(BLOCK, np.uint8)
        for start in range(0, rows, BLOCK):
            part = self.words[:, start : start + BLOCK]
            here = distances[start : start + part.shape[1]]
            ones = count[: part.shape[1]]
            here[:] = 0
            for column, word in zip(part, code, strict=True):
                here += np.bitwise_count(column ^ word, out=ones)
        if allowed is not None:
            distances[~allowed] = far
        within = np.cumsum(np.bincount(distances, minlength=far + 1)[:far])
        edge = int(np.searchsorted(within, min(n, int(within[-1]))))
        found = np.flatnonzero(distances <= min(edge, far - 1))
        if len(found) <= n:
            return found
        tied = found[distances[found] == edge]
        return np.concatenate([found[distances[found] < edge], tied[: n - (len(found) - len(tied))]])

    def _estimates(self, turned: NDArray[np.float32], rows: NDArray[np.intp]) -> NDArray[np.float32]:
        """Inner products, but for a constant, of the query with these rows."""
        low, high = float(turned.min()), float(turned.max())
        step = (high - low) / (2**LEVELS - 1) or 1.0
        rounded = np.rint((turned - low) / step).astype(np.uint8)
        planes = [np.packbits(rounded >> level & 1, bitorder="little").view(np.uint64) for level in range(LEVELS)]
        ones, dot = np.zeros(len(rows), np.int32), np.zeros(len(rows), np.int32)
        for n, column in enumerate(self.words):
            word = column[rows]
            ones += np.bitwise_count(word)
            for level, plane in enumerate(planes):
                dot += np.bitwise_count(word & plane[n]).astype(np.int32) << level
        signed = 2 * (low * ones + step * dot) - float((low + step * rounded).sum())
        return np.asarray(self.factors[rows] * signed, np.float32)

    def carried(self, vectors: Vectors, old: NDArray[np.int64], progress: Progress | None = None) -> Lsh:
        """Codes as they were, with the same hyperplanes around the same mean."""
        kept = old >= 0
        words, factors = np.zeros((len(self.words), len(old)), np.uint64), np.zeros(len(old), np.float32)
        words[:, kept] = self.words[:, old[kept]]
        factors[kept] = self.factors[old[kept]]
        index = Lsh(words, factors, self.mean, self.planes, deepcopy(self.settings))
        index._fill(vectors, old, progress)
        return index

    def save(self, directory: Path) -> None:
        """Codes, factors, mean and hyperplanes."""
        for name in ("words", "factors", "mean", "planes"):
            np.save(directory / f"{name}.npy", getattr(self, name))
        write_settings(directory, self, self.words.shape[1])


def _itq(centred: NDArray[np.float32], bits: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """The principal axes, turned so that rounding to signs loses least (Gong and Lazebnik 2011): (dim, bits)."""
    axes = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :bits]
    projected = centred @ axes
    turn = np.linalg.qr(rng.normal(size=(bits, bits)))[0].astype(np.float32)
    for _ in range(ITQ_ROUNDS):
        left, _, right = np.linalg.svd(projected.T @ np.where(projected @ turn > 0, 1, -1).astype(np.float32))
        turn = left @ right
    return np.asarray(axes @ turn, np.float32)
