"""Exports of shops: Shopify's and WooCommerce's product CSV, and Google Merchant Center's feed (RSS 2.0, Atom, TSV, CSV).

Each is told by its header or root and brought into the form of a plain table: one row per product, photos in one cell.

What is one product: in Shopify and WooCommerce what has one page in the shop, with its variants' values joined and all
their photos; in Google's feed, where variants are items of their own, the items of one group that show the same photo (they
differ in size). What the shop itself does not show (drafts, archived, hidden) is left out and counted. Columns keep their
names; ``category`` (the last part of a path such as "Women > Dresses"), ``price`` (what is paid now, of variants the
lowest) and ``list_price`` (where it is higher) are worked out. Descriptions are left out: their words are mostly about
other things than how a product looks.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.parsers import expat

from lookalike.errors import InputError

GOOGLE = "http://base.google.com/ns/1.0"
MAX_FIELD = 100_000
"""Characters of one field of a feed that are kept."""

MAX_TAG, MAX_DEPTH = 4 * 2**20, 1_000
"""Bytes of one tag or comment of a feed, and how deep its tags may lie in one another."""

Row = dict[str, Any]
_COMMA = re.compile(r"(?<!\\),")


@dataclass
class Export:
    """A shop's export as a table: rows with their lines, which columns are what, and what was left out of it.

    ``codes`` are columns of text even where all their values are digits.
    """

    roles: dict[str, str]
    codes: tuple[str, ...]
    rows: list[tuple[int, Row]] = field(default_factory=list)
    hidden: int = 0
    quarantined: list[tuple[str, str]] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        """Names of the columns, in the order in which they occur."""
        return list(dict.fromkeys([*self.roles.values(), *(c for _, row in self.rows for c in row)]))


def export(path: Path, suffix: str) -> Export | None:
    """The export in a file, or None where it is none that is known.

    Raises:
        InputError: it looks like one and cannot be read.
    """
    if _is_xml(path):
        return _google(_feed(path))
    if suffix not in (".csv", ".tsv", ".txt"):
        return None
    from lookalike.sources.table import csv_rows

    header, rows = csv_rows(path, "\t" if suffix == ".tsv" else "")
    names = [_plain(c) for c in header]
    columns = dict(zip(names, header, strict=True))
    for wanted, some, read in (
        ({"handle", "title"}, {"imagesrc", "variantsku", "variantprice"}, _shopify),
        ({"urlhandle", "title"}, {"productimageurl", "sku", "price"}, _shopify),
        ({"type", "sku", "name", "published"}, {"images", "regularprice", "parent"}, _woocommerce),
        ({"id", "title", "imagelink"}, {"imagelink"}, _google),
    ):
        if wanted <= set(names) and some & set(names):
            return read((_Cells(line, zip(names, cells, strict=False)) for line, cells in rows), columns)
    return None


class _Cells:
    """The filled cells of one row, by the plain form of their columns' names (``imagesrc`` for "Image Src")."""

    __slots__ = ("cells", "line")

    def __init__(self, line: int, cells: Iterable[tuple[str, str]]):
        self.line = line
        self.cells: dict[str, list[str]] = {}
        for name, cell in cells:
            if cell := cell.strip():
                self.cells.setdefault(name, []).append(cell)

    def __getitem__(self, names: str) -> str:
        """The first cell of one name, or of several with spaces between; else empty."""
        return next((self.cells[name][0] for name in names.split() if name in self.cells), "")

    def all(self, name: str) -> list[str]:
        """The cells of a column that may stand there several times."""
        return self.cells.get(name, [])


Rows = Iterable[_Cells]
Columns = Mapping[str, str]
"""Plain name → the column's own name."""


