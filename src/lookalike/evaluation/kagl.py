"""The KAGL benchmark over a catalog of Kaggle's Fashion Product Images, and photo→photo on its held-out products.

KAGL is Marqo's published protocol (https://github.com/marqo-ai/marqo-FashionCLIP): queries are texts; ``text-image``
ranks photo vectors; the attribute tasks rank the normalised 0.9 · photo + 0.1 · title. Published figures are zero-shot;
a model that was trained on this catalog is "in-domain", and its figures say so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.encoders.base import Encoder, photo_dim
from lookalike.errors import InputError, NotFound
from lookalike.evaluation import metrics
from lookalike.evaluation.protocol import Progress, Report, confusion, encode_files, encode_texts, shown, summary
from lookalike.snapshot import Snapshot

TASKS = {
    "text-image": "text → photo",
    "category1-image+text": "category",
    "category2-image+text": "sub-category",
    "category3-image+text": "fine category",
    "baseColour-image+text": "colour",
    "season-image+text": "season",
    "usage-image+text": "usage",
}
CURVE = (1, 2, 5, 10, 20, 50, 100)


def evaluate(
    snapshot: Snapshot,
    encoder: Encoder,
    ground_truth: Path,
    beside: Sequence[Encoder] = (),
    progress: Progress = lambda s: None,
) -> Report:
    """All tasks of KAGL that ``ground_truth`` has, and photo→photo; figures with 95% intervals.

    Args:
        snapshot: the whole catalog, one photo per product.
        encoder: the one that made its vectors; one that reads no text is measured photo→photo only, and one that compares
            texts with titles alone not text→photo.
        ground_truth: folder of ``TASK.json``: query → {relevant id: 1}.
        beside: encoders measured on the same photo→photo queries.
        progress: told what is being measured.

    Raises:
        InputError: the ground truth is missing, or speaks of products that the catalog does not have.
    """
    files = {t: ground_truth / f"{t}.json" for t in TASKS if (ground_truth / f"{t}.json").is_file()}
    missing = {"articleType", "baseColour", "gender"} - set(snapshot.attributes.column_names)
    if missing:
        raise InputError(f"the catalog has no column {sorted(missing)[0]}; index Kaggle's Fashion Product Images first")
    queries_of = held_out(ground_truth)
    try:
        truths = {task: json.loads(file.read_text("utf-8")) for task, file in files.items()}
    except ValueError as error:
        raise InputError(f"{ground_truth}: not the JSON of KAGL's ground truth ({error})") from error
    vectors, photos = snapshot.vectors[snapshot.first], snapshot.photo_vectors[snapshot.first]
    report: Report = {
        "title": "KAGL",
        "note": f"{len(snapshot)} products. Published figures are zero-shot; the built-in model is trained in-domain, on other "
        "products of this catalogue.",
        "encoder": encoder.id,
        "tables": [],
        "curves": [],
    }
    if encoder.reads_text:
        progress("titles")
        # The titles alone: what else the rows' words say has the very answers in it.
        fused = 0.1 * encode_texts(encoder, snapshot.titles)
        fused[:, : photos.shape[1]] += 0.9 * photos
        fused /= np.linalg.norm(fused, axis=1, keepdims=True)
        if photo_dim(encoder) < encoder.dim:
            truths.pop("text-image", None)
            report["note"] += " This encoder's texts are compared with titles, not with photos."
        for task, truth in truths.items():
            progress(TASKS[task])
            _task(report, snapshot, encoder, truth, vectors if task == "text-image" else fused, task)
    rows: dict[str, Any] = {}
    for one in (encoder, *beside):
        progress(f"photo → photo, {one.name}")
        theirs = photos if one is encoder else encode_files(one, [snapshot.paths[r] for r in snapshot.first], progress)
        rows[one.id], queries, others = photo_to_photo(snapshot, theirs, queries_of)
        if one is encoder:
            types = np.array(snapshot.attributes["articleType"].to_pylist(), object)
            report["confusion"] = confusion(types, queries, others)
    report["tables"].append({"name": "photo → photo, held-out products", "queries": len(queries), "rows": rows})
    return report


def held_out(ground_truth: Path) -> list[str]:
    """Ids of the products that the text→image task names, which no training has seen. Raises InputError."""
    try:
        truth = json.loads((ground_truth / "text-image.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{ground_truth}: no text-image.json to be read; give the folder of KAGL's ground truth"
        ) from error
    return sorted({i for relevant in truth.values() for i in relevant})


def _task(
    report: Report, snapshot: Snapshot, encoder: Encoder, truth: dict[str, dict[str, int]], corpus: NDArray[np.float32],
    task: str,
) -> None:  # fmt: skip
    """Measure one task into the report."""
    queries = list(truth)
    try:
        relevant = [{snapshot.product(i) for i in truth[q]} for q in queries]
    except NotFound as error:
        raise InputError(f"{task}: {error}; index the whole data set first") from error
    order = metrics.ranked(corpus, encode_texts(encoder, queries), CURVE[-1])
    hits = np.array([[row in want for row in rows] for rows, want in zip(order.tolist(), relevant, strict=True)])
    if task == "text-image":
        counts = np.array([len(r) for r in relevant])
        values = {k: metrics.recall(hits, counts, k) for k in CURVE}
        names = ("AvgRecall", "R@1", "R@10")
        report["gallery"] = _gallery(snapshot, queries, order, hits, metrics.reciprocal_rank(hits, CURVE[-1]))
    else:
        values = {k: metrics.precision(hits, k) for k in CURVE}
        names = ("AvgP", "P@1", "P@10")
    figures = dict(zip(names, ((values[1] + values[10]) / 2, values[1], values[10]), strict=True))
    figures["MRR"] = metrics.reciprocal_rank(hits)
    rows = {encoder.id: {name: summary(v) for name, v in figures.items()}}
    report["tables"].append({"name": TASKS[task], "queries": len(queries), "rows": rows})
    letter = names[1][0]
    report["curves"].append(
        {
            "name": TASKS[task],
            "figure": f"{letter}@k",
            "points": [[k, round(float(v.mean()), 4)] for k, v in values.items()],
        }
    )


def _gallery(
    snapshot: Snapshot, queries: list[str], order: NDArray[np.int64], hits: NDArray[np.bool_], ranks: metrics.PerQuery
) -> list[dict[str, Any]]:
    """The twelve best and the twelve worst queries with their first six hits."""
    chosen = np.argsort(-ranks, kind="stable")
    picked = [*chosen[:12], *chosen[12:][-12:]]
    return [
        {
            "query": queries[q],
            "found": bool(ranks[q] > 0),
            "hits": shown(snapshot, order[q], hits[q]),
        }
        for q in picked
    ]


def photo_to_photo(
    snapshot: Snapshot, vectors: NDArray[np.float32], ids: list[str], queries: int = 2000, seed: int = 0
) -> tuple[dict[str, dict[str, float]], NDArray[np.int64], NDArray[np.int64]]:
    """P@10 of held-out photos against all others: same type, same colour, same type and colour and gender.

    ``vectors`` (products, dim) may be of any kind, so that a baseline is measured on the same queries.

    Returns:
        the figures, the queries' positions (q,), and those of their ten neighbours (q, 10).
    """
    rows = np.array([snapshot.product(i) for i in ids])
    rows = np.random.default_rng(seed).permutation(rows)[:queries]
    others = metrics.neighbours(vectors, rows)
    out: dict[str, dict[str, float]] = {}
    same = np.ones(others.shape, bool)
    for name, column in (("type", "articleType"), ("colour", "baseColour"), ("gender", "gender")):
        values = np.array(snapshot.attributes[column].to_pylist(), object)
        equal = values[others] == values[rows][:, None]
        same &= equal
        if name != "gender":
            out[f"{name} P@10"] = summary(metrics.precision(equal, 10))
    out["type+colour+gender P@10"] = summary(metrics.precision(same, 10))
    return out, rows, others
