"""The nouns that every module shares: products and photos go in, queries are asked, hits come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Value = str | int | float | bool | None
"""A cell of an attribute column."""


def is_unicode(text: str) -> bool:
    """Whether the text has no half of a surrogate pair, which file names, JSON and argv can carry and nothing can keep."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str) -> str:
    """A text that any terminal and log can take: names and titles may hold newlines, escapes and broken encodings."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


ImageInput = str | Path | bytes
"""A photo as a caller gives it: a file's path, or the bytes of one."""


@dataclass(frozen=True, slots=True)
class Product:
    """What a shop sells: an id, a title, attributes and one or more photos.

    ``photos`` are paths of image files, or http(s) addresses; their order is the order of the shop. ``where`` says which
    file and row the product came from, for messages.
    """

    id: str
    photos: Sequence[str | Path]
    title: str = ""
    attributes: Mapping[str, Value] = field(default_factory=dict)
    where: str = ""


@dataclass(frozen=True, slots=True)
class Query:
    """What is searched for: any mix of photo, words, "like product X" and "not …", within a filter.

    ``crop`` is [x0, y0, x1, y1] in fractions of the upright image. ``weights`` balances ``photo``, ``text`` and ``like``
    (1 each), and ``colour``. ``lexical`` (0–1) is the share of word matching over titles and attributes. ``pure`` asks for
    the plain order of the photo vectors.

    ``colour`` (``#rrggbb``) is what the garment should have. ``up`` and ``down`` are products of the answer that were found
    good or bad. ``fold`` puts near-duplicates under the first of them, ``diversity`` (0–1) keeps hits apart, ``sort`` orders
    the best of them by a column (``-column``: largest first), ``offset`` skips what was shown already.
    """

    image: ImageInput | None = None
    text: str = ""
    like: Sequence[str] = ()
    not_text: Sequence[str] = ()
    not_like: Sequence[str] = ()
    where: str = ""
    k: int = 12
    crop: Sequence[float] | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    lexical: float = 0.0
    pure: bool = False
    colour: str = ""
    up: Sequence[str] = ()
    down: Sequence[str] = ()
    fold: bool = False
    diversity: float = 0.0
    sort: str = ""
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Reason:
    """In what a hit agrees with what was asked, or differs: a column, its role if it has one, both values."""

    column: str
    role: str | None
    asked: Value
    has: Value
    agrees: bool


@dataclass(frozen=True, slots=True)
class Hit:
    """A product in the answer.

    ``score`` is the cosine (−1 … 1) of the query with ``photo``, the product's best photo; ``alike`` says the same from 0 to
    100 where the encoder is calibrated for such a query: how much of type, colour and gender such a hit shares with what was
    asked. ``path`` is the file that the photo was read from, with the box at its end where it is a part of one (it never
    leaves this machine over HTTP). ``photos`` are all of the product's, the best first; ``folded`` its near-duplicates that
    would have followed; ``colours`` the garment's (``#rrggbb``, most first).
    """

    id: str
    score: float
    photo: str
    path: str
    title: str
    attributes: Mapping[str, Value]
    alike: float | None = None
    photos: Sequence[str] = ()
    folded: Sequence[Mapping[str, str]] = ()
    colours: Sequence[str] = ()
    why: Sequence[Reason] = ()

    def to_json(self, *, paths: bool = False) -> dict[str, Any]:
        """As in ``search --json`` (``paths``: the photo as its file) and over HTTP (the photo as its id)."""
        return {
            "id": self.id,
            "score": round(self.score, 6),
            **({} if self.alike is None else {"alike": round(self.alike)}),
            "photo": self.path if paths else self.photo,
            "title": self.title,
            "attributes": dict(self.attributes),
            "photos": list(self.photos),
            "folded": [dict(f) for f in self.folded],
            "colours": list(self.colours),
            "why": [asdict(r) for r in self.why],
        }


@dataclass(frozen=True, slots=True)
class Answer:
    """What a search gives back: hits in order, how many products passed the filter, and the time it took.

    ``no_good_match``: even the best hit is further away than nearly everything that a shop's customers ask for.
    ``more``: there are further hits. ``corrected``: words of the text that no title has → those that were matched instead.
    """

    hits: tuple[Hit, ...]
    total: int
    took_ms: float
    no_good_match: bool = False
    more: bool = False
    corrected: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Quarantined:
    """An input that could not be used: the file or row, the reason, and (once it is in the catalog) the source's key."""

    item: str
    reason: str
    source: str = ""
