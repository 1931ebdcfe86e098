"""Query → one vector → snapshot → hits. The same path answers the command line, Python and HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lookalike import colours, images, insights
from lookalike import where as filters
from lookalike.encoders.base import Calibration, Encoder
from lookalike.errors import UsageError
from lookalike.indexes.lexical import words_of
from lookalike.insights import NEAR_DUPLICATE
from lookalike.snapshot import Found, Ranking, Snapshot
from lookalike.stages import timed
from lookalike.types import Answer, Hit, Query, is_unicode

MAX_K = 1000
MAX_TEXT, MAX_PARTS, MAX_WEIGHT = 10_000, 100, 1e6
NOT_WEIGHT = 0.5
"""How much of an unwanted direction is taken away: more, and the answer is about what is *not* wanted."""
ROCCHIO_UP, ROCCHIO_DOWN = 0.75, 0.25
"""Shares of the mean of what was found good and bad (Salton and Buckley 1990)."""
WHOLE_ID = 100.0
"""What word matching gives (else 0 … 1) to the product whose id was typed: it comes first, whatever it looks like."""
OTHERS = 12
"""Values put in the place of one that a text names."""
SORTED, POOL = 200, 400
"""Hits that are put in the order of a column, and that diversity orders anew: more of them would bring the unlike up."""
MAX_DEPTH = 10_000
"""Hits that can be reached by pages."""


def search(snapshot: Snapshot, encoder: Encoder, query: Query) -> Answer:
    """Answer a query from a snapshot.

    Raises:
        UsageError: nothing to search for, a broken filter, a value out of range, a colour where the catalog has none.
        ImageError: the photo cannot be used.
        NotFound: a product in ``like`` is not in the catalog.
    """
    start = time.perf_counter()
    check(query)
    expression = filters.parse(query.where) if query.where.strip() else None
    mask = snapshot.mask(expression)
    liked = [snapshot.product(i) for i in dict.fromkeys(query.like)]
    unliked = [snapshot.product(i) for i in dict.fromkeys(query.not_like)]
    parts = _Parts(snapshot, encoder, query, liked, unliked)
    vector = parts.vector()
    text, corrected = _mended(snapshot, encoder, query)
    words = snapshot.lexical.scores(text) if query.lexical and query.text and not query.pure else None
    if words is not None and snapshot.has(query.text.strip()):
        words[snapshot.product(query.text.strip())] = WHOLE_ID
    colour = None
    if query.colour and not query.pure:
        if not snapshot.has_colours:
            raise UsageError("this catalog was made before colours were kept; run index again, and it will have them")
        colour = snapshot.wardrobe.closeness(colours.parse(query.colour))
    without, share = {*liked, *unliked}, query.weights.get("colour", 1.0)
    ranking = timed("search", snapshot.rank, vector, mask, without, words, query.lexical, colour, share)
    found, folded, more = arrange(ranking, query)
    attributes = snapshot.attributes_of([f.product for f in found])
    kind = _kind(query)
    scale: Calibration | None = getattr(encoder, "calibration", None)
    least = scale.least.get(kind) if scale else None
    near: list[Found] = []
    if parts.photo is not None and not query.pure:
        alone = kind == "photo" and mask is None  # then this very search has found the photo's neighbours
        near = ranking.top(insights.NEIGHBOURS) if alone else insights.neighbours(snapshot, parts.photo)
    asked = insights.asked(snapshot, query, near, liked)
    hits = tuple(
        Hit(
            id=snapshot.ids[f.product],
            score=f.score,
            photo=snapshot.photos[f.row],
            path=snapshot.paths[f.row],
            title=snapshot.titles[f.product],
            attributes=a,
            alike=scale.alike(kind, f.score) if scale else None,
            photos=[snapshot.photos[r] for r in _best_first(snapshot.rows(f.product), f.row)],
            folded=[snapshot.small(g) for g in others],
            colours=[colours.shown(c) for c in snapshot.palettes[f.row] if c[3]],
            why=insights.why(asked, a, snapshot.titles[f.product]),
        )
        for f, others, a in zip(found, folded, attributes, strict=True)
    )
    total = len(snapshot) if mask is None else int(np.count_nonzero(mask))
    nothing = least is not None and bool(hits) and not query.offset and max(h.score for h in hits) < least
    if nothing and words is not None:  # what has the very words is a match, whatever the vectors say of it
        nothing = not snapshot.lexical.names(text, mask)
    return Answer(hits, total, (time.perf_counter() - start) * 1000, nothing, more, corrected)


def _best_first(rows: Iterable[int], best: int) -> list[int]:
    return [best, *(r for r in rows if r != best)]


def _mended(snapshot: Snapshot, encoder: Encoder, query: Query) -> tuple[str, dict[str, str]]:
    """The text for word matching with slips mended, and what was mended: not what the encoder knows as a word."""
    if not query.lexical or not query.text or query.pure:
        return query.text, {}
    corrected = {}
    knows: Callable[[str], bool] | None = getattr(encoder, "knows", None)
    for word in dict.fromkeys(words_of(query.text)):
        better = snapshot.lexical.correct(word)
        if better and not (knows and knows(word)):
            corrected[word] = better
    words = [corrected.get(w, w) for w in words_of(query.text)] if corrected else [query.text]
    return " ".join(words), corrected


def arrange(ranking: Ranking, query: Query) -> tuple[list[Found], list[list[Found]], bool]:
    """The part of an order that is shown: folded, kept apart, sorted and cut.

    Returns:
        The hits, of each the near-duplicates folded under it, and whether there are more. The order before ``offset`` never
        depends on it, so that pages fit together.
    """
    end = query.offset + query.k
    folds, apart = query.fold and not query.pure, 0.0 if query.pure else query.diversity
    depth = max(end + 1, SORTED if query.sort else 0, POOL if apart else 0)
    if folds:
        found, folded = _folded(ranking, depth)
    else:
        found = ranking.top(depth)
        folded = [[] for _ in found]
    if apart:
        order = _apart(ranking, found[:POOL], apart)
        found = [found[n] for n in order] + found[POOL:]
        folded = [folded[n] for n in order] + folded[POOL:]
    if query.sort:
        order = _sorted(ranking.snapshot, found[:SORTED], query.sort)
        found, folded = [found[n] for n in order], [folded[n] for n in order]
    return found[query.offset : end], folded[query.offset : end], len(found) > end


def _folded(ranking: Ranking, depth: int) -> tuple[list[Found], list[list[Found]]]:
    """The best ``depth`` products that are no near-duplicates of one another, and those of each."""
    vectors = ranking.snapshot.photo_vectors
    heads: list[Found] = []
    under: list[list[Found]] = []
    kept = np.empty((0, vectors.shape[1]), np.float32)
    seen, ahead = 0, 2 * depth
    while True:
        found = ranking.top(ahead)
        for start in range(seen, len(found), 256):
            block = found[start : start + 256]
            own = vectors[[f.row for f in block]]
            near = np.concatenate([own @ kept.T, np.full((len(block), len(block)), -1, np.float32)], 1)
            inside = own @ own.T
            before = len(kept)
            places: list[int] = []  # of this block's heads
            for n, f in enumerate(block):
                near[n, before : before + len(places)] = inside[n, places]
                best = int(near[n].argmax()) if before + len(places) else -1
                if best >= 0 and near[n, best] >= NEAR_DUPLICATE:
                    under[best].append(f)
                    continue
                places.append(n)
                heads.append(f)
                under.append([])
            kept = np.concatenate([kept, own[places]])
            if len(heads) >= depth:
                return heads[:depth], under[:depth]
        if len(found) < ahead:
            return heads, under
        seen, ahead = len(found), 2 * ahead


def _apart(ranking: Ranking, found: Sequence[Found], diversity: float) -> list[int]:
    """Maximal marginal relevance (Carbonell and Goldstein 1998): positions in a new order, near ones kept apart."""
    if not found:
        return []
    own = ranking.snapshot.photo_vectors[[f.row for f in found]]
    value = np.array([f.value for f in found], np.float32)
    value = (value - value.min()) / max(float(np.ptp(value)), 1e-6)
    nearest = np.zeros(len(found), np.float32)
    left = np.ones(len(found), np.bool_)
    order: list[int] = []
    for _ in found:
        gain = np.where(left, (1 - diversity) * value - diversity * nearest, -np.inf)
        n = int(gain.argmax())
        order.append(n)
        left[n] = False
        nearest = np.maximum(nearest, own @ own[n])
    return order


def _sorted(snapshot: Snapshot, found: Sequence[Found], by: str) -> list[int]:
    """Positions ordered by a column, those without a value last, equal ones as they were. Raises UsageError."""
    name = snapshot.column(by.removeprefix("-"))
    values = snapshot.table[name].take(pa.array([f.product for f in found], pa.int64())).to_pylist()
    there = [n for n, v in enumerate(values) if v is not None]
    there.sort(key=lambda n: values[n], reverse=by.startswith("-"))
    return there + [n for n, v in enumerate(values) if v is None]


def _kind(query: Query) -> str:
    """What the encoder's calibration calls such a query; one of several parts is of no kind."""
    if query.not_text or query.not_like or query.up or query.down or query.colour:
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
    if not isinstance(query.offset, (int, np.integer)) or not 0 <= query.offset <= MAX_DEPTH - query.k:
        raise UsageError(f"offset is {query.offset!r}; offset and k together go up to {MAX_DEPTH}")
    parts = {"text": [query.text], "like": query.like, "not text": query.not_text, "not like": query.not_like,
             "feedback up": query.up, "feedback down": query.down, "sort": [query.sort]}  # fmt: skip
    for name, texts in parts.items():
        if len(texts) > MAX_PARTS:
            raise UsageError(f"{name} has {len(texts)} values; at most {MAX_PARTS} are read")
        for text in texts:
            if isinstance(text, str) and len(text) > MAX_TEXT:
                raise UsageError(f"{name} has {len(text)} characters; at most {MAX_TEXT} are read")
            if not isinstance(text, str) or not is_unicode(text):
                raise UsageError(f"{name}: {str(text)[:60]!r} is not text")
    if not 0 <= query.lexical <= 1:
        raise UsageError(f"lexical is {query.lexical}; it goes from 0 to 1")
    if not 0 <= query.diversity <= 1:
        raise UsageError(f"diversity is {query.diversity}; it goes from 0 to 1")
    if query.colour:
        colours.parse(query.colour)
    if query.crop is not None and query.image is None:
        raise UsageError("crop without an image; give the image that it cuts")
    for name, value in query.weights.items():
        if name not in ("photo", "text", "like", "colour"):
            raise UsageError(f"weights has {name!r}; it takes photo, text, like and colour")
        if not 0 <= value <= MAX_WEIGHT:
            raise UsageError(f"weights: {name} is {value}; it goes from 0 to {MAX_WEIGHT:.0f}")
    texts = [t for t in (query.text, *query.not_text) if t.strip()]
    given = texts or query.like or query.not_like or ((query.up or query.down or query.colour) and not query.pure)
    if query.image is None and not given:
        raise UsageError("nothing to search for; give a text, an image, a colour, or a product to be like")


