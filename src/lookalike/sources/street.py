"""The clothing dataset (A. Grigorev, CC0): photos that people took of their clothes, with the kind of garment and a sender."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.sources.table import csv_rows

TEST_SENDERS = 77
"""Of 256: senders whose number's digest begins below this are for measuring alone."""


def street_photos(folder: Path) -> tuple[list[Path], list[str], NDArray[np.bool_]]:
    """Files, kinds of garment, and which are for measuring alone: by the sender's number, about three in ten photos.

    Photos without a clear kind ("Not sure", "Other", "Skip") are left out.

    Raises:
        InputError: no ``images.csv`` or no photos there.
    """
    if not (folder / "images.csv").is_file():
        raise InputError(f"{folder}: no images.csv here; give the unpacked folder of the clothing dataset")
    columns, rows = csv_rows(folder / "images.csv")
    records = [dict(zip(columns, cells, strict=False)) for _, cells in rows]
    records = [r for r in records if r["label"] not in ("Not sure", "Other", "Skip")]
    found = [(folder / "images" / f"{r['image']}.jpg", r) for r in records]
    found = [(file, r) for file, r in found if file.is_file()]
    if not found:
        raise InputError(f"{folder}: none of the photos of images.csv are in {folder / 'images'}")
    senders = [hashlib.sha256(r["sender_id"].encode()).digest()[0] for _, r in found]
    return [f for f, _ in found], [r["label"] for _, r in found], np.array([s < TEST_SENDERS for s in senders])
