"""Tables of products: CSV, TSV, JSONL, Parquet. One row per photo, or one per product with several photos in a cell.

What a shop's export looks like is told in ``shops.py``, which brings it into the form of such a table.
"""

from __future__ import annotations

import codecs
import csv
import html
import itertools
import json
import math
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urljoin

from lookalike import images
from lookalike.errors import InputError
from lookalike.sources import Source, is_address
from lookalike.types import Product, Quarantined, Value

NAMES = {
    "image": "image imagepath imagefile imagefilename imagename img imgpath photo photopath picture file filename filepath "
    "path images photos pictures imageurl imagesrc imagelink",
    "id": "id productid itemid sku articleid asin uid handle code productcode",
    "title": "title name productname producttitle productdisplayname displayname itemname label description",
    "category": "category articletype producttype type subcategory mastercategory productcategory class",
    "colour": "colour color basecolour basecolor colourname colorname farbe couleur kleur colore",
    "gender": "gender sex",
    "price": "price saleprice listprice currentprice amount",
}
"""Usual column names of each role, the surest first, without case, spaces and punctuation."""

MISSING = {"", "NA", "N/A", "NaN", "nan", "null", "NULL"}
SEVERAL = re.compile(r"\s*[|;]\s*")
SEVERAL_ADDRESSES = re.compile(r"[\s|;,]+(?=https?://)", re.IGNORECASE)
MAX_CELL, MAX_LINE = 16 * 2**20, 64 * 2**20
"""Characters of one cell, and of one line: descriptions with pictures in them are longer than Python's 131,072."""

MAX_KEPT = 100_000
"""Characters of one cell that the catalog keeps; what more there was is told."""

MAX_ID = 1_000
"""Characters of an id, which stands in addresses and messages."""

MAX_COLUMNS = 1_000
"""Columns of a table: a catalog reads each of them by itself before its first search."""

UNPACKED, ROWS = 100, 4
"""How many bytes, and how many rows, a byte of a Parquet file may unpack to; tables of products reach a tenth of it."""

_WITHOUT_SCHEME = re.compile(r"//[\w-]+(\.[\w-]+)+(:\d+)?/")
FOLDERS = ("", "images", "photos", "img")
SUFFIXES = ("", ".jpg", ".jpeg", ".png", ".webp", ".JPG")
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_NUMBER = re.compile(r"-?(0|[1-9]\d{0,14})(\.\d+)?")


def read(
    path: Path, roles: Mapping[str, str] | None = None, key: str = "", image_from_id: str = "", name: str = "",
    base: str = "",
) -> Source:  # fmt: skip
    """Read a table; image paths are looked up beside it (and in ``images/``, ``photos/``, with or without suffix).

    Args:
        path: .csv, .tsv, .jsonl, .ndjson or .parquet, or a shop's export or feed.
        roles: role → column, where the usual names do not tell.
        key: names the source; the path by default.
        image_from_id: a folder whose files are named by the products' ids, for tables without an image column.
        name: of the file in messages; that of ``path`` by default.
        base: the address that the table came from. Its photos are then addresses, too, and never files of this machine.

    Raises:
        InputError: unreadable, empty, no image column, or rows of one id that contradict each other.
    """
    from lookalike.sources import shops

    readers = {".csv": _csv, ".txt": _csv, ".tsv": _csv, ".jsonl": _jsonl, ".ndjson": _jsonl, ".parquet": _parquet}
    name, key, where = name or path.name, key or str(path), base or path.parent
    suffix = Path(name).suffix.lower()
    if suffix not in readers and base:
        suffix = ".csv"  # addresses need not say what they give; a feed is told by its content
    try:
        export = shops.export(path, suffix)
        if export is not None:
            given = {**export.roles, **(roles or {})}
            source = _products(name, export.columns, export.rows, given, key, where, "", export.codes)
            source.hidden = export.hidden
            source.quarantined += [Quarantined(f"{name}, {item}", reason) for item, reason in export.quarantined]
            return source
        if suffix not in readers:
            raise InputError(
                f"{path}: not a folder, no table (.csv, .tsv, .jsonl, .parquet) and no feed (.xml); give one of those"
            )
        columns, rows = readers[suffix](path)
        return _products(name, columns, rows, roles or {}, key, where, image_from_id)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: not {error.encoding.upper()} ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error


