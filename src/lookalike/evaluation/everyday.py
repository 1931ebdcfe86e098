"""Everyday words over a catalog of Kaggle's Fashion Product Images: what people call things that no title there calls so.

``everyday.json`` has one query a line, with the attributes that make a hit right. Half of the list is "open", for looking at
while a model is made; the other half is "unseen", for the figure at the end.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.encoders.base import Encoder
from lookalike.errors import InputError, UsageError
from lookalike.evaluation import metrics
from lookalike.evaluation.protocol import Progress, Report, encode_texts, shown, summary
from lookalike.snapshot import Snapshot

LIST = Path(__file__).with_name("everyday.json")


def queries(half: str = "open") -> list[dict[str, Any]]:
    """The list's ``open`` or ``unseen`` half, or ``all`` of it. Raises UsageError."""
    if half not in ("open", "unseen", "all"):
        raise UsageError(f"--half {half}: choose open, unseen or all")
    everything: list[dict[str, Any]] = json.loads(LIST.read_text("utf-8"))
    return [q for q in everything if half in ("all", q["half"])]


def evaluate(snapshot: Snapshot, encoder: Encoder, half: str = "open", progress: Progress = lambda s: None) -> Report:
    """P@10 of each query by the vectors alone: no word matching.

    Raises:
        InputError: the catalog lacks a column that the list speaks of.
        UsageError: the encoder reads no text, or there is no such half.
    """
    asked = queries(half)
    wanted = {column for q in asked for column in q["want"]}
    missing = sorted(wanted - set(snapshot.attributes.column_names))
    if missing:
        raise InputError(f"the catalog has no column {missing[0]}; index Kaggle's Fashion Product Images first")
    columns = {c: np.array(snapshot.attributes[c].to_pylist(), object) for c in wanted}
    progress(f"{len(asked)} queries")
    order = metrics.ranked(snapshot.vectors[snapshot.first], encode_texts(encoder, [q["query"] for q in asked]), 10)
    hits = np.array([_right(columns, q["want"])[found] for q, found in zip(asked, order, strict=True)])
    precision = metrics.precision(hits, 10)
    groups: dict[str, NDArray[np.bool_]] = {"all": np.ones(len(asked), np.bool_)}
    for field in ("kind", "english"):
        values = np.array([q[field] for q in asked])
        groups |= {value: values == value for value in sorted(set(values.tolist()))}
    tables = [
        {"name": name, "queries": int(mask.sum()), "rows": {encoder.id: {"P@10": summary(precision[mask])}}}
        for name, mask in groups.items()
    ]
    gallery = [
        {
            "query": f"{asked[q]['query']} ({precision[q]:.0%} right)",
            "found": bool(precision[q] >= 0.5),
            "hits": shown(snapshot, order[q], hits[q]),
        }
        for q in np.argsort(precision, kind="stable")
    ]
    note = f"The {half} half of the list of everyday words, {len(snapshot)} products, vectors alone."
    return {"title": "Everyday words", "note": note, "encoder": encoder.id, "tables": tables, "gallery": gallery}


def _right(columns: dict[str, NDArray[Any]], want: dict[str, list[str]]) -> NDArray[np.bool_]:
    return np.asarray(np.logical_and.reduce([np.isin(columns[c], values) for c, values in want.items()]), np.bool_)
