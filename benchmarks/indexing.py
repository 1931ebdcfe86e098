"""How fast photos become rows, beside decoding alone and encoding alone; and what a row costs as a catalog grows.

    python benchmarks/indexing.py photos SOURCE [--size 1080x1440] [--photos 500] [--others 64] [--encoder builtin]
    python benchmarks/indexing.py grow CATALOG --like OTHER [--rows 1000000] [--plot growth.png]

``photos`` takes photos of SOURCE, as they are or brought to a size, and prints photos/s of decoding alone (reading, digest,
palette and fitting, on all cores), of encoding alone (of pixels that are ready, on all cores), of ``lookalike index``, to the
last commit, and how much longer that takes than the slower of the two. Beside it, on the same photos, with torch and random
weights: the loop that small systems use, ResNet50 over one photo at a time, and open_clip's ViT-B/32 over batches of 32; both
decode in the same loop and write nothing. Medians of ``--repeats`` interleaved runs; the CPU's time, too, which hardly depends
on what else runs. Where decoding and encoding each keep all cores busy, no overlap can take less than both together.

``grow`` fills CATALOG with rows like those of OTHER: titles, attributes and palettes as they are, ids and digests of their own,
vectors turned a little at random. They go in where the encoder's would, in commits of the usual size with the usual
compaction. Prints, for each tenth, microseconds per row, the slowest commit, fragments, and what the catalog takes on the disk.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

import lookalike
from lookalike import images, indexing
from lookalike.colours import palette
from lookalike.encoders import load
from lookalike.sources import open_source
from lookalike.store import Store
from lookalike.types import Product

CORES = os.cpu_count() or 1


def photos(options: argparse.Namespace) -> None:
    found = [str(p) for product in open_source(options.source).products for p in product.photos][: options.photos]
    encoder = load(options.encoder, 0)
    with tempfile.TemporaryDirectory() as folder:
        if options.size:
            found = [_sized(p, options.size, Path(folder, f"{n}.jpg")) for n, p in enumerate(found)]
        pixels = [encoder.prepare(images.read(p, at_least=max(encoder.size))) for p in found]
        few = found[: options.others]
        ways: dict[str, tuple[int, Callable[[], Any]]] = {
            "decoding alone": (len(found), lambda: _decode(found, encoder)),
            "encoding alone": (
                len(found),
                lambda: [encoder.encode_photos(np.stack(pixels[n : n + 32])) for n in _starts(found)],
            ),
            "lookalike index": (len(found), lambda: _index(found, encoder, Path(folder))),
            **{name: (len(few), way) for name, way in _torch_ways(few).items()},
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        cpu: dict[str, list[float]] = {name: [] for name in ways}
        for repeat in range(options.repeats + 1):
            for name, (count, way) in ways.items():
                start, used = time.perf_counter(), time.process_time()
                way()
                if repeat:  # the first warms up
                    seconds[name].append((time.perf_counter() - start) / count)
                    cpu[name].append((time.process_time() - used) / count)
    size = options.size or "×".join(map(str, images.read(found[0]).size))
    print(f"{len(found)} photos of {size}, {CORES} cores, load average of the last minute {os.getloadavg()[0]:.1f}")
    for name, taken in seconds.items():
        spread = f"{1 / max(taken):.0f} … {1 / min(taken):.0f}"
        used = statistics.median(cpu[name]) * 1e3
        print(f"{name:34} {1 / statistics.median(taken):7.1f} photos/s ({spread}), {used:.2f} ms of CPU a photo")
    alone = [statistics.median(seconds[name]) for name in ("decoding alone", "encoding alone")]
    whole = statistics.median(seconds["lookalike index"])
    print(
        f"lookalike index takes {whole / max(alone):.2f} × the slower of the two alone, {whole / sum(alone):.2f} × both"
    )


def _starts(found: list[str]) -> range:
    return range(0, len(found), 32)


def _sized(photo: str, size: str, file: Path) -> str:
    width, height = map(int, size.split("x"))
    images.read(photo).resize((width, height), Image.Resampling.BICUBIC).save(file, quality=90)
    return str(file)


def _decode(found: list[str], encoder: Any) -> None:
    def one(path: str) -> None:
        content = images.load(path)
        images.digest(content)
        image = images.read(content, at_least=max(encoder.size))
        encoder.prepare(image)
        palette(image)

    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(one, found))


def _index(found: list[str], encoder: Any, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as target:
        lookalike.open(target, encoder=encoder).index([Product(str(n), [p]) for n, p in enumerate(found)])


def _torch_ways(found: list[str]) -> dict[str, Callable[[], Any]]:
    try:
        import open_clip
        import timm
        import torch
    except ImportError as error:
        print(f"without {error.name}: nothing of torch beside it")
        return {}
    resnet = timm.create_model("resnet50", pretrained=False, num_classes=0).eval()
    clip = open_clip.create_model("ViT-B-32").eval()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def tensor(path: str) -> torch.Tensor:
        pixels = np.asarray(Image.open(path).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC))
        return ((torch.from_numpy(pixels.copy()) / 255 - mean) / std).permute(2, 0, 1)

    def one_by_one() -> None:
        for path in found:
            resnet(tensor(path)[None])

    def batches() -> None:
        for n in _starts(found):
            clip.encode_image(torch.stack([tensor(p) for p in found[n : n + 32]]))

    torch.set_grad_enabled(False)
    return {"torch ResNet50, one by one": one_by_one, "open_clip ViT-B/32, batches of 32": batches}


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
    measured = commands.add_parser("photos")
    measured.add_argument("source")
    measured.add_argument("--size", help="WIDTHxHEIGHT that photos are brought to first")
    measured.add_argument("--photos", type=int, default=500)
    measured.add_argument("--others", type=int, default=64, help="photos that the loops with torch are measured on")
    measured.add_argument("--encoder", default="builtin")
    measured.add_argument("--repeats", type=int, default=3)
    measured.set_defaults(run=photos)
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
