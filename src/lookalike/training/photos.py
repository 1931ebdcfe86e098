"""A source packed for the recipes: one row per photo, labels, a split by product, and what was left out of it."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from os import cpu_count
from pathlib import Path
from shutil import disk_usage
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lookalike import images
from lookalike.encoders.torch import Preprocess
from lookalike.errors import ImageError, InputError, UsageError
from lookalike.sources import Source
from lookalike.training.adapt import places
from lookalike.training.options import Classify, Contrast, Options
from lookalike.types import Product

Log = Callable[[str], None]
CHUNK = 512

SPLIT_COLUMNS = ("split", "evaluation_status")
AWAY = ("test", "query", "gallery")
"""Values of a source's own split that never take part in training; ``val`` and ``validation`` are validation."""


@dataclass(frozen=True)
class Photos:
    """``packed`` uint8 (photos, h, w, 3), memory-mapped, of which each row has its ``places``; the rest one per row.

    ``labels`` int64 (n,) into ``names``; ``validation`` bool (n,): held out, whole products, byte-identical photos on one
    side, and nothing here is byte-identical to a photo that takes no part; ``by_item``: a label is a product; ``rare`` counts
    photos of each label that was too rare. ``digest`` is of all that is here, split included.
    """

    packed: NDArray[np.uint8]
    places: NDArray[np.int64]
    products: list[str]
    titles: list[str]
    rows: list[dict[str, Any]]
    digests: list[str]
    labels: NDArray[np.int64]
    names: list[str]
    validation: NDArray[np.bool_]
    label: str
    by_item: bool = False
    rare: dict[str, int] = field(default_factory=dict)
    digest: str = ""

    def pixels(self, rows: NDArray[np.integer]) -> Tensor:
        """Photos of these rows: uint8 (rows, h, w, 3)."""
        return torch.from_numpy(np.array(self.packed[self.places[rows]]))


def pack(source: Source, preprocess: Preprocess, work: Path, options: Options, log: Log) -> Photos:
    """Read, fit and keep every photo of ``source`` under ``work``; a second call goes on where the first stopped.

    Raises:
        InputError: no such label, too few photos of too few labels, or too little room.
        UsageError: ``--label`` is wanted.
    """
    columns, products, away = check(source, options)
    named = [(p, str(photo)) for p in products for photo in p.photos]
    pixels, notes = _packed([name for _, name in named], preprocess, work, log)
    kept = [n for n, note in enumerate(notes) if "error" not in note]
    lost = [note["error"] for note in notes if "error" in note]  # each names its photo
    for line in lost[:5]:
        log(f"left out: {line}")
    if lost[5:]:
        log(f"left out: {len(lost) - 5} more, see {work / 'photos.jsonl'}")
    if not kept:
        raise InputError(f"{source.key}: none of its {len(notes)} photos can be read; see {work / 'photos.jsonl'}")
    known = _digests(away)
    twins = {n for n in kept if notes[n]["digest"] in known}
    measured = {notes[n]["digest"] for n in kept if _own_split(named[n][0]) == "validation"}
    twins |= {n for n in kept if notes[n]["digest"] in measured and _own_split(named[n][0]) != "validation"}
    if twins:
        log(f"left out: {len(twins)} photos that are byte for byte those of products that are held out")
    kept = [n for n in kept if n not in twins]
    if isinstance(options, Contrast):
        told = [n for n in kept if _title(named[n][0]) or filled(options.template, named[n][0].attributes)]
        if 0 < len(told) < len(kept):
            log(f"left out: {len(kept) - len(told)} photos without words")
            kept = told
    of = [_label(named[n][0], columns) for n in kept]
    counts = Counter(name for name in of if name)
    rare = {name: count for name, count in counts.items() if count < options.least}
    unlabelled = sum(not name for name in of)
    if options.rare == "merge":
        of = ["other" if name in rare else name for name in of]
    if unlabelled:
        log(f"left out: {unlabelled} photos without a value in {options.label or columns[0]}")
    if rare:
        what = "merged into 'other'" if options.rare == "merge" else "left out"
        log(f"{what}: {sum(rare.values())} photos of {len(rare)} labels with fewer than {options.least} photos")
    names = sorted({name for name in of if name and (options.rare == "merge" or name not in rare)})
    index = {name: n for n, name in enumerate(names)}
    rows = [n for n, name in enumerate(of) if name in index]
    if len(names) < 2 and columns:
        largest = ", ".join(f"{name} {count}" for name, count in counts.most_common(3)) or "none has a value"
        raise InputError(
            f"{source.key}: at least two labels with {options.least} photos are wanted, {options.label or columns[0]} has "
            f"{len(names)} (photos of the largest: {largest}); give a lower --least, or another --label"
        )
    taken = [kept[n] for n in rows]
    labels = np.array([index[of[n]] for n in rows], np.int64)
    ids, digests = [named[n][0].id for n in taken], [notes[n]["digest"] for n in taken]
    own = [_own_split(named[n][0]) for n in taken]
    # Where a label is a product, whole labels are held out: unseen items are what is asked for then.
    by_item = "id" in columns
    validation = split(ids, digests, labels * (not by_item), options.validation)
    if "validation" in own:
        validation = np.array([s == "validation" for s in own])
    if not validation.any() or validation.all():
        raise InputError(f"{source.key}: {len(rows)} photos cannot be split into training and validation; add products")
    titles, attributes = [_title(named[n][0]) for n in taken], [dict(named[n][0].attributes) for n in taken]
    said = [titles, attributes] if isinstance(options, Contrast) else []  # words are what it learns from
    everything = json.dumps(
        [ids, digests, labels.tolist(), names, validation.tolist(), preprocess.size, preprocess.fit, said], default=str
    )
    return Photos(
        packed=pixels,
        places=np.array(taken, np.int64),
        products=ids,
        titles=titles,
        rows=attributes,
        digests=digests,
        labels=labels,
        names=names,
        validation=validation,
        label=", ".join(columns),
        by_item=by_item,
        rare=dict(sorted(rare.items(), key=lambda item: -item[1])),
        digest=hashlib.sha256(everything.encode()).hexdigest(),
    )


