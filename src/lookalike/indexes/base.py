"""What every index is, and what is done with any of them: build, load, search, choose, tune.

An index only proposes rows. ``search`` scores those exactly, so that what an index gets wrong is what it leaves out, never a
score or an order; few rows that pass a filter are scored without asking it.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import CatalogError, UsageError
from lookalike.indexes.exact import top

KINDS = ("exact", "int8", "lsh", "hnsw", "ivf")

EXACT_UP_TO = 100_000
"""Rows under which the plain scan answers in a few milliseconds, and nothing else is worth its files."""

INT8_UP_TO = 2_000_000
"""Rows that are scanned as bytes in 30 ms by one core at 256 dimensions; what is parted is read in part."""

BLOCK = 65_536
"""Rows read at a time from vectors that may be larger than memory."""

TARGET = 0.99
"""Recall that an index is tuned to: of the 10 best, how many it finds."""

Progress = Callable[[int, int], None]


class Vectors(Protocol):
    """Unit vectors (rows, dim) float32: an array, a memory-mapped file, or Lance's (``ivf.Stored``)."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    def __getitem__(self, rows: Any, /) -> Any: ...


class Index(Protocol):
    """A structure over the vectors of one snapshot's base; never changed after it is built and tuned."""

    kind: str
    settings: dict[str, Any]
    """JSON. ``rerank`` is how many rows are scored exactly: ``least``, or ``per_hit`` for each hit wanted, the larger;
    ``recall`` is what was measured with it."""
    ladder: list[dict[str, Any]]
    """Settings that ``tuned`` tries, cheapest first."""
    gathered: int
    """Up to so many rows that pass a filter are scored one by one."""

    @property
    def nbytes(self) -> int:
        """Memory it wants: what must be resident to be fast, mapped or not."""

    def candidates(
        self, query: NDArray[np.float32], n: int, allowed: NDArray[np.bool_] | None = None
    ) -> NDArray[np.intp]:
        """Rows likely to hold the ``n`` best of the ``allowed`` ones (rows,), each allowed, in any order, at most n."""

    def carried(self, vectors: Vectors, old: NDArray[np.int64], progress: Progress | None = None) -> Index:
        """The index of other rows, computing only what is new.

        Row i of ``vectors`` was row ``old[i]`` here and is the same vector; −1 where it is new.
        """

    def save(self, directory: Path) -> None:
        """Write its files into an existing directory."""


def build(
    kind: str, vectors: NDArray[np.float32], settings: dict[str, Any] | None = None, progress: Progress | None = None
) -> Index:
    """An index over unit ``vectors`` (rows, dim), which may be memory-mapped; ``ivf`` is made by ``ivf.build_ivf``.

    Args:
        kind: exact, int8, lsh or hnsw.
        vectors: kept by ``exact``; the others read them in blocks.
        settings: of the kind's ``build``, where they shall not be the usual ones.
        progress: called with rows done and rows in all.

    Raises:
        UsageError: no such kind or setting, or what it needs is not installed.
    """
    if kind == "ivf":
        raise UsageError("index ivf: it is made of a catalog's rows (build_ivf), not of an array")
    try:
        index: Index = _class(kind).build(vectors, progress, **(settings or {}))
    except TypeError as error:
        if "unexpected keyword" in str(error):
            raise UsageError(f"index {kind}: {str(error).split('() ')[-1]}") from None
        raise
    return index


def load(kind: str, directory: Path, vectors: Vectors) -> Index:
    """An index that ``save`` wrote, memory-mapped.

    Raises:
        UsageError: no such kind, or what it needs is not installed.
        CatalogError: its files cannot be read, or are not of these ``vectors``.
    """
    try:
        index: Index = _class(kind).load(directory, vectors, read_settings(directory, kind, vectors))
    except (OSError, ValueError, KeyError, RuntimeError, EOFError) as error:
        raise CatalogError(
            f"{directory}: the index cannot be read ({error}); make it anew: lookalike reindex"
        ) from error
    return index


def write_settings(directory: Path, index: Index, rows: int) -> None:
    """The part of ``save`` that all kinds share: index.json."""
    content = {"kind": index.kind, "rows": rows, "settings": index.settings}
    (directory / "index.json").write_text(json.dumps(content, indent=1), "utf-8")


