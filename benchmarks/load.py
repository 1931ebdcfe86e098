"""Many clients at once against a server on loopback: throughput, latency and errors, beside the bare encoder in the same run.

    python benchmarks/load.py shop.catalog [--clients 64] [--seconds 180] [--photos FOLDER]

A mix of words, words with a filter, photos, likes and thumbnails, each client asking again as soon as it has its answer. The
server is a process of its own; the clients share the machine with it, so that on few cores they take part of what is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from urllib.parse import quote

import numpy as np

import lookalike
from lookalike import images

WORDS = (
    "red dress", "blue jeans", "black leather shoes", "white shirt", "sports watch", "handbag", "running shoes",
    "striped polo", "sunglasses", "green kurta", "puma", "something warm", "summer top", "men formal trousers", "gold ring",
)  # fmt: skip


def requests(catalog: lookalike.Catalog, rng: random.Random, folder: Path | None) -> list[tuple[str, bytes]]:
    """A few hundred requests of each kind, as bytes ready to be sent."""
    snapshot = catalog.snapshot()
    facet = next(f for f in snapshot.facets() if f["kind"] == "values")
    out: list[tuple[str, bytes]] = []

    def get(kind: str, path: str) -> None:
        out.append((kind, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()))

    files = [str(p) for p in folder.rglob("*.jpg")] if folder else snapshot.paths
    for _ in range(200):
        text = quote(rng.choice(WORDS))
        value = rng.choice(facet["values"][:5])["value"]
        get("words", f"/api/search?text={text}&k=24&lexical=0.3")
        where = quote(f"{facet['column']} = '{value}'")
        get("words and filter", f"/api/search?text={text}&k=24&where={where}")
        get("like", f"/api/search?like={quote(rng.choice(snapshot.ids))}&k=24&fold=true")
        get("thumbnail", f"/api/photos/{rng.choice(snapshot.photos)}?width=240")
        content = Path(rng.choice(files)).read_bytes()
        body = (
            b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
            + content
            + b"\r\n--x--\r\n"
        )
        head = "POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        out.append(("photo", f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body))
    return out


async def client(
    port: int,
    todo: list[tuple[str, bytes]],
    until: float,
    times: dict[str, list[float]],
    statuses: Counter[str],
    seed: int,
) -> None:
    rng = random.Random(seed)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.monotonic() < until:
        kind, request = rng.choice(todo)
        start = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.I)
        body = await reader.readexactly(int(length[1])) if length else b""
        status = head.split(b" ", 2)[1].decode()
        statuses[status] += 1
        if status == "200":
            times[kind].append((time.perf_counter() - start) * 1000)
            if kind != "thumbnail":
                assert json.loads(body)["hits"] is not None
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("catalog")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--photos", type=Path, help="a folder of photos to ask with; those of the catalog by default")
    options = parser.parse_args()
    catalog = lookalike.open(options.catalog)
    todo = requests(catalog, random.Random(0), options.photos)
    encoder = catalog.encoder
    pixels = encoder.prepare(images.read(catalog.snapshot().paths[0]))[None]
    for name, work in (
        ("photo", lambda: encoder.encode_photos(pixels)),
        ("text", lambda: encoder.encode_texts(["red dress"])),
    ):
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < 3:
            work()
            count += 1
        print(f"bare encoder, one {name} at a time: {count / 3:.0f}/s")
    server = subprocess.Popen(
        [sys.executable, "-m", "lookalike", "serve", "--catalog", options.catalog, "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert server.stdout
        port = int(re.search(r":(\d+)/", server.stdout.readline())[1])  # type: ignore[index]
        while subprocess.run(["curl", "-sf", f"http://127.0.0.1:{port}/readyz"], capture_output=True).returncode:
            time.sleep(0.2)
        times: dict[str, list[float]] = defaultdict(list)
        statuses: Counter[str] = Counter()

        async def everybody() -> None:
            until = time.monotonic() + options.seconds
            await asyncio.gather(*(client(port, todo, until, times, statuses, n) for n in range(options.clients)))

        asyncio.run(everybody())
        memory = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{server.pid}/status").read_text())
    finally:
        server.terminate()
        server.wait(20)
    print(
        f"{options.clients} clients, {options.seconds:.0f} s, server's memory {int(memory[1]) // 1024 if memory else 0} MB"
    )
    print(f"{'':18} {'per second':>10} {'p50 ms':>8} {'p95':>8} {'p99':>8}")
    for kind, found in [*times.items(), ("all", [t for some in times.values() for t in some])]:
        p50, p95, p99 = np.percentile(found, [50, 95, 99])
        print(f"{kind:18} {len(found) / options.seconds:10.1f} {p50:8.1f} {p95:8.1f} {p99:8.1f}")
    print("answers by status:", dict(statuses))


if __name__ == "__main__":
    main()
