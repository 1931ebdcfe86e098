"""How fast photos become rows, beside decoding alone and encoding alone; and what a row costs as a catalog grows.

    python benchmarks/indexing.py grow CATALOG --like OTHER [--rows 1000000] [--plot growth.png]

``grow`` fills CATALOG with rows like those of OTHER, a catalog with the same encoder: titles, attributes and palettes as they
are, ids and digests of their own, vectors turned a little at random. They go in where the encoder's would, in commits of the
usual size with the usual compaction. Prints, for each tenth, microseconds per row, the slowest commit, fragments, and what
the catalog takes on the disk.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from lookalike import indexing
from lookalike.store import Store


def grow(options: argparse.Namespace) -> None:
    like, store = Store(options.like), Store(options.catalog)
    manifest, base = like.manifest(), like.rows().combine_chunks()
    if manifest is None:
        raise SystemExit(f"{options.like}: no catalog")
    if options.rows % 10:
        raise SystemExit("--rows: a multiple of 10")
    vectors = base["lk_vector"].combine_chunks().flatten().to_numpy().reshape(len(base), -1)
    chance = np.random.default_rng(1)
    if not store.exists:
        store.create(manifest)
    have = store.dataset().count_rows()
    tenths, seconds, slowest = [], 0.0, 0.0
    print(f"{'rows':>10} {'µs/row':>7} {'slowest commit ms':>18} {'fragments':>10} {'MB':>7}", flush=True)
    with store.writing("grow"):
        for start in range(have, options.rows, indexing.COMMIT_ROWS):
            numbers = np.arange(start, min(start + indexing.COMMIT_ROWS, options.rows))
            rows = _rows_like(base, vectors, numbers, chance)
            begin = time.perf_counter()
            store.commit(rows, replaces=False)
            store.compact()
            took = time.perf_counter() - begin
            seconds, slowest = seconds + took, max(slowest, took)
            now = int(numbers[-1]) + 1
            if now // (options.rows // 10) > start // (options.rows // 10):
                first = tenths[-1][0] if tenths else have
                size = sum(f.stat().st_size for f in store.photos.rglob("*") if f.is_file()) / 1e6
                fragments = len(store.dataset().get_fragments())
                tenths.append((now, seconds / (now - first) * 1e6))
                print(f"{now:10} {tenths[-1][1]:7.0f} {slowest * 1e3:18.0f} {fragments:10} {size:7.0f}", flush=True)
                seconds = slowest = 0.0
    if options.plot:
        _plot(tenths, options.plot)


def _rows_like(base: pa.Table, vectors: np.ndarray, numbers: np.ndarray, chance: np.random.Generator) -> pa.Table:
    """Rows number ``numbers`` of a catalog that repeats ``base`` with other ids, digests and slightly other vectors."""
    rows = base.take(pa.array(numbers % len(base)))
    noise = chance.normal(0, 0.3 / np.sqrt(vectors.shape[1]), (len(numbers), vectors.shape[1]))
    turned = vectors[numbers % len(base)] + noise
    turned = (turned / np.linalg.norm(turned, axis=1, keepdims=True)).astype(np.float32)
    ids = [f"{i}-{n // len(base)}" for i, n in zip(rows["lk_id"].to_pylist(), numbers.tolist(), strict=True)]
    keys = [indexing.photo_key(i, p) for i, p in zip(ids, rows["lk_position"].to_pylist(), strict=True)]
    digests = [f"{n:08x}{d[8:]}" for n, d in zip(numbers.tolist(), rows["lk_digest"].to_pylist(), strict=True)]
    flat = pa.FixedSizeListArray.from_arrays(pa.array(turned.reshape(-1)), vectors.shape[1])
    made = {"lk_id": pa.array(ids), "lk_photo": pa.array(keys), "lk_digest": pa.array(digests), "lk_vector": flat}
    return pa.Table.from_arrays([made.get(f.name, rows[f.name]) for f in rows.schema], schema=rows.schema)


def _plot(points: list[tuple[int, float]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(*zip(*points, strict=True), marker="o")
    axes.set(xlabel="rows in the catalog", ylabel="µs per row to commit and compact", ylim=(0, None))
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    grown = commands.add_parser("grow")
    grown.add_argument("catalog", type=Path)
    grown.add_argument("--like", type=Path, required=True)
    grown.add_argument("--rows", type=int, default=1_000_000)
    grown.add_argument("--plot", type=Path)
    grown.set_defaults(run=grow)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