def check(source: Source, options: Options) -> tuple[list[str], list[Product], list[Product]]:
    """The columns that are the label, the products that take part, and those held out: what is told before a photo is read.

    Raises as ``pack``.
    """
    columns, (products, away) = _label_columns(source, options), _taking_part(source, options)
    if not any(p.photos for p in products):
        raise InputError(
            f"{source.key}: nothing is left to learn from once test products and --hold-out are taken away"
        )
    if "id" in columns and isinstance(options, Classify):
        raise UsageError("--label id: classify learns labels that several products share; train metric learns items")
    return columns, products, away


def split(
    products: Sequence[str], digests: Sequence[str], labels: NDArray[np.int64], share: float
) -> NDArray[np.bool_]:
    """Which photos are held out: of each label this share of its products, chosen by digest, the same in every run.

    Products that share a photo, however indirectly, stay together. A label with one such group has none held out.
    """
    at = places(list(products), list(digests)).tolist()
    sizes_of: dict[int, dict[float, int]] = {}
    placed: dict[float, int] = {}
    for place, label in zip(at, labels, strict=True):
        label = placed.setdefault(place, int(label))  # products that share a photo are drawn with the first one's label
        sizes = sizes_of.setdefault(label, {})
        sizes[place] = sizes.get(place, 0) + 1
    held: set[float] = set()
    for sizes in sizes_of.values():
        wanted, taken = share * sum(sizes.values()), 0
        for place in sorted(sizes)[: len(sizes) - 1]:
            if taken + sizes[place] / 2 <= wanted:
                held.add(place)
                taken += sizes[place]
    return np.array([place in held for place in at])


def _label_columns(source: Source, options: Options) -> list[str]:
    known = list(dict.fromkeys(c for p in source.products for c in p.attributes))
    if not options.label:
        role = source.roles.get("category", "")
        if not role and isinstance(options, Contrast):
            return []  # words are what it learns from
        if not role:
            known += [] if isinstance(options, Classify) else ["id"]
            if not known:
                raise InputError(f"{source.key}: has no columns to learn from; give a table that has one")
            raise UsageError(f"{source.key}: which column is to be learnt? Give --label, one of: {', '.join(known)}")
        return [role]
    columns = [source.roles.get(name.strip(), name.strip()) for name in options.label.split(",")]
    for name in columns:
        if name != "id" and name not in known:
            raise InputError(f"{source.key}: no column {name!r} for --label; there are id, {', '.join(known)}")
    return columns


def _label(product: Product, columns: list[str]) -> str:
    """The values of the columns as one label, empty where one is missing."""
    if not columns:
        return "all"
    values = [product.id if c == "id" else product.attributes.get(c) for c in columns]
    return "" if any(v is None or v == "" for v in values) else " / ".join(str(v) for v in values)


def filled(template: str, row: Mapping[str, Any]) -> str:
    """``{column}`` of a template replaced by the row's values; empty where the row has none of them."""
    values = {name: str(row.get(name) or "") for name in re.findall(r"\{(.*?)\}", template)}
    text = re.sub(r"\{(.*?)\}", lambda m: values[m[1]], template) if any(values.values()) else ""
    return " ".join(text.split())


def _title(product: Product) -> str:
    """Its title where that has words: a folder's products are often named by numbers alone."""
    title = product.title.strip()
    return title if any(c.isalpha() for c in title) else ""


