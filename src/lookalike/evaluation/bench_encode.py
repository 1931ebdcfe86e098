"""What encoders cost on one's own photos: speed, memory, disk. Quality is ``compare``'s.

Each is measured in a process of its own, so that its memory is its own, and written down as a line of JSON when it is done: a
run that was stopped goes on.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np

from lookalike import images
from lookalike.encoders import load
from lookalike.errors import ImageError, InputError
from lookalike.evaluation.compare import _bytes
from lookalike.evaluation.protocol import Progress, Report, number

BATCH = 32
"""Photos per call, as while indexing."""

SECONDS = 3.0
"""How long each figure is measured at least, unless the photos or texts run out."""


def evaluate(
    names: Sequence[str], photos: Sequence[str], texts: Sequence[str], out: Path, threads: int = 0,
    progress: Progress = lambda s: None,
) -> Report:  # fmt: skip
    """One table; encoders that ``out`` has figures of, for these photos, texts and threads, are not measured again.

    Args:
        names: encoders, as for ``encoders.load``.
        photos: files; those that cannot be read are left out.
        texts: what is said of products; without any, texts are not measured.
        out: a folder; ``cells.jsonl`` in it has the figures.
        threads: cores, 0 for all.
        progress: told what is being measured.

    Raises:
        UsageError: no such encoder, or an extra is missing.
        InputError: no photo can be read, or an encoder's files are damaged.
    """
    about = hashlib.sha256(json.dumps([*photos, "", *texts, threads, os.cpu_count()]).encode()).hexdigest()[:12]
    out.mkdir(parents=True, exist_ok=True)
    cells = dict(_read(out / "cells.jsonl", about))
    for name in names:
        if name in cells:
            continue
        progress(name)
        try:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
                cells[name] = alone.submit(measure, name, photos, texts, threads).result()
        except BrokenProcessPool as error:
            raise InputError(
                f"{name}: its process ended while it was measured; is there enough memory for it?"
            ) from error
        with (out / "cells.jsonl").open("ab+") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
            ended = file.read() in (b"", b"\n")  # else by the half line of a run that was killed
            line = json.dumps({"about": about, "name": name, **cells[name]})
            file.write((b"" if ended else b"\n") + line.encode() + b"\n")
    rows = {name: _row(cells[name]) for name in names}
    cores = threads or os.cpu_count() or 1
    return {
        "title": "What encoders cost",
        "encoder": "",
        "note": f"{len(photos):,} photos, {len(texts):,} texts, {cores} of {os.cpu_count()} cores, decoded photos in hand, "
        f"preparing included. photos/s: batches of {BATCH}; ms: one at a time, as for a search; medians. Memory: the most "
        f"that a process held that did nothing else. Measured: {', '.join(cells[name]['id'] for name in names)}.",
        "tables": [{"name": "encoders", "queries": len(photos), "rows": rows}],
        "plots": [],
    }


def _read(file: Path, about: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Finished figures; the half line of a run that was killed is none."""
    for line in file.read_text("utf-8").splitlines() if file.is_file() else ():
        try:
            cell = json.loads(line)
        except ValueError:
            continue
        if cell["about"] == about:
            yield cell["name"], cell


def measure(name: str, photos: Sequence[str], texts: Sequence[str], threads: int) -> dict[str, Any]:
    """One encoder, here: id, dim, photos_per_second, photo_ms, text_ms, memory and disk in bytes; None where there is none."""
    encoder = load(name, threads)
    decoded = []
    for photo in photos:
        try:
            decoded.append(images.read(photo, at_least=max(encoder.size)))
        except (ImageError, InputError):
            continue
    if not decoded:
        raise InputError("none of the photos can be read; give others with --data")
    batches = [decoded[n : n + BATCH] for n in range(0, len(decoded), BATCH)]

    def encode(batch: Sequence[Any]) -> None:
        encoder.encode_photos(np.stack([encoder.prepare(photo) for photo in batch]))

    per_photo = [seconds / len(batch) for seconds, batch in zip(_times(encode, batches), batches, strict=False)]
    alone = _times(encode, [[photo] for photo in decoded])
    said = _times(lambda text: encoder.encode_texts([text]), texts) if encoder.reads_text else []
    return {
        "id": encoder.id,
        "dim": encoder.dim,
        "photos_per_second": 1 / statistics.median(per_photo),
        "photo_ms": statistics.median(alone) * 1e3,
        "text_ms": statistics.median(said) * 1e3 if said else None,
        "memory": _most_memory(),
        "disk": _bytes(encoder),
    }


def _times(call: Callable[[Any], object], inputs: Sequence[Any]) -> list[float]:
    """Seconds of each call, after one that warms up, for ``SECONDS`` and four calls at least."""
    out: list[float] = []
    for one in inputs[:1]:
        call(one)
    end = time.perf_counter() + SECONDS
    for one in inputs:
        start = time.perf_counter()
        call(one)
        out.append(time.perf_counter() - start)
        if len(out) >= 4 and time.perf_counter() > end:
            break
    return out


def _most_memory() -> int | None:
    """The most bytes that this process held at once; None where the system does not say."""
    status = Path("/proc/self/status")
    if status.is_file():  # on Linux getrusage would count what the process that started this one held
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _row(cell: dict[str, Any]) -> dict[str, Any]:
    speed, text = cell["photos_per_second"], cell["text_ms"]
    sizes = {name: cell[name] for name in ("memory", "disk")}
    return {
        "photos/s": number(round(speed, 1), f"{speed:,.0f}" if speed >= 10 else f"{speed:.1f}"),
        "ms a photo": number(round(cell["photo_ms"], 2), f"{cell['photo_ms']:.1f}"),
        "ms a text": number(text and round(text, 3), "–" if text is None else f"{text:.2f}"),
        **{name: number(size, "–" if size is None else f"{size / 1e6:.0f} MB") for name, size in sizes.items()},
        "dimensions": number(cell["dim"], str(cell["dim"])),
    }
