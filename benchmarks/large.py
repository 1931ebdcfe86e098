"""A large catalog as its users meet it: opened, searched, added to.

    python benchmarks/large.py big.catalog photos/ [--add 1000] [--rounds 100]

Opens the catalog in a new process (first answer), searches it in several ways, copies ``--add`` photos of the folder under new
names, indexes them, and says how long it took until they were found; then takes them out again.
Times in milliseconds unless said otherwise.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import lookalike
from lookalike.types import Query

FIRST = """
import sys, time
start = time.perf_counter()
import lookalike
hits = lookalike.open(sys.argv[1]).search("red summer dress", k=12)
print(len(hits), time.perf_counter() - start)
"""


def measured(name: str, work: Callable[[], object], rounds: int) -> None:
    work()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append((time.perf_counter() - start) * 1000)
    p50, p95, p99 = np.percentile(times, [50, 95, 99])
    print(f"{name:50} {p50:8.1f} {p95:8.1f} {p99:8.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("catalog")
    parser.add_argument("photos", type=Path)
    parser.add_argument("--add", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()

    for n in range(2):
        done = subprocess.run(
            [sys.executable, "-c", FIRST, options.catalog], capture_output=True, text=True, check=True
        )
        print(f"new process to first answer{', once more' * n}: {float(done.stdout.split()[1]):.2f} s")
    catalog = lookalike.open(options.catalog)
    snapshot, n = catalog.snapshot(), options.rounds
    index = catalog.status()["index"]
    print(f"{len(snapshot):,} products; index {index['kind']} ({index['why']}), {index.get('settings', {})}")
    photo = next(p for p in sorted(options.photos.rglob("*.jpg"))).read_bytes()
    facet = next(f for f in snapshot.facets() if f["kind"] == "values")
    often, seldom = (f"{facet['column']} = '{facet['values'][at]['value']}'" for at in (0, -1))
    print(f"{'':50} {'p50':>8} {'p95':>8} {'p99':>8}")
    words = ["red summer dress", "blue denim shirt", "running shoes", "leather handbag", "gold watch"]
    turn = iter(range(10**9))

    def text() -> str:
        return words[next(turn) % len(words)]

    measured("words", lambda: catalog.answer(Query(text=text())), n)
    measured("words, 30% of word matching", lambda: catalog.answer(Query(text=text(), lexical=0.3)), n)
    measured(f"words, {often}", lambda: catalog.answer(Query(text=text(), where=often)), n)
    measured(f"words, {seldom}", lambda: catalog.answer(Query(text=text(), where=seldom)), n)
    measured("photo (bytes to hits)", lambda: catalog.answer(Query(image=photo)), n)
    measured("words and a colour", lambda: catalog.answer(Query(text=text(), colour="#c81e3a")), max(5, n // 5))
    measured("like a product, folded, k=24", lambda: catalog.answer(Query(like=(snapshot.ids[7],), fold=True, k=24)), n)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "added"
        folder.mkdir()
        source = sorted(options.photos.rglob("*.jpg"))[: options.add]
        for number, file in enumerate(source):  # the same pictures, but no file of the catalog has these bytes
            (folder / f"added-{number}.jpg").write_bytes(file.read_bytes() + b"added")
        start = time.perf_counter()
        report = catalog.index(folder)
        acknowledged = time.perf_counter()
        hits = catalog.search(like="added-7", k=5)
        seen = time.perf_counter()
        assert catalog.snapshot().has("added-7"), hits
        print(
            f"{report.added:,} photos added: acknowledged after {acknowledged - start:.2f} s, found "
            f"{seen - acknowledged:.2f} s later ({len(catalog.snapshot().photos):,} photos)"
        )
        ids = [f"added-{number}" for number in range(len(source))]
        start = time.perf_counter()
        catalog.remove(*ids)
        removed = time.perf_counter()
        assert not catalog.snapshot().has("added-7")
        print(f"removed after {removed - start:.2f} s, gone {time.perf_counter() - removed:.2f} s later")
    print(
        f"memory, mapped files that were touched included: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB"
    )


if __name__ == "__main__":
    main()
