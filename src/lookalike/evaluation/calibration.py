"""What a cosine means: from 0 to 100 how alike, and from where on "nothing like this here" is the honest answer.

Cosines of photos and of texts lie on different scales, and neither says anything to a person. ``alike`` is the share of type,
colour and gender that a hit of such a cosine has in common with what was asked, on average, as a rising curve through bins
(isotonic regression, Barlow et al. 1972). A best hit below the lowest 2% of what known queries get is "no good match".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lookalike.encoders.base import Calibration, Encoder
from lookalike.errors import InputError, UsageError
from lookalike.evaluation import everyday, metrics
from lookalike.evaluation.protocol import Progress, Report, encode_texts, summary
from lookalike.snapshot import Snapshot

BINS = 24
REFUSED = 0.02
"""Share of known queries that may be told, wrongly, that nothing is like them."""

PHRASES_REFUSED = 0.15
"""The same of phrases that people might say: odder than what they do say, so that of everyday queries far fewer are told so."""

ELSEWHERE = """
diesel generator; fresh salmon fillet; how to bake sourdough bread; used car tyres; garden hose; mortgage calculator;
wifi router; kitchen sink tap; dog food for puppies; guitar strings; cordless drill; plane tickets to paris; oil
painting of a lake; bathroom tiles; potted fern; tax return form; football league table; microwave oven; printer
cartridges; wooden dining table; bed frame; lawn mower; chocolate cake recipe; fishing rod; tent pegs; cough syrup;
toothbrush; vacuum cleaner; light bulb; wall clock; bicycle pump; chess board; science fiction novel; laptop charger;
hard disk; roof insulation; cement mixer; aquarium filter; baby stroller; office chair; ceiling fan; washing powder;
cat litter; motor oil; piano lessons; weather in london; train timetable; stock prices; smoke detector; paint roller;
coffee beans; frying pan; garlic bread; orange juice; pumpkin seeds; bookshelf; window blinds; electric kettle; rice
cooker; swimming lessons
"""
"""Queries of other trades, for the rate of answers that should not have been given."""

Pairs = tuple[NDArray[np.float64], NDArray[np.float64]]


def rising(cosines: NDArray[np.float64], agreement: NDArray[np.float64], bins: int = BINS) -> list[tuple[float, float]]:
    """(cosine, alike 0–100) through bins of equal size, pooled until it rises (pool adjacent violators)."""
    order = np.argsort(cosines, kind="stable")
    blocks: list[tuple[float, float, int]] = []  # sum of cosines, sum of agreements, count
    for part in np.array_split(order, min(bins, len(order))):
        blocks.append((float(cosines[part].sum()), float(agreement[part].sum()), len(part)))
        while len(blocks) > 1 and blocks[-2][1] / blocks[-2][2] >= blocks[-1][1] / blocks[-1][2]:
            a, b = blocks.pop(), blocks.pop()
            blocks.append((a[0] + b[0], a[1] + b[1], a[2] + b[2]))
    return [(round(c / n, 4), round(100 * y / n, 1)) for c, y, n in blocks]


def pairs(
    queries: NDArray[np.float32],
    vectors: NDArray[np.float32],
    asked: NDArray[Any],
    known: NDArray[Any],
    own: NDArray[np.int64],
    seed: int = 0,
) -> Pairs:
    """Cosines and agreements of each query with its 20 nearest and 20 random others.

    Args:
        queries: (q, dim).
        vectors: (n, dim).
        asked: attributes of the queries (q, attributes), "" where missing.
        known: attributes of the corpus (n, attributes).
        own: each query's own row in the corpus (q,), left out; −1 for none.
        seed: of the random ones.
    """
    rng = np.random.default_rng(seed)
    near = metrics.ranked(vectors, queries, 21)
    rows = np.hstack([near, rng.integers(len(vectors), size=(len(queries), 20))])
    cosines = np.einsum("qd,qkd->qk", queries, vectors[rows]).astype(np.float64)
    said = (asked != "")[:, None, :]
    agreement = ((known[rows] == asked[:, None, :]) & said).sum(2) / np.maximum(1, said.sum(2))
    keep = (rows != own[:, None]) & said.any(2)
    return cosines[keep], agreement[keep]


def best(queries: NDArray[np.float32], vectors: NDArray[np.float32], own: NDArray[np.int64]) -> NDArray[np.float64]:
    """Cosine of each query's best hit other than itself."""
    near = metrics.ranked(vectors, queries, 2)
    first = np.where(near[:, 0] == own, near[:, 1], near[:, 0])
    return np.asarray(np.einsum("qd,qd->q", queries, vectors[first]), np.float64)


def fit(
    vectors: NDArray[np.float32], attributes: NDArray[Any], encoder: Encoder, asked: NDArray[np.bool_] | None = None,
    phrases: Sequence[str] = (),
) -> Calibration:  # fmt: skip
    """Calibrate on a catalogue's photos.

    Args:
        vectors: of the photos, one of each product, (n, dim).
        attributes: type, colour and gender of each (n, up to 3), "" where missing.
        encoder: for the texts "gender colour type".
        asked: which of them are queries (n,), those that nothing was trained on; all by default.
        phrases: what people might say for such things. Attributes alone are said so plainly that a threshold taken from them
            would send everyday words away.
    """
    said = (attributes != "").any(1)
    own = np.flatnonzero(said if asked is None else said & asked)
    if not len(own):
        return Calibration({}, {})
    theirs = attributes[own]
    texts = encode_texts(encoder, [spoken(a) for a in theirs])
    curves, least = {}, {}
    for kind, queries in (("photo", vectors[own]), ("text", texts)):
        curves[kind] = rising(*pairs(queries, vectors, theirs, attributes, own))
        found = best(queries, vectors, own if kind == "photo" else np.full(len(own), -1))
        least[kind] = round(float(np.quantile(found, REFUSED)), 4)
    if phrases:
        found = best(encode_texts(encoder, list(phrases)), vectors, np.full(len(phrases), -1))
        least["text"] = min(least["text"], round(float(np.quantile(found, PHRASES_REFUSED)), 4))
    curves["photo"].append((1.0, 100.0))  # the same photo
    return Calibration(curves, least)