def _shopify(rows: Rows, columns: Columns) -> Export:
    """Several rows per handle: the first has the product's own columns, each has a variant, a photo, or both."""
    out = Export({"id": "Handle", "title": "Title", "image": "Image Src"}, ("Variant SKU", "Variant Barcode"))
    products: dict[str, list[_Cells]] = {}
    for row in rows:
        handle = row["handle urlhandle"]
        if handle:
            products.setdefault(handle, []).append(row)
        else:
            out.quarantined.append((f"line {row.line}", "the row has no Handle; fill it in"))
    metafields = {n: re.fullmatch(r"(.+?) ?\(product\.metafields\..+\)", c, re.I) for n, c in columns.items()}
    extra = {name: found[1] for name, found in metafields.items() if found}
    spelling = {c.lower(): c for c in ("Vendor", "Product Category", "Tags", "gender")}
    for handle, lines in products.items():
        own = lines[0]
        state = (own["status"] or "active").lower()
        if state != "active" or own["published publishedononlinestore"].lower() in ("false", "no", "0"):
            out.hidden += 1
            continue
        photos = [(_position(r["imageposition"], n), r["imagesrc productimageurl"]) for n, r in enumerate(lines)]
        images = [src for _, src in sorted(photos, key=lambda p: p[0]) if src]
        images += [r["variantimage variantimageurl"] for r in lines]
        record: Row = {
            "Handle": handle,
            "Title": own["title"],
            "Image Src": [i for i in images if i],
            "Vendor": own["vendor"],
            "category": own["type"] or _last(own["productcategory"]),
            "Product Category": own["productcategory"],
            "Tags": own["tags"],
            "gender": own["googleshoppinggender targetgenderproductmetafieldsshopifytargetgender"],
        }
        for n in "123":
            name = own[f"option{n}name"]
            values = _joined(v for r in lines for v in r.all(f"option{n}value"))
            if name and values and (name.lower(), values) != ("title", "Default Title"):
                column = _spelled(name, spelling, out.roles)
                record[column] = record.get(column) or values
        for name, label in extra.items():
            column = _spelled(label, spelling, out.roles)
            record[column] = record.get(column) or own[name]
        record["Variant SKU"] = _joined(r["variantsku sku"] for r in lines)
        record["Variant Barcode"] = _joined(r["variantbarcode barcode"] for r in lines)
        prices = [
            (_money(r["variantprice price"])[0], _money(r["variantcompareatprice compareatprice"])[0]) for r in lines
        ]
        _price(record, prices)
        out.rows.append((own.line, {k: v for k, v in record.items() if v not in ("", None)}))
    return out


def _woocommerce(rows: Rows, columns: Columns) -> Export:
    """One row per product and one per variation, which names its parent by ``id:ID`` or SKU."""
    from lookalike.sources.table import short

    out = Export({"id": "ID", "title": "Name", "image": "Images"}, ("SKU", "GTIN, UPC, EAN, or ISBN"))
    products: dict[str, tuple[_Cells, list[_Cells]]] = {}
    by_sku: dict[str, str] = {}
    variations: list[tuple[str, _Cells]] = []
    for row in rows:
        identity, kinds = row["id"] or row["sku"], {k.strip().lower() for k in row["type"].split(",")}
        if "variation" in kinds:
            variations.append((row["parent"], row))
            continue
        if identity in products:
            out.quarantined.append((f"line {row.line}", f"the ID {short(identity)} occurs twice; the first is kept"))
            continue
        products[identity or f"\0{row.line}"] = (row, [row])
        if row["sku"]:
            by_sku.setdefault(row["sku"], identity)
    for parent, row in variations:
        identity = parent.removeprefix("id:").strip() if parent.startswith("id:") else by_sku.get(parent, parent)
        if identity not in products:
            reason = f"its parent {short(parent) or '(empty)'} is not in the file; export the whole shop"
            out.quarantined.append((f"line {row.line}", reason))
        elif row["published"] != "0":  # 0 is a variation that is switched off
            products[identity][1].append(row)
    spelling = {c.lower(): c for c in ("SKU", "Categories", "Tags", "Brands")}
    attributes = [n for n in columns if re.fullmatch(r"attribute\d+name", n)]
    for identity, (own, lines) in products.items():
        visible = (own["visibilityincatalog"] or "visible").lower()
        if own["published"] not in ("1", "") or visible not in ("visible", "search"):
            out.hidden += 1
            continue
        paths = [_unescaped(p) for p in _COMMA.split(own["categories"])]
        deepest = max((p for p in paths if p != "Uncategorized"), key=lambda p: p.count(">"), default="")
        record: Row = {
            "ID": identity if "\0" not in identity else "",
            "Name": _unescaped(own["name"]),
            "Images": [name for r in lines for name in _images(r["images"])],
            "SKU": _joined(r["sku"] for r in lines),
            "category": _last(deepest),
            "Categories": _unescaped(own["categories"]),
            "Tags": _unescaped(own["tags"]),
            "Brands": _unescaped(own["brands"]),
            "GTIN, UPC, EAN, or ISBN": _joined(r["gtinupceanorisbn"] for r in lines),
        }
        for row in lines:
            for name in attributes:
                if label := row[name]:
                    values = [_unescaped(v) for v in _COMMA.split(row[name.replace("name", "values")])]
                    column = _spelled(label, spelling, out.roles)
                    record[column] = _joined([*str(record.get(column, "")).split(", "), *values])
        _price(record, [_woocommerce_price(r) for r in lines])
        out.rows.append((own.line, {k: v for k, v in record.items() if v not in ("", None)}))
    return out


