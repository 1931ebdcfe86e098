"""Which index is best for a catalog? Each kind on the catalog's own vectors, and on more of their kind.

Written into one folder, a line of JSON for each index that is finished, so that a run that was stopped goes on: vectors of each
size, ``cells.jsonl``, ``index.html`` with the table, and ``index.png``, recall against speed.

Growth: a new vector is a real one, moved by the difference of two of the 20 nearest rows of a real row close by: noise with the
covariance that the vectors have there. Cosines of Kaggle's 44,441 photos with the nearest neighbour (quantiles .05 .25 .5 .75
.95): .88 .94 .96 .98 1.00, grown to 200,000 .89 .94 .95 .97 1.00; with the tenth, .79 .88 .92 .95 .97 and .81 .88 .91 .93 .97.
``closeness`` measures them, and each report says them.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.encoders.base import Encoder
from lookalike.errors import InputError, UsageError
from lookalike.evaluation.protocol import Progress, Report, encode_texts, number
from lookalike.indexes import base, ivf
from lookalike.segment import sayings
from lookalike.snapshot import Snapshot

NEAR, ANCHORS = 20, 4096
"""Neighbours whose differences are the noise, and the real rows whose neighbours are known."""

QUERIES = 200
"""Photos, and as many texts."""

K = 10

FILTERS = (0.5, 0.1, 0.01, 0.001)
"""Shares of rows that pass, by chance; and a tenth that is alike, as a category is."""

POINTS = 0.9995
"""The curve ends at this recall."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def evaluate(
    snapshot: Snapshot,
    encoder: Encoder,
    kinds: Sequence[str],
    sizes: Sequence[int],
    out: Path,
    progress: Progress = lambda s: None,
) -> Report:
    """Measure what is not measured yet, and report all.

    Args:
        snapshot: its vectors are what is grown, its titles and words what is asked.
        encoder: of the catalog.
        kinds: of ``base.KINDS``; lsh-512 and lsh-itq, too.
        sizes: numbers of vectors; those below the catalog's are its first rows by chance.
        out: where vectors, cells and pictures go.
        progress: told what is being measured.

    Raises:
        UsageError: no such kind, or a size below what can be measured.
        InputError: fewer photos than a search wants, or ``out`` holds measurements of other vectors.
    """
    unknown = [kind for kind in kinds if kind not in (*base.KINDS, *_VARIANTS)]
    if unknown:
        raise UsageError(f"index {unknown[0]!r}: no such kind; there are {', '.join([*base.KINDS, *_VARIANTS])}")
    vectors = snapshot.vectors
    if min(sizes) < 10 * K:
        raise UsageError(f"{min(sizes)} vectors; an index is measured on {10 * K} and more")
    if len(vectors) < 10 * K:
        raise InputError(f"{len(vectors)} photos; an index is measured on {10 * K} and more")
    texts = text_queries(snapshot, encoder)
    out.mkdir(parents=True, exist_ok=True)
    cells = _Cells(out / "cells.jsonl", vectors, encoder.id)
    np.save(out / "texts.npy", texts)
    for size in sorted(set(sizes)):
        if all(cells.get(kind, size) for kind in kinds):
            continue
        progress(f"{size:,} vectors")
        file = grown(vectors, size, out / f"vectors-{cells.about['vectors']}-{size}.npy", progress)
        for kind in kinds:
            if not cells.get(kind, size):
                progress(f"{kind} over {size:,} vectors")
                cells.add(kind, size, cell(kind, np.load(file, mmap_mode="r"), texts, out, progress))
    report = _report([c for c in cells.all if c["kind"] in kinds and c["size"] in sizes], encoder.id, cells.about)
    picture = _plot(report["cells"], out / "index.png")
    if picture:
        report["pictures"] = [("Recall against time", picture)]
    return report


_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "lsh-512": ("lsh", {"bits": 512}),
    "lsh-itq": ("lsh", {"rotation": "itq"}),
}
"""Kinds by another name, with settings of their own."""


