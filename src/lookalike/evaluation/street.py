"""Photos that people took (A. Grigorev's clothing dataset): kind of garment by words alone, and photo→photo.

Measured on the photos of some senders, chosen by the sender's number; the built-in model trains on the others' photos only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lookalike.encoders.base import Encoder, photo_dim
from lookalike.errors import InputError
from lookalike.evaluation import metrics
from lookalike.evaluation.protocol import Progress, Report, encode_files, encode_texts, summary
from lookalike.sources.street import street_photos

WORDS = {
    "T-Shirt": "t-shirt", "Longsleeve": "long sleeve top", "Pants": "trousers", "Shoes": "shoes", "Shirt": "shirt",
    "Dress": "dress", "Outwear": "jacket", "Shorts": "shorts", "Hat": "hat", "Skirt": "skirt", "Polo": "polo shirt",
    "Undershirt": "undershirt", "Blazer": "blazer", "Hoodie": "hoodie", "Body": "bodysuit", "Top": "top",
    "Blouse": "blouse",
}  # fmt: skip
"""What each kind is called in the query."""


def evaluate(
    encoder: Encoder, folder: Path, beside: Sequence[Encoder] = (), progress: Progress = lambda s: None
) -> Report:
    """Accuracy over the ten largest kinds by words alone, and P@10 of the same kind among all test photos.

    Args:
        encoder: measured; one that compares no texts with photos, photo→photo only.
        folder: the unpacked clothing dataset.
        beside: encoders measured photo→photo on the same photos.
        progress: told what is being measured.

    Raises:
        InputError: no such data there.
    """
    files, kinds, test = street_photos(folder)
    files = [f for f, t in zip(files, test, strict=True) if t]
    labels = np.array([k for k, t in zip(kinds, test, strict=True) if t])
    if len(files) < 11:
        raise InputError(f"{folder}: only {len(files)} test photos; at least 11 are needed")
    largest = [name for name, _ in Counter(labels.tolist()).most_common(10)]
    rows: dict[str, Any] = {}
    tables: list[dict[str, Any]] = []
    report: Report = {
        "title": "Photos by people", "encoder": encoder.id, "tables": tables,
        "note": f"{len(files)} photos of senders that nothing was trained on; kinds: {', '.join(largest)}. "
        "Intervals are over photos; those of one sender are not independent.",
    }  # fmt: skip
    for one in (encoder, *beside):
        progress(f"{one.name}: {len(files)} photos")
        vectors = encode_files(one, files, progress)
        others = metrics.neighbours(vectors, np.arange(len(files)))
        equal = labels[others] == labels[:, None]
        rows[one.id] = {"same kind P@10": summary(metrics.precision(equal, 10))}
        if one is encoder and one.reads_text and photo_dim(one) == one.dim:  # words about photos, not about titles
            asked = np.isin(labels, largest)
            guess = (vectors[asked] @ encode_texts(one, [WORDS.get(n, n) for n in largest]).T).argmax(1)
            truth = np.array([largest.index(n) for n in labels[asked]])
            majority = float((truth == 0).mean())
            right = {"accuracy": summary((guess == truth).astype(np.float64))}
            always = {"accuracy": {"mean": round(majority, 4)}}
            tables.append(
                {"name": "kind by words alone, ten largest", "queries": int(asked.sum()),
                 "rows": {one.id: right, "always the largest kind": always}}
            )  # fmt: skip
            shares = np.zeros((len(largest), len(largest)))
            np.add.at(shares, (truth, guess), 1)
            shares /= np.maximum(1, shares.sum(1, keepdims=True))
            report["confusion"] = {"rows": largest, "columns": largest, "shares": shares.round(3).tolist()}
    tables.append({"name": "photo → photo among themselves", "queries": len(files), "rows": rows})
    return report
