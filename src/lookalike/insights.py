"""What a catalog can tell beyond hits: attributes of any photo, near-duplicates, and why a hit is alike, in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike import images
from lookalike.encoders.base import Calibration, Encoder
from lookalike.errors import UsageError
from lookalike.indexes.lexical import words_of
from lookalike.snapshot import Found, Snapshot
from lookalike.types import ImageInput, Query, Reason, Value

NEAR_DUPLICATE = 0.99
"""Cosine from which on two photos of the built-in encoder show the same thing: the same file, or the same thing again."""

NEIGHBOURS = 20
"""Photos that vote for an attribute."""

SHARPNESS = 0.05
"""A neighbour whose cosine is this much lower has 1/e of the vote: so the shares come near to how often the vote is right."""

SURE = 0.5
"""Share of the votes from which on a photo's attribute is taken for known."""

TOLD = ("category", "colour", "gender")
"""Roles whose columns say why a hit is alike, beside those whose names speak of looks."""

_LOOKS = ("pattern", "print", "material", "fabric", "style", "sleeve", "neck", "fit")

PATTERNS = {
    "striped": ("stripe", "striped", "pinstripe", "pinstriped"),
    "checked": ("check", "checked", "checkered", "chequered", "plaid", "tartan", "gingham"),
    "floral": ("floral", "flower", "flowery"),
    "polka dots": ("polka", "dotted"),
    "embroidered": ("embroidered", "embroidery"),
    "printed": ("print", "printed", "graphic"),
    "plain": ("solid", "plain"),
}
"""Patterns as titles name them, for catalogs without such a column."""

BLOCK = 512
"""Photos compared with all others at once."""


def pattern_of(title: str) -> str | None:
    """The first pattern that a title names."""
    words = set(words_of(title))
    return next((name for name, said in PATTERNS.items() if words.intersection(said)), None)


def _told(snapshot: Snapshot) -> list[str]:
    columns = [c for c in snapshot.values if snapshot.role(c) in TOLD]
    return columns + [c for c in snapshot.values if c not in columns and any(w in c.casefold() for w in _LOOKS)]


def neighbours(snapshot: Snapshot, vector: NDArray[np.float32], k: int = NEIGHBOURS) -> list[Found]:
    """The ``k`` products nearest to a unit vector (dim,)."""
    return snapshot.rank(vector).top(k)


def similarity(encoder: Encoder, one: ImageInput, other: ImageInput) -> dict[str, Any]:
    """How alike two photos are: ``{"encoder", "cosine", "distance"}``, the Euclidean one of unit vectors (0 … 2), and ``alike``
    (0–100) where the encoder is calibrated.

    Raises:
        ImageError: one of them cannot be used.
    """
    pixels = [encoder.prepare(images.read(photo, at_least=max(encoder.size))) for photo in (one, other)]
    first, second = encoder.encode_photos(np.stack(pixels)).astype(np.float64)
    cosine = float(np.clip(first @ second, -1, 1))
    found = {
        "encoder": encoder.id,
        "cosine": round(cosine, 6),
        "distance": round(float(np.linalg.norm(first - second)), 6),
    }
    scale: Calibration | None = getattr(encoder, "calibration", None)
    alike = scale.alike("photo", cosine) if scale else None
    return found if alike is None else {**found, "alike": round(alike)}


