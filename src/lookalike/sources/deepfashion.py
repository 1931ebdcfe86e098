"""DeepFashion's benchmarks as unpacked (Liu et al. 2016): In-Shop, Consumer-to-Shop, Category and Attribute Prediction.

Lists of a benchmark are text: a first line with the count, a second with the columns' names, then rows whose columns are
parted by any number of spaces. They lie in ``Anno…/``, ``Eval/`` or beside them, the photos in ``img/`` or ``Img/``. Boxes
become the end of a photo's name (see ``images``), so that all else sees the garment alone.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lookalike import images
from lookalike.errors import InputError
from lookalike.sources import Source
from lookalike.types import Product, Quarantined, Value

PARTS = {"1": "upper-body", "2": "lower-body", "3": "full-body"}
"""What ``clothes_type`` and ``category_type`` number."""

ATTRIBUTE_TYPES = {"1": "texture", "2": "fabric", "3": "shape", "4": "part", "5": "style"}
"""What ``attribute_type`` numbers in Category and Attribute Prediction."""

_HEADER = re.compile(r"(image|item|category|attribute)\w*_(name|id)s?\w*\b", re.IGNORECASE)
_FOLDER = re.compile(r"(anno(tations?)?|eval)(_\w+)?", re.IGNORECASE)
_COLUMNS = {"in-shop": 3, "consumer-to-shop": 4, "category": 2}


@dataclass(frozen=True, slots=True)
class Listed:
    """A photo (with its box) that a partition lists: of which item, as what (``train``, ``query``, ``gallery`` …), where."""

    photo: str
    item: str
    status: str
    line: int


def read(root: Path) -> Source | None:
    """The products of a benchmark's folder; None where it is none. Items are products, ``split`` is train, val or test.

    Raises:
        InputError: it looks like one of them but lacks what makes it usable; the message says what.
    """
    lists = _lists(root)
    kind = _kind(root, lists)
    if kind is None:
        return None
    benchmark = _Benchmark(root, lists, kind)
    if kind == "category":
        benchmark.categories()
    elif kind == "in-shop":
        benchmark.items(benchmark.in_shop())
    else:
        benchmark.items(benchmark.pairs())
    return benchmark.finished()


def in_shop(root: Path, crop: bool = True) -> tuple[list[Listed], list[Quarantined]]:
    """The photos of In-Shop's partition, each with its own status, and what could not be used.

    ``crop``: with their boxes. Raises InputError where the folder is no In-Shop.
    """
    lists = _lists(root)
    if _kind(root, lists) != "in-shop":
        raise InputError(f"{root}: not DeepFashion's In-Shop; give the folder that holds its Eval/, Anno/ and img/")
    benchmark = _Benchmark(root, lists, "in-shop", crop)
    return benchmark.in_shop(), benchmark.source.quarantined


def _lists(root: Path) -> dict[str, Path]:
    """The lists of a benchmark by their names in lower case: beside the photos, or in folders called Anno…, Eval…."""
    found: dict[str, Path] = {}
    try:
        entries = sorted(root.iterdir())
        for folder in [e for e in entries if _FOLDER.fullmatch(e.name) and e.is_dir()]:
            for file in sorted(folder.rglob("*")):
                found.setdefault(file.name.lower(), file)
    except OSError as error:
        raise InputError(f"{root}: cannot be read ({error.strerror}); check its permissions") from error
    for file in entries:
        if file.suffix.lower() in (".txt", ".json"):
            found.setdefault(file.name.lower(), file)
    return found


def _kind(root: Path, lists: dict[str, Path]) -> str | None:
    """Which of the three a folder holds, by the lists that only one of them has, else by the columns of its partition."""
    for name, kind in (
        ("list_bbox_inshop.txt", "in-shop"),
        ("list_item_inshop.txt", "in-shop"),
        ("list_bbox_consumer2shop.txt", "consumer-to-shop"),
        ("list_item_consumer2shop.txt", "consumer-to-shop"),
        ("list_category_img.txt", "category"),
        ("train_cate.txt", "category"),
    ):
        if name in lists:
            return kind
    if "list_eval_partition.txt" not in lists:
        return None
    file = lists["list_eval_partition.txt"]
    first = next((text.split() for _, text in _rows(file, file.name, [])), [])
    kinds = [kind for kind, columns in _COLUMNS.items() if len(first) == columns and first[-1].isalpha()]
    if not kinds or (kinds[0] == "category" and "list_category_cloth.txt" not in lists):
        raise InputError(
            f"{file}: not a partition of DeepFashion's In-Shop (image_name item_id evaluation_status), Consumer-to-Shop (two "
            "image names, item_id, evaluation_status) or Category and Attribute Prediction (with list_category_img.txt)"
        )
    return kinds[0]


def _rows(file: Path, name: str, quarantined: list[Quarantined], plain: bool = False) -> Iterator[tuple[int, str]]:
    """Lines of a list with their numbers, without count and header (``plain``: it never has them).

    A count that does not fit what follows is told at the end. Raises InputError where the file cannot be read.
    """
    count: int | None = None
    rows = 0
    try:
        with file.open(encoding="utf-8-sig", errors="replace") as lines:
            for number, line in enumerate(lines, 1):
                text = line.strip()
                if not text:
                    continue
                if not plain and number == 1 and re.fullmatch(r"\d+", text):
                    count = int(text)
                elif plain or number > 2 or not _HEADER.match(text):
                    rows += 1
                    yield number, text
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error})") from error
    if count is not None and count != rows:
        mend = "it may be cut short, copy it again" if rows < count else "the rows count"
        quarantined.append(Quarantined(f"{name}, line 1", f"says {count} rows, {rows} follow; {mend}"))


class _Benchmark:
    """One folder while it is read."""

    def __init__(self, root: Path, lists: dict[str, Path], kind: str, crop: bool = True):
        self.root, self.lists, self.kind, self.crop = root, lists, kind, crop
        self.source = Source(str(root), [])
        self._bases = [
            b for b in (root / "img", root / "Img" / "img", root / "Img", root / "img" / "img", root) if b.is_dir()
        ]
        self._listed: dict[Path, dict[str, str]] = {}
        self._missing = ""
        self._boxes: dict[str, tuple[int, list[str], tuple[int, int, int, int] | None]] = {}
        self._read_boxes()

    # Lists

    def rows(self, name: str, columns: int = 1, *, plain: bool = False) -> Iterator[tuple[str, list[str]]]:
        """(where, columns) of a list that may be missing, split from the right: only the first may hold spaces."""
        file = self.lists.get(name)
        if file is None:
            return
        shown = file.relative_to(self.root).as_posix()
        before = len(self.source.quarantined)
        for number, text in _rows(file, shown, self.source.quarantined, plain):
            cells = text.rsplit(None, columns - 1)
            where = f"{shown}, line {number}"
            if len(cells) == columns:
                yield where, cells
            else:
                self.refuse(where, f"{len(cells)} of {columns} columns; the line is cut short or damaged")
        if any("cut short, copy" in q.reason for q in self.source.quarantined[before:]):
            self.source.unreadable = [f"{self.root}{os.sep}"]  # what it no longer names must not be pruned

    def refuse(self, where: str, reason: str) -> None:
        self.source.quarantined.append(Quarantined(where, reason))

    def wanted(self, name: str) -> None:
        """Raise InputError where a list that nothing works without is missing."""
        if name not in self.lists:
            looked = "Eval/, Anno/ and beside them"
            raise InputError(f"{self.root}: DeepFashion without {name} (looked in {looked}); copy it there")

    def _read_boxes(self) -> None:
        """Photo → where its box stands, the columns between, and the box (x, y, width, height) or None where it is none."""
        name, columns = {
            "in-shop": ("list_bbox_inshop.txt", 7),
            "consumer-to-shop": ("list_bbox_consumer2shop.txt", 7),
            "category": ("list_bbox.txt", 5),
        }[self.kind]
        for where, cells in self.rows(name, columns):
            self.box(where, cells[0], cells[1:-4], cells[-4:])

    def box(self, where: str, photo: str, between: list[str], corners: list[str]) -> None:
        """Keep a photo's box; reversed corners are put in order, what is no box is told."""
        key = _bare(photo).casefold()
        if key in self._boxes:
            self.refuse(where, f"the same photo as line {self._boxes[key][0]}; the first one counts")
            return
        box = None
        if all(re.fullmatch(r"-?\d{1,6}", c) for c in corners):
            x1, y1, x2, y2 = (int(c) for c in corners)
            left, right, top, bottom = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
            box = (left, top, right - left, bottom - top)
        if box is None or box[2] < 1 or box[3] < 1 or box[0] + box[2] <= 0 or box[1] + box[3] <= 0:
            self.refuse(where, f"{' '.join(corners)} is no box (x_1 y_1 x_2 y_2); the photo is taken whole")
            box = None
        self._boxes[key] = (int(where.rsplit(" ", 1)[1]), between, box)

    # Photos

    def photo(self, where: str, name: str, identity: str) -> str | None:
        """The file that a list names, with its box; None, and told, where it is not there."""
        bare = _bare(name)
        for base in self._bases if ".." not in Path(bare).parts else ():  # a list names no files elsewhere
            folder, last = (base / bare).parent, Path(bare).name
            if folder not in self._listed:
                try:
                    self._listed[folder] = {e.name.casefold(): e.name for e in os.scandir(folder)}
                except (OSError, ValueError):
                    self._listed[folder] = {}
            found = self._listed[folder].get(last.casefold())  # .JPG and .jpg are mixed up in copies
            if found:
                box = self._boxes.get(bare.casefold(), (0, [], None))[2] if self.crop else None
                return images.with_box(folder / found, box) if box else str(folder / found)
        self._missing = self._missing or name
        self.source.broken.add(identity)
        self.refuse(f"{where}, id {identity}", f"the photo {name} is not there")
        return None

    def finished(self) -> Source:
        """The source. Raises InputError where no photo was found."""
        self.check(bool(self.source.products))
        return self.source

    def check(self, any_photo: bool) -> None:
        """Raise InputError where there is no photo at all."""
        if any_photo:
            return
        if not self._missing:
            raise InputError(f"{self.root}: DeepFashion whose lists name no photo that can be used; copy them again")
        packed = sorted(p.relative_to(self.root).as_posix() for p in self.root.glob("**/img*.zip"))
        mend = f"; unpack {packed[0]}" if packed else ""
        raise InputError(
            f"{self.root}: none of the photos of its lists are there (the first: {self._missing}); looked in img/ and "
            f"Img/{mend}"
        )

    # In-Shop and Consumer-to-Shop: items of several photos

    def in_shop(self) -> list[Listed]:
        """In-Shop's partition: train, query and gallery, photo by photo."""
        self.wanted("list_eval_partition.txt")
        seen: dict[str, tuple[str, str, str]] = {}
        out = []
        for where, (name, item, status) in self.rows("list_eval_partition.txt", 3):
            if (said := status.lower()) not in ("train", "query", "gallery"):
                self.refuse(f"{where}, id {item}", f"{status!r} is none of train, query, gallery")
                continue
            line = where.rsplit(" ", 1)[1]
            if first := seen.get(_bare(name).casefold()):
                same = first[:2] == (item, said)
                self.refuse(where, f"the same photo as line {first[2]}" + ("" if same else ", which says otherwise"))
                continue
            seen[_bare(name).casefold()] = (item, said, line)
            if photo := self.photo(where, name, item):
                out.append(Listed(photo, item, said, int(line)))
        self.check(bool(out))
        return out

    def pairs(self) -> list[Listed]:
        """Consumer-to-Shop's pairs as photos of items, those of the shop first."""
        self.wanted("list_eval_partition.txt")
        seen: dict[tuple[str, str], str] = {}
        found: dict[tuple[str, str], Listed | None] = {}
        shop: list[Listed] = []
        consumer: list[Listed] = []
        for where, (first, second, item, status) in self.rows("list_eval_partition.txt", 4):
            if (said := status.lower()) not in ("train", "val", "test"):
                self.refuse(f"{where}, id {item}", f"{status!r} is none of train, val, test")
                continue
            line = where.rsplit(" ", 1)[1]
            pair = (_bare(first).casefold(), _bare(second).casefold())
            if pair in seen:
                self.refuse(where, f"the same pair as line {seen[pair]}")
                continue
            seen[pair] = line
            for name, photos in ((first, consumer), (second, shop)):
                key = (item, _bare(name).casefold())
                if key not in found:  # a photo stands in several pairs
                    photo = self.photo(where, name, item)
                    found[key] = Listed(photo, item, said, int(line)) if photo else None
                    if one := found[key]:
                        photos.append(one)
        return shop + consumer

    def items(self, listed: list[Listed]) -> None:
        """Photos of items → products in order of the list."""
        self.check(bool(listed))
        described, coloured, attributes = self._described(), self._coloured(), self._item_attributes()
        products: dict[str, list[Listed]] = {}
        for one in sorted(listed, key=lambda p: p.line) if self.kind == "in-shop" else listed:
            products.setdefault(one.item, []).append(one)
        partition = self.lists["list_eval_partition.txt"].relative_to(self.root).as_posix()
        for item, photos in products.items():
            where = f"{partition}, line {photos[0].line}"
            names = [self._name(p.photo) for p in photos]
            above = [part.replace("_", " ") for part in names[0].split("/")[:-2]]
            between = self._boxes[names[0].casefold()][1] if names[0].casefold() in self._boxes else []
            colours = [described.get(item, {}).get("color", "")]
            if not colours[0]:
                colours = [coloured.get(n.casefold(), "") for n in names]
            colour = ", ".join(dict.fromkeys(c for c in colours if c))
            values: dict[str, Value] = {
                "gender" if self.kind == "in-shop" else "group": above[0] if len(above) == 2 else None,
                "category": above[1] if len(above) == 2 else None,
                "clothes_type": PARTS.get(between[0]) if between else None,
                "colour": colour or None,
                "attributes": attributes.get(item),
                "description": described.get(item, {}).get("description") or None,
                "split": self._split(where, item, {p.status for p in photos}),
            }
            title = " ".join(v for v in (colour, str(values["category"] or "")) if v)
            paths = list(dict.fromkeys(p.photo for p in photos))
            self.source.products.append(Product(item, paths, title, _told(values), where))
        self._roles()

    def _split(self, where: str, item: str, statuses: set[str]) -> str:
        """An item's part; one that is in several is in the part that trains most."""
        said = {"test" if s in ("query", "gallery") else s for s in statuses}
        chosen = next(s for s in ("train", "val", "test") if s in said)
        if len(said) > 1:
            among = " and ".join(sorted(said))
            self.refuse(f"{where}, id {item}", f"its photos are in {among}; it counts as {chosen}")
        return chosen

    def _described(self) -> dict[str, dict[str, str]]:
        """Item → color and description."""
        file = self.lists.get("list_description_inshop.json")
        if file is None:
            return {}
        try:
            entries = json.loads(file.read_text("utf-8-sig"))
            out = {}
            for entry in entries:
                said = entry.get("description") or ""
                text = " ".join(map(str, said)) if isinstance(said, list) else str(said)
                out[str(entry["item"])] = {"color": str(entry.get("color") or ""), "description": text.strip()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"cannot be read ({type(error).__name__}: {error}); the items stay without colour and description"
            self.refuse(file.relative_to(self.root).as_posix(), reason)
            return {}
        return out

    def _coloured(self) -> dict[str, str]:
        """Photo → colour; colours may be of several words, two spaces part them from the name."""
        out = {}
        for where, (text,) in self.rows("list_color_cloth.txt"):
            parts = re.split(r"\s{2,}|\t", text, maxsplit=1)
            name, _, colour = text.partition(" ") if len(parts) < 2 else (parts[0], "", parts[1])
            if colour.strip():
                out[_bare(name).casefold()] = " ".join(colour.split())
            else:
                self.refuse(where, "no colour; the line is cut short or damaged")
        return out

    def _attribute_names(self) -> list[tuple[str, str]]:
        """(name, type) of the attributes in order; the type is empty where the list has none."""
        out = []
        for _, (text,) in self.rows("list_attr_cloth.txt"):
            name, _, kind = text.rpartition(" ")
            out.append((" ".join(name.split()), kind) if name and kind.isdigit() else (" ".join(text.split()), ""))
        return out

    def _item_attributes(self) -> dict[str, str]:
        """Item → its attributes' names."""
        names = [n for n, _ in self._attribute_names()] if "list_attr_items.txt" in self.lists else []
        if not names:
            return {}
        flags = ((cells[0], cells[1:]) for _, cells in self.rows("list_attr_items.txt", 1 + len(names)))
        return {item: ", ".join(n for n, v in zip(names, values, strict=True) if v == "1") for item, values in flags}

    def _name(self, photo: str) -> str:
        """What the lists call a photo that was found, without ``img/``."""
        file = images.file_of(photo)
        base = next(b for b in self._bases if file.is_relative_to(b))
        return _bare(file.relative_to(base).as_posix())

    # Category and Attribute Prediction: a photo is a product

    def categories(self) -> None:
        """Photos with category, attributes by their type, and part."""
        names = [(" ".join(cells[0].split()), cells[1]) for _, cells in self.rows("list_category_cloth.txt", 2)]
        attributes = self._attribute_names()
        fine = "list_category_img.txt" not in self.lists
        labels, splits, flags = self._fine() if fine else self._coarse(1 + len(attributes))
        seen: set[str] = set()
        for key, (where, name, label) in labels.items():
            identity = str(Path(_bare(name)).with_suffix(""))
            identity = _bare(name) if identity in seen else identity
            seen.add(identity)
            photo = self.photo(where, name, identity)
            if photo is None:
                continue
            number = int(label) if label.isdigit() else 0
            category, kind = names[number - 1] if 0 < number <= len(names) else ("", "")
            if not category:
                reason = (
                    f"category {label} is none of the {len(names)} of list_category_cloth.txt; it stays without one"
                )
                self.refuse(f"{where}, id {identity}", reason)
            values: dict[str, Value] = {
                "category": category or None,
                "clothes_type": PARTS.get(kind),
                **self._by_type(key, attributes, flags),
                "split": splits.get(key),
            }
            title = re.sub(r"[_\s]+", " ", Path(_bare(name)).parent.name).strip()
            self.source.products.append(Product(identity, [photo], title, _told(values), where))
        self._roles()

    def _by_type(
        self, key: str, attributes: list[tuple[str, str]], flags: dict[str, tuple[str, list[int]]]
    ) -> dict[str, Value]:
        """A photo's attributes, a column for each of their types."""
        if key not in flags:
            return {}
        where, set_ = flags[key]
        columns: dict[str, list[str]] = {}
        for n in set_:
            if n >= len(attributes):
                self.refuse(
                    where, f"more attributes than the {len(attributes)} of list_attr_cloth.txt; the rest counts"
                )
                break
            name, kind = attributes[n]
            columns.setdefault(ATTRIBUTE_TYPES.get(kind, "attributes"), []).append(name)
        return {column: ", ".join(found) for column, found in columns.items()}

    def _coarse(self, columns: int) -> _Photos:
        """Category, part and attributes from lists that name their photos; ``columns`` are those of the attributes' list."""
        labels: dict[str, tuple[str, str, str]] = {}
        for where, (name, label) in self.rows("list_category_img.txt", 2):
            key = _bare(name).casefold()
            if first := labels.get(key):
                same = "" if first[2] == label else ", which says otherwise"
                self.refuse(where, f"the same photo as line {first[0].rsplit(' ', 1)[1]}{same}")
            else:
                labels[key] = (where, name, label)
        splits: dict[str, str] = {}
        for where, (name, status) in self.rows("list_eval_partition.txt", 2):
            if status.lower() not in ("train", "val", "test"):
                self.refuse(where, f"{status!r} is none of train, val, test")
            elif splits.setdefault(_bare(name).casefold(), status.lower()) != status.lower():
                self.refuse(where, "the same photo as before, which says otherwise; the first one counts")
        flags: dict[str, tuple[str, list[int]]] = {}
        if columns > 1:
            for where, cells in self.rows("list_attr_img.txt", columns):
                flags[_bare(cells[0]).casefold()] = (where, [n for n, v in enumerate(cells[1:]) if v == "1"])
        return labels, splits, flags

    def _fine(self) -> _Photos:
        """The same from lists that go by line: train.txt, train_cate.txt, train_attr.txt, train_bbox.txt …"""
        labels: dict[str, tuple[str, str, str]] = {}
        splits: dict[str, str] = {}
        flags: dict[str, tuple[str, list[int]]] = {}
        for part in ("train", "val", "test"):
            lists = {
                kind: {int(where.rsplit(" ", 1)[1]): (where, text) for where, (text,) in self.rows(name, plain=True)}
                for kind in ("", "_cate", "_attr", "_bbox")
                if (name := f"{part}{kind}.txt") in self.lists
            }
            photos = lists.pop("", {})
            for kind, rows in lists.items():
                if rows.keys() != photos.keys():
                    reason = f"{len(rows)} rows beside {len(photos)} photos; a photo without its row has none of it"
                    self.refuse(f"{part}{kind}.txt", reason)
            for line, (where, name) in photos.items():
                key = _bare(name).casefold()
                if key in labels:
                    self.refuse(where, f"the same photo as {labels[key][0]}")
                    continue
                own = {kind: rows[line] for kind, rows in lists.items() if line in rows}
                labels[key], splits[key] = (where, name, own.get("_cate", ("", "?"))[1]), part
                if "_attr" in own:
                    flags[key] = (own["_attr"][0], [n for n, v in enumerate(own["_attr"][1].split()) if v == "1"])
                if "_bbox" in own:
                    self.box(own["_bbox"][0], name, [], (own["_bbox"][1].split() + [""] * 4)[:4])
        return labels, splits, flags

    def _roles(self) -> None:
        held = {column for product in self.source.products for column in product.attributes}
        self.source.roles = {role: role for role in ("category", "colour", "gender") if role in held}


_Photos = tuple[dict[str, tuple[str, str, str]], dict[str, str], dict[str, tuple[str, list[int]]]]
"""By photo: (where, name, category's number); part; (where, numbers of the attributes that it has)."""


def _bare(name: str) -> str:
    """A photo's name as all lists agree on: without ``img/`` before it, with plain slashes."""
    return re.sub(r"^(\./|/)*(img/)*", "", name.replace("\\", "/"), flags=re.IGNORECASE)


def _told(values: dict[str, Value]) -> dict[str, Value]:
    return {name: value for name, value in values.items() if value not in (None, "")}
