"""Leave-one-out over anybody's own products: how often what lies near a product shares its category, its colour, and both.

Each query is a product's first photo; products are ranked by their best photo, as a search ranks them. The product itself
and photos with the same bytes are left out: finding those says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike import images
from lookalike.encoders.base import Encoder
from lookalike.errors import InputError, UsageError
from lookalike.evaluation import metrics
from lookalike.evaluation.protocol import Progress, Report, cached_vectors, confusion, summary
from lookalike.snapshot import Snapshot
from lookalike.sources import Source

FIGURES = ("P@1", "P@10", "MAP@R", "R-precision")
CURVE = (1, 2, 5, 10, 20, 50, 100)
SAMPLE = 2000
"""Queries, and products of ``compare``, by default."""

_OUT = np.float32(-9)  # lower than any cosine: what is left out


@dataclass
class Shelf:
    """Products to be found among themselves: photos in order of their products, and what the products are.

    ``first`` (products,) is the row of each product's first photo; ``labels`` has (products,) texts, "" where missing, by
    what they are of; ``titles`` (products,) stand under photos.
    """

    paths: list[str]
    digests: list[str]
    first: NDArray[np.intp]
    labels: dict[str, NDArray[Any]]
    titles: list[str]

    def __len__(self) -> int:
        return len(self.first)

    def some(self, products: NDArray[np.int64]) -> tuple[Shelf, NDArray[np.int64]]:
        """Only these products, and the rows of their photos."""
        ends = np.r_[self.first[1:], len(self.paths)]
        rows = [np.arange(self.first[p], ends[p]) for p in products]
        flat = np.concatenate(rows)
        first = np.cumsum([0, *(len(r) for r in rows[:-1])])
        shelf = Shelf(
            [self.paths[r] for r in flat], [self.digests[r] for r in flat], first,
            {name: values[products] for name, values in self.labels.items()}, [self.titles[p] for p in products],
        )  # fmt: skip
        return shelf, flat


def of_snapshot(snapshot: Snapshot, by: Sequence[str] = ()) -> Shelf:
    """A catalog's products, with ``by`` (columns or roles; category and colour by default) as labels.

    Raises UsageError where there is no such column, or none by default.
    """
    roles = snapshot.manifest.roles if snapshot.manifest else {}
    columns = list(dict.fromkeys(snapshot.column(c) for c in by)) or [
        c for c in (roles.get("category"), roles.get("colour")) if c and c in snapshot.attributes.column_names
    ]
    if not columns:
        raise UsageError(
            "the catalog has no column that is known as category or colour; say by what: --by COLUMN. It has "
            f"{', '.join(snapshot.attributes.column_names) or 'none'}"
        )
    labels = _labels({c: snapshot.table[c].to_pylist() for c in columns})
    return Shelf(list(snapshot.paths), list(snapshot.digests), snapshot.first, labels, list(snapshot.titles))


def of_source(source: Source, by: Sequence[str] = ()) -> tuple[Shelf, list[str]]:
    """A source's products as far as their photos can be read, with ``by`` (its category by default) as labels.

    Also gives what could not be read, and why. Raises UsageError where there is no such column, InputError where nothing
    can be read.
    """
    held = dict.fromkeys(c for p in source.products for c in p.attributes)
    columns = list(dict.fromkeys(source.roles.get(c, c) for c in by or ["category"]))
    for column in columns:
        if column not in held:
            raise UsageError(
                f"{source.key}: no column {column!r}; say by what: --label COLUMN. It has {', '.join(held)}"
            )
    named = [(n, str(photo)) for n, product in enumerate(source.products) for photo in product.photos]

    def digest(name: str) -> tuple[str, str]:
        try:
            content = images.load(name)
            images.read(content, at_least=16, name=name)
            return images.digest(content), ""
        except InputError as error:
            return "", str(error)

    with ThreadPoolExecutor() as pool:
        read = list(pool.map(digest, (photo for _, photo in named)))
    kept = [(n, photo, found) for (n, photo), (found, _) in zip(named, read, strict=True) if found]
    if not kept:
        raise InputError(f"{source.key}: none of its photos can be read; the first: {read[0][1]}")
    owners = np.array([n for n, _, _ in kept])
    first = np.flatnonzero(np.r_[True, owners[1:] != owners[:-1]])
    products = [source.products[n] for n in owners[first]]
    labels = _labels({c: [p.attributes.get(c) for p in products] for c in columns})
    shelf = Shelf([photo for _, photo, _ in kept], [d for _, _, d in kept], first, labels, [p.title for p in products])
    return shelf, [why for _, why in read if why]


def _labels(columns: Mapping[str, Sequence[Any]]) -> dict[str, NDArray[Any]]:
    """Columns as texts, and their combination where there are several: missing where any of them is."""
    labels = {
        name: np.array(["" if v is None else f"{v:g}" if isinstance(v, float) else str(v) for v in values], object)
        for name, values in columns.items()
    }
    if len(labels) > 1:
        rows = zip(*labels.values(), strict=True)
        labels[" + ".join(labels)] = np.array([" · ".join(row) if all(row) else "" for row in rows], object)
    return labels


@dataclass
class Found:
    """What leave-one-out found: for each label its figures per query, over the queries that have such a label and others of
    it (``asked``: label → which queries those are, (queries,)); the ten nearest products of each query (queries, 10), and the
    precision at each of ``CURVE``.
    """

    figures: dict[str, dict[str, metrics.PerQuery]]
    asked: dict[str, NDArray[np.bool_]]
    nearest: NDArray[np.int64]
    curves: dict[str, list[list[float]]]


def leave_one_out(vectors: NDArray[np.float32], shelf: Shelf, queries: NDArray[np.int64], batch: int = 32) -> Found:
    """Rank all products for each of ``queries`` (positions of products) by their best photo.

    ``vectors`` (photos, dim) are unit vectors of the shelf's photos.
    """
    codes = {name: np.unique(values, return_inverse=True)[1] for name, values in shelf.labels.items()}
    missing = {name: values == "" for name, values in shelf.labels.items()}
    twins: dict[str, list[int]] = {}
    for row, digest in enumerate(shelf.digests):
        twins.setdefault(digest, []).append(row)
    parts: dict[str, dict[str, list[metrics.PerQuery]]] = {name: {f: [] for f in FIGURES} for name in codes}
    asked: dict[str, list[NDArray[np.bool_]]] = {name: [] for name in codes}
    depths = [k for k in CURVE if k < len(shelf)] or [1]
    curves: dict[str, list[NDArray[np.float64]]] = {name: [] for name in codes}
    nearest = []
    for start in range(0, len(queries), batch):
        own = queries[start : start + batch]
        scores = vectors[shelf.first[own]] @ vectors.T
        for n, row in enumerate(shelf.first[own]):
            scores[n, twins[shelf.digests[row]]] = _OUT
        if len(shelf.paths) > len(shelf):
            scores = np.maximum.reduceat(scores, shelf.first, axis=1)
        scores[np.arange(len(own)), own] = _OUT
        order = np.argsort(-scores, axis=1, kind="stable")
        there = np.take_along_axis(scores, order, 1) > _OUT
        nearest.append(order[:, :10])
        for name, code in codes.items():
            relevance = (code[order] == code[own][:, None]) & there
            counts = relevance.sum(1)
            some = (counts > 0) & ~missing[name][own]
            asked[name].append(some)
            if not some.any():
                continue
            hits, many = relevance[some], counts[some]
            hits = hits[:, : max(int(many.max()), CURVE[-1])]  # no figure looks further
            for figure, values in zip(
                FIGURES,
                (
                    metrics.precision(hits, 1),
                    metrics.precision(hits, 10),
                    metrics.average_precision_at_r(hits, many),
                    metrics.r_precision(hits, many),
                ),
                strict=True,
            ):
                parts[name][figure].append(values)
            curves[name].append(np.array([metrics.precision(hits, k) for k in depths]).T)
    return Found(
        {
            name: {f: np.concatenate(v) if v else np.empty(0) for f, v in figures.items()}
            for name, figures in parts.items()
        },
        {name: np.concatenate(v) for name, v in asked.items()},
        np.concatenate(nearest),
        {
            name: [[k, round(float(v), 4)] for k, v in zip(depths, np.concatenate(rows).mean(0), strict=True)]
            for name, rows in curves.items()
            if rows
        },
    )


def chosen(file: Path, ids: Sequence[str]) -> NDArray[np.int64]:
    """Positions among ``ids`` of those that stand in ``file``, one a line. Raises InputError."""
    try:
        lines = [line.strip() for line in file.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read ({error}); give ids of products, one a line") from error
    places = {identity: n for n, identity in enumerate(ids)}
    wanted = list(dict.fromkeys(line for line in lines if line))
    missing = next((i for i in wanted if i not in places), None)
    if missing is not None or not wanted:
        said = "no ids in it" if missing is None else f"there is no product {missing!r}"
        raise InputError(f"{file}: {said}; give ids of products, one a line")
    return np.array([places[i] for i in wanted])


def sampled(count: int, most: int, seed: int) -> NDArray[np.int64]:
    """``most`` of ``count`` positions in order, by chance but the same for a seed; all where there are no more, or for 0."""
    if not most or most >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).permutation(count)[:most])


def evaluate(
    snapshot: Snapshot, encoder: Encoder, by: Sequence[str] = (), queries: NDArray[np.int64] | None = None,
    beside: Sequence[Encoder] = (), sample: int = SAMPLE, seed: int = 0, progress: Progress = lambda s: None,
) -> Report:  # fmt: skip
    """P@1, P@10, MAP@R and R-precision of each label over a catalog.

    Args:
        snapshot: the catalog.
        encoder: the one that made its vectors.
        by: columns or roles; category and colour by default. Several are measured together, too.
        queries: positions of the products asked for; by default ``sample`` of them, by ``seed``.
        beside: encoders measured on the same queries; their vectors are kept in the user's cache.
        sample: 0 for all.
        seed: of the sample.
        progress: told what is being measured.

    Raises:
        UsageError: no such column.
        InputError: too few products; or a photo's file, which another encoder has to read, is gone.
    """
    shelf = of_snapshot(snapshot, by)
    if len(shelf) < 2:
        raise InputError("the catalog has fewer than two products; nothing can be left out")
    asked = sampled(len(shelf), sample, seed) if queries is None else queries
    rows: dict[str, dict[str, Any]] = {name: {} for name in shelf.labels}
    counts: dict[str, int] = {}
    report: Report = {"title": "Leave one out", "encoder": encoder.id, "tables": [], "curves": []}
    for one in (encoder, *beside):
        progress(f"{one.name}: {len(asked)} queries")
        own = one is encoder
        found = leave_one_out(
            snapshot.photo_vectors if own else cached_vectors(one, shelf.paths, shelf.digests, progress), shelf, asked
        )
        for name, figures in found.figures.items():
            counts[name] = int(found.asked[name].sum())
            if counts[name]:
                rows[name][one.id] = {figure: summary(values) for figure, values in figures.items()}
        if own:
            report["curves"] = [
                {"name": name, "figure": "P@k", "points": points} for name, points in found.curves.items()
            ]
            report["gallery"] = _gallery(shelf, asked, found)
            first = next(iter(shelf.labels))
            report["confusion"] = confusion(shelf.labels[first], asked, found.nearest)
    for name in shelf.labels:
        alike = " + ".join(snapshot.role(c) or c for c in name.split(" + "))
        about = alike if alike == name else f"{alike} ({name})"
        report["tables"].append({"name": f"same {about}", "queries": counts[name], "rows": rows[name]})
    how = "all of them asked for" if len(asked) == len(shelf) else f"{len(asked):,} of them asked for"
    if queries is None and len(asked) < len(shelf):
        how += f" (by chance, seed {seed})"
    report["note"] = (
        f"{len(shelf):,} products, {how}; each is left out of its own answer, and so are photos of the same bytes. A query "
        "whose value no other product has does not count."
    )
    return report


def _gallery(shelf: Shelf, queries: NDArray[np.int64], found: Found) -> list[dict[str, Any]]:
    """The twelve best and the twelve worst queries of the last label (the combination of all), with their first hits."""
    name = list(shelf.labels)[-1]
    rows, values = np.flatnonzero(found.asked[name]), found.figures[name]["P@10"]
    order = np.argsort(-values, kind="stable")
    out = []
    for n in [*order[:12], *order[12:][-12:]]:
        row, label = rows[n], shelf.labels[name]
        own = queries[row]
        hits = [{"path": shelf.paths[shelf.first[own]], "title": "asked", "relevant": False}]
        hits += [
            {"path": shelf.paths[shelf.first[p]], "title": shelf.titles[p], "relevant": bool(label[p] == label[own])}
            for p in found.nearest[row][:6]
        ]
        said = f"{shelf.titles[own] or 'a product'}: {label[own]} ({values[n]:.0%} of ten)"
        out.append({"query": said, "found": bool(values[n] > 0), "hits": hits})
    return out
