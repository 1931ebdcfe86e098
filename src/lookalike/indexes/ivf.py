"""Lance's inverted file over the catalog's own vectors: on the disk or on object storage, for more than fits into memory.

Vectors are parted by k-means and kept as RaBitQ's codes (Gao et al., "Practical and Asymptotically Optimal Quantization",
SIGMOD 2025), five bits for each number: 184 bytes a photo at 256 dimensions. A search reads the nearest partitions' codes, then
the vectors of the rows that they name.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lookalike.indexes.base import Progress, Vectors, over_fetched, write_settings
from lookalike.indexes.exact import top

NAME = "lk_vector"
"""Of the column, and of the index over it."""

PARTITION = 8192
"""Rows of a partition, about: what Lance takes by itself, and no slower than smaller ones in any measurement."""

SAMPLED, ROUNDS = 64, 10
"""Rows for each partition that its middle is learnt from, and how often it is moved."""

TAKEN = 8192
"""Vectors read from Lance at a time."""

RETRAINED = 2.0
"""Partitions are made anew once there are so many times the rows that they were made for."""


class Stored:
    """The vectors of a base as they lie in Lance: what an array is to the other kinds. Read when asked for."""

    def __init__(self, dataset: Any, addresses: NDArray[np.uint64]):
        """``dataset``: ``lance.LanceDataset`` at the version that the base is of; ``addresses`` (rows,): Lance's ``_rowid``."""
        self.dataset, self.addresses = dataset, np.asarray(addresses, np.uint64)
        self.dim: int = dataset.schema.field(NAME).type.list_size
        self._order = np.argsort(self.addresses)
        self._sorted = self.addresses[self._order]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and dimensions."""
        return len(self.addresses), self.dim

    @property
    def nbytes(self) -> int:
        """Of the addresses, twice, and their order."""
        return 3 * self.addresses.nbytes

    def __len__(self) -> int:
        return len(self.addresses)

    def __getitem__(self, rows: Any) -> NDArray[np.float32]:
        """Vectors of one row (dim,), or of some (rows, dim) by an array or a slice."""
        if isinstance(rows, (int, np.integer)):
            return np.asarray(self[np.array([rows])][0])
        wanted = self.addresses[rows]
        out = np.empty((len(wanted), self.dim), np.float32)
        for start in range(0, len(wanted), TAKEN):
            part = pa.array(wanted[start : start + TAKEN])
            # The one way to read rows by address; their offsets, which the public one takes, are not known.
            taken = self.dataset._take_rows(part, columns=[NAME])
            out[start : start + TAKEN] = _matrix(taken[NAME], self.dim)
        return out

    def rows(self, addresses: NDArray[np.uint64]) -> NDArray[np.intp]:
        """Rows of these addresses, those left out that are of no row: committed since."""
        place, ours = self._place(addresses)
        return np.asarray(self._order[place[ours]])

    def _place(self, addresses: NDArray[np.uint64]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Where addresses stand among the sorted ones, and which of them do."""
        if not len(self._sorted):
            return np.zeros(len(addresses), np.intp), np.zeros(len(addresses), np.bool_)
        place = np.minimum(np.searchsorted(self._sorted, addresses), len(self._sorted) - 1)
        return place, self._sorted[place] == addresses

    def blocks(self) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32]]]:
        """All rows with their vectors in the order of the files."""
        for batch in self.dataset.scanner(columns=[NAME], with_row_id=True, batch_size=TAKEN).to_batches():
            place, ours = self._place(batch["_rowid"].to_numpy())
            if ours.any():
                yield np.asarray(self._order[place[ours]]), _matrix(batch[NAME], self.dim)[ours]


def _matrix(column: Any, dim: int) -> NDArray[np.float32]:
    flat = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return np.asarray(flat.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(-1, dim)


def centroids(dataset: Any, count: int, seed: int = 0) -> NDArray[np.float32]:
    """Unit vectors (count, dim) in the middle of a sample of the rows: spherical k-means (Dhillon and Modha 2001).

    Lance would train them itself, but of three runs over ten million vectors on two cores two stood still in that for good.
    """
    rng = np.random.default_rng(seed)
    total = dataset.count_rows()
    rows = np.sort(rng.choice(total, min(total, SAMPLED * count), replace=False))
    parts = [dataset.take(rows[at : at + TAKEN].tolist(), columns=[NAME]) for at in range(0, len(rows), TAKEN)]
    dim = dataset.schema.field(NAME).type.list_size
    sample = np.concatenate([_matrix(part[NAME], dim) for part in parts])
    found = sample[rng.choice(len(sample), min(count, len(sample)), replace=False)]
    for _ in range(ROUNDS):
        nearest = np.concatenate([(sample[at : at + TAKEN] @ found.T).argmax(1) for at in range(0, len(sample), TAKEN)])
        order = np.argsort(nearest, kind="stable")
        there, starts = np.unique(nearest[order], return_index=True)
        found = sample[rng.choice(len(sample), len(found))]  # whoever lost all of its rows begins anew
        found[there] = np.add.reduceat(sample[order], starts)
        found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)
    return found