class _Cells:
    """What is measured so far: a line each, and in the first of them what of."""

    def __init__(self, file: Path, vectors: NDArray[np.float32], encoder: str):
        digest = hashlib.sha256(np.ascontiguousarray(vectors[:: max(1, len(vectors) // 1000)]).tobytes()).hexdigest()[
            :12
        ]
        self.about: dict[str, Any] = {"vectors": f"{digest}-{len(vectors)}", "encoder": encoder, "cpus": os.cpu_count()}
        self.file = file
        lines = file.read_text("utf-8").splitlines() if file.is_file() else []
        self.all: list[dict[str, Any]] = []
        for line in lines:
            try:
                self.all.append(json.loads(line))
            except ValueError:  # the line that a killed run was writing
                continue
        others = [c for c in self.all if c["vectors"] != self.about["vectors"]]
        if others:
            raise InputError(f"{file}: of other vectors ({others[0]['vectors']}); give another --out, or remove it")

    def get(self, kind: str, size: int) -> dict[str, Any] | None:
        return next((c for c in self.all if (c["kind"], c["size"]) == (kind, size)), None)

    def add(self, kind: str, size: int, found: dict[str, Any]) -> None:
        self.all.append({"kind": kind, "size": size, **self.about, **found})
        text = "".join(json.dumps(c) + "\n" for c in self.all)
        part = self.file.with_suffix(".part")
        part.write_text(text, "utf-8")
        part.replace(self.file)


def text_queries(snapshot: Snapshot, encoder: Encoder, seed: int = 0) -> NDArray[np.float32]:
    """Vectors of texts as people ask, (texts, dim): those that an index is tuned on; none without words."""
    if not getattr(encoder, "reads_text", False):
        return np.empty((0, snapshot.vectors.shape[1]), np.float32)
    asked = sayings(snapshot.base, QUERIES, seed)
    return encode_texts(encoder, asked) if asked else np.empty((0, encoder.dim), np.float32)


# More vectors


def grown(
    vectors: NDArray[np.float32], size: int, file: Path, progress: Progress = lambda s: None, seed: int = 0
) -> Path:
    """A file of ``size`` vectors: the real ones (some, by chance, where there are more), then grown ones; made once."""
    if file.is_file():
        return file
    part = file.with_suffix(".part")
    mapped = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=(size, vectors.shape[1]))
    rng = np.random.default_rng(seed)
    real = min(size, len(vectors))
    mapped[:real] = vectors if real == len(vectors) else vectors[np.sort(rng.choice(len(vectors), real, replace=False))]
    near, nearest = _neighbourhoods(vectors, rng) if size > real else (None, None)
    for start in range(real, size, base.BLOCK):
        assert near is not None and nearest is not None
        end = min(size, start + base.BLOCK)
        rows = rng.integers(0, len(vectors), end - start)
        around = near[nearest[rows]]
        one = rng.integers(0, around.shape[1], len(rows))
        other = rng.integers(0, around.shape[1], len(rows))
        here = np.arange(len(rows))
        for _ in range(2):  # two that differ, and the second is not the row itself: no copies of what is there
            same = (other == one) | (around[here, other] == rows)
            other[same] = (other[same] + 1) % around.shape[1]
        moved = vectors[rows] + vectors[around[here, one]] - vectors[around[here, other]]
        lengths = np.linalg.norm(vectors[rows], axis=1) / np.maximum(np.linalg.norm(moved, axis=1), 1e-9)
        mapped[start:end] = moved * lengths[:, None]
        progress(f"grown {end:,} of {size:,}")
    mapped.flush()
    del mapped
    part.replace(file)
    return file


def _neighbourhoods(
    vectors: NDArray[np.float32], rng: np.random.Generator
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The ``NEAR`` nearest rows of some real rows, (anchors, near), and the anchor nearest to each row, (rows,)."""
    count = min(NEAR, len(vectors) - 1)
    anchors = rng.choice(len(vectors), min(ANCHORS, len(vectors)), replace=False)
    near = np.empty((len(anchors), count), np.intp)
    for start in range(0, len(anchors), 256):
        scores = vectors[anchors[start : start + 256]] @ vectors.T
        near[start : start + 256] = np.argpartition(-scores, count, axis=1)[:, :count]
    parts = [(vectors[s : s + 4096] @ vectors[anchors].T).argmax(1) for s in range(0, len(vectors), 4096)]
    return near, np.concatenate(parts)


def closeness(vectors: NDArray[np.float32], seed: int = 0) -> dict[str, list[float]]:
    """Quantiles of photos' cosines with their nearest and their tenth neighbour."""
    selves = np.sort(np.random.default_rng(seed).choice(len(vectors), min(QUERIES, len(vectors)), replace=False))
    found = base.edges(vectors, np.ascontiguousarray(vectors[selves]), [1, K], selves)
    return {
        name: [round(float(q), 3) for q in np.quantile(found[:, at], QUANTILES)] for at, name in enumerate(("1", "10"))
    }


# One index


def cell(
    kind: str, vectors: NDArray[np.float32], texts: NDArray[np.float32], out: Path, progress: Progress = lambda s: None
) -> dict[str, Any]:
    """Build an index over ``vectors``, load it as a server does, and measure it: see ``_measured``."""
    name, settings = _VARIANTS.get(kind, (kind, {}))
    folder = out / f"index-{kind}-{len(vectors)}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    gc.collect()
    with Memory() as memory:
        start = time.perf_counter()
        index: base.Index
        where: base.Vectors = vectors
        if name == "ivf":
            dataset, addresses = rows_in_lance(vectors, folder / "rows.lance")
            start = time.perf_counter()  # the rows are the catalog's, and there already
            built = ivf.build_ivf(dataset, addresses, **settings)
            index, where = built, built.vectors
        else:
            index = base.build(name, vectors, settings)
            index.save(folder)
        seconds = time.perf_counter() - start
    if name != "ivf":
        del index
        gc.collect()
        index = base.load(name, folder, vectors)
    progress(f"{kind}: built in {seconds:.1f} s, tuning")
    start = time.perf_counter()
    found: dict[str, Any] = {
        "build_seconds": round(seconds, 2),
        "build_memory": memory.peak,
        "memory": index.nbytes,
        "disk": sum(f.stat().st_size for f in folder.rglob("*") if f.is_file() and "data" not in f.parts),
    }
    with Memory() as memory:
        found |= _measured(index, where, texts, progress)
    found["search_memory"] = memory.peak
    found["closeness"] = closeness(vectors)
    shutil.rmtree(folder)
    return found


def rows_in_lance(vectors: NDArray[np.float32], path: Path) -> tuple[Any, NDArray[np.uint64]]:
    """Vectors as a catalog's rows hold them: the ``lance.LanceDataset``, and the address of each."""
    import lance
    import pyarrow as pa

    schema = pa.schema([pa.field(ivf.NAME, pa.list_(pa.float32(), vectors.shape[1]), nullable=False)])

    def batches() -> Iterator[pa.RecordBatch]:
        for _, part in base.blocks(vectors):
            flat = pa.array(np.ascontiguousarray(part).ravel())
            yield pa.record_batch([pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])], schema)

    dataset = lance.write_dataset(batches(), str(path), schema=schema)
    addresses = dataset.scanner(columns=[], with_row_id=True).to_table()["_rowid"].to_numpy()
    return dataset, addresses


class Memory:
    """The largest growth of this process's own memory (mapped files aside) while something runs; 0 where it is not told."""

    peak = 0

    def __enter__(self) -> Memory:
        self._before, self._over = _anonymous(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            self.peak = max(self.peak, _anonymous() - self._before)

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.peak = max(self.peak, _anonymous() - self._before)


def _anonymous() -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def _measured(
    index: base.Index, vectors: base.Vectors, texts: NDArray[np.float32], progress: Progress
) -> dict[str, Any]:
    """Recall and time at each step of the index's ladder; then tuned: alone, at once, and under filters."""
    n = vectors.shape[0]
    selves = np.sort(np.random.default_rng(1).choice(n, min(QUERIES, n), replace=False))
    photos = np.ascontiguousarray(vectors[selves])
    asked: dict[str, tuple[NDArray[np.float32], NDArray[np.intp] | None]] = {"photos": (photos, selves)}
    if len(texts):
        asked["texts"] = (texts[:QUERIES], None)
    edge = {name: base.edges(vectors, q, [K], own)[:, 0] for name, (q, own) in asked.items()}

    def shares() -> dict[str, float]:
        return {name: round(base.recall(index, vectors, q, edge[name], K, own), 4) for name, (q, own) in asked.items()}

    every = np.concatenate([q for q, _ in asked.values()])
    curve = []
    for step in index.ladder or [{}]:
        index.settings.update(deepcopy(step))
        found = shares()
        p50 = float(np.median(_times(lambda q: base.search(index, vectors, q, K), every[::4])))
        curve.append({"settings": step, "recall": found, "p50": round(p50, 3)})
        if min(found.values()) >= POINTS:
            break
    base.tuned(index, vectors, texts, sample=QUERIES)
    progress(f"{index.kind}: {index.settings['rerank']}")
    times = _times(lambda q: base.search(index, vectors, q, K), every)
    p50, p95, p99 = np.percentile(times, [50, 95, 99])
    return {
        "settings": index.settings,
        "recall": shares(),
        "p50": round(float(p50), 3),
        "p95": round(float(p95), 3),
        "p99": round(float(p99), 3),
        "per_second": round(1000 / float(times.mean()), 1),
        "per_second_at_once": _at_once(lambda q: base.search(index, vectors, q, K), every),
        "curve": curve,
        "filters": _filtered(index, vectors, every),
    }


def _times(work: Callable[[NDArray[np.float32]], object], queries: NDArray[np.float32]) -> NDArray[np.float64]:
    """Milliseconds of each query, after some that are not counted."""
    for query in queries[:5]:
        work(query)
    out = []
    for query in queries:
        start = time.perf_counter()
        work(query)
        out.append((time.perf_counter() - start) * 1000)
    return np.array(out)


def _at_once(work: Callable[[NDArray[np.float32]], object], queries: NDArray[np.float32]) -> float:
    """Queries a second of one thread for each core."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        start = time.perf_counter()
        list(pool.map(work, queries))
        return round(len(queries) / (time.perf_counter() - start), 1)


def _filtered(index: base.Index, vectors: base.Vectors, queries: NDArray[np.float32]) -> list[dict[str, Any]]:
    rng = np.random.default_rng(2)
    n = vectors.shape[0]
    masks = [(f"{share:.1%}", rng.random(n) < share) for share in FILTERS]
    centre = vectors[rng.integers(0, n, 1)][0]
    alike = np.empty(n, np.float32)
    for rows, part in base.blocks(vectors):
        alike[rows] = part @ centre
    masks.append(("10% alike", alike >= np.quantile(alike, 0.9)))
    some = queries[:: max(1, len(queries) // 40)]
    out = []
    for name, mask in masks:
        if not mask.any():
            continue
        edge = base.edges(vectors, some, [K], allowed=mask)[:, 0]
        share = base.recall(index, vectors, some, edge, K, allowed=mask)
        times = _times(lambda q, mask=mask: base.search(index, vectors, q, K, mask), some)  # type: ignore[misc]
        out.append({"filter": name, "recall": round(share, 4), "p50": round(float(np.median(times)), 3)})
    return out


# Showing it


def _report(cells: list[dict[str, Any]], encoder: str, about: dict[str, Any]) -> Report:
    tables = []
    for size in sorted({c["size"] for c in cells}):
        rows, filtered = {}, {}
        for c in (c for c in cells if c["size"] == size):
            rows[c["kind"]] = {
                **{f"recall@{K}, {name}": number(share, f"{share:.3f}") for name, share in c["recall"].items()},
                **{f"{p} ms": number(c[p], f"{c[p]:.2f}") for p in ("p50", "p95", "p99")},
                "a second": number(c["per_second"], f"{c['per_second']:,.0f}"),
                "at once": number(c["per_second_at_once"], f"{c['per_second_at_once']:,.0f}"),
                "built in": number(c["build_seconds"], f"{c['build_seconds']:,.1f} s"),
                "with": number(c["build_memory"], f"{c['build_memory'] / 1e6:,.0f} MB"),
                "memory": number(c["memory"], f"{c['memory'] / 1e6:,.0f} MB"),
                "disk": number(c["disk"], f"{c['disk'] / 1e6:,.0f} MB"),
                "scored": number(c["settings"]["rerank"]["least"], f"{c['settings']['rerank']['least']:,}"),
            }
            filtered[c["kind"]] = {
                f["filter"]: number(f["recall"], f"{f['recall']:.3f} in {f['p50']:.2f} ms") for f in c["filters"]
            }
        tables.append({"name": f"{size:,} vectors", "queries": 2 * QUERIES, "rows": rows})
        tables.append({"name": f"{size:,} vectors under filters", "queries": 40, "rows": filtered})
    near = "; ".join(
        f"{size:,}: {next(c for c in cells if c['size'] == size)['closeness']['1']}"
        for size in sorted({c["size"] for c in cells})
    )
    return {
        "title": "Indexes",
        "encoder": encoder,
        "note": f"Each tuned to {base.TARGET} of the {K} best, of photos (left out of their own answer) and of texts, the "
        f"worse of both; at once: {about['cpus']} threads. Above the catalog's size vectors are grown; cosines with the "
        f"nearest neighbour (quantiles {', '.join(map(str, QUANTILES))}) {near}.",
        "tables": tables,
        "cells": cells,
    }


def _plot(cells: list[dict[str, Any]], file: Path) -> Path | None:
    """Recall against time, a panel for each size and for photos and texts apart; None without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")  # no display is wanted
    from matplotlib import pyplot as plt

    sizes = sorted({c["size"] for c in cells})
    asked = list(dict.fromkeys(name for c in cells for name in c["recall"]))
    kinds = list(dict.fromkeys(c["kind"] for c in cells))
    figure, axes = plt.subplots(len(asked), len(sizes), figsize=(5 * len(sizes), 3.6 * len(asked)), squeeze=False)
    for row, name in enumerate(asked):
        for column, size in enumerate(sizes):
            axis = axes[row][column]
            for c in (c for c in cells if c["size"] == size):
                points = [(p["p50"], p["recall"][name]) for p in c["curve"]]
                colour = f"C{kinds.index(c['kind'])}"
                axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=c["kind"], color=colour)
            axis.set_xscale("log")
            axis.set_title(f"{name}, {size:,} vectors")
            axis.set_xlabel("milliseconds, p50")
            axis.set_ylabel(f"recall@{K}")
            axis.grid(alpha=0.25)
    axes[0][0].legend(frameon=False, loc="lower right")  # looking for the best place takes seconds
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)
    return file
