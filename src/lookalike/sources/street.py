"""The clothing dataset (A. Grigorev, CC0): photos that people took of their clothes, with the kind of garment and a sender."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.sources import Source
from lookalike.sources.table import csv_rows
from lookalike.types import Product, Quarantined

TEST_SENDERS = 77
"""Of 256: senders whose number's digest begins below this are for measuring alone."""

COLUMNS = {"image", "sender_id", "label", "kids"}
FOLDERS = ("images", "images_original", "images_compressed")
UNCLEAR = ("Not sure", "Other", "Skip")
"""Labels that name no kind of garment."""


def read(root: Path) -> Source | None:
    """A product for each photo of ``images.csv``, with its kind (``label``), ``kids``, ``sender_id`` and ``split``.

    None where the folder is not the clothing dataset. Raises InputError where none of its photos are there.
    """
    if not (root / "images.csv").is_file():
        return None
    columns, rows = csv_rows(root / "images.csv")
    if not set(columns) >= COLUMNS:
        return None
    files: dict[str, Path] = {}
    for folder in reversed([root / f for f in FOLDERS if (root / f).is_dir()]):
        files.update((Path(e.name).stem, Path(e.path)) for e in sorted(os.scandir(folder), key=lambda e: e.name))
    source = Source(str(root), [], {"id": "image", "category": "label"})
    seen: dict[str, int] = {}
    missing = ""
    for line, cells in rows:
        row = dict(zip(columns, (c.strip() for c in cells), strict=False))
        identity, where = row["image"], f"images.csv, line {line}"
        if len(row) < len(columns):
            source.quarantined.append(
                Quarantined(where, f"{len(row)} of {len(columns)} columns; the line is cut short")
            )
        elif identity in seen:
            source.quarantined.append(Quarantined(where, f"the same photo as line {seen[identity]}"))
        elif identity not in files:
            missing = missing or identity
            source.broken.add(identity)
            source.quarantined.append(Quarantined(f"{where}, id {identity}", "the photo is not in images/"))
        else:
            kind = "" if row["label"] in UNCLEAR else row["label"]
            of_sender = hashlib.sha256(row["sender_id"].encode()).digest()[0]
            attributes = {
                **({"label": kind} if kind else {}),
                "kids": row["kids"].lower() == "true",
                "sender_id": row["sender_id"],
                "split": "test" if of_sender < TEST_SENDERS else "train",
            }
            source.products.append(Product(identity, [files[identity]], kind, attributes, where))
        seen.setdefault(identity, line)
    if not source.products:
        first = f" (the first: {missing})" if missing else ""
        raise InputError(f"{root}: none of the photos of images.csv are in {root / 'images'}{first}; unpack it whole")
    return source


def street_photos(folder: Path) -> tuple[list[Path], list[str], NDArray[np.bool_]]:
    """Files, kinds of garment, and which are for measuring alone: by the sender's number, about three in ten photos.

    Photos without a clear kind are left out.

    Raises:
        InputError: no ``images.csv`` or no photos there.
    """
    source = read(folder)
    if source is None:
        raise InputError(f"{folder}: no images.csv here; give the unpacked folder of the clothing dataset")
    told = [p for p in source.products if "label" in p.attributes]
    test = np.array([p.attributes["split"] == "test" for p in told])
    return [Path(p.photos[0]) for p in told], [str(p.attributes["label"]) for p in told], test