def _own_split(product: Product) -> str:
    value = next((str(product.attributes[c]).lower() for c in SPLIT_COLUMNS if product.attributes.get(c)), "")
    return "away" if value in AWAY else "validation" if value in ("val", "validation") else ""


def _taking_part(source: Source, options: Options) -> tuple[list[Product], list[Product]]:
    """Products to train and validate with, and those that are held out of both."""
    ids = held_out(Path(options.hold_out)) if options.hold_out else set()
    products: list[Product] = []
    away: list[Product] = []
    for product in source.products:
        (away if product.id in ids or _own_split(product) == "away" else products).append(product)
    if options.limit and options.limit < len(products):
        drawn = np.random.default_rng(options.seed).permutation(len(products))[: options.limit]
        products = [products[n] for n in np.sort(drawn)]
    return products, away


def _digests(products: list[Product]) -> set[str]:
    """Of the photos of products, as far as they can be read."""

    def of(photo: Path | str) -> str:
        try:
            return images.digest(images.load(photo))
        except InputError:
            return ""

    with ThreadPoolExecutor(cpu_count() or 1) as pool:
        return set(pool.map(of, [photo for p in products for photo in p.photos])) - {""}


def held_out(file: Path) -> set[str]:
    """Product ids of a file: one a line, or KAGL's ground truth (query → {id: 1}). Raises InputError."""
    try:
        text = file.read_text("utf-8-sig")
        if text.lstrip().startswith("{"):
            return {str(i) for relevant in json.loads(text).values() for i in relevant}
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{file}: cannot be read as a list of product ids ({error})") from error
    return {line.strip() for line in text.splitlines() if line.strip()}


def _packed(
    names: list[str], preprocess: Preprocess, work: Path, log: Log
) -> tuple[NDArray[np.uint8], list[dict[str, Any]]]:
    """Fitted photos in ``photos.npy`` and a line for each in ``photos.jsonl``, written in order."""
    size, fit = preprocess.size, preprocess.fit
    work.mkdir(parents=True, exist_ok=True)
    file, listing = work / "photos.npy", work / "photos.jsonl"
    notes = _written(listing, {"size": list(size), "fit": fit}, names)
    head = json.dumps({"size": size, "fit": fit})
    if notes and file.is_file():
        pixels = np.load(file, mmap_mode="r+")
        if pixels.shape != (len(names), *size, 3):
            notes = []
    else:
        notes = []
    if not notes:
        wanted = len(names) * size[0] * size[1] * 3
        file.unlink(missing_ok=True)
        free = disk_usage(work).free
        if wanted > free:  # a mapped file on a full disk kills the process
            raise InputError(
                f"{work}: {len(names)} photos of {size[1]}×{size[0]} take {wanted / 1e9:.1f} GB, {free / 1e9:.1f} are free; "
                "give another --work, or a smaller --size"
            )
        pixels = np.lib.format.open_memmap(file, "w+", np.uint8, (len(names), *size, 3))
        listing.write_text(head + "\n")
    else:
        listing.write_text("\n".join([head, *(json.dumps(n) for n in notes)]) + "\n")  # without a line cut off
    todo, shown = iter(range(len(notes), len(names))), time.monotonic()

    def read(n: int) -> tuple[int, dict[str, Any]]:
        note: dict[str, Any] = {"photo": names[n], "stat": _stat(names[n])}
        try:
            content = images.load(names[n])
            pixels[n] = images.fit(images.read(content, at_least=max(size), name=names[n]), *size, fit)
            note["digest"] = images.digest(content)
        except (ImageError, InputError) as error:
            note["error"] = str(error)
        return n, note

    with ThreadPoolExecutor(cpu_count() or 1) as pool, listing.open("a") as lines:
        while part := list(islice(todo, CHUNK)):
            made = [note for _, note in pool.map(read, part)]
            pixels.flush()
            lines.writelines(json.dumps(note) + "\n" for note in made)
            lines.flush()
            notes += made
            if time.monotonic() - shown > 10:
                shown = time.monotonic()
                log(f"{len(notes)} of {len(names)} photos packed")
    pixels.flush()
    return np.load(file, mmap_mode="r"), notes


def _written(listing: Path, head: dict[str, Any], names: list[str]) -> list[dict[str, Any]]:
    """What an earlier run packed of the same photos, up to the first that has changed since."""
    if not listing.is_file():
        return []

    def lines() -> Iterator[Any]:
        for line in listing.read_text("utf-8").splitlines():
            try:
                yield json.loads(line)
            except ValueError:  # it was killed within the last line
                return

    found = list(lines())
    if not found or found[0] != head:
        return []
    same: list[dict[str, Any]] = []
    for name, note in zip(names, found[1:], strict=False):
        if note["photo"] != name or note["stat"] != _stat(name):
            break
        same.append(note)
    return same


def _stat(name: str) -> list[int]:
    try:
        found = images.file_of(name).stat()
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]