def from_records(
    records: list[dict[str, Any]], roles: Mapping[str, str] | None, key: str, base: Path, name: str
) -> Source:
    """A table that is in memory already: one dict per row."""
    columns = list(dict.fromkeys(str(c) for r in records for c in r))
    _check_columns(name, columns)
    rows = ((n, {str(c): plain(v) for c, v in r.items()}) for n, r in enumerate(records))
    return _products(name, columns, rows, roles or {}, key, base, "", trusted=True)


VALUES = 65_536
"""Different texts of cells that are kept as one object each."""

Rows = Iterable[tuple[int, dict[str, Any]]]


def csv_rows(path: Path, delimiter: str = "") -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """A CSV's columns, and its rows with their line numbers; the delimiter is told from the header where not given.

    A row with more fields than columns has them joined into the last one: Kaggle's ``styles.csv`` does not quote the
    commas of its titles, and its title comes last.
    """
    csv.field_size_limit(max(MAX_CELL, csv.field_size_limit()))  # there is but one, for the whole process
    encoding = _encoding(path)
    with path.open(newline="", encoding=encoding) as file:
        first = file.readline(MAX_LINE)
        if "\0" in first:
            raise InputError(
                f"{path}, line 1: has NUL characters, so it is no text, or UTF-16 without its mark; save it as UTF-8"
            )
        delimiter = delimiter or max(",;\t", key=first.count)
        file.seek(0)
        try:
            header = next(csv.reader(_lines(path, file), delimiter=delimiter, strict=True), [])
        except csv.Error as error:
            raise InputError(f"{path}, line 1: cannot be read as CSV ({error}); check the quotes there") from error
    # A nameless column is common: pandas writes its index so, spreadsheets end lines with commas.
    columns = [c.strip() or f"column_{n}" for n, c in enumerate(header, 1)]
    _check_columns(path, columns)

    def rows() -> Iterator[tuple[int, list[str]]]:
        with path.open(newline="", encoding=encoding) as file:
            reader = csv.reader(_lines(path, file), delimiter=delimiter, strict=True)
            try:
                next(reader, None)
                line = reader.line_num + 1
                for cells in reader:
                    if len(cells) > len(columns):
                        cells = [*cells[: len(columns) - 1], delimiter.join(cells[len(columns) - 1 :])]
                    if any(cells):
                        yield line, cells
                    line = reader.line_num + 1
            except csv.Error as error:  # Python 3.10 stops at a NUL character
                mend = "take the NUL characters out" if "NUL" in str(error) else "check the quotes there"
                raise InputError(f"{path}, line {line}: cannot be read as CSV ({error}); {mend}") from error

    return columns, rows()


def _encoding(path: Path) -> str:
    """By the mark that a text begins with; UTF-8 has none, or one that is left out."""
    with path.open("rb") as file:
        head = file.read(4)
    if head in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):  # one of them begins like UTF-16's
        return "utf-32"
    return "utf-16" if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    """A text's lines. Raises InputError for one that is longer than ``MAX_LINE``, before it is read to its end."""
    for number in itertools.count(1):
        line = file.readline(MAX_LINE)
        if not line:
            return
        if len(line) == MAX_LINE:
            raise InputError(
                f"{path}, line {number}: is longer than {MAX_LINE >> 20} million characters; is it a table?"
            )
        yield line


def _check_columns(path: Path | str, columns: Collection[str]) -> None:
    """Raise InputError for more columns than ``MAX_COLUMNS``."""
    if len(columns) > MAX_COLUMNS:
        raise InputError(f"{path}: {len(columns):,} columns, at most {MAX_COLUMNS:,} are read; leave some out")


def _check_twice(path: Path, columns: Sequence[str]) -> None:
    """Raise InputError where two columns have one name."""
    twice = sorted(c for c, n in Counter(columns).items() if n > 1)
    if twice:
        raise InputError(f"{path}: two columns are called {short(twice[0])!r}; rename one")


