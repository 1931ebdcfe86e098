"""Bad input, in earnest: real photos corrupted, bombs by hand, broken tables, filters, texts and ids.

    python torture/fuzz.py --photos DIR --large DIR --cases 20000 --seed 1 --json fuzz.json

Each case is made from (seed, number) alone, so that ``--only NUMBER`` repeats it. It runs in a worker process, and passes where
the input is used, or refused by a typed error that names it and says how to mend it, within bounds of CPU time and memory. A
crash, a hang, any other exception, or a bound that is not kept is a failure: exit code 1. Numbers begin with the classics that
were made by hand; random cases follow. In the end a batch of broken photos is indexed between good ones, and sent over HTTP.
Without ``--photos`` they are drawn.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import ctypes
import io
import itertools
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import string
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features

import lookalike
from lookalike import images, where
from lookalike.errors import ImageError, InputError, LookalikeError, UsageError

SECONDS = 10.0
"""CPU time of one case: four times what the slowest photo that is read takes on a slow core."""

HANG = 300.0
"""Time on the clock after which a worker is killed: long, since the machine may have other work."""

MEGABYTES = 1000
"""Peak memory of one case beyond what the process had before: 50 million pixels of a WebP with alpha take 800."""

SHARES = {"photo": 84, "table": 7, "feed": 2, "parquet": 2, "filter": 3, "text": 1.5, "product": 0.5}
EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
FORMATS = ["JPEG", "JPEG", "JPEG", "PNG", "PNG", "WEBP", "GIF", "TIFF", "BMP"] + ["AVIF"] * features.check("avif")
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "JPEG": [{}, {"progressive": True}, {"quality": 30, "optimize": True}, {"subsampling": 0, "comment": b"shop"}],
    "PNG": [{}, {"compress_level": 1}, {"optimize": True}],
    "WEBP": [{}, {"lossless": True}, {"quality": 20, "method": 0}],
    "GIF": [{}, {"interlace": 0}],
    "TIFF": [{"compression": c} for c in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")],
    "BMP": [{}],
    "AVIF": [{"speed": 10}, {"speed": 10, "subsampling": "4:4:4"}],
}
MODES = {
    "JPEG": ("RGB", "RGB", "L", "CMYK"), "PNG": ("RGB", "RGBA", "L", "P", "1", "I;16"), "WEBP": ("RGB", "RGBA"),
    "GIF": ("P",), "TIFF": ("RGB", "L", "CMYK", "F", "I;16"), "BMP": ("RGB", "L", "P", "1"), "AVIF": ("RGB", "RGBA"),
}  # fmt: skip


class Failure(AssertionError):
    """What a case should not have done."""


# Photos -------------------------------------------------------------------------------------------------------------


class Bases:
    """The photos that cases are made from: files as they are, and encoded again in every format."""

    def __init__(self, photos: list[str], large: list[str], seed: int):
        self.files = [self.some(folder, 400, seed) for folder in photos if folder] or [[]]
        self.large = [f for folder in large for f in self.some(folder, 60, seed)]
        self.encoded = lru_cache(maxsize=4096)(self._encoded)

    @staticmethod
    def some(folder: str, most: int, seed: int) -> list[str]:
        found = sorted(str(p) for p in Path(folder).rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
        return random.Random(seed).sample(found, min(most, len(found)))

    def image(self, n: int) -> Image.Image:
        files = [f for some in self.files for f in some]
        if files:
            return images.read(files[n % len(files)])
        rng = np.random.default_rng(n)
        blocks = Image.fromarray(rng.integers(0, 256, (8, 6, 3), dtype=np.uint8))
        return blocks.resize((60, 80), Image.Resampling.BICUBIC)

    def _encoded(self, n: int, kind: str, mode: str, option: int, exif: bool) -> bytes:
        image = self.image(n)
        if mode in ("F", "I;16"):
            image = Image.fromarray(np.asarray(image.convert("L")).astype(np.float32 if mode == "F" else np.uint16))
        else:
            image = image.convert(mode)
        options = dict(OPTIONS[kind][option % len(OPTIONS[kind])])
        if mode in ("F", "I;16", "RGBA", "CMYK") and options.get("compression") == "jpeg":
            options = {}
        if exif and kind in ("JPEG", "PNG", "WEBP", "TIFF"):
            tags = Image.Exif()
            tags[0x0112], tags[0x010F] = n % 8 + 1, "Maker" * (n % 50)
            options["exif"] = tags
        file = io.BytesIO()
        image.save(file, kind, **options)
        return file.getvalue()

    def pick(self, rng: random.Random) -> tuple[str, bytes]:
        """A whole photo: (its format, its bytes)."""
        if self.large and rng.random() < 0.03:
            return "JPEG", Path(rng.choice(self.large)).read_bytes()
        files = [f for some in self.files for f in some]
        if files and rng.random() < 0.3:
            return "JPEG", Path(rng.choice(files)).read_bytes()
        kind = rng.choice(FORMATS)
        n = rng.randrange(24)  # few, and each of them often: encoding takes longer than reading
        return kind, self.encoded(n, kind, rng.choice(MODES[kind]), rng.randrange(len(OPTIONS[kind])), n % 3 == 0)


def flips(rng: random.Random, data: bytes, other: bytes) -> bytes:
    out = bytearray(data)
    head = rng.random() < 0.4  # headers are where decoders decide
    for _ in range(rng.choice((1, 1, 2, 4, 16, 64))):
        at = rng.randrange(min(len(out), 600) if head else len(out))
        out[at] ^= 1 << rng.randrange(8)
    return bytes(out)


def truncation(rng: random.Random, data: bytes, other: bytes) -> bytes:
    return data[: rng.randrange(len(data)) if rng.random() < 0.7 else rng.randrange(min(len(data), 200))]


def splice(rng: random.Random, data: bytes, other: bytes) -> bytes:
    share = rng.random()
    return data[: int(len(data) * share)] + other[int(len(other) * (share if rng.random() < 0.5 else rng.random())) :]


def foreign_body(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """The header of one, the body of another."""
    head = rng.choice((8, 16, 20, 33, 64, 128, 400, 800))
    return data[:head] + other[head:]


def pieces(data: bytes) -> list[bytes]:
    """A file cut where its format cuts it: PNG's chunks, JPEG's segments, RIFF's chunks, boxes; else blocks."""
    cuts = {0, len(data)}
    at = 8
    if data.startswith(b"\x89PNG"):
        while at + 8 < len(data):
            cuts.add(at)
            at += 12 + int.from_bytes(data[at : at + 4], "big")
    elif data.startswith(b"\xff\xd8"):
        cuts.add(2)
        for _, end in images._segments(data):
            cuts.add(end - 2)
    elif data.startswith(b"RIFF"):
        at = 12
        while at + 8 < len(data):
            cuts.add(at)
            at += 8 + int.from_bytes(data[at + 4 : at + 8], "little")
    elif data[4:8] == b"ftyp":
        at = 0
        while at + 8 < len(data):
            cuts.add(at)
            at += max(8, int.from_bytes(data[at : at + 4], "big"))
    else:
        cuts |= set(range(0, len(data), max(16, len(data) // 16)))
    places = sorted(c for c in cuts if c <= len(data))
    return [data[a:b] for a, b in itertools.pairwise(places)]


def shuffled(rng: random.Random, data: bytes, other: bytes) -> bytes:
    parts = pieces(data)
    what = rng.randrange(4)
    if what == 0:
        head, tail = parts[:1], parts[1:]
        rng.shuffle(tail)
        parts = head + tail
    elif what == 1:
        at = rng.randrange(len(parts))
        parts[at:at] = [parts[at]] * rng.choice((1, 2, 50))
    elif what == 2 and len(parts) > 1:
        del parts[rng.randrange(1, len(parts))]
    else:
        parts.insert(rng.randrange(len(parts) + 1), rng.choice(pieces(other)))
    return b"".join(parts)


def lengths(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Numbers that say how much follows, or how large it is, at the ends of their range."""
    out, parts = bytearray(data), pieces(data)
    at = sum(map(len, parts[: rng.randrange(len(parts))])) if rng.random() < 0.6 else rng.randrange(min(300, len(data)))
    at += rng.choice((0, 0, 2, 4, 8, 10, 12, 16))
    size = rng.choice((1, 2, 2, 4, 4))
    value = rng.choice(EXTREMES) & (256**size - 1)
    out[at : at + size] = value.to_bytes(size, rng.choice(("big", "little")))
    return bytes(out[: max(1, len(out))])


def sides(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Another width or height in the header, up to 65,535 and over."""
    at = {
        b"\x89P": (16, 4, "big"), b"GI": (6, 2, "little"), b"BM": (18, 4, "little"), b"RI": (26, 2, "little"),
    }.get(data[:2])  # fmt: skip
    if data.startswith(b"\xff\xd8"):
        sof = next((end for m, end in images._segments(data) if m in (0xC0, 0xC1, 0xC2)), None)
        at = (sof + 3, 2, "big") if sof else None
    elif b"ispe" in data[:2000]:
        at = (data.index(b"ispe") + 8, 4, "big")
    if at is None:
        return lengths(rng, data, other)
    start, size, order = at
    value = rng.choice((0, 1, 7, 255, 4095, 7071, 16383, 16384, 65500, 65535, 2**31 - 1, 2**32 - 1)) & (256**size - 1)
    out = bytearray(data)
    start += size * rng.randrange(2)
    out[start : start + size] = value.to_bytes(size, order)  # type: ignore[arg-type]
    return bytes(out)


def noise(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """A stretch replaced by chance, by zeros, or taken out, or put in."""
    start = rng.randrange(len(data))
    end = start + rng.choice((1, 4, 64, 1024, 20_000))
    filler = rng.choice((rng.randbytes(end - start), bytes(end - start), b"\xff" * (end - start), b""))
    return data[:start] + filler + data[start if rng.random() < 0.3 else end :]


def polyglot(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Two files in one, or a page or an archive around a photo."""
    around = rng.choice(
        (other, b"<html><script>alert(1)</script>", b"PK\x03\x04" + other, b"%PDF-1.7\n", b"#!/bin/sh\n")
    )
    return data + around if rng.random() < 0.6 else around + data


MUTATIONS = (flips, flips, flips, truncation, splice, foreign_body, shuffled, lengths, lengths, sides, noise, polyglot)


def checksums(data: bytes) -> bytes:
    """A PNG whose checksums are right again, so that the damage gets past them."""
    parts = pieces(data)
    return b"".join(
        p[:-4] + struct.pack(">I", zlib.crc32(p[4:-4])) if n and len(p) >= 12 else p for n, p in enumerate(parts)
    )


def corrupted(rng: random.Random, bases: Bases) -> tuple[str, bytes]:
    """A photo after one to three mutations: (format and last mutation, bytes)."""
    kind, data = bases.pick(rng)
    name = ""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        mutation = rng.choice(MUTATIONS)
        name = mutation.__name__
        data = mutation(rng, data, bases.pick(rng)[1]) if data else data
    if data.startswith(b"\x89PNG") and rng.random() < 0.6:
        data = checksums(data)
    return f"photo {kind} {name}", data


def read_photo(data: bytes, at_least: int | None = None, name: str = "bad.jpg") -> str:
    """As the package reads it: used, or refused by name."""
    try:
        image = images.read(data, at_least=at_least, name=name)
    except ImageError as error:
        told(error, name)
        return type(error).__name__
    if image.mode != "RGB" or image.info or not 0 < image.width * image.height <= images.MAX_PIXELS:
        raise Failure(f"read as {image.mode} {image.size} with {sorted(image.info)}")
    if type(image) is not Image.Image:
        raise Failure(f"read as {type(image).__name__}")
    return "read"


def told(error: LookalikeError, name: str) -> None:
    """The message names the culprit and a mend, and any terminal can show it."""
    text = str(error)
    if name not in text:
        raise Failure(f"does not name {name}: {text[:300]}")
    if len(text) > 5000 or (isinstance(error, ImageError) and not text.isprintable()):
        raise Failure(f"a message of {len(text)} characters: {text[:300]!r}")
    if isinstance(error, ImageError) and ";" not in text:
        raise Failure(f"says no mend: {text[:300]}")


# Tables, feeds, filters, texts, ids -----------------------------------------------------------------------------------

NASTY = [
    "", " ", "0", "-0", "1e999", "NaN", "1" * 400, "0x10", "１２", "=cmd|' /C calc'!A0", "@SUM(1)", "+1", "\t=1", "'=1",
    "../../x", "/etc/passwd", "..", ".", "a/../../b.jpg", "file:///etc/passwd", "C:\\x.jpg", "a.jpg#xywh=0,0,9,9",
    "a.jpg#xywh=9", "a\nb", "a\r\nb", "\x00", "a\x00b", "\x1b[31mred\x1b[0m", "\u202eabc", "العربية", "日本語", "e\u0301" * 5,
    "👗👠🧥", "\ufeff", "\ufffe", "\u2028", "true", "null", "x" * 5000, "a,b", 'a"b', '"', "'", "a|b;c", "<b>&amp;</b>",
    "lk_id", "id", "image", "price", "${7*7}", "{{7*7}}", "%s%n", "' OR 1=1 --", "\\", "\\u0000", "a.jpg", "b.jpg",
]  # fmt: skip
ENCODINGS = (
    "utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252", "gb18030",
    "shift_jis", "cp437", "utf-7", "koi8-r", "big5", "mac-roman", "cp037",
)  # fmt: skip


def cell(rng: random.Random) -> str:
    return rng.choice(NASTY) if rng.random() < 0.5 else "".join(rng.choices(string.printable, k=rng.randrange(9)))


def records(rng: random.Random) -> list[dict[str, str]]:
    columns = [rng.choice(["id"] * 9 + ["sku", "x"]), rng.choice(["image"] * 9 + ["photo", "y"])]
    columns += [cell(rng) if rng.random() < 0.1 else f"c{n}" for n in range(rng.randrange(5))]
    rows = [{c: cell(rng) for c in columns} for _ in range(rng.randrange(12))]
    for n, row in enumerate(rows):
        row[columns[0]] = str(n) if rng.random() < 0.9 else cell(rng)
        row[columns[1]] = rng.choice(["a.jpg", "b.jpg"]) if rng.random() < 0.8 else cell(rng)
    return rows


def a_table(rng: random.Random) -> tuple[str, bytes]:
    """(suffix, content) of a CSV, TSV or JSONL file that something is wrong with."""
    rows, suffix = records(rng), rng.choice((".csv", ".csv", ".tsv", ".txt", ".jsonl"))
    text = io.StringIO()
    if suffix == ".jsonl":
        for row in rows:
            values = {k: rng.choice((v, v, [v], {"a": v}, 10**30, 1e400, None, True)) for k, v in row.items()}
            text.write(json.dumps(values, ensure_ascii=rng.random() < 0.5) + rng.choice(("\n", "\r\n", "\n\n", "")))
    elif rows:
        comma = "\t" if suffix == ".tsv" else rng.choice(",,,;\t")
        quote = rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_MINIMAL))
        writer = csv.writer(text, delimiter=comma, quoting=quote, lineterminator=rng.choice(("\n", "\r\n", "\r")))
        writer.writerow(rows[0])
        for row in rows:
            writer.writerow(list(row.values())[: rng.choice((9, 9, 9, 1, 2))] + [cell(rng)] * (rng.random() < 0.1))
    data = text.getvalue().encode("utf-8" if rng.random() < 0.6 else rng.choice(ENCODINGS), "replace")
    if rng.random() < 0.4 and data:
        data = rng.choice((flips, truncation, noise, splice))(rng, data, data)
    return suffix, data


def a_feed(rng: random.Random) -> tuple[str, bytes]:
    encoding = rng.choice(
        ("utf-8", "utf-8", "latin-1", "shift_jis", "utf-7", "idna", "zlib", "foo", "utf-16", "cp1252")
    )
    start = rng.choice(
        ("",) * 6 + (f'<?xml version="1.0" encoding="{encoding}"?>', "\n\n", '<!DOCTYPE r SYSTEM "http://x/y.dtd">')
    )
    start += rng.choice(("",) * 8 + ('<!DOCTYPE r [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>',))
    item = "".join(
        f"<{tag}>{rng.choice(('1', 'a.jpg', '&amp;') * 9 + ('&#0;', '&b;', '<![CDATA[x]]>', 'x' * 3000, cell(rng)))}</{tag}>"
        for tag in rng.choices(["g:id", "id", "title", "g:image_link", "g:price", "link", "g:sale_price", "a:b"], k=6)
    )
    opened, closed = rng.choice(
        (("<rss><channel>", "</channel></rss>"), ("<feed>", "</feed>"), ("<rss>" * 50, "</rss>"))
    )
    text = start + opened
    text += f"<item><g:id>7</g:id><g:image_link>a.jpg</g:image_link>{item}</item>" * rng.randrange(3) + closed
    data = text.encode(rng.choice(("utf-8", "utf-8", "utf-16", "latin-1")), "replace")
    return ".xml", rng.choice((flips, truncation, noise))(rng, data, data) if rng.random() < 0.5 else data


def a_parquet(rng: random.Random) -> tuple[str, bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    n = rng.randrange(1, 50)
    columns: dict[str, Any] = {"id": [str(i) for i in range(n)], "image": ["a.jpg"] * n}
    columns["n"] = pa.array(
        [rng.randrange(2**31) for _ in range(n)], rng.choice((pa.int64(), pa.float64(), pa.date32()))
    )
    columns["t"] = pa.array(
        [rng.randrange(2**62)] * n, rng.choice((pa.timestamp("ns"), pa.duration("us"), pa.time64("ns")))
    )
    columns["l"] = [[{"a": cell(rng)}]] * n
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, compression=rng.choice(("none", "snappy", "zstd", "gzip")))
    data = file.getvalue()
    for _ in range(rng.choice((0, 1, 1, 2))):
        data = rng.choice((flips, flips, truncation, noise, lengths))(rng, data, data)
    return ".parquet", data


def read_source(suffix: str, data: bytes, folder: Path) -> str:
    from lookalike.sources import open_source

    path = folder / f"t{suffix}"
    path.write_bytes(data)
    try:
        source = open_source(path)
    except InputError as error:
        told(error, "t." if "feed" not in str(error) else "feed")
        return type(error).__name__
    for product in source.products:
        for photo in product.photos:
            if not str(photo).startswith(f"{folder}/") or "/../" in str(photo):
                raise Failure(f"took the photo {str(photo)[:100]!r}, outside of the table's folder")
    if any(len(q.item) + len(q.reason) > 4000 for q in source.quarantined):
        raise Failure("an entry of quarantine is longer than 4,000 characters")
    return "read"


WORDS = [
    "price", "colour", '"odd name"', "`c`", "new", "nothing", "=", "!=", "<", ">=", "in", "like", "between", "is", "null",
    "not", "and", "or", "(", ")", ",", "'red'", "'%_%'", "'Men''s'", "5", "-1e400", "1e3", "true", "''", "'\\'", "&&",
    "/*", "--", ";", "\x00", "’", "日本", "\ud800", "((((", "NOT NOT", "__import__('os')", "0x5", "1" * 30,
]  # fmt: skip
VALID = [
    "price < 50 and colour in ('red','blue')", "not (new or price is null)", "colour like '%_e_%' or price between 1 and 9",
]  # fmt: skip


@lru_cache
def columns() -> Any:
    import pyarrow as pa

    n = 2000
    return pa.table(
        {
            "price": pa.array([None if i % 7 == 0 else i / 3 for i in range(n)]),
            "colour": pa.array([None if i % 11 == 0 else ("red", "Blue", "größe" * 30)[i % 3] for i in range(n)]),
            "new": pa.array([i % 2 == 0 for i in range(n)]),
            "odd name": pa.array(["x"] * n).dictionary_encode(),
        }
    )


def a_filter(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return rng.choice(("", " ")).join(rng.choices(WORDS, k=rng.choice((1, 3, 8, 40, 900))))
    text = list(rng.choice(VALID))
    for _ in range(rng.randrange(5)):
        text[rng.randrange(len(text))] = rng.choice((chr(rng.randrange(0x300)), rng.choice(WORDS), ""))
    return rng.choice(("",) * 8 + ("(" * 60, "not " * 500)) + "".join(text) * rng.choice((1, 1, 20))


def ask_filter(text: str) -> str:
    try:
        mask = where.mask(where.parse(text), columns())
    except UsageError as error:
        if not str(error) or len(str(error)) > 5000:
            raise Failure(f"a message of {len(str(error))} characters") from error
        return "UsageError"
    if mask.dtype != bool or mask.shape != (2000,):
        raise Failure(f"a mask of {mask.dtype} {mask.shape}")
    return "read"


def a_text(rng: random.Random) -> str:
    alphabet = rng.choice((
        "👗👠🧥👩\u200d👧🏿", "العربية עברית", "日本語中文", "e\u0301\u0302\u20dd", "\ud800\udfff", "\x00\x1b\x7f", " \t\n",
        "\u202e\u2066\ufeff", "red dress ", string.printable, "".join(map(chr, range(0x10000, 0x10100))), "ſßİıŉ", "\ufdfa",
    ))  # fmt: skip
    return "".join(rng.choices(alphabet, k=rng.choice((0, 1, 7, 300, 9_999, 10_001, 1_000_000))))


def ask_text(catalog: lookalike.Catalog, text: str, rng: random.Random) -> str:
    from lookalike.types import Query

    queries = [
        Query(text=text, lexical=rng.choice((0.0, 0.5, 1.0))), Query(text="red", not_text=[text]), Query(like=[text]),
        Query(text="red", where=f"title = '{text}'"), Query(text="red", sort=text), Query(text="red", colour=text),
    ]  # fmt: skip
    query = rng.choice(queries[:2] * 3 + queries)
    try:
        answer = catalog.answer(query)
    except LookalikeError as error:
        if len(str(error)) > 20_000:
            raise Failure(f"a message of {len(str(error))} characters") from error
        return type(error).__name__
    json.dumps([h.to_json() for h in answer.hits]).encode()
    if any(not -1.001 <= h.score <= 1.001 for h in answer.hits):
        raise Failure(f"scores {[h.score for h in answer.hits]}")
    return "read"


def index_products(rng: random.Random, folder: Path) -> str:
    """Odd ids, titles, attributes and photos through the whole of indexing, searching and exporting."""
    photos = [
        str(folder / "a.jpg"),
        str(folder / "b.jpg"),
        str(folder / "bad.jpg"),
        str(folder / "none.jpg"),
        "\ud800.jpg",
    ]
    products = []
    for n in range(rng.randrange(1, 8)):
        identity = cell(rng) if rng.random() < 0.6 else f"p{n}"
        attributes = {
            rng.choice(["colour", "price", cell(rng)]): rng.choice((cell(rng), 1.5, True, None, 2**70, "\ud800"))
        }
        products.append(lookalike.Product(identity, rng.choices(photos, k=rng.randrange(3)), cell(rng), attributes))
    where_to = Path(tempfile.mkdtemp(dir=folder))
    try:
        catalog = lookalike.open(where_to / "c", encoder="fake")
        report = catalog.index([*products, lookalike.Product("whole", [photos[0]], "a whole one", {})])
        catalog.answer(lookalike.Query(text="a", k=50))
        for suffix in ("csv", "jsonl", "parquet"):
            if catalog.export(where_to / f"e.{suffix}") != report.added:
                raise Failure("export wrote another number of rows")
        again = lookalike.open(where_to / "d", encoder="fake").index(where_to / "e.csv")
        if again.added != report.added:
            raise Failure(f"{report.added} photos were exported, {again.added} came back: {again.problems[:3]}")
    except InputError as error:
        return type(error).__name__ if str(error) else "no message"
    finally:
        shutil.rmtree(where_to, ignore_errors=True)
    return "read"


# Classics, by hand ----------------------------------------------------------------------------------------------------

CLASSICS: list[tuple[str, Callable[[], tuple[str, Any]]]] = []


def classic(kind: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    def add(make: Callable[[], Any]) -> Callable[[], Any]:
        CLASSICS.append((make.__name__, lambda: (kind, make())))
        return make

    return add


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def a_png(width: int, height: int, depth: int, colour: int, extra: bytes = b"", samples: int = 1) -> bytes:
    """A PNG of zeros."""
    row = 1 + (width * depth * samples + 7) // 8
    packer = zlib.compressobj(9)
    pixels = (
        b"".join(packer.compress(bytes(row * min(500, height - n))) for n in range(0, height, 500)) + packer.flush()
    )
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def a_png_of(width: int, height: int) -> bytes:
    """A PNG that says it is so large."""
    small = a_png(999, 999, 1, 0)
    return checksums(small[:16] + struct.pack(">II", width, height) + small[24:])


def segment(marker: int, body: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def a_jpeg(extra: bytes) -> bytes:
    whole = saved(Image.new("RGB", (64, 64), "red"), "JPEG")
    return whole[:2] + extra + whole[2:]


def tags(count: int, size: int, length: int) -> bytes:
    """A TIFF or EXIF directory whose many tags all lie over one another."""
    body = b"".join(struct.pack("<HHII", n, 7, size, 8) for n in range(1000, 1000 + count))
    return (b"II*\0" + struct.pack("<IH", 8, count) + body + bytes(4)).ljust(length, b"\0")


def a_tiff(entries: list[tuple[int, int, int, int]], data: bytes = b"") -> bytes:
    body = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4) + data


def a_bmp(width: int, height: int, runs: bytes) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 0, 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 54 + 1024) + info + bytes(1024) + runs + b"\0\1"


DEFLATE: dict[str, Any] = {"compression": "tiff_adobe_deflate"}
SIDE = 7071  # squared just below images.MAX_PIXELS
for _name, _make in {
    "png_of_50_million_rgba": lambda: a_png(SIDE, SIDE, 8, 6, samples=4),
    "png_of_50_million_16_bit_rgba": lambda: a_png(SIDE, SIDE, 16, 6, samples=4),
    "png_of_50_million_grey_16": lambda: a_png(SIDE, SIDE, 16, 0),
    "png_of_65535_by_1": lambda: a_png(65_535, 1, 8, 2, samples=3),
    "png_of_1_by_65535": lambda: a_png(1, 65_535, 8, 2, samples=3),
    "png_bomb_65535_square": lambda: a_png_of(65_535, 65_535),
    "png_bomb_2_31": lambda: a_png_of(2**31 - 1, 2**31 - 1),
    "png_of_a_million_chunks": lambda: a_png(9, 9, 8, 0, chunk(b"prIv", b"") * 1_000_000),
    "png_of_a_million_empty_idat": lambda: a_png(9, 9, 8, 0, chunk(b"IDAT", b"") * 1_000_000),
    "png_ztxt_bombs": lambda: a_png(9, 9, 8, 0, chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**20 - 9))) * 500),
    "png_itxt_bombs": lambda: a_png(9, 9, 8, 0, chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(bytes(2**20 - 9))) * 500),
    "png_icc_bomb": lambda: a_png(9, 9, 8, 0, chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(2**28)))),
    "png_exif_bomb": lambda: a_png(9, 9, 8, 0, chunk(b"eXIf", tags(60_000, 7_000_000, 2**23))),
    "jpeg_of_50_million": lambda: saved(Image.new("RGB", (SIDE, SIDE)), "JPEG"),
    "jpeg_of_50_million_cmyk": lambda: saved(Image.new("CMYK", (SIDE, SIDE)), "JPEG"),
    "jpeg_of_50_million_100_scans": lambda: scans(SIDE, 90),
    "jpeg_of_10000_scans": lambda: scans(500, 10_000),
    "jpeg_of_65500_by_1": lambda: saved(Image.new("RGB", (65_500, 1)), "JPEG"),
    "jpeg_exif_in_a_million_segments": lambda: a_jpeg(segment(0xE1, b"Exif\0\0x") * 1_000_000),
    "jpeg_exif_of_32_mb": lambda: a_jpeg(segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 500),
    "jpeg_exif_tags_on_one_another": lambda: a_jpeg(segment(0xE1, b"Exif\0\0" + tags(5000, 59_000, 65_000))),
    "jpeg_mpf_tags_on_one_another": lambda: a_jpeg(segment(0xE2, b"MPF\0" + tags(5000, 59_000, 65_000))),
    "jpeg_of_8_million_empty_comments": lambda: a_jpeg(segment(0xFE, b"") * 8_000_000),
    "jpeg_of_16_million_restarts": lambda: a_jpeg(b"\xff\xd0" * 16_000_000),
    "jpeg_of_32_mb_of_padding": lambda: a_jpeg(b"\xff" * 2**25),
    "jpeg_icc_of_255_parts": lambda: a_jpeg(b"".join(segment(0xE2, icc_part(n)) for n in range(1, 256))),
    "jpeg_photoshop_of_a_million_resources": lambda: a_jpeg(
        segment(0xED, b"Photoshop 3.0\0" + b"8BIM\0\1\0\0\0\0\0\0" * 5000) * 200
    ),
    "webp_of_50_million_rgba": lambda: saved(Image.new("RGBA", (SIDE, SIDE)), "WEBP", lossless=True, method=0),
    "webp_of_16383_by_16383": lambda: webp_of(16_383),
    "webp_exif_bomb": lambda: saved(Image.new("RGB", (64, 64)), "WEBP", exif=tags(60_000, 7_000_000, 2**23)),
    "gif_of_100000_frames": lambda: gif_frames(100_000),
    "gif_of_50_million": lambda: saved(Image.new("P", (SIDE, SIDE)), "GIF"),
    "gif_of_65535_by_65535": lambda: gif_frames(1, 65_535),
    "gif_of_6_million_comments": lambda: gif_frames(1, blocks=b"!\xfe\x01a\0" * 6_000_000),
    "gif_of_an_endless_extension": lambda: gif_frames(1, blocks=b"!\xff" + b"\x01a" * 15_000_000),
    "bmp_runs_of_50_million_in_a_line": lambda: a_bmp(50_000_000, 1, b"\1\5\0\0"),
    "bmp_runs_of_one": lambda: a_bmp(SIDE, SIDE, b"\1\5" * 16_000_000),
    "bmp_runs_that_go_nowhere": lambda: a_bmp(1000, 1000, b"\0\2\0\0" * 1_000_000),
    "bmp_of_50_million": lambda: saved(Image.new("L", (SIDE, SIDE)), "BMP")[: 2**25],
    "tiff_of_50_million_floats": lambda: saved(Image.new("F", (SIDE, SIDE)), "TIFF", **DEFLATE),
    "tiff_of_50_million_whole_numbers": lambda: saved(Image.new("I", (SIDE, SIDE), -5), "TIFF", **DEFLATE),
    "tiff_of_8_million_strips": lambda: tiff_of(8_000_000, 273, 4),
    "tiff_of_16_million_bits_per_sample": lambda: tiff_of(16_000_000, 258, 3),
    "jpeg_exif_tags_in_parts": lambda: a_jpeg(exif_parts(tags(60_000, 3_000_000, 2**22))),
    "tiff_tags_on_one_another": lambda: tags(60_000, 7_000_000, 2**23),
    "tiff_directory_that_points_at_itself": lambda: b"II*\0" + struct.pack("<IHHHIII", 8, 1, 330, 4, 1, 8, 8),
    "zero_bytes": lambda: b"",
    "one_byte": lambda: b"\xff",
    "zeros_of_32_mb": lambda: bytes(2**25),
    "a_page": lambda: b"<html><script>alert(1)</script></html>",
    "a_vector_drawing": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "postscript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
    "photoshop": lambda: b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 30_000, 30_000, 8, 3),
    "an_archive": lambda: b"PK\x03\x04" + bytes(1000),
    "gif_and_page": lambda: b"GIF89a/*" + bytes(2000) + b"*/=1;alert(1)",
    "wrong_suffix": lambda: saved(Image.new("RGB", (9, 9)), "PNG"),
}.items():
    CLASSICS.append((_name, lambda make=_make: ("photo", make())))  # type: ignore[misc]


def exif_parts(exif: bytes) -> bytes:
    return b"".join(segment(0xE1, b"Exif\0\0" + exif[n : n + 65_000]) for n in range(0, len(exif), 65_000))


def icc_part(n: int) -> bytes:
    return b"ICC_PROFILE\0" + bytes([n, 255]) + bytes(65_000)


def webp_of(side: int) -> bytes:
    small = saved(Image.new("RGB", (64, 64)), "WEBP", lossless=True)
    return small[:21] + struct.pack("<I", side - 1 | side - 1 << 14) + small[25:]


def scans(side: int, more: int) -> bytes:
    whole = saved(Image.new("L", (side, side)), "JPEG", progressive=True)
    last = whole[whole.rindex(b"\xff\xc4", 0, whole.rindex(b"\xff\xda")) : -2]
    return whole[:-2] + last * more + whole[-2:]


def gif_frames(count: int, side: int = 8, blocks: bytes = b"") -> bytes:
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x02\x02\x4c\x01\x00"
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", side, side, 0x80, 0, 0)
        + b"\0\0\0\xff\xff\xff"
        + blocks
        + frame * count
        + b";"
    )


def tiff_of(count: int, tag: int, kind: int) -> bytes:
    start = 8 + 2 + 12 * 9 + 4
    known = {256: (3, 1, 64), 257: (3, 1, 64), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 273: (4, 1, start),
             277: (3, 1, 1), 278: (3, 1, 1), 279: (4, 1, 64)}  # fmt: skip
    known[tag] = (kind, count, start)
    size = 4 if kind == 4 else 2
    return a_tiff([(t, *rest) for t, rest in known.items()], start.to_bytes(size, "little") * count)


if features.check("avif"):

    @classic("photo")
    def avif_of_50_million() -> bytes:
        return saved(Image.new("RGB", (SIDE, SIDE)), "AVIF", speed=10)

    @classic("photo")
    def avif_that_says_64_and_holds_9000() -> bytes:
        whole = saved(Image.new("RGB", (9000, 9000)), "AVIF", speed=10)
        at = whole.index(b"ispe") + 8
        return whole[:at] + struct.pack(">II", 64, 64) + whole[at + 8 :]


HEADER = "id,title,image,price\n1,a,a.jpg,5\n"
GERMAN = "id,title,image\n1,größe,a.jpg\n"
PASSWD = "id,image\n1,/etc/passwd\n2,../../../../../../etc/passwd\n3,a.jpg\n4,..\n5,/dev/zero\n6,a.jpg/../a.jpg\n"
WIDE = ",".join(f"c{n}" for n in range(999))
FEED = '<?xml version="1.0" encoding="{}"?><rss><item/></rss>'
CODECS = ("shift_jis", "utf-7", "idna", "zlib", "foo", "x" * 999)
TABLES: dict[str, tuple[str, Callable[[], str | bytes]]] = {
    **{f"csv_{e}": (".csv", lambda e=e: GERMAN.encode(e, "replace")) for e in sorted(set(ENCODINGS))},  # type: ignore[misc]
    "csv_cell_of_10_mb": (".csv", lambda: HEADER + "2," + "x" * 10**7 + ",a.jpg,1\n"),
    "csv_id_of_10_mb": (".csv", lambda: HEADER + "x" * 10**7 + ",a,a.jpg,1\n"),
    "csv_image_of_10_mb": (".csv", lambda: HEADER + "2,a," + "x" * 10**7 + ",1\n"),
    "csv_cell_of_20_mb": (".csv", lambda: HEADER + "2," + "x" * 2 * 10**7 + ",a.jpg,1\n"),
    "csv_line_of_200_mb": (".csv", lambda: "x" * 2 * 10**8),
    "csv_quote_never_closed": (".csv", lambda: HEADER + '"' + "x\n" * 5 * 10**7),
    "csv_million_columns": (".csv", lambda: "image," + ",".join(f"c{n}" for n in range(10**6)) + "\na.jpg\n"),
    "csv_1000_columns": (".csv", lambda: f"image,{WIDE}\n" + ("a.jpg" + ",1" * 999 + "\n") * 50),
    "csv_duplicate_columns": (".csv", lambda: "id,id,image\n1,2,a.jpg\n"),
    "csv_no_image_column": (".csv", lambda: "id,title\n1,x\n"),
    "csv_ragged": (".csv", lambda: HEADER + "2\n3,x\n4,x,a.jpg,1,2,3\n"),
    "csv_line_ends_mixed": (".csv", lambda: HEADER + "2,x,a.jpg,3\r\n3,x,a.jpg,3\r4,x,a.jpg,3\n"),
    "csv_nul": (".csv", lambda: HEADER + "2,x\0y,a.jpg,3\n"),
    "csv_nul_in_header": (".csv", lambda: "id,im\0age\n1,a.jpg\n"),
    "csv_paths": (".csv", lambda: PASSWD),
    "csv_loop_of_links": (".csv", lambda: "id,image\n1,loop/loop/loop/a.jpg\n2,loop\n3,a.jpg\n"),
    "csv_huge_numbers": (".csv", lambda: HEADER + f"2,x,a.jpg,1{'0' * 400}\n3,x,a.jpg,0.{'1' * 10**6}\n"),
    "csv_300000_images_in_a_cell": (".csv", lambda: "id,image\n1," + ";".join(f"{n}.jpg" for n in range(300_000))),
    "jsonl_deep": (".jsonl", lambda: '{"id":1,"image":"a.jpg","x":' + "[" * 10**5 + "]" * 10**5 + "}"),
    "jsonl_column_a_row": (".jsonl", lambda: "\n".join(f'{{"id":{n},"image":"a.jpg","c{n}":1}}' for n in range(20_000))),
    "jsonl_number_of_10000_digits": (".jsonl", lambda: '{"id":1' + "0" * 10_000 + ',"image":"a.jpg"}'),
    "jsonl_surrogates": (".jsonl", lambda: '{"id":"\\ud800","image":"a.jpg","\\udfff":"\\ud800"}'),
    "xml_entities": (".xml", lambda: '<!DOCTYPE r [<!ENTITY a "x"><!ENTITY b "&a;&a;">]><rss><item>&b;</item></rss>'),
    "xml_foreign_file": (".xml", lambda: '<!DOCTYPE r [<!ENTITY x SYSTEM "file:///etc/passwd">]><rss><item><id>&x;</id></item></rss>'),
    "xml_millions_deep": (".xml", lambda: "<rss>" + "<a>" * 2_000_000),
    "xml_tag_of_200_mb": (".xml", lambda: '<rss><item a="' + "x" * 2 * 10**8),
    "xml_comment_of_200_mb": (".xml", lambda: "<rss><!--" + "x" * 2 * 10**8),
    "xml_text_of_200_mb": (".xml", lambda: "<rss><item><id>1</id><x>" + "x" * 2 * 10**8 + "</x></item></rss>"),
    **{f"xml_{e[:9]}": (".xml", lambda e=e: FEED.format(e)) for e in CODECS},  # type: ignore[misc]
    "parquet_20_million_rows_in_100_kb": (".parquet", lambda: parquet_of(20_000_000, "x")),
    "parquet_text_of_500_mb": (".parquet", lambda: parquet_of(1, "x" * 5 * 10**8)),
    "parquet_5000_times_10_mb": (".parquet", lambda: parquet_of(5000, "x" * 10**7, True)),
    "excel_as_csv": (".csv", lambda: b"PK\x03\x04" + bytes(2000)),
    "photo_as_csv": (".csv", lambda: saved(Image.new("RGB", (9, 9)), "JPEG")),
    "excel": (".xlsx", lambda: b"PK\x03\x04" + bytes(2000)),
}  # fmt: skip
for _name, (_suffix, _content) in TABLES.items():
    CLASSICS.append((_name, lambda s=_suffix, c=_content: ("source", (s, c()))))  # type: ignore[misc]
for _name, _text in {
    "filter_of_a_megabyte": "price < 1 and " * 80_000, "filter_of_4000_parentheses": "(" * 2000 + "new" + ")" * 1900,
    "filter_of_blanks": "colour like '%" + "_" * 190 + "'", "filter_of_nots": "not " * 990 + "new",
    "filter_of_many_values": "price in (" + ",".join(map(str, range(900))) + ")", "filter_of_surrogates": "colour = '\ud800'",
}.items():  # fmt: skip
    CLASSICS.append((_name, lambda t=_text: ("filter", t)))  # type: ignore[misc]


def parquet_of(rows: int, text: str, numbered: bool = False) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    same = pa.array(np.zeros(rows, np.int32))
    ids = pa.array([str(n) for n in range(rows)]) if numbered else pa.DictionaryArray.from_arrays(same, ["1"])
    table = {
        "id": ids,
        "image": pa.DictionaryArray.from_arrays(same, ["a.jpg"]),
        "t": pa.DictionaryArray.from_arrays(same, [text]),
    }
    file = io.BytesIO()
    pq.write_table(pa.table(table), file, compression="zstd")
    return file.getvalue()


# Running --------------------------------------------------------------------------------------------------------------


class Work:
    """What one worker needs for its cases."""

    def __init__(self, bases: Bases, seed: int, within: str | None = None):
        self.bases, self.seed = bases, seed
        self.folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=within))
        for n, name in enumerate(("a.jpg", "b.jpg")):
            bases.image(n).save(self.folder / name)
        (self.folder / "bad.jpg").write_bytes(b"\xff\xd8\xff")
        (self.folder / "loop").symlink_to(self.folder)
        self._catalog: lookalike.Catalog | None = None

    @property
    def catalog(self) -> lookalike.Catalog:
        if self._catalog is None:
            self._catalog = lookalike.open(self.folder / "shop.catalog")
            photos = [str(self.folder / "a.jpg"), str(self.folder / "b.jpg")]
            self._catalog.index(
                [lookalike.Product(f"p{n}", [p], "red dress", {"colour": "red"}) for n, p in enumerate(photos)]
            )
            self._catalog.answer(lookalike.Query(text="red"))
        return self._catalog

    def make(self, number: int) -> tuple[str, Callable[[], str], int]:
        """Case ``number``: its class, what runs it, and the size of its input."""
        rng = random.Random(f"{self.seed}-{number}")
        if number < len(CLASSICS):
            name, make = CLASSICS[number]
            kind, content = make()
            if kind == "photo":
                return f"classic {name}", lambda: read_photo(content), len(content)
            if kind == "filter":
                return f"classic {name}", lambda: ask_filter(content), len(content)
            suffix, content = content
            content = content if isinstance(content, bytes) else content.encode()
            return f"classic {name}", lambda: read_source(suffix, content, self.folder), len(content)
        kind = rng.choices(list(SHARES), list(SHARES.values()))[0]
        if kind == "photo":
            name, data = corrupted(rng, self.bases)
            at_least = rng.choice((None, 224))
            return name, lambda: read_photo(data, at_least), len(data)
        if kind == "filter":
            text = a_filter(rng)
            return kind, lambda: ask_filter(text), len(text)
        if kind == "text":
            text, catalog = a_text(rng), self.catalog
            return kind, lambda: ask_text(catalog, text, rng), len(text)
        if kind == "product":
            return kind, lambda: index_products(rng, self.folder), 0
        suffix, data = {"table": a_table, "feed": a_feed, "parquet": a_parquet}[kind](rng)
        return f"{kind} {suffix}", lambda: read_source(suffix, data, self.folder), len(data)

    def run(self, number: int) -> dict[str, Any]:
        """The outcome of one case."""
        kind, case, size = self.make(number)
        before, start = reset_peak(), time.process_time()
        failure = ""
        try:
            outcome = case()
        except BaseException as error:
            outcome, failure = type(error).__name__, f"{type(error).__name__}: {str(error)[:500]}"
        seconds, peak = time.process_time() - start, peak_memory() - before
        if not failure and seconds > SECONDS:
            failure = f"took {seconds:.1f} s of CPU time"
        if not failure and peak > MEGABYTES:
            failure = f"took {peak:.0f} MB"
        return {"case": number, "class": kind, "bytes": size, "outcome": outcome, "seconds": round(seconds, 3),
                "megabytes": round(peak, 1), "failure": failure}  # fmt: skip

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def reset_peak() -> float:
    """Begin to measure the peak anew where the kernel can (Linux), with freed memory given back; MB in use now."""
    with contextlib.suppress(OSError, AttributeError):  # else what the last case left would hide what this one takes
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


def peak_memory() -> float:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 2**20)


def worker(pipe: Any, photos: list[str], large: list[str], seed: int, within: str | None = None) -> None:
    """Runs the numbers that come through the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30,) * 2)  # the machine survives what does not pass
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders in C print their complaints
    work = Work(Bases(photos, large, seed), seed, within)
    os.environ["LOOKALIKE_PHOTOS"] = str(work.folder)  # where exported tables may name photos
    try:
        while (number := pipe.recv()) is not None:
            pipe.send(work.run(number))
    except EOFError:
        pass
    finally:
        work.close()


class Worker:
    """A process for cases; one that dies or hangs is a finding, and is followed by a new one."""

    target = staticmethod(worker)

    def __init__(self, *given: Any):
        self.given = given
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=self.target, args=(theirs, *self.given), daemon=True)
        self.process.start()
        theirs.close()

    def run(self, number: int, hang: float = HANG) -> dict[str, Any]:
        self.pipe.send(number)
        found = {"case": number, "class": "?", "bytes": 0, "outcome": "crash", "seconds": 0.0, "megabytes": 0.0}
        try:
            if self.pipe.poll(hang):
                return dict(self.pipe.recv())
            found |= {"outcome": "hang", "seconds": hang, "failure": f"no end after {hang:.0f} s"}
        except (EOFError, ConnectionError):
            self.process.join()
            found["failure"] = f"the process died with exit code {self.process.exitcode}"
        self.process.kill()
        self.process.join()
        self.start()
        return found

    def stop(self) -> None:
        self.pipe.send(None)
        self.process.join(10)


def batch(bases: Bases, seed: int, count: int) -> list[dict[str, Any]]:
    """``count`` broken photos between good ones through the whole of ``index``, and through HTTP; what went wrong there."""
    from fastapi.testclient import TestClient

    from lookalike.server.app import create_app

    failures: list[dict[str, Any]] = []
    rng = random.Random(f"{seed}-batch")
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder, "photos")
        photos.mkdir()
        bad: dict[str, bytes] = {}
        for n in range(count):
            bases.image(n % 40).save(photos / f"good{n:05}.png")
            bad[f"bad{n:05}.jpg"] = corrupted(rng, bases)[1]
            (photos / f"bad{n:05}.jpg").write_bytes(bad[f"bad{n:05}.jpg"])
        catalog = lookalike.open(Path(folder, "c"), encoder="fake")
        report = catalog.index(photos)
        named = {Path(q.item).name for q in report.problems}
        usable = {name for name, data in bad.items() if _usable(data)}
        if named != set(bad) - usable or report.added != count + len(usable):
            failures.append({"class": "batch index", "failure": f"{report.to_json()}, {len(usable)} of {count} usable"})
        client = TestClient(create_app(catalog), base_url="http://localhost", raise_server_exceptions=False)
        for name, data in bad.items():
            answer = client.post("/api/search", files={"image": (name, data)}, data={"k": "3"})
            right = answer.status_code == 200 if name in usable else answer.status_code in (400, 413, 422)
            kind = answer.headers.get("content-type", "")
            if not right or not kind.startswith("application/json" if name in usable else "application/problem+json"):
                failures.append({"class": "batch HTTP", "failure": f"{name}: {answer.status_code} {answer.text[:200]}"})
    return failures


def _usable(data: bytes) -> bool:
    try:
        images.read(data, at_least=16)
    except ImageError:
        return False
    return True


def run(
    numbers: Iterable[int], made_from: tuple[list[str], list[str], int], show: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Run these cases one after the other in a worker process; what became of each."""
    folder = tempfile.mkdtemp(prefix="fuzz-")  # of workers that are killed, too
    one, results = Worker(*made_from, folder), []
    begun = time.monotonic()
    try:
        for done, number in enumerate(numbers, 1):
            result = one.run(number)
            results.append(result)
            if result.get("failure"):
                show(f"FAILED case {number} ({result['class']}): {result['failure']}")
            if done % 1000 == 0:
                show(f"{done} cases in {time.monotonic() - begun:.0f} s")
    finally:
        one.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return results


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """By class: cases, outcomes, the highest peak of memory, the slowest."""
    classes: dict[str, dict[str, Any]] = {}
    for r in results:
        name = r["class"] if not r["class"].startswith(("classic", "photo")) else " ".join(r["class"].split()[:2])
        name = "classic" if name.startswith("classic") else name
        one = classes.setdefault(name, {"cases": 0, "outcomes": Counter(), "megabytes": 0.0, "seconds": 0.0})
        one["cases"] += 1
        one["outcomes"][r["outcome"]] += 1
        for what in ("megabytes", "seconds"):
            if r[what] > one[what]:
                one[what], one[f"{what}_case"] = r[what], r["case"]
    return dict(sorted(classes.items()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", action="append", default=[], help="a folder of real photos; may be repeated")
    parser.add_argument(
        "--large", action="append", default=[], help="a folder of large photos, of which fewer are taken"
    )
    parser.add_argument("--cases", type=int, default=20_000, help="how many, the classics included")
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="repeat one case, in this very process")
    parser.add_argument("--keep", help="with --only: write a photo's bytes to this file")
    parser.add_argument(
        "--batch", type=int, default=300, help="broken photos that are indexed and sent over HTTP in the end"
    )
    parser.add_argument("--json", help="a file for the summary")
    given = parser.parse_args()
    bases = Bases(given.photos, given.large, given.seed)
    if given.only is not None:
        work = Work(bases, given.seed)
        if given.keep:
            data = corrupted(random_after_kind(given.seed, given.only), bases)[1]
            Path(given.keep).write_bytes(data)
        result = work.run(given.only)
        work.close()
        print(json.dumps(result, indent=1))
        return bool(result["failure"])
    start = time.monotonic()
    results = run(
        range(given.first, given.first + given.cases),
        (given.photos, given.large, given.seed),
        lambda line: print(line, flush=True),
    )
    failures = [r for r in results if r.get("failure")] + (batch(bases, given.seed, given.batch) if given.batch else [])
    for one in failures:
        print("FAILED", json.dumps(one))
    out: dict[str, Any] = {
        "seed": given.seed, "cases": len(results), "batch": given.batch, "wall": round(time.monotonic() - start),
        "classes": summary(results), "failures": failures,
        "slowest": max(results, key=lambda r: r["seconds"]), "largest": max(results, key=lambda r: r["megabytes"]),
    }  # fmt: skip
    for name, one in out["classes"].items():
        figures = f"{one['cases']:6} cases  {one['megabytes']:6.0f} MB  {one['seconds']:6.2f} s"
        print(f"{name:14} {figures}  {dict(one['outcomes'].most_common())}")
    print(f"{len(results)} cases and a batch of {given.batch}, {len(failures)} failures, {out['wall']} s")
    if given.json:
        Path(given.json).write_text(json.dumps(out, indent=1))
    return bool(failures)


def random_after_kind(seed: int, number: int) -> random.Random:
    """The state of chance in which ``Work.make`` corrupts the photo of a case."""
    rng = random.Random(f"{seed}-{number}")
    rng.choices(list(SHARES), list(SHARES.values()))
    return rng


if __name__ == "__main__":
    sys.exit(main())
