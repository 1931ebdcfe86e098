"""Photo and words together ("like this, but in red"): how often the answer keeps the thing and takes the colour.

    python benchmarks/compose.py shop.catalog [--queries 400] [--only ids.json]

Each query is a product's photo (its stored vector, by `like`) and "but in COLOUR" for one of the ten most frequent colours
that it does not have, where at least ten products of its type and gender have it. P@10: type kept, colour taken, and both with
the gender. Both sides in one run: the plain mean of the vectors (`pure`), and what a search does, for several weights.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

import lookalike


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("catalog")
    parser.add_argument("--queries", type=int, default=400)
    parser.add_argument("--only", type=Path, help="JSON whose values are {product id: …}: only those are asked with")
    options = parser.parse_args()
    catalog = lookalike.open(options.catalog)
    snapshot = catalog.snapshot()
    roles = snapshot.manifest.roles if snapshot.manifest else {}
    category, colour, gender = (
        np.array(snapshot.table[r].cast("string").to_pylist(), object) for r in ("category", "colour", "gender")
    )
    colours = snapshot.values[roles["colour"]][:10]
    asked = np.arange(len(snapshot))
    if options.only:
        held = {i for ids in json.loads(options.only.read_text()).values() for i in ids}
        asked = np.array([n for n in asked if snapshot.ids[n] in held])
    rng = np.random.default_rng(0)
    queries = []
    for n in rng.permutation(asked):
        like = (category == category[n]) & (gender == gender[n])
        wanted = [c for c in colours if c != colour[n] and int((like & (colour == c)).sum()) >= 10]
        if wanted:
            queries.append((int(n), wanted[rng.integers(len(wanted))]))
        if len(queries) == options.queries:
            break
    print(f"{len(queries)} queries over {len(snapshot)} products; P@10 of: type kept, colour taken, both and gender")
    for name, how in (
        ("plain mean", {"pure": True}),
        *((f"search, words {w:.0%}", {"weights": {"like": 1 - w, "text": w}}) for w in (0.25, 0.4, 0.5, 0.6, 0.75)),
    ):
        scores = []
        for n, wanted in queries:
            hits = catalog.search(f"but in {wanted.lower()}", like=snapshot.ids[n], k=10, **how)
            found = [snapshot.product(h.id) for h in hits]
            kept, taken = category[found] == category[n], colour[found] == wanted
            scores.append((kept.mean(), taken.mean(), (kept & taken & (gender[found] == gender[n])).mean()))
        mean = np.mean(scores, 0)
        error = 1.96 * np.std(scores, 0)[2] / np.sqrt(len(scores))
        print(f"{name:22} {mean[0]:.3f}  {mean[1]:.3f}  {mean[2]:.3f} ± {error:.3f}", flush=True)


if __name__ == "__main__":
    main()