def _csv(path: Path) -> tuple[list[str], Rows]:
    columns, rows = csv_rows(path, "\t" if path.suffix.lower() == ".tsv" else "")
    columns = [unguarded(c) for c in columns]
    _check_twice(path, columns)
    return columns, ((line, dict(zip(columns, map(unguarded, cells), strict=False))) for line, cells in rows)


def guarded(cell: Any) -> Any:
    """A text that a spreadsheet would run as a formula with ``'`` before it (OWASP, "CSV injection"); all else as it is."""
    formula = isinstance(cell, str) and _FORMULA.match(cell) and not _NUMBER.fullmatch(cell)
    return f"'{cell}" if formula else cell


def unguarded(cell: str) -> str:
    """What ``guarded`` made it of."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _jsonl(path: Path) -> tuple[list[str], Rows]:
    rows: list[tuple[int, dict[str, Any]]] = []
    columns: dict[str, None] = {}
    with path.open(encoding=_encoding(path)) as file:
        for number, line in enumerate(_lines(path, file), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if isinstance(row, dict):
                    row = {c: plain(v) for c, v in row.items()}
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}, line {number}: not JSON ({error}); mend or leave out the line") from error
            if not isinstance(row, dict):
                raise InputError(f"{path}, line {number}: a JSON object is wanted, not a {type(row).__name__}")
            columns.update(dict.fromkeys(row))
            _check_columns(path, columns)
            rows.append((number, row))
    return list(columns), rows


def _parquet(path: Path) -> tuple[list[str], Rows]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    errors = (pa.ArrowException, OSError, ValueError, MemoryError)
    try:
        with pq.ParquetFile(path) as file:
            about, schema = file.metadata, file.schema_arrow
            groups = (about.row_group(n) for n in range(about.num_row_groups))
            unpacked = sum(max(0, group.total_byte_size) for group in groups)
    except errors as error:
        raise InputError(f"{path}: not a Parquet file that can be read ({error})") from error
    _check_columns(path, schema.names)
    _check_twice(path, schema.names)
    size = path.stat().st_size
    # One text may stand there a billion times, in no bytes.
    if about.num_rows > ROWS * size or unpacked > UNPACKED * size:
        raise InputError(
            f"{path}: {about.num_rows:,} rows and {unpacked:,} bytes are packed into {size:,} bytes, far more than products "
            "need; save it again without compression, or as CSV"
        )

    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        number = 0
        texts = [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
        try:
            # Texts as a dictionary: each different one is one object, however many rows have it.
            with pq.ParquetFile(path, read_dictionary=texts) as file:
                for batch in file.iter_batches(1024):
                    columns = [_values(column) for column in batch.columns]
                    for cells in zip(*columns, strict=True):
                        number += 1
                        yield number, dict(zip(schema.names, cells, strict=True))
        except errors as error:
            raise InputError(f"{path}, row {number + 1} or after: cannot be read ({error}); save it again") from error

    return schema.names, rows()


def _values(array: Any) -> list[Any]:
    """A column of Arrow's as values of ours."""
    import pyarrow as pa

    if pa.types.is_dictionary(array.type):
        array.validate(full=True)  # a damaged file may point out of its own dictionary
        words = [*_values(array.dictionary), None]
        return [words[n] for n in array.indices.fill_null(len(words) - 1).to_pylist()]
    if pa.types.is_timestamp(array.type) and array.type.unit == "ns":
        array = array.cast(pa.timestamp("us", array.type.tz), safe=False)  # Python's times stop at microseconds
    try:
        return [plain(v) for v in array.to_pylist()]
    except (OverflowError, ValueError):  # a date that Python does not have
        return list(array.cast(pa.string()).to_pylist())


def plain(value: Any) -> Any:
    """A value from Python, JSON, Arrow or numpy as text, number, flag, list of texts, or None."""
    if hasattr(value, "item") and hasattr(value, "dtype") and not getattr(value, "ndim", 0):
        value = value.item()  # a numpy scalar
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**53 else str(value)  # a longer one is a code, which a float would change
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
    if isinstance(value, Iterable) and not hasattr(value, "isoformat"):
        return [str(v) for v in value if v is not None]
    text = value.isoformat() if hasattr(value, "isoformat") else str(value)
    return None if text in ("NaT", "<NA>") else text


