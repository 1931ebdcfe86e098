"""Several encoders side by side: quality, time of training, speed, size. Quality is leave-one-out over the same photos."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from lookalike import images
from lookalike.encoders.base import Encoder
from lookalike.errors import InputError
from lookalike.evaluation.catalog import Shelf, leave_one_out
from lookalike.evaluation.protocol import Progress, Report, cached_vectors, number, summary

BATCH, SECONDS, PHOTOS = 16, 2.0, 64
"""Photos per call while the speed is measured, how long at least, and how many different ones."""


def evaluate(
    encoders: Sequence[Encoder], shelf: Shelf, what: str = "", known: tuple[str, NDArray[np.float32]] | None = None,
    progress: Progress = lambda s: None,
) -> Report:  # fmt: skip
    """One table and two plots.

    Args:
        encoders: what is compared; loaded for one thread, since that is what the speed is said to be of.
        shelf: the photos; each product is asked for once.
        what: where they come from, for the note.
        known: an encoder's id with the vectors (photos, dim) that are there already.
        progress: told what is being measured.

    Raises:
        InputError: fewer than two products, or no two of one label.
    """
    if len(shelf) < 2:
        raise InputError("fewer than two products; nothing can be compared on them")
    rows: dict[str, dict[str, Any]] = {}
    names = _names(encoders)
    queries = 0
    photos = [images.read(path, at_least=512) for path in shelf.paths[:PHOTOS]]
    for name, one in zip(names, encoders, strict=True):
        progress(f"{name}: {len(shelf.paths)} photos")
        there = known is not None and known[0] == one.id
        vectors = known[1] if known and there else cached_vectors(one, shelf.paths, shelf.digests, progress)
        found = leave_one_out(vectors, shelf, np.arange(len(shelf)))
        row: dict[str, Any] = {}
        for label, figures in found.figures.items():
            if not found.asked[label].any():
                raise InputError(f"no two products have the same {label}; nothing can be measured by it")
            if len(shelf.labels) > 1:
                row[f"{label} P@10"] = summary(figures["P@10"])
            else:
                row.update({figure: summary(figures[figure]) for figure in ("P@1", "P@10", "MAP@R")})
        queries = int(found.asked[next(iter(shelf.labels))].sum())
        seconds, size = _trained(one), _bytes(one)
        row["training time"] = number(seconds, "–" if seconds is None else _duration(seconds))
        progress(f"{name}: speed")
        speed = photos_per_second(one, photos)
        row["photos/s"] = number(round(speed, 1), f"{speed:,.0f}" if speed >= 10 else f"{speed:.1f}")
        row["on disk"] = number(size, "–" if size is None else f"{size / 1e6:.1f} MB")
        row["dimensions"] = number(one.dim, str(one.dim))
        rows[name] = row
    label = next(iter(shelf.labels))
    quality = next(f for f in rows[names[0]] if f.endswith("P@10"))
    return {
        "title": "Encoders side by side",
        "encoder": "",
        "note": f"{len(shelf):,} products{what}; each is left out of its own answer, and so are photos of the same bytes. "
        f"Right is what has the same {', or '.join(shelf.labels)}. Photos/s: decoded photo in hand, one thread, this machine. "
        f"Training time: as an encoder's own encoder.json has it. Measured: {', '.join(one.id for one in encoders)}.",
        "tables": [{"name": f"same {label}", "queries": queries, "rows": rows}],
        "plots": [p for axis in ("photos/s", "training time") if (p := _plot(rows, axis, quality, label))],
    }


def _plot(rows: dict[str, dict[str, Any]], axis: str, quality: str, label: str) -> dict[str, Any] | None:
    """Quality against what it costs, of the encoders for which that is known; None where it is for none."""
    points = [
        {"name": name, "series": n, "x": row[axis]["mean"], "y": row[quality]["mean"], "low": row[quality]["low"],
         "high": row[quality]["high"]}
        for n, (name, row) in enumerate(rows.items())
        if row[axis]["mean"] is not None
    ]  # fmt: skip
    unit = {"training time": "seconds of training"}.get(axis, axis)
    about = quality if label in quality else f"{quality}, same {label}"
    return {"name": f"Quality against {unit}", "x": unit, "y": about, "points": points} if points else None


def photos_per_second(encoder: Encoder, photos: Sequence[Image], seconds: float = SECONDS) -> float:
    """Upright photos → vectors, preparing included: the fastest batch, since whatever else runs only makes others slower."""
    batches = [photos[n : n + BATCH] for n in range(0, len(photos), BATCH)]
    speeds: list[float] = []
    end = 0.0
    while len(speeds) < 4 or (time.perf_counter() < end and len(speeds) < 100):
        batch = batches[len(speeds) % len(batches)]
        start = time.perf_counter()
        encoder.encode_photos(np.stack([encoder.prepare(photo) for photo in batch]))
        speeds.append(len(batch) / (time.perf_counter() - start))
        end = end or time.perf_counter() + seconds
    return max(speeds)


def _names(encoders: Sequence[Encoder]) -> list[str]:
    """Short names that differ: of files and directories the last part, else the id."""
    short = [Path(one.name).name if Path(one.name).is_absolute() else one.name for one in encoders]
    return [one.id if short.count(name) > 1 else name for name, one in zip(short, encoders, strict=True)]


def _place(encoder: Encoder) -> Path | None:
    """The directory or file that an encoder was loaded from, if it was."""
    place = getattr(encoder, "directory", None) or Path(encoder.name)
    return place if place.is_absolute() and place.exists() else None


def _trained(encoder: Encoder) -> float | None:
    """Seconds of training, where the encoder's directory says so."""
    place = _place(encoder)
    try:
        said = json.loads((place / "encoder.json").read_text("utf-8")) if place else {}
        return float(said["training"]["seconds"]) or None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _bytes(encoder: Encoder) -> int | None:
    """Bytes of the encoder's directory (its notes left out) or file; None where it has none of its own."""
    place = _place(encoder)
    if place is None:
        return None
    files = [place] if place.is_file() else [f for f in place.rglob("*") if f.is_file() and f.suffix != ".md"]
    return sum(f.stat().st_size for f in files)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