def tags(snapshot: Snapshot, near: Sequence[Found], columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """What the nearest products say of a photo: a vote, each voice weighed by its likeness.

    Returns:
        ``[{"column", "role", "values": [{"value", "confidence"}, …]}, …]``: at most five values a column, confidence the
        share of the votes, 0 … 1; last the pattern, as titles name it. Columns of which no neighbour has a value are left
        out.
    """
    if not near:
        return []
    rows = snapshot.attributes_of([f.product for f in near])
    scores = np.array([f.score for f in near])
    weights = np.exp((scores - scores.max()) / SHARPNESS)
    out: list[dict[str, Any]] = []

    def vote(column: str, role: str | None, values: Sequence[Value], least: float = 0.0) -> None:
        shares: dict[Value, float] = {}
        for value, weight in zip(values, weights.tolist(), strict=True):
            if value is not None:
                shares[value] = shares.get(value, 0.0) + weight
        total = max(sum(shares.values()), least)
        ranked = sorted(shares.items(), key=lambda s: -s[1])[:5]
        if ranked:
            found = [{"value": v, "confidence": round(s / total, 3)} for v, s in ranked]
            out.append({"column": column, "role": role, "values": found})

    for column in snapshot.values if columns is None else columns:
        values = [row.get(column) for row in rows]
        # Flags are said as in facets and filters.
        vote(column, snapshot.role(column), [str(v).lower() if isinstance(v, bool) else v for v in values])
    if "pattern" not in snapshot.values:
        # Most titles name none: without its share of all votes, a single title would decide.
        vote("pattern", None, [pattern_of(snapshot.titles[f.product]) for f in near], float(weights.sum()))
    return out


def asked(
    snapshot: Snapshot, query: Query, near: Sequence[Found], liked: Sequence[int]
) -> dict[str, tuple[Value, str | None]]:
    """What a query asks for, as far as it can be said in the catalog's words: column → (value, role).

    What the words name comes first, then what the liked product has, then what the photo's nearest products (``near``)
    agree on.
    """
    if query.pure or not len(snapshot):
        return {}
    columns = _told(snapshot)
    found: dict[str, Value] = {}
    for tag in tags(snapshot, near, columns):
        if tag["values"][0]["confidence"] >= SURE:
            found[tag["column"]] = tag["values"][0]["value"]
    for product in liked[:1]:
        attributes = _with_pattern(snapshot.attributes_of([product])[0], snapshot.titles[product])
        found |= {c: attributes[c] for c in (*columns, "pattern") if attributes.get(c) is not None}
    named = snapshot.mentions(query.text) if query.text else {}
    found |= {c: value for c, (value, _, _) in named.items() if c in columns}
    pattern = pattern_of(query.text)
    if pattern and "pattern" not in columns:
        found["pattern"] = pattern
    return {c: (found[c], snapshot.role(c)) for c in (*columns, "pattern") if c in found}


def why(asked: Mapping[str, tuple[Value, str | None]], attributes: Mapping[str, Value], title: str) -> list[Reason]:
    """In what a hit agrees with what was asked, or differs; what is not known of it is left out."""
    has = _with_pattern(attributes, title) if "pattern" in asked else attributes
    return [
        Reason(column, role, value, has[column], has[column] == value)
        for column, (value, role) in asked.items()
        if has.get(column) is not None
    ]


def _with_pattern(attributes: Mapping[str, Value], title: str) -> dict[str, Value]:
    return {"pattern": pattern_of(title), **attributes}


@dataclass(frozen=True)
class Group:
    """Products whose photos show the same, in order of id, and the lowest cosine that holds the group together."""

    products: tuple[Found, ...]
    score: float


def duplicates(
    snapshot: Snapshot,
    threshold: float = NEAR_DUPLICATE,
    mask: NDArray[np.bool_] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Group]:
    """Groups of different products with photos at least ``threshold`` (a cosine) alike, largest first.

    Every pair of photos is compared, ``BLOCK`` rows at a time: seconds for tens of thousands of photos, and time that grows
    with the square of their number. Products joined by a chain of pairs are one group.

    Args:
        snapshot: whose products.
        threshold: 0.9 … 1.
        mask: products that count (products,), or None for all.
        progress: called with photos done and photos in all.

    Raises:
        UsageError: the threshold is out of range.
    """
    if not 0.9 <= threshold <= 1:
        raise UsageError(f"threshold is {threshold}; it goes from 0.9 to 1")
    owner = snapshot.owner
    mask = snapshot.live if mask is None else mask
    rows = np.arange(len(owner)) if mask is None else np.flatnonzero(mask[owner])
    vectors = snapshot.photo_vectors[rows]
    parent: dict[int, int] = {}
    weakest: dict[int, float] = {}
    best_row: dict[int, int] = {}

    def root(n: int) -> int:
        while parent.setdefault(n, n) != n:
            parent[n] = parent[parent[n]]
            n = parent[n]
        return n

    for start in range(0, len(rows), BLOCK):
        # Each pair once: a block against itself and what follows. A little less than asked, for rounding: equal is 1.
        near = vectors[start : start + BLOCK] @ vectors[start:].T
        left, right = np.nonzero(near >= threshold - 1e-6)
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            one, other = int(owner[rows[start + a]]), int(owner[rows[start + b]])
            if one < other or (one != other and b > a):
                x, y = root(one), root(other)
                low = min(weakest.get(x, 1.0), weakest.get(y, 1.0), float(near[a, b]))
                parent[y] = x
                weakest[x] = low
                best_row.setdefault(one, int(rows[start + a]))
                best_row.setdefault(other, int(rows[start + b]))
        if progress:
            progress(min(start + BLOCK, len(rows)), len(rows))
    order = snapshot.rank_of
    rank = (lambda n: n) if order is None else order.__getitem__
    groups: dict[int, list[int]] = {}
    for n in list(parent):
        groups.setdefault(root(n), []).append(n)
    out = [
        Group(tuple(Found(n, best_row[n], weakest[r]) for n in sorted(members, key=rank)), min(1.0, weakest[r]))
        for r, members in groups.items()
        if len(members) > 1
    ]
    return sorted(out, key=lambda g: (-len(g.products), -g.score, rank(g.products[0].product)))
