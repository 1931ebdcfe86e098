"""A folder of photos, recursively."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from lookalike.errors import InputError
from lookalike.sources import ROLES, Source
from lookalike.types import Product, Quarantined

SUFFIXES = {".jpg", ".jpeg", ".jpe", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff"}
UNREADABLE = {".heic", ".heif", ".svg", ".psd", ".raw", ".cr2", ".nef", ".arw", ".dng", ".jxl", ".jp2", ".eps"}
GENDERS = {"men", "mens", "man", "male", "women", "womens", "woman", "female", "ladies", "boys", "boy", "girls", "girl"}
GENDERS |= {"kids", "kid", "unisex", "baby", "children"}
_COLOURS = """
    beige black blue bronze brown burgundy charcoal copper coral cream fuchsia gold gray green grey indigo ivory khaki
    lavender lime magenta maroon mauve multi multicolor multicolour mustard navy nude olive orange peach pink purple red
    rose rust silver skin tan taupe teal turquoise violet white yellow
"""
COLOURS = set(_COLOURS.split())


def read(root: Path, product_from: str = "photo") -> Source:
    """One product per photo, or (``product_from="folder"``) one per folder of photos.

    Ids are paths relative to ``root`` without the suffix, or with it where two would clash. Where all photos lie equally
    deep, the names of their folders become attributes: gender and colour where all names say so, else category.

    Raises:
        InputError: no photo in it.
    """
    photos: list[Path] = []
    quarantined: list[Quarantined] = []
    unreadable: list[str] = []
    left = 0
    for path in _files(root, quarantined, unreadable):
        suffix = path.suffix.lower()
        if suffix in SUFFIXES:
            photos.append(path.relative_to(root))
        elif suffix in UNREADABLE:
            name = path.relative_to(root).as_posix()
            quarantined.append(Quarantined(name, f"{suffix} is not read; convert it to JPEG, PNG or WebP"))
        else:
            left += 1
    if not photos:
        shown = ", ".join(sorted(s.lstrip(".") for s in SUFFIXES))
        raise InputError(f"{root}: no photos in it ({left + len(quarantined)} other files); looked for {shown}")
    grouped = _by_folder(photos) if product_from == "folder" else _by_photo(photos)
    levels = _levels([folder for _, folder, _ in grouped])
    products = [
        Product(
            id=i,
            photos=[root / p for p in paths],
            title=_readable(Path(i).name or root.name),
            attributes=dict(zip(levels, folder, strict=bool(levels))) if levels else {},
            where=paths[0].as_posix(),
        )
        for i, folder, paths in grouped
    ]
    roles = {level: level for level in levels if level in ROLES}
    return Source(str(root), products, roles, quarantined, left, unreadable=unreadable)


def _files(root: Path, quarantined: list[Quarantined], unreadable: list[str]) -> Iterator[Path]:
    """All files below, in a stable order; hidden ones, other catalogs and cycles of links are left out."""
    seen: set[str] = set()

    def refused(error: OSError) -> None:
        if error.filename == str(root):
            raise InputError(f"{root}: cannot be read ({error.strerror}); check its permissions") from error
        unreadable.append(os.path.join(error.filename, ""))  # noqa: PTH118 (with its slash at the end)
        quarantined.append(Quarantined(error.filename, f"the folder cannot be read ({error.strerror})"))

    for folder, folders, files in os.walk(root, onerror=refused, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen or ("catalog.json" in files and "photos.lance" in folders):
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "__MACOSX")
        yield from (Path(folder, f) for f in sorted(files) if not f.startswith("."))


def _by_photo(photos: list[Path]) -> list[tuple[str, tuple[str, ...], list[Path]]]:
    """(id, folders, photos): the id without the suffix, unless another photo wants it (a.jpg, a.png; or a.png.jpg, a.png)."""
    short = [p.with_suffix("").as_posix() for p in photos]
    whole = {p.as_posix() for p in photos}
    many = Counter(short)
    ids = [p.as_posix() if many[s] > 1 or s in whole else s for p, s in zip(photos, short, strict=True)]
    return [(i, p.parts[:-1], [p]) for i, p in zip(ids, photos, strict=True)]


def _by_folder(photos: list[Path]) -> list[tuple[str, tuple[str, ...], list[Path]]]:
    """(id, folders above, photos); photos that lie in the root itself are the product "."."""
    groups: dict[Path, list[Path]] = {}
    for p in photos:
        groups.setdefault(p.parent, []).append(p)
    return [(folder.as_posix(), folder.parts[:-1], paths) for folder, paths in groups.items()]


def _levels(folders: list[tuple[str, ...]]) -> list[str]:
    """Names for the levels of folders; none where the photos lie at different depths."""
    if len({len(f) for f in folders}) != 1:
        return []
    names: list[str] = []
    for n, level in enumerate(zip(*folders, strict=True), 1):
        words = {re.sub(r"[^a-z ]", "", w.lower().replace("_", " ").replace("-", " ")).strip() for w in level}
        guess = (
            "gender" if words <= GENDERS else "colour" if all(set(w.split()) & COLOURS for w in words) else "category"
        )
        names.append(f"folder_{n}" if guess in names else guess)
    return names


def _readable(stem: str) -> str:
    return re.sub(r"[\s_\-]+", " ", stem).strip()
