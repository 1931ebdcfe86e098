"""Query → one vector → snapshot → hits. The same path answers the command line, Python and HTTP."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lookalike import images
from lookalike import where as filters
from lookalike.encoders.base import Calibration, Encoder
from lookalike.errors import UsageError
from lookalike.snapshot import Snapshot
from lookalike.stages import timed
from lookalike.types import Answer, Hit, Query, is_unicode

MAX_K = 1000
MAX_TEXT, MAX_PARTS, MAX_WEIGHT = 10_000, 100, 1e6
NOT_WEIGHT = 0.5
"""How much of an unwanted direction is taken away: more, and the answer is about what is *not* wanted."""


def search(snapshot: Snapshot, encoder: Encoder, query: Query) -> Answer:
    """Answer a query from a snapshot.

    Raises:
        UsageError: nothing to search for, a broken filter, k or a weight out of range.
        ImageError: the photo cannot be used.
        NotFound: a product in ``like`` is not in the catalog.
    """
    start = time.perf_counter()
    check(query)
    expression = filters.parse(query.where) if query.where.strip() else None
    mask = snapshot.mask(expression)
    liked = [snapshot.product(i) for i in dict.fromkeys(query.like)]
    unliked = [snapshot.product(i) for i in dict.fromkeys(query.not_like)]
    vector = query_vector(snapshot, encoder, query, liked, unliked)
    words = snapshot.lexical.scores(query.text) if query.lexical and query.text and not query.pure else None
    found = timed("search", snapshot.search, vector, query.k, mask, {*liked, *unliked}, words, query.lexical)
    attributes = snapshot.attributes_of([f.product for f in found])
    kind = _kind(query)
    scale: Calibration | None = getattr(encoder, "calibration", None)
    least = scale.least.get(kind) if scale else None
    hits = tuple(
        Hit(
            id=snapshot.ids[f.product],
            score=f.score,
            photo=snapshot.photos[f.row],
            path=snapshot.paths[f.row],
            title=snapshot.titles[f.product],
            attributes=a,
            alike=scale.alike(kind, f.score) if scale else None,
        )
        for f, a in zip(found, attributes, strict=True)
    )
    total = len(snapshot) if mask is None else int(np.count_nonzero(mask))
    nothing = least is not None and bool(hits) and max(h.score for h in hits) < least
    if nothing and words is not None:  # what has the very words is a match, whatever the vectors say of it
        nothing = not snapshot.lexical.names(query.text, mask)
    return Answer(hits, total, (time.perf_counter() - start) * 1000, nothing)


def _kind(query: Query) -> str:
    """What the encoder's calibration calls such a query; one of several parts is of no kind."""
    if query.not_text or query.not_like:
        return "mixed"
    parts = (
        ["text"] * bool(query.text.strip()) + ["photo"] * (query.image is not None) + ["photo"] * len(set(query.like))
    )
    return parts[0] if len(parts) == 1 else "mixed"  # a mean of several has another scale


def check(query: Query) -> None:
    """Refuse a query that cannot be answered, naming the field.

    Raises:
        UsageError: see ``search``.
    """
    if not isinstance(query.k, (int, np.integer)) or not 1 <= query.k <= MAX_K:
        raise UsageError(f"k is {query.k!r}; it is a whole number from 1 to {MAX_K}")
    parts = {"text": [query.text], "like": query.like, "not text": query.not_text, "not like": query.not_like}
    for name, texts in parts.items():
        if len(texts) > MAX_PARTS:
            raise UsageError(f"{name} has {len(texts)} values; at most {MAX_PARTS} are read")
        for text in texts:
            if not isinstance(text, str) or not is_unicode(text):
                raise UsageError(f"{name}: {text!r} is not text")
            if len(text) > MAX_TEXT:
                raise UsageError(f"{name} has {len(text)} characters; at most {MAX_TEXT} are read")
    if not 0 <= query.lexical <= 1:
        raise UsageError(f"lexical is {query.lexical}; it goes from 0 to 1")
    if query.crop is not None and query.image is None:
        raise UsageError("crop without an image; give the image that it cuts")
    for name, value in query.weights.items():
        if name not in ("photo", "text", "like"):
            raise UsageError(f"weights has {name!r}; it takes photo, text and like")
        if not 0 <= value <= MAX_WEIGHT:
            raise UsageError(f"weights: {name} is {value}; it goes from 0 to {MAX_WEIGHT:.0f}")
    texts = [t for t in (query.text, *query.not_text) if t.strip()]
    if query.image is None and not texts and not query.like and not query.not_like:
        raise UsageError("nothing to search for; give a text, an image, or a product to be like")


def query_vector(
    snapshot: Snapshot, encoder: Encoder, query: Query, liked: Sequence[int], unliked: Sequence[int]
) -> NDArray[np.float32]:
    """The mean of what is wanted, less half of what is not: a unit vector (dim,).

    Raises:
        UsageError: the parts cancel each other out.
    """
    parts: list[tuple[float, NDArray[np.float32]]] = []
    weight = query.weights.get
    if query.image is not None:
        image = timed("decode", images.read, query.image, at_least=max(encoder.size))
        if query.crop is not None:
            image = images.crop(image, query.crop)
        parts.append((weight("photo", 1.0), timed("encode", encoder.encode_photos, encoder.prepare(image)[None])[0]))
    texts = [t for t in (query.text, *query.not_text) if t.strip()]
    if texts:
        wanted = bool(query.text.strip())
        for n, v in enumerate(timed("encode", encoder.encode_texts, texts)):
            parts.append((weight("text", 1.0) if wanted and n == 0 else -NOT_WEIGHT, v))
    parts += [(weight("like", 1.0) / len(liked), _mean(snapshot, p)) for p in liked]
    parts += [(-NOT_WEIGHT, _mean(snapshot, p)) for p in unliked]
    total = sum((w * v for w, v in parts), start=np.zeros(encoder.dim, np.float32))
    length = float(np.linalg.norm(total))
    if length < 1e-6:
        raise UsageError("what is wanted and what is not cancel each other out; change the weights")
    return (total / length).astype(np.float32)


def _mean(snapshot: Snapshot, product: int) -> NDArray[np.float32]:
    rows = snapshot.rows(product)
    mean = snapshot.vectors[rows.start : rows.stop].mean(0)
    return np.asarray(mean / np.linalg.norm(mean), np.float32)