def _woocommerce_price(row: _Cells) -> tuple[float | None, float | None]:
    usual, sale = _money(row["regularprice"])[0], _money(row["saleprice"])[0]
    during = _in_force(row["datesalepricestarts"], row["datesalepriceends"])
    return (sale, usual) if sale is not None and during else (usual, None)


def _images(cell: str) -> list[str]:
    """A cell of addresses, or of names in the shop's own library, with commas between."""
    from lookalike.sources.table import SEVERAL_ADDRESSES

    parts = SEVERAL_ADDRESSES.split(cell) if "//" in cell else _COMMA.split(cell)
    return [p.strip().rstrip(",") for p in parts if p.strip()]


_GOOGLE = """
    id title brand color gender age_group size material pattern product_type google_product_category item_group_id
    availability condition link gtin mpn
"""


def _google(rows: Rows, columns: Columns | None = None) -> Export:
    """One item per variant; items of one group with the same photo become one product, the first's id being its id."""
    from lookalike.sources.table import short

    out = Export({"id": "id", "title": "title", "image": "image_link"}, ("gtin", "mpn", "item_group_id", "variant_ids"))
    seen: dict[str, int] = {}
    products: dict[tuple[str, str], tuple[int, Row, list[tuple[float | None, float | None]]]] = {}
    for n, row in enumerate(rows):
        identity, image = row["id"], row["imagelink"]
        if identity and identity in seen:
            reason = f"the id {short(identity)} occurs twice, first in line {seen[identity]}; that one is kept"
            out.quarantined.append((f"line {row.line}", reason))
            continue
        seen[identity] = row.line
        record: Row = {c: row[_plain(c)] for c in _GOOGLE.split()}
        record["image_link"] = [image, *(i for cell in row.all("additionalimagelink") for i in _images(cell))]
        record["availability"] = record["availability"].replace("_", " ")
        record["category"] = _last(record["product_type"].split(",")[0]) or _last(record["google_product_category"])
        usual, currency = _money(row["price"])
        sale = _money(row["saleprice"])[0]
        during = _in_force(*(row["salepriceeffectivedate"] + "/").split("/")[:2])
        price = (sale, usual) if sale is not None and during else (usual, None)
        record["currency"] = currency
        group = (record["item_group_id"], image) if record["item_group_id"] and image else ("", str(n))
        if group not in products:
            products[group] = (row.line, record, [price])
            continue
        _, first, prices = products[group]
        prices.append(price)
        for column in ("size", "gtin", "mpn", "color", "material", "pattern"):
            first[column] = _joined([*first[column].split(", "), record[column]])
        first["variant_ids"] = _joined([first.get("variant_ids") or first["id"], identity])
        first["image_link"] += record["image_link"]
        if "in stock" in (first["availability"], record["availability"]):
            first["availability"] = "in stock"
    for line, record, prices in products.values():
        _price(record, prices)
        record["image_link"] = [i for i in record["image_link"] if i]
        out.rows.append((line, {k: v for k, v in record.items() if v not in ("", None)}))
    return out