def read_settings(directory: Path, kind: str, vectors: Vectors) -> dict[str, Any]:
    """What ``write_settings`` wrote. Raises ValueError where it is of something else."""
    content: dict[str, Any] = json.loads((directory / "index.json").read_text("utf-8"))
    if (content["kind"], content["rows"]) != (kind, vectors.shape[0]):
        raise ValueError(f"{content['kind']} of {content['rows']} rows, not {kind} of {vectors.shape[0]}")
    settings: dict[str, Any] = content["settings"]
    return settings


def _class(kind: str) -> Any:
    from lookalike.indexes import flat, hnsw, ivf, lsh

    known = {"exact": flat.Exact, "int8": flat.Int8, "lsh": lsh.Lsh, "hnsw": hnsw.Hnsw, "ivf": ivf.Ivf}
    if kind not in known:
        raise UsageError(f"index {kind!r}: no such kind; there are {', '.join(KINDS)}")
    return known[kind]


def over_fetched(n: int, share: float) -> int:
    """Rows to fetch so that ``n`` of them pass a filter that passes ``share`` of all by chance (three deviations more)."""
    return math.ceil((n + 3 * math.sqrt(n * (1 - share))) / share)


def search(
    index: Index, vectors: Vectors, query: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """The ``k`` best of the ``allowed`` rows and their inner products with ``query`` (dim,): best first, ties by row."""
    rows = None
    if allowed is not None and np.count_nonzero(allowed) <= max(k, index.gathered):
        rows = np.flatnonzero(allowed)
    if rows is None:
        rerank = index.settings["rerank"]
        rows = np.sort(index.candidates(query, max(k, rerank["least"], math.ceil(rerank["per_hit"] * k)), allowed))
    scores = vectors[rows] @ query if len(rows) else np.empty(0, np.float32)
    best = top(scores, k)
    return rows[best], scores[best]


def choose(
    rows: int, dim: int, memory: int, local: bool = True, words: bool = True, halves: bool = False
) -> tuple[str, str]:
    """The kind of index for so many vectors, and why.

    Args:
        rows: photos.
        dim: numbers of a vector.
        memory: bytes that searching may use.
        local: the catalog lies on this machine's disk; what lies on object storage is not copied here where it is large.
        words: texts are asked, too: their cosines are low and crowded, which codes of one bit and graphs are bad at.
        halves: words lie beside photos in each vector, and most queries fill one half, which codes are not tuned to; and
            Lance's codes want a multiple of 8 dimensions.
    """
    size = rows * dim * 4
    said = f"{rows:,} vectors of {dim}, {_bytes(size)} as float32"
    coded, scanned = not halves and dim % 8 == 0, importlib.util.find_spec("numkong")
    if rows <= EXACT_UP_TO and size <= memory:
        return "exact", f"{said}: up to {EXACT_UP_TO:,} are scanned in milliseconds"
    if scanned and (not coded or (rows <= INT8_UP_TO and size <= memory)):
        return "int8", f"{said}: as bytes they are scanned at 60 million a second, words found as surely as photos"
    if not coded:
        return "exact", f"{said}: scanned; in a third of the time with pip install 'lookalike[hnsw]'"
    if size > memory:
        where = "kept on the disk" if local else "kept where they are"
        return "ivf", f"{said}: more than the {_bytes(memory)} of memory; {where} by Lance"
    if not words:
        kind = "hnsw" if importlib.util.find_spec("usearch") else "lsh"
        return kind, f"{said}: only photos are asked, which {kind} finds fastest"
    return "ivf", f"{said}: words and photos are found in some milliseconds, whatever the size"


def _bytes(n: float) -> str:
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB"


def blocks(vectors: Vectors) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32]]]:
    """Rows and their vectors, some ten thousand at a time, in the order in which they are read fastest."""
    if hasattr(vectors, "blocks"):
        yield from vectors.blocks()
        return
    n = vectors.shape[0]
    for start in range(0, n, BLOCK):
        yield np.arange(start, min(n, start + BLOCK)), vectors[start : start + BLOCK]


