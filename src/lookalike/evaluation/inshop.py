"""DeepFashion's In-Shop protocol (Liu et al. 2016): each query photo against the photos of the gallery, the item is right.

Recall@k is the share of queries with a photo of their item among the first k, as the benchmark and its leaderboards count.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lookalike.encoders.base import Encoder
from lookalike.errors import InputError
from lookalike.evaluation import metrics
from lookalike.evaluation.protocol import Progress, Report, encode_files, summary
from lookalike.sources import deepfashion

RANKS = (1, 10, 20, 30)
CURVE = (1, 2, 5, 10, 20, 30, 50)


def evaluate(
    encoder: Encoder,
    folder: Path,
    beside: Sequence[Encoder] = (),
    crop: bool = True,
    progress: Progress = lambda s: None,
) -> Report:
    """Recall@1, 10, 20 and 30 of the partition's queries.

    Args:
        encoder: measured first; its curve and its queries are shown.
        folder: the benchmark, unpacked.
        beside: encoders measured on the same photos.
        crop: photos cut to their boxes.
        progress: told what is being measured.

    Raises:
        InputError: the folder is no In-Shop, or has no queries and gallery that can be read.
    """
    listed, quarantined = deepfashion.in_shop(folder, crop)
    listed = [one for one in listed if one.status in ("query", "gallery")]
    report: Report = {"title": "In-Shop", "encoder": encoder.id, "tables": []}
    rows: dict[str, Any] = {}
    asked = 0
    for one in (encoder, *beside):
        progress(f"{one.name}: {len(listed)} photos")
        refused: dict[int, str] = {}
        vectors = encode_files(one, [photo.photo for photo in listed], progress, refused)
        held = [n for n in range(len(listed)) if n not in refused]
        gallery = np.array([n for n in held if listed[n].status == "gallery"], np.int64)
        items = np.array([photo.item for photo in listed], object)
        queries = np.array([n for n in held if listed[n].status == "query"], np.int64)
        alone = ~np.isin(items[queries], items[gallery]) if len(queries) else np.empty(0, np.bool_)
        queries = queries[~alone]
        if not len(queries):
            raise InputError(f"{folder}: no query whose item is in the gallery and whose photos can be read")
        order = metrics.ranked(vectors[gallery], vectors[queries], CURVE[-1])
        relevance = items[gallery][order] == items[queries][:, None]
        rows[one.id] = {f"Recall@{k}": summary(metrics.found(relevance, k)) for k in RANKS}
        if one is encoder:
            asked = len(queries)
            points = [[k, round(float(metrics.found(relevance, k).mean()), 4)] for k in CURVE]
            report["curves"] = [{"name": "query → gallery", "figure": "Recall@k", "points": points}]
            report["gallery"] = _gallery(listed, queries, gallery[order], relevance)
            report["note"] = (
                f"{len(queries):,} queries of {len(set(items[queries])):,} items against {len(gallery):,} photos of the "
                f"gallery, {'cut to their boxes' if crop else 'whole'}. Left out: {int(alone.sum())} queries whose item is not "
                f"in the gallery, {len(refused)} photos that cannot be read, {len(quarantined)} lines of the lists. "
                "Intervals are over queries; those of one item are not independent."
            )
    report["tables"].append({"name": "query → gallery, the same item", "queries": asked, "rows": rows})
    return report


def _gallery(
    listed: list[deepfashion.Listed], queries: Any, order: Any, relevance: metrics.Relevance
) -> list[dict[str, Any]]:
    """Twelve queries that found their item first, and the twelve that found it last, with their first hits."""
    ranks = np.where(relevance.any(1), relevance.argmax(1), relevance.shape[1])
    by_rank = np.argsort(ranks, kind="stable")
    out = []
    for q in [*by_rank[:12], *by_rank[12:][-12:]]:
        asked = listed[queries[q]]
        hits = [{"path": asked.photo, "title": "asked", "relevant": False}]
        for n, right in zip(order[q][:6], relevance[q][:6], strict=True):
            hits.append({"path": listed[n].photo, "title": listed[n].item, "relevant": bool(right)})
        said = f"rank {ranks[q] + 1}" if ranks[q] < relevance.shape[1] else f"not among {relevance.shape[1]}"
        out.append({"query": f"{asked.item}: {said}", "found": bool(ranks[q] < 10), "hits": hits})
    return out
