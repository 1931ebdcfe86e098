"""What the protocols share: files → vectors, means with intervals, and the shape of a report.

A report is plain JSON: ``{"title", "note", "encoder", "tables": [table], "curves": [curve], "gallery": [query],
"confusion": {…}, "plots": [plot]}``. A table is ``{"name", "queries", "rows": {measured: {figure: {"mean", "low",
"high"}}}}``, without low and high where there is no interval, and with ``"shown"``, a text, where three decimals are not how
the figure is read. A plot is ``{"name", "x", "y", "points": [{"name", "series", "x", "y", "low", "high"}]}``, x on a
logarithmic scale, ``series`` the same for one thing in all plots. All but the tables may be missing. ``report.py`` draws it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike import images
from lookalike.encoders.base import Encoder
from lookalike.errors import InputError
from lookalike.evaluation import metrics
from lookalike.snapshot import Snapshot
from lookalike.sources import cache_folder

Report = dict[str, Any]
Progress = Callable[[str], None]
BATCH = 64


def encode_files(
    encoder: Encoder,
    files: Sequence[str | Path],
    progress: Progress = lambda s: None,
    refused: dict[int, str] | None = None,
) -> NDArray[np.float32]:
    """Vectors of photos on disk, (files, dim).

    Where ``refused`` is given, photos that cannot be read go there (position → why) and their vectors are zero; else the
    first of them raises ImageError or InputError.
    """

    def prepared(n: int) -> NDArray[np.uint8] | None:
        try:
            return encoder.prepare(images.read(files[n], at_least=max(encoder.size)))
        except InputError as error:
            if refused is None:
                raise
            refused[n] = str(error)
            return None

    out = np.zeros((len(files), encoder.dim), np.float32)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for start in range(0, len(files), BATCH):
            batch = range(start, min(start + BATCH, len(files)))
            pixels = {n: p for n, p in zip(batch, pool.map(prepared, batch), strict=True) if p is not None}
            if pixels:
                out[list(pixels)] = encoder.encode_photos(np.stack(list(pixels.values())))
            if start and start % (BATCH * 100) == 0:
                progress(f"{encoder.name}: {start} of {len(files)} photos")
    return out


def cached_vectors(
    encoder: Encoder, files: Sequence[str], digests: Sequence[str], progress: Progress = lambda s: None
) -> NDArray[np.float32]:
    """As ``encode_files``, kept in the user's cache by encoder and content (``digests``), where that can be written."""
    key = hashlib.sha256("\n".join([encoder.id, *digests]).encode()).hexdigest()[:32]
    file = cache_folder() / "vectors" / f"{key}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):
        kept: NDArray[np.float32] = np.load(file)
        if kept.shape == (len(files), encoder.dim):
            return kept
    made = encode_files(encoder, files, progress)
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"{key}.{os.getpid()}.part")
        with part.open("wb") as opened:
            np.save(opened, made)
        part.replace(file)
    return made


def encode_texts(encoder: Encoder, texts: Sequence[str]) -> NDArray[np.float32]:
    """Vectors of texts, (texts, dim)."""
    return np.vstack([encoder.encode_texts(texts[n : n + 256]) for n in range(0, len(texts), 256)])


def shown(snapshot: Snapshot, rows: NDArray[np.int64], relevant: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """A query's first six hits as the gallery shows them: products' positions in order, and which of them are right."""
    return [
        {"path": snapshot.paths[snapshot.first[row]], "title": snapshot.titles[row], "relevant": bool(right)}
        for row, right in zip(rows[:6], relevant[:6], strict=True)
    ]


def heading(report: Report) -> str:
    """A report's title, with what was measured where it is one thing."""
    return f"{report['title']}: {report['encoder']}" if report["encoder"] else str(report["title"])


def summary(values: metrics.PerQuery) -> dict[str, float]:
    """Mean and 95% interval over queries."""
    low, high = metrics.interval(values)
    return {"mean": round(float(values.mean()), 4), "low": round(low, 4), "high": round(high, 4)}


def confusion(labels: NDArray[Any], queries: NDArray[np.int64], others: NDArray[np.int64]) -> dict[str, Any]:
    """Which labels stand among the neighbours of which: the 16 most frequent ones, shares of each row.

    Args:
        labels: of all, (n,); missing ones are empty or None.
        queries: positions of what was asked, (q,).
        others: positions of their neighbours, (q, k).
    """
    names = [name for name, _ in Counter(v for v in labels[queries] if v).most_common(16)]
    counts = np.zeros((len(names), len(names) + 1))
    for query, found in zip(labels[queries], labels[others], strict=True):
        if query in names:
            for one in found:
                counts[names.index(query), names.index(one) if one in names else len(names)] += 1
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    return {
        "rows": names,
        "columns": [*names, "others"],
        "shares": [[round(float(x), 3) for x in row] for row in shares],
    }


def number(value: float | None, shown: str) -> dict[str, Any]:
    """A figure that is no mean over queries: a speed, a size; None where it is not known."""
    return {"mean": value, "shown": shown}