def short(text: str, most: int = 200) -> str:
    """A text for a message: what stands in a cell may be megabytes long."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"


def listed(columns: Sequence[str]) -> str:
    """The names of columns for a message."""
    more = f" and {len(columns) - 50:,} more" if len(columns) > 50 else ""
    return ", ".join(short(c, 60) for c in columns[:50]) + more


def find_roles(columns: list[str], given: Mapping[str, str], table: str) -> dict[str, str]:
    """Role → column: as given, else by the usual names.

    Raises:
        InputError: a given column does not exist.
    """
    for role, column in given.items():
        if column not in columns:
            raise InputError(f"{table}: no column {column!r} (--map {role}={column}); it has {listed(columns)}")
    plain: dict[str, str] = {}
    for column in columns:
        plain.setdefault(re.sub(r"[^a-z0-9]", "", column.lower()), column)
    found = dict(given)
    for role, names in NAMES.items():
        for name in names.split():
            if role not in found and name in plain and plain[name] not in found.values():
                found[role] = plain[name]
    return found


class _Photos:
    """Finds the files that cells name; each folder is listed once, since a stat per guess is slow on network disks."""

    def __init__(self, base: Path, within: Sequence[str] = ()):
        """``base``: where names begin. ``within``: folders that they must not lead out of; none where all may be named."""
        self.base, self.within = os.path.abspath(base), within
        self.listed: dict[str, set[str]] = {}

    def outside(self, name: str) -> bool:
        """Whether a name leads out of the folders, by its spelling: links in them are their owner's doing."""
        if not self.within or not (Path(name).is_absolute() or ".." in name):
            return False
        file = os.path.normpath(os.path.join(self.base, name))  # noqa: PTH118
        return not any(file.startswith(os.path.join(folder, "")) for folder in self.within)  # noqa: PTH118

    def find(self, name: str) -> str | None:
        name, box = images.split(name)
        name = (
            os.path.normpath(name) if ".." in name else name
        )  # as ``outside`` reads it: not by way of a link's target
        for folder in FOLDERS:
            where, last = os.path.split(os.path.join(self.base, folder, name))  # noqa: PTH118 (4 times faster)
            if where not in self.listed:
                try:
                    with os.scandir(where) as entries:
                        self.listed[where] = {e.name for e in entries}
                except (OSError, ValueError):  # not there, or no name of a file at all
                    self.listed[where] = set()
            for suffix in SUFFIXES:
                if last + suffix in self.listed[where]:
                    return f"{where}/{last}{suffix}{box}"
        return None


def _allowed() -> list[str]:
    """The folders in ``LOOKALIKE_PHOTOS``, in which tables may name photos beside their own folder."""
    said = os.environ.get("LOOKALIKE_PHOTOS", "")
    return [os.path.abspath(os.path.expanduser(f)) for f in said.split(os.pathsep) if f]  # noqa: PTH111


