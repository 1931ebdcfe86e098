"""The training set of the built-in model: Kaggle's Fashion Product Images, packed once, split by rule.

Held out of everything: each product that occurs in KAGL's text→image ground truth, and each whose photo is
byte-identical to one of those. Validation is a split of the rest, by the photo's digest, so that byte-identical photos
stay on one side.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lookalike import images
from lookalike.errors import InputError
from lookalike.sources.street import street_photos
from lookalike.sources.table import csv_rows

HEADS = ("articleType", "baseColour", "gender", "subCategory", "usage", "season", "masterCategory")
VALIDATION_SHARE = 0.035


def thesaurus() -> dict[str, tuple[str, ...]]:
    """A catalogue's word → what people also say: ``thesaurus.txt``."""
    lines = Path(__file__).with_name("thesaurus.txt").read_text("utf-8").splitlines()
    found: dict[str, tuple[str, ...]] = {}
    for line in lines:
        if line and not line.startswith("#"):
            word, _, others = line.partition(": ")
            found[word] = tuple(dict.fromkeys((*found.get(word, ()), *others.split(", "))))
    return found


@dataclass(frozen=True)
class StreetPhotos:
    """Photos that people took (A. Grigorev's clothing dataset): of each, the kind of garment, and who sent it.

    ``photos`` uint8 (n, h, w, 3); ``labels`` int64 (n,) into ``names``; ``test`` bool (n,): the photos of some senders, for
    measuring alone.
    """

    files: list[Path]
    photos: NDArray[np.uint8]
    names: list[str]
    labels: NDArray[np.int64]
    test: NDArray[np.bool_]


@dataclass(frozen=True)
class FashionData:
    """Photos and what is known of them; one row per product that has a photo.

    ``photos`` uint8 (n, h, w, 3); ``large`` maps a row to its row in ``large_photos``, −1 where there is none; ``labels``
    int64 (n, heads), −1 where missing; ``split`` 0 train, 1 validation, 2 held out.
    """

    ids: list[str]
    titles: list[str]
    photos: NDArray[np.uint8]
    large: NDArray[np.int64]
    large_photos: NDArray[np.uint8]
    names: dict[str, list[str]]
    labels: NDArray[np.int64]
    digests: list[str]
    split: NDArray[np.int8]
    street: StreetPhotos | None = None

    def value(self, head: str, row: int) -> str:
        """The name of one label, empty where it is missing."""
        label = self.labels[row, HEADS.index(head)]
        return self.names[head][label] if label >= 0 else ""


def split_of(ids: list[str], digests: list[str], ground_truth: Path) -> NDArray[np.int8]:
    """0 train, 1 validation, 2 held out, for each product; see the module's docstring for the rule."""
    try:
        queries = json.loads(ground_truth.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{ground_truth}: cannot be read as KAGL's text-image.json ({error})") from error
    named = {i for relevant in queries.values() for i in relevant}
    tainted = {d for i, d in zip(ids, digests, strict=True) if i in named}
    share = int(VALIDATION_SHARE * 2**32)
    return np.array(
        [
            2 if i in named or d in tainted else 1 if int(d[:8], 16) < share else 0
            for i, d in zip(ids, digests, strict=True)
        ],
        np.int8,
    )


def load(
    data: Path, large: Path | None, ground_truth: Path, work: Path, size: tuple[int, int], street: Path | None = None
) -> FashionData:
    """Read ``data`` (``styles.csv`` + ``images/``), ``large`` (bigger photos of some), and ``street`` (photos by people).

    Photos are packed once under ``work``.

    Raises:
        InputError: ``data`` is not laid out so.
    """
    table = data / "styles.csv"
    if not table.is_file():
        raise InputError(f"{data}: no styles.csv here; give the unpacked folder of Kaggle's Fashion Product Images")
    columns, rows = csv_rows(table)
    records = [dict(zip(columns, cells, strict=False)) for _, cells in rows]
    records = [r for r in records if (data / "images" / f"{r['id']}.jpg").is_file()]
    ids = [r["id"] for r in records]
    photos, digests = _packed(data / "images", ids, work / "photos", size)
    big = [i for i in ids if large and (large / "images" / f"{i}.jpg").is_file()]
    big_photos, _ = _packed(large / "images", big, work / "large", size) if large and big else (photos[:0], [])
    position = {i: n for n, i in enumerate(big)}
    taken = None
    if street is not None:
        files, kinds, test = street_photos(street)
        theirs, _ = _packed(street / "images", [f.stem for f in files], work / "street", size)
        kind_names = sorted(set(kinds))
        taken = StreetPhotos(files, theirs, kind_names, np.array([kind_names.index(k) for k in kinds]), test)
    names = {h: sorted({r[h] for r in records if r[h] and r[h] != "NA"}) for h in HEADS}
    index = {h: {name: n for n, name in enumerate(names[h])} for h in HEADS}
    return FashionData(
        ids=ids,
        titles=[r["productDisplayName"] for r in records],
        photos=photos,
        large=np.array([position.get(i, -1) for i in ids]),
        large_photos=big_photos,
        names=names,
        labels=np.array([[index[h].get(r[h], -1) for h in HEADS] for r in records]),
        digests=digests,
        split=split_of(ids, digests, ground_truth),
        street=taken,
    )


def _packed(folder: Path, ids: list[str], stem: Path, size: tuple[int, int]) -> tuple[NDArray[np.uint8], list[str]]:
    """Photos fitted to ``size`` as the encoder will see them, kept in a memory-mapped file for the next run."""
    file, notes = stem.with_suffix(".npy"), stem.with_suffix(".json")
    if notes.is_file():
        noted = json.loads(notes.read_text())
        if noted["ids"] == ids and tuple(noted["size"]) == size:
            return np.load(file, mmap_mode="r"), noted["digests"]
    stem.parent.mkdir(parents=True, exist_ok=True)
    packed = np.lib.format.open_memmap(file, "w+", np.uint8, (len(ids), *size, 3))
    digests = []
    for n, i in enumerate(ids):
        content = images.load(folder / f"{i}.jpg")
        digests.append(images.digest(content))
        packed[n] = images.fit(images.read(content), *size)
    packed.flush()
    notes.write_text(json.dumps({"ids": ids, "size": size, "digests": digests}))
    return packed, digests