def edges(
    vectors: Vectors,
    queries: NDArray[np.float32],
    ks: list[int],
    selves: NDArray[np.intp] | None = None,
    allowed: NDArray[np.bool_] | None = None,
) -> NDArray[np.float32]:
    """The score of the k-th best ``allowed`` row for each query and each k, (queries, len(ks)): by an exact scan in blocks.

    A row at least as good is as right as any other, so that duplicates do not count as errors. ``selves`` are the queries'
    own rows in ascending order, which are left out. −inf where there are fewer rows.
    """
    most = max(ks)
    best = np.full((len(queries), most), -np.inf, np.float32)
    for rows, part in blocks(vectors):
        scores = queries @ part.T
        if allowed is not None:
            scores[:, ~allowed[rows]] = -np.inf
        if selves is not None:
            place = np.minimum(np.searchsorted(selves, rows), len(selves) - 1)
            here = np.flatnonzero(selves[place] == rows)
            scores[place[here], here] = -np.inf
        both = np.concatenate([best, scores], axis=1)
        best = np.partition(both, both.shape[1] - most, axis=1)[:, -most:]
    best = -np.sort(-best, axis=1)
    return np.stack([best[:, k - 1] for k in ks], axis=1)


def recall(
    index: Index,
    vectors: Vectors,
    queries: NDArray[np.float32],
    edge: NDArray[np.float32],
    k: int,
    selves: NDArray[np.intp] | None = None,
    allowed: NDArray[np.bool_] | None = None,
    target: float = 0.0,
) -> float:
    """Mean share of the ``k`` best that ``search`` finds; ``edge`` (queries,) as ``edges`` says.

    Below ``target`` it is only said to be so: the queries end where it can no longer be reached.
    """
    missed = 0.0
    for n, query in enumerate(queries):
        rows, scores = search(index, vectors, query, k + (selves is not None), allowed)
        if selves is not None:
            scores = scores[rows != selves[n]][:k]
        wanted = k if edge[n] > -np.inf or allowed is None else min(k, int(np.count_nonzero(allowed)))
        missed += 1 - min(wanted, int(np.count_nonzero(scores >= edge[n] - 1e-6))) / max(1, wanted)
        if missed > (1 - target) * len(queries) + 1e-9:
            break
    return 1 - missed / len(queries)


def tuned(
    index: Index,
    vectors: Vectors,
    queries: NDArray[np.float32] | None = None,
    k: int = 10,
    target: float = TARGET,
    sample: int = 200,
    seed: int = 0,
) -> Index:
    """The index with the cheapest settings that find ``target`` of the ``k`` best, and with what it finds written down.

    Photos are asked for by ``sample`` rows drawn by chance, each left out of its own answer; ``queries`` (n, dim) are texts, or
    whatever else is asked. Both must reach the target: the cosines of words with photos are low and crowded, so that what does
    for photos does not do for them. ``recall`` becomes {"k", "photos", "texts"}.
    """
    n = vectors.shape[0]
    if index.kind == "exact" or n <= k:
        return index
    selves = np.sort(np.random.default_rng(seed).choice(n, min(sample, n), replace=False))
    asked: dict[str, tuple[NDArray[np.float32], NDArray[np.intp] | None]] = {
        "photos": (np.ascontiguousarray(vectors[selves]), selves)
    }
    if queries is not None and len(queries):
        asked["texts"] = (np.asarray(queries[:: -(-len(queries) // sample)], np.float32), None)
    many = min(10 * k, n - 1)
    edge = {name: edges(vectors, q, [k, many], own) for name, (q, own) in asked.items()}

    def found(at: int, wanted: int, least: float = 0.0) -> dict[str, float]:
        return {
            name: recall(index, vectors, q, edge[name][:, at], wanted, own, target=least)
            for name, (q, own) in asked.items()
        }

    for step in index.ladder:
        index.settings.update(deepcopy(step))
        if min(found(0, k, target).values()) >= target:
            break
    rerank = index.settings["rerank"]
    most = max(10, rerank["least"] / k)
    for per_hit in (1, 2, 3, 5, 8, 12, 20, 40, 80, 160, 320):
        rerank["per_hit"] = min(per_hit, most)
        if per_hit >= most or min(found(1, many, target).values()) >= target:
            break
    index.settings["recall"] = {"k": k, **{name: round(share, 4) for name, share in found(0, k).items()}}
    return index