def _products(
    table: str, columns: list[str], rows: Rows, given: Mapping[str, str], key: str, base: Path | str, image_from_id: str,
    codes: Iterable[str] = (), trusted: bool = False,
) -> Source:  # fmt: skip
    """Rows → products: photos found, rows of one product joined, kinds of columns told (``codes`` are text in any case).

    ``base`` is the folder of the table, or the address that it came from. Photos must lie in that folder, or in one that
    ``LOOKALIKE_PHOTOS`` names, unless the table is ``trusted``: who wrote the table may not be who reads it here.
    """
    if not columns:
        raise InputError(f"{table}: empty; a first line with the columns' names is wanted")
    reserved = [c for c in columns if c.startswith("lk_")]
    if reserved:
        raise InputError(f"{table}: the column {short(reserved[0])!r} begins with lk_, which is ours; rename it")
    roles = find_roles(columns, given, table)
    folder = base
    if image_from_id and "image" not in roles and "id" in roles:
        base, roles["image"] = Path(base, image_from_id), roles["id"]
    if "image" not in roles:
        raise InputError(
            f"{table}: no column of image paths found among {listed(columns)}; say which: --map image=COLUMN"
        )
    within = () if trusted else [os.path.abspath(folder), *_allowed()]
    source = Source(key, [], dict(roles))
    joined, count = _joined(table, rows, roles, source.quarantined)
    if not count:
        raise InputError(f"{table}: no rows in it")
    kinds = _kinds([c for c in columns if c not in (roles["image"], roles.get("id"), roles.get("title"))], joined)
    kinds.update({c: "text" for c in codes if c in kinds})
    finder = None if isinstance(base, str) else _Photos(base, within)
    cut: dict[str, str] = {}
    missing, outside = "", ""
    for identity in list(joined):
        line, names, row = joined.pop(identity)  # rows and products of a large table need not be in memory at once
        where = f"{table}, line {line}"
        photos = []
        for name in names:
            if is_address(name):
                found: str | None = name
            elif finder and finder.outside(name):
                found, outside = None, outside or name
            else:  # what comes from elsewhere names no files of this machine
                found = finder.find(name) if finder else urljoin(str(base), name)
            if found:
                photos.append(found)
            else:
                missing = missing or name
                source.broken.add(identity)
                shown = (f"{image_from_id}/" if image_from_id else "") + short(name)
                reason = "is not there"
                if finder and finder.outside(name):
                    reason = f"lies outside of {folder}; move it there, or set LOOKALIKE_PHOTOS to where it is"
                source.quarantined.append(Quarantined(f"{where}, id {identity}", f"the photo {shown} {reason}"))
        if photos:
            attributes = {c: _cell(row.get(c), kind) for c, kind in kinds.items()}
            title = as_text(row.get(roles.get("title", "")) or "").strip()
            for column, text in [("title", title), *attributes.items()]:
                if isinstance(text, str) and len(text) > MAX_KEPT:
                    reason = f"{short(column)}: {len(text):,} characters; the first {MAX_KEPT:,} are kept"
                    source.quarantined.append(Quarantined(f"{where}, id {identity}", reason))
                    kept = cut.setdefault(text, text[:MAX_KEPT])  # many rows may have the same
                    attributes |= {column: kept} if column in attributes else {}
            title = cut.get(title, title)
            source.products.append(Product(identity, photos, title, attributes, where))
        elif not names:
            source.broken.add(identity)
            source.quarantined.append(Quarantined(f"{where}, id {identity}", "the product has no photo"))
    if not source.products and outside:
        theirs = Path(os.path.abspath(Path(folder, images.split(outside)[0]))).parent
        raise InputError(
            f"{table}: none of its photos can be used; they lie outside of its folder, {folder} (the first: {short(outside)}), "
            f"and who wrote a table need not be who may show them. Say that you do: LOOKALIKE_PHOTOS={short(str(theirs))} "
            f"(several with {os.pathsep!r} between), or put the table above them"
        )
    if not source.products:
        raise InputError(
            f"{table}: none of its photos could be found (the first: {short(missing) or 'an empty cell'}); they are looked for "
            f"beside the table, in {base}; is {roles['image']!r} the column of image paths? Say so: --map image=COLUMN"
        )
    return source


Joined = dict[str, tuple[int, list[str], dict[str, Any]]]


