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
from lookalike.indexes.base import Progress, Vectors, efforts, write_settings
from lookalike.indexes.exact import scan, top
from lookalike.indexes.flat import largest, rounded

ADDED = 10_000
"""Rows handed over at a time."""

STEP = 12
"""What following the graph to one more row costs, in rows that are scored one after the other: 3.5 µs at a million."""


class Hnsw:
    """usearch's index under keys of our own: rows change their numbers with each generation, keys stay."""

    kind = "hnsw"
    gathered = 10_000

    def __init__(self, graph: Any, keys: NDArray[np.int64], vectors: Vectors, settings: dict[str, Any]):
        """``keys`` (rows,): the key of each row in the graph."""
        self.graph, self.keys, self.vectors, self.settings = graph, keys, vectors, settings
        self.graph.expansion_search = 1  # as many steps as rows are wanted
        self.ladder = efforts()
        self.row = np.full(int(keys.max(initial=-1)) + 1, -1, np.int64)
        self.row[keys] = np.arange(len(keys))

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
            threads: 0 for all cores. With more than one, two builds are not quite the same.
        """
        settings = {
            "connectivity": connectivity,
            "expansion": expansion,
            "threads": threads,
            "scale": (largest(vectors) or 1.0) / 127,
            "rerank": {"least": 100, "per_hit": 2},
        }
        graph = _usearch()(
            ndim=vectors.shape[1], metric="ip", dtype="i8", connectivity=connectivity, expansion_add=expansion
        )
        index = cls(graph, np.arange(len(vectors)), vectors, settings)
        index._add(np.arange(len(vectors)), progress)
        return index

    def _add(self, rows: NDArray[np.intp], progress: Progress | None) -> None:
        for start in range(0, len(rows), ADDED):
            part = rows[start : start + ADDED]
            codes = rounded(self.vectors[part], self.settings["scale"])
            self.graph.add(self.keys[part], codes, threads=self.settings["threads"])
            if progress:
                progress(start + len(part), len(rows))

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
        return int(self.graph.serialized_length) + self.keys.nbytes + self.row.nbytes

    def candidates(
        self, query: NDArray[np.float32], n: int, allowed: NDArray[np.bool_] | None = None
    ) -> NDArray[np.intp]:
        """The ``n`` that the graph leads to; under a filter more are fetched, until so many of them pass.

        Where fetching would cost more than scoring what passes, that is done: the graph is of no help where the filter passes
        only what is far from the query.
        """
        if not len(self.keys):
            return np.empty(0, np.intp)
        share = 1.0 if allowed is None else np.count_nonzero(allowed) / max(1, len(allowed))
        code = rounded(query, (float(np.abs(query).max(initial=0)) or 1.0) / 127)
        fetched = min(n, len(self.keys)) if allowed is None else int(1.5 * n / max(share, 1e-9))
        while allowed is None or fetched * STEP < share * len(self.keys):
            found = self.row[np.asarray(self.graph.search(code, fetched, threads=1).keys, np.int64)]
            if allowed is None:
                return found
            found = found[allowed[found]]
            if len(found) >= n:
                return found[:n]
            fetched *= 3
        return top(scan(self.vectors[:], query, allowed), n)

    def carried(self, vectors: Vectors, old: NDArray[np.int64], progress: Progress | None = None) -> Hnsw:
        """The graph without what is gone and with what is new; all anew once it has seen twice as many rows as it holds."""
        fresh = np.flatnonzero(old < 0)
        keys = np.empty(len(old), np.int64)
        keys[old >= 0] = self.keys[old[old >= 0]]
        keys[fresh] = len(self.row) + np.arange(len(fresh))
        if len(self.row) + len(fresh) > 2 * len(old):
            usual = {name: self.settings[name] for name in ("connectivity", "expansion", "threads")}
            index = Hnsw.build(vectors[:], progress, **usual)
            index.settings.update({name: self.settings[name] for name in ("rerank", "recall") if name in self.settings})
            return index
        graph = self.graph.copy()
        gone = np.setdiff1d(self.keys, keys)
        if len(gone):
            graph.remove(gone)
        index = Hnsw(graph, keys, vectors, deepcopy(self.settings))
        index._add(fresh, progress)
        return index

    def save(self, directory: Path) -> None:
        """Graph and keys."""
        self.graph.save(str(directory / "hnsw.usearch"))
        np.save(directory / "keys.npy", self.keys)
        write_settings(directory, self, len(self.keys))


def _usearch() -> Any:
    try:
        from usearch.index import Index
    except ImportError:
        raise UsageError("the index hnsw wants usearch: pip install 'lookalike[hnsw]'") from None
    return Index