# Feeds in XML


def _is_xml(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(512)
    return start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith((b"<", b"\xff\xfe<", b"\xfe\xff\0<"))


def _feed(path: Path) -> Iterator[_Cells]:
    """The items of a feed as they come; only one is in memory at a time.

    Expat reads the XML: it opens no other file or address by itself, and a declaration of an entity, which all bombs and
    all theft of files by XML need, ends the reading here.

    Raises:
        InputError: not well-formed, declares entities, or has no items.
    """
    found: list[_Cells] = []
    parser = expat.ParserCreate()
    parser.buffer_text = True
    reader = _Items(parser, found.append)
    parser.StartElementHandler, parser.EndElementHandler = reader.start, reader.end
    parser.CharacterDataHandler = reader.text

    def refused(*_: object) -> None:
        raise InputError(
            f"{path}, line {parser.CurrentLineNumber}: declares entities, which no feed needs; take them out"
        )

    parser.EntityDeclHandler = refused
    some, fed = False, 0
    try:
        with path.open("rb") as file:
            chunk = file.read(2**16)
            if chunk[:2] not in (b"\xff\xfe", b"\xfe\xff"):
                chunk = chunk.removeprefix(b"\xef\xbb\xbf").lstrip()  # an empty first line is common, and no XML
            while chunk:
                parser.Parse(chunk, False)
                fed += len(chunk)
                if fed - parser.CurrentByteIndex > MAX_TAG:  # read anew with each chunk, it would take hours
                    line = parser.CurrentLineNumber
                    raise InputError(
                        f"{path}, line {line}: a tag or comment longer than {MAX_TAG >> 20} MiB; take it out"
                    )
                some = some or bool(found)
                yield from found
                found.clear()
                chunk = file.read(2**16)
            parser.Parse(b"", True)
    except expat.ExpatError as error:
        raise InputError(
            f"{path}, line {error.lineno}: not well-formed XML ({expat.ErrorString(error.code)})"
        ) from error
    except (LookupError, ValueError) as error:  # from Python's codecs
        raise InputError(f"{path}: its encoding cannot be read ({str(error)[:200]}); save it as UTF-8") from error
    if not some:
        raise InputError(f"{path}: no <item> or <entry> in it; a Google Merchant feed (RSS 2.0 or Atom) is wanted")


class _Items:
    """Expat's events → rows. Of an item its children alone count: the price within ``g:shipping`` is not the item's."""

    def __init__(self, parser: Any, done: Callable[[_Cells], None]):
        self.parser, self.done = parser, done
        self.prefixes = {"g"}  # also where its declaration was forgotten
        self.depth = self.item = 0
        self.line = 0
        self.ours: list[tuple[str, str]] = []
        self.others: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.length = 0

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            line = self.parser.CurrentLineNumber
            raise InputError(f"the feed, line {line}: tags more than {MAX_DEPTH:,} deep in one another; mend it")
        self.prefixes |= {
            n[6:] for n, uri in attributes.items() if n.startswith("xmlns:") and uri.rstrip("/") == GOOGLE
        }
        if not self.item and tag in ("item", "entry"):
            self.item, self.line = self.depth, self.parser.CurrentLineNumber
        elif self.item and self.depth == self.item + 1:
            self.words, self.length = [], 0
            if tag == "link" and attributes.get("href") and attributes.get("rel", "alternate") == "alternate":
                self.words = [attributes["href"]]

    def text(self, data: str) -> None:
        if self.item and self.depth == self.item + 1 and self.length < MAX_FIELD:
            self.words.append(data)
            self.length += len(data)

    def end(self, tag: str) -> None:
        if self.item and self.depth == self.item + 1:
            prefix, _, name = tag.rpartition(":")
            value = "".join(self.words)[:MAX_FIELD].strip()
            if prefix in self.prefixes:
                self.ours.append((_plain(name), value))
            elif not prefix:
                self.others.append((name, value))
        elif self.item == self.depth:
            self.done(_Cells(self.line, [*self.ours, *self.others]))  # Google's before RSS's or Atom's own title and id
            self.item = 0
            self.ours.clear()
            self.others.clear()
        self.depth -= 1


# Values


@lru_cache(maxsize=4096)
def _plain(column: str) -> str:
    """The plain form of a name: imagesrc for "Image Src", imagelink for "Image link [image_link]" and "g:image_link"."""
    if found := re.search(r"\[(\w+)\]\s*$", column):
        column = found[1]
    return re.sub(r"[^a-z0-9]", "", column.lower().removeprefix("g:"))


def _spelled(name: str, spelling: dict[str, str], roles: Mapping[str, str]) -> str:
    """One spelling for a column that products write in several ways (Color, COLOR), apart from those that are there."""
    name = "".join(c for c in re.sub(r"\s+", " ", name).strip() if c.isprintable())
    if name.lower() in {"price", "list_price", "category", *(c.lower() for c in roles.values())}:
        name = f"{name} (option)"
    return spelling.setdefault(name.lower(), name)


def _joined(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(v for v in values if v))


def _unescaped(value: str) -> str:
    r"""WooCommerce's ``\,`` is a comma, and its ``'`` before a sign that a spreadsheet would take for a formula is none."""
    value = value.strip().replace("\\,", ",")
    return value[1:] if re.match(r"'[=+@\-]", value) else value


def _last(path: str) -> str:
    """The last part of "Clothing > Dresses"; a mere number (Google's own) says nothing."""
    last = path.split(">")[-1].strip()
    return "" if last.isdigit() else last


def _position(text: str, row: int) -> tuple[int, int]:
    return (int(text) if text.isdigit() and len(text) < 7 else 10**6, row)


def _money(text: str) -> tuple[float | None, str]:
    """Amount and currency of "1,299.00 EUR", "€ 12,50" or "12", as far as they can be told."""
    code = re.search(r"\b[A-Z]{3}\b", text)
    number = re.search(r"\d[\d.,'\s]*", text)
    if not number:
        return None, ""
    digits = re.sub(r"['\s]", "", number[0]).rstrip(".,")
    if "," in digits and "." in digits:  # the later one is the decimal sign
        thousands = "," if digits.rfind(".") > digits.rfind(",") else "."
        digits = digits.replace(thousands, "").replace(",", ".")
    elif "," in digits:
        digits = digits.replace(",", "" if re.fullmatch(r"\d{1,3}(,\d{3})+", digits) else ".")
    try:
        return float(digits), code[0] if code else ""
    except ValueError:
        return None, ""


def _price(record: Row, prices: list[tuple[float | None, float | None]]) -> None:
    """``price`` and, where it is higher, ``list_price`` of the cheapest variant."""
    known = [(now, usual) for now, usual in prices if now is not None]
    if known:
        record["price"], usual = min(known, key=lambda p: p[0])
        if usual is not None and usual > record["price"]:
            record["list_price"] = usual


def _in_force(start: str, end: str) -> bool:
    """Whether now is between two dates; what is empty or cannot be read does not bound."""
    now = datetime.datetime.now(datetime.timezone.utc)
    first, last = _date(start), _date(end)
    return (first is None or first <= now) and (last is None or now <= last)


def _date(text: str) -> datetime.datetime | None:
    text = re.sub(r"([+-]\d\d)(\d\d)$", r"\1:\2", text.strip().replace("Z", "+00:00"))
    try:
        date = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    return date if date.tzinfo else date.replace(tzinfo=datetime.timezone.utc)