def build_ivf(
    dataset: Any,
    addresses: NDArray[np.uint64],
    progress: Progress | None = None,
    partition: int = PARTITION,
    bits: int = 5,
) -> Ivf:
    """Have Lance make its index, which is a commit of the dataset, and leave ``dataset`` at that version.

    Args:
        dataset: ``lance.LanceDataset`` that can be written.
        addresses: ``_rowid`` of each row of the base, (rows,).
        progress: called with rows done and rows in all.
        partition: rows of one, about.
        bits: of a code for each number, 1 to 9: more are larger, and fewer vectors need be read. On 200,000 vectors, the 10
            best of a text are among 50 rows by 5 bits (1.0), 3 bits (.98) or 1 bit (.68).
    """

    def told(step: Any) -> None:
        if progress and step.stage == "shuffle" and step.completed is not None and step.total:
            progress(step.completed, step.total)

    if len(addresses):
        middles = centroids(dataset, max(1, round(len(addresses) / partition)))
        dataset.create_index(
            NAME, "IVF_RQ", name=NAME, metric="dot", num_bits=bits, num_partitions=len(middles), ivf_centroids=middles,
            replace=True, progress_callback=told,
        )  # fmt: skip
    settings: dict[str, Any] = {"partition": partition, "bits": bits, "trained": len(addresses), "nprobes": 20}
    settings["rerank"] = {"least": 50, "per_hit": 2}
    return Ivf(Stored(dataset, addresses), settings)


class Ivf:
    """Lance's index of one version, in the interface of the others."""

    kind = "ivf"
    gathered = 2000

    def __init__(self, vectors: Stored, settings: dict[str, Any]):
        self.vectors, self.settings = vectors, settings
        self.ladder = [
            {"nprobes": nprobes, "rerank": {"least": n, "per_hit": n / 10}}
            for nprobes, n in (
                (10, 20), (20, 20), (20, 50), (40, 50), (40, 100), (80, 100), (80, 200), (160, 200), (160, 500), (320, 500),
                (640, 1000), (1280, 2000),
            )
        ]  # fmt: skip
        self.partitions = max(1, settings["trained"] // settings["partition"])

    @classmethod
    def load(cls, directory: Path, vectors: Stored, settings: dict[str, Any]) -> Ivf:
        """The index that lies in ``vectors.dataset``. Raises ValueError where there is none."""
        names = [index.name for index in vectors.dataset.describe_indices()]
        if len(vectors) and NAME not in names:
            raise ValueError(f"version {vectors.dataset.version} of the rows has no index {NAME}")
        return cls(vectors, settings)

    @property
    def nbytes(self) -> int:
        """Of codes (a number's bits, factors and address) and addresses."""
        rows, dim = self.vectors.shape
        return int(rows * (dim * self.settings["bits"] / 8 + 24)) + self.vectors.nbytes

    def candidates(
        self, query: NDArray[np.float32], n: int, allowed: NDArray[np.bool_] | None = None
    ) -> NDArray[np.intp]:
        """The ``n`` best by the codes of the nearest partitions; under a filter more of both, until so many of them pass."""
        total = len(self.vectors)
        passing = total if allowed is None else int(np.count_nonzero(allowed))
        n = min(n, passing)
        if not n:
            return np.empty(0, np.intp)
        fetched = over_fetched(n, passing / total)
        nprobes = self.settings["nprobes"] * max(1, round(fetched / n))
        while True:
            found = self._nearest(query, min(fetched, total), nprobes)
            found = found if allowed is None else found[allowed[found]]
            everything = fetched >= total and nprobes >= 2 * self.partitions
            if len(found) >= n or allowed is None or everything:
                return found[:n]
            if fetched > 100 * TAKEN:  # a filter that passes only what is far from the query
                rows = np.flatnonzero(allowed)
                parts = [self.vectors[rows[at : at + TAKEN]] @ query for at in range(0, len(rows), TAKEN)]
                return rows[top(np.concatenate(parts), n)]
            fetched, nprobes = 4 * fetched, 4 * nprobes

    def _nearest(self, query: NDArray[np.float32], n: int, nprobes: int) -> NDArray[np.intp]:
        asked = {"column": NAME, "q": np.asarray(query, np.float32), "k": n, "nprobes": nprobes, "use_index": True}
        found = self.vectors.dataset.scanner(
            columns=[], nearest=asked, with_row_id=True, fast_search=True, disable_scoring_autoprojection=True
        ).to_table()
        return self.vectors.rows(found["_rowid"].to_numpy())

    def carried(self, vectors: Vectors, old: NDArray[np.int64], progress: Progress | None = None) -> Ivf:
        """Lance's index with the new rows put into its partitions, another commit; all anew once there are twice as many.

        ``vectors`` are ``Stored`` in the same dataset at a later version.
        """
        assert isinstance(vectors, Stored)
        if len(vectors) > RETRAINED * max(1, self.settings["trained"]):
            usual = {name: self.settings[name] for name in ("partition", "bits")}
            index = build_ivf(vectors.dataset, vectors.addresses, progress, **usual)
            index.settings.update({name: self.settings[name] for name in ("rerank", "nprobes")})
            return index
        vectors.dataset.optimize.optimize_indices(index_names=[NAME])
        if progress:
            progress(len(vectors), len(vectors))
        return Ivf(vectors, deepcopy(self.settings))

    def save(self, directory: Path) -> None:
        """Its settings: the rest is Lance's."""
        write_settings(directory, self, len(self.vectors))