def _joined(table: str, rows: Rows, roles: dict[str, str], quarantined: list[Quarantined]) -> tuple[Joined, int]:
    """Rows of one id as one: id → (line, photo names, row).

    Raises:
        InputError: two rows of one id contradict each other.
    """
    joined: Joined = {}
    clashes: list[str] = []
    count = 0
    values: dict[str, str] = {}
    image = roles["image"]
    for line, row in rows:
        count += 1
        cell = row.get(image)
        names = _names(cell)
        identity = row.get(roles["id"]) if "id" in roles else names and _stem(names[0])
        identity = as_text(identity).strip() if identity not in (None, "", []) else ""
        if not identity:
            quarantined.append(Quarantined(f"{table}, line {line}", "the row has no id; fill it in"))
            continue
        if len(identity) > MAX_ID:
            reason = f"the id {short(identity, 20)!r} is longer than {MAX_ID:,} characters; shorten it"
            quarantined.append(Quarantined(f"{table}, line {line}", reason))
            continue
        if any(type(value) is str and "\0" in value for value in row.values()):
            damaged = next(c for c, v in row.items() if type(v) is str and "\0" in v)
            reason = f"{short(damaged)}: has a NUL character, so the table is damaged or no text; take it out"
            quarantined.append(Quarantined(f"{table}, line {line}", reason))
            continue
        if identity not in joined:
            joined[identity] = (line, names, {c: _shared(v, values) for c, v in row.items()})
            continue
        first, known, before = joined[identity]
        for column, value in row.items():
            old = before.get(column)
            if column != image and value not in (None, "") and old not in (None, "") and value != old:
                said = f"{short(column)} is {short(str(old))!r} and {short(str(value))!r}"
                clashes.append(f"{identity!r} (lines {first} and {line}: {said})")
                break
        new = [n for n in names if n not in known]
        if not new and roles.get("id") != image:
            quarantined.append(Quarantined(f"{table}, line {line}", f"the same product and photo as line {first}"))
        known.extend(new)
        before.update({c: v for c, v in row.items() if before.get(c) in (None, "")})
    if clashes:
        more = f" and {len(clashes) - 5} more" if len(clashes) > 5 else ""
        raise InputError(
            f"{table}: ids with different content: {'; '.join(clashes[:5])}{more}. "
            "Nothing was changed; make the ids differ, or say which column is the id: --map id=COLUMN"
        )
    return joined, count


def _shared(value: Any, values: dict[str, str]) -> Any:
    """The same text as one object: most cells of a large table say what many others say."""
    if type(value) is not str:
        return value
    return values.setdefault(value, value) if len(values) < VALUES else values.get(value, value)


def _stem(name: str) -> str:
    """A photo's name without its suffix, but with its box: two parts of one photo are two products. Addresses stay whole."""
    if is_address(name):
        return name
    file, box = images.split(name)
    return (str(Path(file).with_suffix("")) if Path(file).name else file) + box


def _names(cell: Any) -> list[str]:
    """The photos that a cell names, each once; addresses with the slips that exports have mended."""
    if cell in (None, "", []):
        return []
    text = cell if isinstance(cell, list) else as_text(cell).strip()
    if not isinstance(text, list):
        text = (SEVERAL_ADDRESSES if is_address(text) or text.startswith("//") else SEVERAL).split(text)
    names = [n.strip() for n in text]
    names = [f"https:{n}" if _WITHOUT_SCHEME.match(n) else n for n in names]
    return list(dict.fromkeys(html.unescape(n) if is_address(n) and "&amp;" in n else n for n in names if n))


def _kinds(columns: list[str], joined: Joined) -> dict[str, str]:
    """Each column's kind: ``flag`` or ``number`` where all its values are, else ``text``; empty columns are left out."""
    kinds: dict[str, str] = {}
    for column in columns:
        kind = ""
        for _, _, row in joined.values():
            value = row.get(column)
            if value is None or (isinstance(value, str) and value.strip() in MISSING):
                continue
            now = kind_of(value)
            kind = now if kind in ("", now) else "text"
            if kind == "text":
                break
        if kind:
            kinds[column] = kind
    return kinds


def kind_of(value: Any) -> str:
    """``flag``, ``number`` or ``text``. A leading zero or more than 15 digits make a code, not a number."""
    if isinstance(value, bool) or (isinstance(value, str) and value.strip().lower() in ("true", "false")):
        return "flag"
    if isinstance(value, (int, float)) or (isinstance(value, str) and _NUMBER.fullmatch(value.strip())):
        return "number"
    return "text"


def _cell(value: Any, kind: str) -> Value:
    if value is None or (isinstance(value, str) and value.strip() in MISSING):
        return None
    if kind == "number":
        return float(value)
    if kind == "flag":
        return value if isinstance(value, bool) else str(value).strip().lower() == "true"
    return as_text(value).strip()


def as_text(value: Any) -> str:
    """A cell as text: lists with commas, whole floats without their point (38.0 is the size 38)."""
    if isinstance(value, list):
        return ", ".join(value)
    return f"{value:.15g}" if isinstance(value, float) else str(value)