def spoken(attributes: NDArray[Any]) -> str:
    """Type, colour and gender as a text in the usual order."""
    return " ".join(str(a) for a in reversed(attributes) if a).lower()


def evaluate(snapshot: Snapshot, encoder: Encoder, queries: list[str], progress: Progress = lambda s: None) -> Report:
    """How far off ``alike`` is, and how often "no good match" is said wrongly, on products that nothing was trained on.

    Args:
        snapshot: a catalog of Kaggle's Fashion Product Images.
        encoder: the one that made its vectors.
        queries: ids of held-out products.
        progress: told what is being measured.

    Raises:
        UsageError: the encoder is not calibrated.
        InputError: the catalog lacks type, colour or gender.
    """
    scale: Calibration | None = getattr(encoder, "calibration", None)
    if scale is None:
        raise UsageError(f"the encoder {encoder.name} is not calibrated; train builtin and train adapt write that")
    names = ("articleType", "baseColour", "gender")
    missing = sorted(set(names) - set(snapshot.attributes.column_names))
    if missing:
        raise InputError(f"the catalog has no column {missing[0]}; index Kaggle's Fashion Product Images first")
    known = np.array([[v or "" for v in snapshot.attributes[c].to_pylist()] for c in names], object).T
    vectors, photos = snapshot.vectors[snapshot.first], snapshot.photo_vectors[snapshot.first]
    rows = np.array([snapshot.product(i) for i in queries])
    tables: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    elsewhere = [q.strip() for q in ELSEWHERE.replace("\n", " ").split(";")]
    texts = encode_texts(encoder, [spoken(a) for a in known[rows]])
    for kind, asked, among, own in (
        ("photo", photos[rows], photos, rows),
        ("text", texts, vectors, np.full(len(rows), -1)),
    ):
        progress(f"{kind} queries")
        cosines, agreement = pairs(asked, among, known[rows], known, own)
        alike = np.array([scale.alike(kind, c) or 0.0 for c in cosines]) / 100
        bins = np.digitize(alike, np.linspace(0, 1, 11)[1:-1])
        points = [
            [round(10 * b + 5), round(float(agreement[bins == b].mean()), 4)] for b in range(10) if (bins == b).any()
        ]
        off = sum(
            abs(alike[bins == b].mean() - agreement[bins == b].mean()) * (bins == b).mean() for b in set(bins.tolist())
        )
        curves.append({"name": f"{kind} queries", "figure": "share", "points": points})
        refused = {
            "told that nothing is like it": summary((best(asked, among, own) < scale.least[kind]).astype(np.float64))
        }
        figure = {"mean": round(float(off), 4)}
        tables.append({"name": f"{kind} queries of the trade", "queries": len(rows),
                       "rows": {encoder.id: {"calibration error": figure, **refused}}})  # fmt: skip
    spoken_of = [q["query"] for q in everyday.queries("open")]
    found = best(encode_texts(encoder, spoken_of), vectors, np.full(len(spoken_of), -1)) < scale.least["text"]
    row = {encoder.id: {"told that nothing is like it": summary(found.astype(np.float64))}}
    tables.append({"name": "everyday words, the open half", "queries": len(spoken_of), "rows": row})
    found = best(encode_texts(encoder, elsewhere), vectors, np.full(len(elsewhere), -1)) >= scale.least["text"]
    row = {encoder.id: {"answered all the same": summary(found.astype(np.float64))}}
    tables.append({"name": "texts of other trades", "queries": len(elsewhere), "rows": row})
    noise = _noise(encoder)
    found = best(noise, vectors, np.full(len(noise), -1)) >= scale.least["photo"]
    row = {encoder.id: {"answered all the same": summary(found.astype(np.float64))}}
    tables.append({"name": "pictures of nothing: noise, stripes, gradients", "queries": len(noise), "rows": row})
    note = (
        "alike against the share of type, colour and gender that hits have in common with the query; held-out products."
    )
    about = "Agreement by alike"
    return {
        "title": "Calibration",
        "note": note,
        "about_curves": about,
        "encoder": encoder.id,
        "tables": tables,
        "curves": curves,
    }


def _noise(encoder: Encoder, count: int = 60) -> NDArray[np.float32]:
    """Vectors of pictures that show nothing."""
    rng = np.random.default_rng(0)
    height, width = encoder.size
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    pictures = []
    for n in range(count):
        colour = rng.uniform(0, 255, (2, 3))
        if n % 3 == 0:
            picture = rng.uniform(0, 255, (height, width, 3))
        else:
            angle = rng.uniform(0, np.pi)
            along = x * np.cos(angle) + y * np.sin(angle)
            mix = along if n % 3 == 1 else (np.sin(along * rng.uniform(10, 80)) > 0).astype(float)
            picture = colour[0] * (1 - mix[..., None]) + colour[1] * mix[..., None]
        pictures.append(encoder.prepare(Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))))
    return encoder.encode_photos(np.stack(pictures))
