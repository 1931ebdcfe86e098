"""Search speed on your own catalog, beside a bare numpy product and a bare onnxruntime call in the same run.

    python benchmarks/search.py shop.catalog [--photo FILE] [--text WORDS] [--rounds 200] [--where EXPR]

In process and over HTTP (a server of its own on loopback, one client). Times in milliseconds: p50 and p95.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np

import lookalike
from lookalike import images, where
from lookalike.types import Query


def measure(name: str, work: Callable[[], object], rounds: int) -> float:
    for _ in range(5):
        work()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append((time.perf_counter() - start) * 1000)
    p50, p95 = np.percentile(times, [50, 95])
    print(f"{name:58} {p50:9.2f} {p95:9.2f}")
    return float(p50)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("catalog")
    parser.add_argument("--photo", type=Path, help="a photo's file; the first one of the catalog by default")
    parser.add_argument("--text", default="red summer dress")
    parser.add_argument("--where", default="", help="by default, the most frequent value of the first text column")
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()

    start = time.perf_counter()
    catalog = lookalike.open(options.catalog)
    catalog.search(options.text, k=1)
    print(f"open to first answer: {time.perf_counter() - start:.2f} s (lookalike is imported already)")
    snapshot, encoder = catalog.snapshot(), catalog.encoder
    photo = options.photo or Path(snapshot.paths[0])
    content = photo.read_bytes()
    expression = options.where or next(
        f"{f['column']} = '{f['values'][0]['value']}'" for f in snapshot.facets() if f["kind"] == "values"
    )
    query = encoder.encode_texts([options.text])[0]
    pixels = encoder.prepare(images.read(content))[None]
    mask = snapshot.mask(where.parse(expression))
    assert mask is not None
    print(
        f"{len(snapshot)} products, {len(snapshot.photos)} photos, {encoder.id}; where {expression} ({mask.mean():.0%})"
    )
    print(f"{'':58} {'p50 ms':>9} {'p95 ms':>9}")
    n = options.rounds
    bare = measure("bare numpy matrix-vector product", lambda: snapshot.vectors @ query, n)
    exact = measure("exact search, k=12", lambda: snapshot.rank(query).top(12), n)
    fresh = measure(
        "exact search, k=12, with a new filter",
        lambda: snapshot.rank(query, where.mask(where.parse(expression), snapshot.table)).top(12),
        n,
    )
    known = measure(
        "exact search, k=12, with a filter seen before",
        lambda: snapshot.rank(query, snapshot.mask(where.parse(expression))).top(12),
        n,
    )
    session = getattr(encoder, "_photo", None)
    if session is not None:
        measure("bare onnxruntime call, one prepared photo", lambda: session.run(None, {"photos": pixels}), n)
    measure("text in process", lambda: catalog.answer(Query(text=options.text)), n)
    measure("text + filter in process", lambda: catalog.answer(Query(text=options.text, where=expression)), n)
    measure("photo in process (bytes → hits)", lambda: catalog.answer(Query(image=content)), n)
    over_http(options.catalog, options.text, expression, content, n)
    with_filter = f"with a new filter {fresh / bare:.2f}, with one seen before {known / bare:.2f}"
    print(f"exact search / bare product: {exact / bare:.2f}; {with_filter}")


def over_http(catalog: str, text: str, expression: str, content: bytes, n: int) -> None:
    command = [sys.executable, "-u", "-m", "lookalike", "serve", "--catalog", catalog, "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )  # a line each time
    assert process.stdout
    try:
        address = next(found[0] for line in process.stdout if (found := re.search(r"http://[\d.:]+\d", line)))
        with httpx.Client(base_url=address, trust_env=False, timeout=30) as client:
            for _ in range(100):
                try:
                    if client.get("/readyz").status_code == 200:
                        break
                except httpx.ConnectError:
                    pass
                time.sleep(0.1)

            def ok(answer: httpx.Response) -> None:
                answer.raise_for_status()

            measure("text over HTTP", lambda: ok(client.get("/api/search", params={"text": text})), n)
            both = {"text": text, "where": expression}
            measure("text + filter over HTTP", lambda: ok(client.get("/api/search", params=both)), n)
            measure("photo over HTTP", lambda: ok(client.post("/api/search", files={"image": ("a.jpg", content)})), n)
    finally:
        process.terminate()
        process.wait(15)


if __name__ == "__main__":
    main()
