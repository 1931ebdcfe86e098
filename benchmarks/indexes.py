"""The indexes beside bare libraries on the same vectors, in one process and one run: our overhead as a ratio.

    python benchmarks/indexes.py vectors.npy [--texts texts.npy] [--kinds exact,int8,lsh,hnsw,ivf] [--rounds 300]

``vectors.npy`` is (rows, dim) float32 of unit length, read mapped: `lookalike bench index` leaves such files in its --out,
grown to any size, and ``texts.npy``. Queries are rows of it, slightly moved, and the vectors of ``--texts``. One thread each.
Ours is the search that answers users: candidates, exact scores, order. Bare is the library's own call with the same settings,
without exact scores. Wants the extra `bench`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import faiss
import numpy as np
from threadpoolctl import threadpool_limits
from usearch.index import Index as Usearch

from lookalike.evaluation.bench_index import Memory, rows_in_lance
from lookalike.indexes import base, ivf
from lookalike.indexes.flat import rounded

K = 10


Work = Callable[[np.ndarray], np.ndarray]


def measured(works: dict[str, Work], queries: np.ndarray, edge: np.ndarray, vectors: np.ndarray, what: str) -> None:
    """Recall, p50 and p95 of calls that give rows: query by query each in turn, so that what else runs meets all alike."""
    times: dict[str, list[float]] = {name: [] for name in works}
    found = dict.fromkeys(works, 0.0)
    for work in works.values():
        work(queries[0])
    for n, (query, least) in enumerate(zip(queries, edge, strict=True)):
        for name in list(works)[:: 1 if n % 2 else -1]:
            start = time.perf_counter()
            rows = works[name](query)
            times[name].append((time.perf_counter() - start) * 1000)
            found[name] += min(K, int(np.count_nonzero(vectors[rows] @ query >= least - 1e-6))) / K
    for name, spent in times.items():
        figures = f"{found[name] / len(queries):7.4f} {np.median(spent):9.3f} {np.percentile(spent, 95):9.3f}"
        print(f"{name + ', ' + what:56} {figures}")
    ours, bare = (np.median(spent) for spent in list(times.values())[:2])
    print(f"{'':8}ours / bare, {what}: {ours / bare:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vectors", type=Path)
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--kinds", default="exact,int8,lsh,hnsw,ivf")
    parser.add_argument("--rounds", type=int, default=300)
    options = parser.parse_args()
    faiss.omp_set_num_threads(1)
    threadpool_limits(1)
    vectors = np.load(options.vectors, mmap_mode="r")
    rng = np.random.default_rng(0)
    asked = vectors[rng.choice(len(vectors), options.rounds)]
    asked = asked + 0.02 * rng.normal(size=asked.shape).astype(np.float32)
    sets = {"photos": (asked / np.linalg.norm(asked, axis=1, keepdims=True)).astype(np.float32)}
    texts = np.load(options.texts)[: options.rounds].astype(np.float32) if options.texts else None
    if texts is not None:
        sets["texts"] = texts
    edges = {name: base.edges(vectors, queries, [K])[:, 0] for name, queries in sets.items()}
    print(f"{len(vectors):,} vectors of {vectors.shape[1]}")
    print(f"{'':56} {'recall':>7} {'p50 ms':>9} {'p95 ms':>9}")

    for kind in options.kinds.split(","):
        with tempfile.TemporaryDirectory() as folder:
            with Memory() as memory:
                start = time.perf_counter()
                where: base.Vectors = vectors
                if kind == "ivf":
                    dataset, addresses = rows_in_lance(vectors, Path(folder) / "rows.lance")
                    start = time.perf_counter()
                    index: base.Index = ivf.build_ivf(dataset, addresses)
                    where = ivf.Stored(dataset, addresses)
                else:
                    index = base.build(kind, vectors)
                seconds = time.perf_counter() - start
            print(
                f"{kind}: built in {seconds:.1f} s with {memory.peak / 1e6:,.0f} MB; holds {index.nbytes / 1e6:,.0f} MB"
            )
            base.tuned(index, where, texts)
            works = {f"lookalike {kind}": partial(answered, index, where)}
            works |= [BARE[kind](vectors, index)] + ([bare_faiss(vectors, index)] if kind == "exact" else [])
            for what, queries in sets.items():
                measured(works, queries, edges[what], vectors, what)


def answered(index: base.Index, vectors: base.Vectors, query: np.ndarray) -> np.ndarray:
    return base.search(index, vectors, query, K)[0]


Bare = tuple[str, Work]


def bare_numpy(vectors: np.ndarray, index: base.Index) -> Bare:
    return "numpy: one product, argpartition", lambda q: np.argpartition(vectors @ q, -K)[-K:]


def filled(index: faiss.Index, vectors: np.ndarray) -> faiss.Index:
    index.train(np.ascontiguousarray(vectors[:100_000]))
    for _, part in base.blocks(vectors):
        index.add(np.ascontiguousarray(part))
    return index


def bare_faiss(vectors: np.ndarray, index: base.Index) -> Bare:
    flat = filled(faiss.IndexFlatIP(vectors.shape[1]), vectors)
    return "faiss IndexFlatIP", lambda q: flat.search(q[None], K)[1][0]


def bare_scalar(vectors: np.ndarray, index: base.Index) -> Bare:
    kind = faiss.ScalarQuantizer.QT_8bit
    scalar = filled(faiss.IndexScalarQuantizer(vectors.shape[1], kind, faiss.METRIC_INNER_PRODUCT), vectors)
    n = index.settings["rerank"]["least"]
    return f"faiss scalar quantizer, {n} rows", lambda q: scalar.search(q[None], n)[1][0]


def bare_codes(vectors: np.ndarray, index: base.Index) -> Bare:
    codes = filled(faiss.IndexLSH(vectors.shape[1], index.settings["bits"]), vectors)
    n = index.settings["rerank"]["least"]
    return f"faiss LSH, {n} rows", lambda q: codes.search(q[None], n)[1][0]


def bare_usearch(vectors: np.ndarray, index: base.Index) -> Bare:
    made = index.settings
    graph = Usearch(
        ndim=vectors.shape[1], metric="ip", dtype="i8", connectivity=made["connectivity"],
        expansion_add=made["expansion"], expansion_search=made["looked_at"],
    )  # fmt: skip
    start = time.perf_counter()
    for rows, part in base.blocks(vectors):
        graph.add(rows, rounded(part, made["scale"]))
    print(f"bare usearch: built in {time.perf_counter() - start:.1f} s")
    n = made["rerank"]["least"]

    def search(q: np.ndarray) -> np.ndarray:
        return graph.search(rounded(q, float(np.abs(q).max()) / 127), n, threads=1).keys.astype(np.intp)

    return f"usearch i8, {made['looked_at']} looked at", search


def bare_lance(vectors: np.ndarray, index: base.Index) -> Bare:
    assert isinstance(index, ivf.Ivf)
    made, stored = index.settings, index.vectors
    asked = {"column": ivf.NAME, "k": made["rerank"]["least"], "nprobes": made["nprobes"], "refine_factor": 1}

    def search(q: np.ndarray) -> np.ndarray:
        scanner = stored.dataset.scanner(
            columns=[], nearest={**asked, "q": q}, with_row_id=True, disable_scoring_autoprojection=True
        )
        return stored.rows(scanner.to_table()["_rowid"].to_numpy())

    return "lance: as many probes and rows, refined", search


BARE = {"exact": bare_numpy, "int8": bare_scalar, "lsh": bare_codes, "hnsw": bare_usearch, "ivf": bare_lance}


if __name__ == "__main__":
    main()
