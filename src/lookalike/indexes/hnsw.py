"""A graph of neighbours (HNSW, Malkov and Yashunin, TPAMI 2020) by usearch, over a byte for each number, scored exactly.

The fastest to search, the slowest to build. Rows are added and removed without building anew.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import UsageError
from lookalike.indexes.base import Progress, Vectors, over_fetched, write_settings
from lookalike.indexes.exact import scan, top
from lookalike.indexes.flat import largest, rounded

ADDED = 10_000
"""Rows handed over at a time; the first of them by one thread, since rows that enter a small graph at once miss each other."""

SCORED = 40
"""Rows that are scored exactly for the 10 best: by int8 alone, 20 of them held all 10, of photos and of texts."""

STEP = 12
"""What following the graph to one more row costs, in rows that are scored one after the other: 3.5 µs at a million."""


class Hnsw:
    """usearch's index, in which rows of the same code are one: as neighbours of each other they would close the way out.

    A code's key is its hash, so that rows may change their numbers with each generation.
    """

    kind = "hnsw"
    gathered = 10_000

    def __init__(self, graph: Any, keys: NDArray[np.uint64], vectors: Vectors, settings: dict[str, Any]):
        """``keys`` (rows,): the key of each row's code."""
        self.graph, self.keys, self.vectors, self.settings = graph, keys, vectors, settings
        # A byte a number tells the best few well: far more rows are looked at than are scored exactly.
        self.ladder = [
            {"looked_at": n, "rerank": {"least": min(n, SCORED), "per_hit": min(n, SCORED) / 10}}
            for n in (20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
        ]
        self._order = np.argsort(keys, kind="stable")
        self._sorted = keys[self._order]

    @classmethod
    def build(
        cls,
        vectors: NDArray[np.float32],
        progress: Progress | None = None,
        connectivity: int = 16,
        expansion: int = 128,
        threads: int = 0,
    ) -> Hnsw:
        """Hand all rows to usearch.

        Args:
            vectors: (rows, dim), kept.
            progress: called with rows done and in all.
            connectivity: neighbours of a row (M of the paper; twice as many on the lowest level).
            expansion: rows looked at for each that is added (efConstruction).
            threads: 0 for all cores. With more than one, two builds of over ``ADDED`` rows are not quite the same.
        """
        settings = {
            "connectivity": connectivity,
            "expansion": expansion,
            "threads": threads,
            "scale": (largest(vectors) or 1.0) / 127,
            "looked_at": 200,
            "rerank": {"least": SCORED, "per_hit": 3},
        }
        graph = _usearch()(
            ndim=vectors.shape[1], metric="ip", dtype="i8", connectivity=connectivity, expansion_add=expansion
        )
        keys = np.empty(len(vectors), np.uint64)
        settings["seen"] = _add(graph, keys, vectors, np.arange(len(vectors)), settings, progress)
        return cls(graph, keys, vectors, settings)

    @classmethod
    def load(cls, directory: Path, vectors: Vectors, settings: dict[str, Any]) -> Hnsw:
        """Map the graph."""
        graph = _usearch().restore(str(directory / "hnsw.usearch"), view=True)
        if graph is None:
            raise ValueError("hnsw.usearch is damaged")
        return cls(graph, np.load(directory / "keys.npy"), vectors, settings)

    @property
    def nbytes(self) -> int:
        """Of graph and keys."""
        return int(self.graph.serialized_length) + 3 * self.keys.nbytes

    def candidates(
        self, query: NDArray[np.float32], n: int, allowed: NDArray[np.bool_] | None = None
    ) -> NDArray[np.intp]:
        """The ``n`` that the graph leads to; under a filter more are fetched, until so many of them pass.

        Where fetching would cost more than scoring what passes, that is done: the graph is of no help where the filter passes
        only what is far from the query.
        """
        passing = len(self.keys) if allowed is None else int(np.count_nonzero(allowed))
        if not passing:
            return np.empty(0, np.intp)
        n = min(n, passing)
        code = rounded(query, (float(np.abs(query).max(initial=0)) or 1.0) / 127)
        fetched = over_fetched(n, passing / len(self.keys))
        if self.graph.expansion_search != self.settings["looked_at"]:
            self.graph.expansion_search = self.settings["looked_at"]
        while allowed is None or max(fetched, self.settings["looked_at"]) * STEP < passing:
            found = self._rows(np.asarray(self.graph.search(code, fetched, threads=1).keys, np.uint64))
            if allowed is None:
                return found[:n]
            found = found[allowed[found]]
            if len(found) >= n:
                return found[:n]
            fetched *= 3
        return top(scan(self.vectors[:], query, allowed), n)

    def _rows(self, keys: NDArray[np.uint64]) -> NDArray[np.intp]:
        """All rows of these codes, in the order of the codes, then their own."""
        first, last = np.searchsorted(self._sorted, keys), np.searchsorted(self._sorted, keys, "right")
        counts = last - first
        ends = np.cumsum(counts)
        at = np.arange(ends[-1] if len(ends) else 0) + np.repeat(last - ends, counts)
        return np.asarray(self._order[at], np.intp)

    def carried(self, vectors: Vectors, old: NDArray[np.int64], progress: Progress | None = None) -> Hnsw:
        """The graph without what is gone and with what is new; all anew once half of what it saw is gone."""
        fresh = np.flatnonzero(old < 0)
        settings = deepcopy(self.settings)
        if settings["seen"] + len(fresh) > 2 * len(old):
            usual = {name: settings[name] for name in ("connectivity", "expansion", "threads")}
            index = Hnsw.build(vectors[:], progress, **usual)
            index.settings.update(
                {name: settings[name] for name in ("looked_at", "rerank", "recall") if name in settings}
            )
            return index
        graph = self.graph.copy()
        keys = np.empty(len(old), np.uint64)
        keys[old >= 0] = self.keys[old[old >= 0]]
        settings["seen"] += _add(graph, keys, vectors, fresh, settings, progress)
        gone = np.setdiff1d(self.keys, keys)
        if len(gone):
            graph.remove(gone)
        return Hnsw(graph, keys, vectors, settings)

    def save(self, directory: Path) -> None:
        """Graph and keys."""
        self.graph.save(str(directory / "hnsw.usearch"))
        np.save(directory / "keys.npy", self.keys)
        write_settings(directory, self, len(self.keys))


def _add(
    graph: Any,
    keys: NDArray[np.uint64],
    vectors: Vectors,
    rows: NDArray[np.intp],
    settings: dict[str, Any],
    progress: Progress | None,
) -> int:
    """Put the codes of these rows into the graph where they are new, and their keys into ``keys``; how many were new."""
    seen = 0
    for start in range(0, len(rows), ADDED):
        part = rows[start : start + ADDED]
        codes = rounded(vectors[part], settings["scale"])
        keys[part] = _hashes(codes)
        found, first = np.unique(keys[part], return_index=True)
        first = np.sort(first[~np.atleast_1d(graph.contains(found))])
        if len(first):
            graph.add(keys[part][first], codes[first], threads=settings["threads"] if len(graph) >= ADDED else 1)
            seen += len(first)
        if progress:
            progress(start + len(part), len(rows))
    return seen


def _hashes(codes: NDArray[np.int8]) -> NDArray[np.uint64]:
    """63 bits of each code (n, dim), by multiplying and shifting its 64-bit words."""
    words = np.zeros((len(codes), -(-codes.shape[1] // 8) * 8), np.int8)
    words[:, : codes.shape[1]] = codes
    out = np.zeros(len(codes), np.uint64)
    for column in words.view(np.uint64).T:
        out = (out ^ column) * np.uint64(0x9E3779B97F4A7C15)
        out ^= out >> np.uint64(29)
    return np.asarray(out >> np.uint64(1), np.uint64)  # the largest key is usearch's own


def _usearch() -> Any:
    try:
        from usearch.index import Index
    except ImportError:
        raise UsageError("the index hnsw wants usearch: pip install 'lookalike[hnsw]'") from None
    return Index