class _Parts:
    """What a query is made of, as vectors."""

    def __init__(
        self, snapshot: Snapshot, encoder: Encoder, query: Query, liked: Sequence[int], unliked: Sequence[int]
    ):
        self.snapshot, self.encoder, self.query = snapshot, encoder, query
        self.photo: NDArray[np.float32] | None = None
        weight = query.weights.get
        texts = [t for t in (query.text, *query.not_text) if t.strip()]
        read = list(timed("encode", encoder.encode_texts, texts)) if texts else []
        self.wanted: list[tuple[float, NDArray[np.float32]]] = []
        if query.image is not None:
            image = timed("decode", images.read, query.image, at_least=max(encoder.size))
            if query.crop is not None:
                image = images.crop(image, query.crop)
            self.photo = timed("encode", encoder.encode_photos, encoder.prepare(image)[None])[0]
            self.wanted.append((weight("photo", 1.0), self.photo))
        self.wanted += [(weight("like", 1.0) / len(liked), _looks(snapshot, p)) for p in liked]
        if query.text.strip():
            vector = read.pop(0)
            if self.wanted and not query.pure:
                vector = self._pointed(vector)
            self.wanted.append((weight("text", 1.0), vector))
        self.unwanted = [*read, *(_looks(snapshot, p) for p in unliked)]

    def _pointed(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the words change: beside a photo, "in red" is what sets it apart from "in blue" and "in black".

        From the text's vector goes the mean of the same text with each value that it names put in place of another of its
        column: what they have in common is about nothing that was asked.
        """
        text = " ".join(words_of(self.query.text))
        others = []
        for column, (value, start, count) in self.snapshot.mentions(self.query.text).items():
            words = text.split()
            rest = [v for v in self.snapshot.values[column] if v != value][:OTHERS]
            others += [" ".join([*words[:start], v.casefold(), *words[start + count :]]) for v in rest]
        if not others:
            return vector
        pointed = vector - timed("encode", self.encoder.encode_texts, others).mean(0)
        length = float(np.linalg.norm(pointed))
        return pointed / length if length > 1e-3 else vector

    def vector(self) -> NDArray[np.float32] | None:
        """What is wanted, less half of what is not: a vector (dim,) of length 1, or None for a query by colour alone.

        Several wanted parts are scaled by how strongly each sorts the catalog: cosines of photos with photos spread more
        than twice as far as those with words, and a plain mean would hardly hear the words. The products found good or bad
        move the result by Rocchio's rule (1971).

        Raises:
            UsageError: the parts cancel each other out.
        """
        query, snapshot = self.query, self.snapshot
        parts = [(w, v) for w, v in self.wanted if w]
        balanced = len(parts) > 1 and not query.pure and len(snapshot)
        total = np.zeros(self.encoder.dim, np.float32)
        for w, v in parts:
            total += w * v / snapshot.spread(v) if balanced else w * v
        length = float(np.linalg.norm(total))
        if balanced and length > 1e-6:
            total /= length
        for v in self.unwanted:
            total -= NOT_WEIGHT * v
        if not query.pure:
            for ids, share in ((query.up, ROCCHIO_UP), (query.down, -ROCCHIO_DOWN)):
                found = [snapshot.product(i) for i in dict.fromkeys(ids)]
                total += sum((share / len(found) * _mean(snapshot, p) for p in found), start=np.zeros_like(total))
        length = snapshot.length(total)
        if length < 1e-6:
            if query.colour and not self.wanted and not self.unwanted:
                return None
            raise UsageError("what is wanted and what is not cancel each other out; change the weights")
        return (total / length).astype(np.float32)


def _mean(snapshot: Snapshot, product: int) -> NDArray[np.float32]:
    """All that is known of a product, (dim,)."""
    rows = snapshot.rows(product)
    mean = snapshot.vectors[rows.start : rows.stop].mean(0)
    return np.asarray(mean / np.linalg.norm(mean), np.float32)


def _looks(snapshot: Snapshot, product: int) -> NDArray[np.float32]:
    """What a product looks like: as a photo of it, (dim,)."""
    rows = snapshot.rows(product)
    mean = snapshot.photo_vectors[rows.start : rows.stop].mean(0)
    return np.pad(mean / np.linalg.norm(mean), (0, snapshot.vectors.shape[1] - len(mean))).astype(np.float32)
