"""The KAGL benchmark over a catalog of Kaggle's Fashion Product Images, and photo→photo on its held-out products.

KAGL is Marqo's published protocol (https://github.com/marqo-ai/marqo-FashionCLIP): queries are texts; ``text-image``
ranks photo vectors; the attribute tasks rank the normalised 0.9 · photo + 0.1 · title. Published figures are zero-shot;
a model that was trained on this catalog is "in-domain", and its figures say so.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.encoders.base import Encoder
from lookalike.errors import InputError, NotFound
from lookalike.evaluation import metrics
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
Progress = Callable[[str], None]


def evaluate(
    snapshot: Snapshot,
    encoder: Encoder,
    ground_truth: Path,
    baseline: bool = False,
    progress: Progress = lambda s: None,
) -> dict[str, Any]:
    """All tasks of KAGL that ``ground_truth`` has, and photo→photo; figures with 95% intervals.

    Args:
        snapshot: the whole catalog, one photo per product.
        encoder: the one that made its vectors.
        ground_truth: folder of ``TASK.json``: query → {relevant id: 1}.
        baseline: measure a colour histogram on the same photo→photo queries, too.
        progress: told what is being measured.

    Raises:
        InputError: the ground truth is missing, or speaks of products that the catalog does not have.
    """
    files = {t: ground_truth / f"{t}.json" for t in TASKS if (ground_truth / f"{t}.json").is_file()}
    missing = {"articleType", "baseColour", "gender"} - set(snapshot.attributes.column_names)
    if missing:
        raise InputError(f"the catalog has no column {sorted(missing)[0]}; index Kaggle's Fashion Product Images first")
    if "text-image" not in files:
        raise InputError(f"{ground_truth}: no text-image.json here; give the folder of KAGL's ground truth")
    vectors = snapshot.vectors[snapshot.first]
    report: dict[str, Any] = {"products": len(snapshot), "encoder": encoder.id, "tasks": {}}
    progress("titles")
    titles = np.vstack([encoder.encode_texts(snapshot.titles[n : n + 256]) for n in range(0, len(snapshot), 256)])
    fused = 0.9 * vectors + 0.1 * titles
    fused /= np.linalg.norm(fused, axis=1, keepdims=True)
    for task, file in files.items():
        progress(TASKS[task])
        corpus = vectors if task == "text-image" else fused
        report["tasks"][task] = _task(snapshot, encoder, json.loads(file.read_text()), corpus, task)
    progress("photo → photo")
    held_out = sorted({i for relevant in json.loads(files["text-image"].read_text()).values() for i in relevant})
    report["photo-photo"] = photo_to_photo(snapshot, vectors, held_out)
    if baseline:
        progress("a colour histogram")
        report["photo-photo, colour histogram"] = photo_to_photo(snapshot, colour_histograms(snapshot), held_out)
    return report


def _task(
    snapshot: Snapshot, encoder: Encoder, truth: dict[str, dict[str, int]], corpus: NDArray[np.float32], task: str
) -> dict[str, Any]:
    queries = list(truth)
    try:
        relevant = [{snapshot.product(i) for i in truth[q]} for q in queries]
    except NotFound as error:
        raise InputError(f"{task}: {error}; index the whole data set first") from error
    texts = np.vstack([encoder.encode_texts(queries[n : n + 256]) for n in range(0, len(queries), 256)])
    order = metrics.ranked(corpus, texts, 10)
    hits = np.array([[row in want for row in rows] for rows, want in zip(order.tolist(), relevant, strict=True)])
    if task == "text-image":
        counts = np.array([len(r) for r in relevant])
        one, ten = (metrics.recall(hits, counts, k) for k in (1, 10))
        names = ("AvgRecall", "R@1", "R@10")
    else:
        one, ten = (metrics.precision(hits, k) for k in (1, 10))
        names = ("AvgP", "P@1", "P@10")
    values = {names[0]: (one + ten) / 2, names[1]: one, names[2]: ten, "MRR": metrics.reciprocal_rank(hits)}
    return {"queries": len(queries), **{k: summary(v) for k, v in values.items()}}


def photo_to_photo(
    snapshot: Snapshot, vectors: NDArray[np.float32], held_out: list[str], queries: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """P@10 of held-out photos against all others: same type, same colour, same type and colour and gender.

    ``vectors`` (products, dim) may be of any kind, so that a baseline is measured on the same queries.
    """
    rows = np.array([snapshot.product(i) for i in held_out])
    rows = np.random.default_rng(seed).permutation(rows)[:queries]
    order = metrics.ranked(vectors, vectors[rows], 11)
    # The query itself is left out, wherever it stands (byte-identical photos tie with it).
    others = np.array([[n for n in found if n != row][:10] for found, row in zip(order, rows, strict=True)])
    out: dict[str, Any] = {"queries": len(rows)}
    same = np.ones(others.shape, bool)
    for name, column in (("type", "articleType"), ("colour", "baseColour"), ("gender", "gender")):
        values = np.array(snapshot.attributes[column].to_pylist(), object)
        equal = values[others] == values[rows][:, None]
        same &= equal
        if name != "gender":
            out[f"{name} P@10"] = summary(metrics.precision(equal, 10))
    out["type+colour+gender P@10"] = summary(metrics.precision(same, 10))
    return out


def summary(values: metrics.PerQuery) -> dict[str, float]:
    """Mean and 95% interval."""
    low, high = metrics.interval(values)
    return {"mean": round(float(values.mean()), 4), "low": round(low, 4), "high": round(high, 4)}


def colour_histograms(snapshot: Snapshot) -> NDArray[np.float32]:
    """The simplest baseline: an 8 × 4 × 4 HSV histogram of each product's first photo, square-rooted, unit length."""
    from lookalike import images

    out = np.empty((len(snapshot), 128), np.float32)
    for row, photo in zip(out, snapshot.first, strict=True):
        hsv = np.asarray(images.read(snapshot.paths[photo], at_least=64).convert("HSV")).reshape(-1, 3)
        bins = (hsv[:, 0] >> 5).astype(int) * 16 + (hsv[:, 1] >> 6) * 4 + (hsv[:, 2] >> 6)
        row[:] = np.sqrt(np.bincount(bins, minlength=128))
    return np.asarray(out / np.linalg.norm(out, axis=1, keepdims=True), np.float32)
