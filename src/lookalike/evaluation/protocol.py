"""What the protocols share: files → vectors, means with intervals, and the shape of a report.

A report is plain JSON: ``{"title", "note", "encoder", "tables": [table], "curves": [curve], "gallery": [query],
"confusion": {…}}``. A table is ``{"name", "queries", "rows": {measured: {figure: {"mean", "low", "high"}}}}``,
without low and high where there is no interval; all but the tables may be missing. ``report.py`` draws it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike import images
from lookalike.encoders.base import Encoder
from lookalike.evaluation import metrics
from lookalike.snapshot import Snapshot

Report = dict[str, Any]
Progress = Callable[[str], None]
BATCH = 64


def encode_files(
    encoder: Encoder, files: Sequence[str | Path], progress: Progress = lambda s: None
) -> NDArray[np.float32]:
    """Vectors of photos on disk, (files, dim). Raises ImageError naming the first that cannot be read."""

    def prepared(file: str | Path) -> NDArray[np.uint8]:
        return encoder.prepare(images.read(file, at_least=max(encoder.size)))

    out = np.empty((len(files), encoder.dim), np.float32)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for n in range(0, len(files), BATCH):
            out[n : n + BATCH] = encoder.encode_photos(np.stack(list(pool.map(prepared, files[n : n + BATCH]))))
            if n and n % (BATCH * 100) == 0:
                progress(f"{encoder.name}: {n} of {len(files)} photos")
    return out


def encode_texts(encoder: Encoder, texts: Sequence[str]) -> NDArray[np.float32]:
    """Vectors of texts, (texts, dim)."""
    return np.vstack([encoder.encode_texts(texts[n : n + 256]) for n in range(0, len(texts), 256)])


def shown(snapshot: Snapshot, rows: NDArray[np.int64], relevant: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """A query's first six hits as the gallery shows them: products' positions in order, and which of them are right."""
    return [
        {"path": snapshot.paths[snapshot.first[row]], "title": snapshot.titles[row], "relevant": bool(right)}
        for row, right in zip(rows[:6], relevant[:6], strict=True)
    ]


def summary(values: metrics.PerQuery) -> dict[str, float]:
    """Mean and 95% interval over queries."""
    low, high = metrics.interval(values)
    return {"mean": round(float(values.mean()), 4), "low": round(low, 4), "high": round(high, 4)}
