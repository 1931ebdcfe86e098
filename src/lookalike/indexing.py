"""Source → photos → vectors → catalog, as a sync: what is new is added, what changed is encoded again, the rest is left.

Nothing is remembered between runs but the catalog itself: a run that was killed is simply run again. Reading and decoding
happen in threads ahead of the encoder, so that the slower of the two sets the pace.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lookalike import images
from lookalike.colours import palette
from lookalike.encoders.base import Encoder, photo_dim
from lookalike.errors import ImageError, InputError
from lookalike.sources import Source
from lookalike.sources.table import as_text, kind_of
from lookalike.store import ARROW, PREFIX, Manifest, Store, schema
from lookalike.types import Product, Quarantined, Value, is_unicode

BATCH = 32
"""Photos per call of the encoder."""

COMMIT_ROWS, COMMIT_SECONDS = 1024, 5.0
"""A commit is due after so many photos or so much time: what a killed run loses at most."""

AHEAD = 256
"""Photos decoded ahead of the encoder: bounds the memory whatever the size of the source."""

UPLOADS = "uploads"
"""The source of products that ``put`` brought. Any other source that names the same ids takes them over."""

MAX_REFUSED = 1000
"""Entries of ``put`` that quarantine keeps, the latest ones: nothing else ever empties it."""

Progress = Callable[[int, int], None]


@dataclass
class Report:
    """What a run did, in photos (a product without a photo counts as one quarantined)."""

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    removed: int = 0
    quarantined: int = 0
    seconds: float = 0.0
    problems: list[Quarantined] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As ``index --json`` prints it."""
        names = ("added", "updated", "unchanged", "removed", "quarantined")
        return {**{name: getattr(self, name) for name in names}, "seconds": round(self.seconds, 3)}


@dataclass(frozen=True, slots=True)
class _Photo:
    """One photo of the source, and its row in the catalog if it has one (``known``: digest)."""

    key: str
    product: Product
    position: int
    path: str
    size: int
    mtime: int
    known: str | None
    same_file: bool


@dataclass(frozen=True, slots=True)
class _Read:
    """A photo after reading: digest, colours and pixels, or the reason why not. None of what is known already."""

    photo: _Photo
    digest: str = ""
    pixels: NDArray[np.uint8] | None = None
    colours: bytes | None = None
    reason: str = ""


def photo_key(product: str, position: int) -> str:
    """The key of a product's n-th photo: 24 hex digits, safe in addresses and filters."""
    return hashlib.blake2b(f"{product}\0{position}".encode(), digest_size=12).hexdigest()


def description(title: str, attributes: Mapping[str, Value]) -> str:
    """What is said of a product in words, for encoders that set it beside the photo; "" where nothing is.

    The title and the text attributes, short ones first, so that a long description does not crowd the colour out; codes and
    addresses are no words.
    """
    values = sorted((v.strip() for v in attributes.values() if isinstance(v, str)), key=lambda v: (len(v), v))
    words = (v for v in values if "://" not in v and any(c.isalpha() for c in v))
    return ". ".join(dict.fromkeys(v for v in (title.strip(), *words) if v))


def index(
    store: Store, encoder: Encoder, encoder_name: str, source: Source, *, prune: bool = False, drawn: bool = False,
    progress: Progress | None = None, workers: int = 0,
) -> Report:  # fmt: skip
    """Bring the catalog in step with a source.

    Args:
        store: the catalog; locked for writing meanwhile.
        encoder: makes the vectors.
        encoder_name: by which the encoder can be loaded again.
        source: read whole already.
        prune: remove what the catalog has from this source and the source no longer has.
        drawn: mark the catalog as drawings rather than photos.
        progress: called with photos done and photos in all.
        workers: threads that read and decode, 0 for one per core.

    Raises:
        EncoderMismatch: the catalog was made by another encoder.
        InputError: ids that another source gave to other content.
        CatalogLocked: another process is writing.
        CatalogError: disk full, not writable, damaged.
    """
    start = time.monotonic()
    store.check_encoder(encoder.id)
    with store.writing():
        run = _Run(store, encoder, encoder_name, source, drawn)
        report = run.report
        try:
            run.sync(progress or (lambda done, total: None), workers or os.cpu_count() or 1)
            if prune:
                run.prune()
        finally:
            store.write_quarantine(source.key, run.quarantined)
            report.problems, report.quarantined = run.quarantined, len(run.quarantined)
            report.seconds = time.monotonic() - start
        store.compact()
    return report


def put(
    store: Store, encoder: Encoder, encoder_name: str, source: Source, names: Mapping[tuple[str, str], str] | None = None
) -> Report:  # fmt: skip
    """Add a few products, or put them in the place of those with the same ids: one commit, each product whole.

    A product none of whose photos can be used stays as it was. One that another source brought stays that source's: its
    next sync has the last word.

    Args:
        store: the catalog; locked for writing meanwhile.
        encoder: makes the vectors.
        encoder_name: by which the encoder can be loaded again.
        source: the products, under the key ``UPLOADS``.
        names: what a photo is called in quarantine, by product and path; by default its number.

    Raises:
        EncoderMismatch, InputError, CatalogLocked, CatalogError: as ``index``; nothing was changed.
    """
    start = time.monotonic()
    store.check_encoder(encoder.id)
    with store.writing("put"):
        old = store.manifest()
        run = _Run(store, encoder, encoder_name, source, drawn=bool(old and old.drawn), replaces=True)
        run.put(names or {})
        report = run.report
        report.problems, report.quarantined = run.quarantined, len(run.quarantined)
        ids = [p.id for p in source.products] + sorted(source.broken)
        before = [q for q in store.quarantine() if q.source == UPLOADS]
        after = [q for q in before if not any(_about(q.item, i) for i in ids)] + run.quarantined
        if after != before:
            store.write_quarantine(UPLOADS, after[-MAX_REFUSED:])
        store.compact()
    report.seconds = time.monotonic() - start
    return report


def upload_item(identity: str, photo: str = "") -> str:
    """What quarantine calls a product that ``put`` brought, or one of its photos."""
    return f"upload, id {identity}" + (f", {photo}" if photo else "")


def _about(item: str, identity: str) -> bool:
    whole = upload_item(identity)
    return item == whole or item.startswith(f"{whole}, photo ")


class _Run:
    def __init__(
        self, store: Store, encoder: Encoder, encoder_name: str, source: Source, drawn: bool, replaces: bool = False
    ):  # fmt: skip
        self.store, self.encoder, self.source, self.replaces = store, encoder, source, replaces
        self.report = Report()
        self.quarantined = list(source.quarantined)
        self.broken = set(source.broken)
        self.rows = store.rows([c for c in store.columns() if c != "lk_vector"])
        if replaces:  # what a large catalog has besides costs nothing then
            ids = pa.array([p.id for p in source.products], pa.string())
            self.rows = self.rows.filter(pc.is_in(self.rows["lk_id"], ids))
        self.known = {k: n for n, k in enumerate(self.rows["lk_photo"].to_pylist())}
        digests = self.rows["lk_digest"].to_pylist()
        self.digests = set(digests)
        found = self.rows["lk_colours"].to_pylist() if "lk_colours" in self.rows.column_names else []
        self.colours = {d: c for d, c in zip(digests, found, strict=False) if c is not None}
        owners = zip(*(self.rows[c].to_pylist() for c in ("lk_id", "lk_source")), strict=True) if replaces else ()
        self.owners: dict[str, str] = dict(owners)
        self.photo_dim = photo_dim(encoder)
        self.vectors: dict[str, NDArray[np.float32]] | None = None
        self.described: dict[str, NDArray[np.float32]] = {}
        self.kinds = self._kinds(store.manifest())
        self.photos = self._plan()
        self._take_over()
        self._manifest(encoder_name, drawn)

    # Planning: nothing is written here

    def _kinds(self, manifest: Manifest | None) -> dict[str, str]:
        """Each attribute's kind: as the catalog has it, else as this source has it."""
        kinds = dict(manifest.kinds) if manifest else {}
        found: dict[str, str] = {}
        for product in self.source.products:
            for name, value in product.attributes.items():
                if not name or name.startswith(PREFIX) or not name.isprintable():
                    raise InputError(
                        f"{product.where or product.id}: the attribute {name!r} is empty, begins with {PREFIX} or has "
                        "characters that cannot be printed; rename it"
                    )
                if value is not None and name not in kinds and found.get(name) != "text":
                    kind = "text" if isinstance(value, str) else kind_of(value)
                    found[name] = kind if found.get(name, kind) == kind else "text"
        return {**kinds, **found}

    def _plan(self) -> list[_Photo]:
        """The source's photos; attributes that do not fit their column and names that cannot be kept go to quarantine."""
        out: list[_Photo] = []
        seen: set[str] = set()
        files = self.rows.select(["lk_path", "lk_size", "lk_mtime", "lk_digest"]).to_pylist()
        for product in self.source.products:
            label = product.where or product.id
            if not product.id.isprintable() or not product.id:
                self.quarantined.append(
                    Quarantined(label, f"the id {product.id!r} is empty or cannot be printed; change it")
                )
                self.broken.add(product.id)
                continue
            product = self._usable(product, label)
            for position, photo in enumerate(product.photos):
                if str(photo) in self.source.unfetched:
                    reason = self.source.unfetched[str(photo)]
                    self.quarantined.append(Quarantined(f"{label}, id {product.id}: {photo}", reason))
                    self.broken.add(product.id)
                    continue
                path = os.path.abspath(photo)
                try:
                    path.encode()
                    status = os.stat(images.file_of(path))
                except (OSError, ValueError) as error:
                    why = (
                        error.strerror
                        if isinstance(error, OSError)
                        else "no name that a file can have in UTF-8; rename it"
                    )
                    self.quarantined.append(Quarantined(label, f"{path}: {why}"))
                    self.broken.add(product.id)
                    continue
                key = photo_key(product.id, position)
                if key in seen:
                    raise InputError(
                        f"{label}: the id {product.id!r} occurs twice in {self.source.key}; ids must differ"
                    )
                seen.add(key)
                row = files[self.known[key]] if key in self.known else None
                same = row is not None and (row["lk_path"], row["lk_size"], row["lk_mtime"]) == (
                    path, status.st_size, status.st_mtime_ns,
                ) and row["lk_digest"] in self.colours  # fmt: skip
                digest = row["lk_digest"] if row else None
                out.append(_Photo(key, product, position, path, status.st_size, status.st_mtime_ns, digest, same))
        return out

    def _usable(self, product: Product, label: str) -> Product:
        """The product with its values in their columns' kinds; one that does not fit is left out and told."""
        values: dict[str, Value] = {}
        for name, value in product.attributes.items():
            if value is None:
                continue
            try:
                values[name] = _fitting(name, value, self.kinds[name])
            except ValueError as error:
                self.quarantined.append(Quarantined(f"{label}, id {product.id}", str(error)))
        title = product.title
        if not is_unicode(title):
            self.quarantined.append(
                Quarantined(f"{label}, id {product.id}", "the title is not Unicode; it is left out")
            )
            title = ""
        return replace(product, attributes=values, title=title)

    def _take_over(self) -> None:
        """Photos that another source brought: the same content moves over, other content is refused.

        What was put one by one always moves over.

        Raises:
            InputError: naming the first few.
        """
        if self.replaces:
            return
        sources = self.rows["lk_source"].to_pylist()
        clashes = []
        for photo in self.photos:
            row = self.known.get(photo.key)
            if row is None or sources[row] in (self.source.key, UPLOADS):
                continue
            try:
                same = images.digest(images.load(photo.path)) == photo.known
            except InputError:
                continue  # it will be quarantined when it is read
            if not same:
                clashes.append(f"{photo.product.id!r} (already from {sources[row]})")
        if clashes:
            more = f" and {len(clashes) - 5} more" if len(clashes) > 5 else ""
            raise InputError(
                f"{self.source.key}: ids that the catalog has with other content: {', '.join(clashes[:5])}{more}. "
                "Nothing was changed; remove those products first, or index into another --catalog"
            )

    def _manifest(self, encoder_name: str, drawn: bool) -> None:
        old = self.store.manifest()
        if old is None:
            dim = self.encoder.dim
            part, origin = self.photo_dim if self.photo_dim < dim else 0, getattr(self.encoder, "source", {})
            made = Manifest(
                encoder_name, self.encoder.id, dim, self.source.roles, self.kinds, drawn, part, source=origin
            )
            self.store.create(made)
        else:
            new = replace(old, roles={**self.source.roles, **old.roles}, kinds=self.kinds, drawn=old.drawn and drawn)
            if new != old:
                self.store.write_manifest(new)

    # Doing

    def sync(self, progress: Progress, workers: int) -> None:
        """Read, encode and commit what is not in the catalog as it is in the source."""
        changed = self._changed()
        todo = [p for p in self.photos if not p.same_file or p.key in changed]
        done = self.report.unchanged = len(self.photos) - len(todo)
        total = len(self.photos)
        progress(done, total)
        if any(p.known for p in todo):
            self._load_vectors()  # before a commit of this run replaces some of them
        batch = _Batch(self)
        waiting: list[_Read] = []
        try:
            for read in self._read_ahead(todo, workers):
                if read.reason:
                    path, product = read.photo.path, read.photo.product
                    address = self.source.files.get(path)
                    item = f"{product.where or product.id}, id {product.id}: {address}" if address else path
                    self.quarantined.append(Quarantined(item, read.reason))
                else:
                    if read.photo.known == read.digest and read.photo.key not in changed:
                        self.report.unchanged += 1  # only touched: its new time is worth keeping
                    else:
                        self._count(read.photo)
                    waiting.append(read)
                    if len(waiting) == BATCH:
                        self._encode(waiting, batch)
                done += 1
                progress(done, total)
            self._encode(waiting, batch)
        finally:  # interrupted, too: what is encoded is kept
            batch.commit()
        self._tidy()

    def _tidy(self) -> None:
        """Products that were put and are this source's now: photos that they no longer have go."""
        here, ids = {p.key for p in self.photos}, {p.product.id for p in self.photos}
        columns = [self.rows[c].to_pylist() for c in ("lk_photo", "lk_id", "lk_source")]
        rows = zip(*columns, strict=True)
        gone = [k for k, i, s in rows if s == UPLOADS and i in ids and i not in self.broken and k not in here]
        self.store.delete(gone)
        self.report.removed += len(gone)

    def put(self, names: Mapping[tuple[str, str], str]) -> None:
        """Read, encode and commit the products as a whole."""
        changed = self._changed()
        self.digests.clear()  # encoding a few again is cheaper than reading all vectors
        self.colours.clear()
        todo = [p for p in self.photos if not p.same_file or p.key in changed]
        kept = {p.key for p in self.photos} - {p.key for p in todo}
        self.report.unchanged = len(kept)
        batch = _Batch(self, whole=True)
        waiting: list[_Read] = []
        for read in self._read_ahead(todo, os.cpu_count() or 1):
            photo = read.photo
            if read.reason:
                name = names.get((photo.product.id, photo.path), f"photo {photo.position + 1}")
                self.quarantined.append(Quarantined(upload_item(photo.product.id, name), read.reason))
                continue
            kept.add(photo.key)
            self._count(photo)
            waiting.append(read)
            if len(waiting) == BATCH:
                self._encode(waiting, batch)
        self._encode(waiting, batch)
        alive = {p.product.id for p in self.photos if p.key in kept}
        ids = self.rows["lk_id"].to_pylist()
        gone = [key for key, row in self.known.items() if ids[row] in alive and key not in kept]
        batch.commit(gone)
        self.report.removed = len(gone)

    def source_of(self, product: Product) -> str:
        """The key of the source that a product's rows belong to."""
        return self.owners.get(product.id, self.source.key)

    def _changed(self) -> set[str]:
        """Keys of known photos whose product's columns, or whose source, are not as the catalog has them."""
        mine = {"lk_title": "title", "lk_source": "source"}
        names = [n for n in self.kinds if n in self.rows.column_names]
        table = self.rows.select([*mine, *names]).to_pylist()
        out = set()
        for photo in self.photos:
            row = self.known.get(photo.key)
            if row is None:
                continue
            old, new = table[row], photo.product
            if (old["lk_title"] or "", old["lk_source"]) != (new.title, self.source_of(new)) or any(
                old.get(n) != new.attributes.get(n) for n in self.kinds
            ):
                out.add(photo.key)
        return out

    def _read_ahead(self, todo: Sequence[_Photo], workers: int) -> Iterator[_Read]:
        """Photos read and decoded by threads, in order, at most ``AHEAD`` ahead."""
        pending: deque[Future[_Read]] = deque()
        pool = ThreadPoolExecutor(workers, "lookalike-read")
        try:
            rest = iter(todo)
            pending.extend(pool.submit(self._read, p) for p in itertools.islice(rest, AHEAD))
            while pending:
                result = pending.popleft().result()
                pending.extend(pool.submit(self._read, p) for p in itertools.islice(rest, 1))
                yield result
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _read(self, photo: _Photo) -> _Read:
        try:
            content = images.load(photo.path)
            digest = images.digest(content)
            if digest in self.colours:
                return _Read(photo, digest)
            image = images.read(content, at_least=max(self.encoder.size), name=photo.path)
            pixels = None if digest in self.digests else self.encoder.prepare(image)
            return _Read(photo, digest, pixels, palette(image).tobytes())
        except (ImageError, InputError) as error:
            return _Read(photo, reason=str(error).removeprefix(f"{photo.path}: "))

    def _encode(self, waiting: list[_Read], batch: _Batch) -> None:
        """Put the rows of what was read into the batch: vectors of photos and words that the catalog has not yet are made."""
        fresh = [r.pixels for r in waiting if r.pixels is not None]
        made = iter(self.encoder.encode_photos(np.stack(fresh))[:, : self.photo_dim] if fresh else ())
        photos = [self._vector(r.digest) if r.pixels is None else next(made) for r in waiting]
        for read, *parts in zip(waiting, photos, self._words([r.photo.product for r in waiting]), strict=True):
            batch.add(read, np.concatenate(parts))
        waiting.clear()

    def _words(self, products: Sequence[Product]) -> NDArray[np.float32]:
        """The part of each product's row that its words make (products, dim − photo_dim)."""
        out = np.zeros((len(products), self.encoder.dim - self.photo_dim), np.float32)
        if not out.size:
            return out
        said = [description(p.title, p.attributes) for p in products]
        fresh = [text for text in dict.fromkeys(said) if text and text not in self.described]
        made = self.encoder.encode_texts(fresh)[:, self.photo_dim :] if fresh else ()
        known = {**dict(zip(fresh, made, strict=True)), **{t: self.described[t] for t in said if t in self.described}}
        for row, text in zip(out, said, strict=True):
            if text:
                row[:] = known[text]
        return out

    def _count(self, photo: _Photo) -> None:
        if photo.key in self.known:
            self.report.updated += 1
        else:
            self.report.added += 1

    def _vector(self, digest: str) -> NDArray[np.float32]:
        """The vector that the catalog had for this photo when the run began (photo_dim,)."""
        if self.vectors is None:
            self._load_vectors()
        assert self.vectors is not None
        return self.vectors[digest]

    def _load_vectors(self) -> None:
        words = self.photo_dim < self.encoder.dim
        texts = [n for n in self.store.columns() if words and self.kinds.get(n) == "text"]
        rows = self.store.rows(["lk_digest", "lk_vector", "lk_title", *texts])
        flat = rows["lk_vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(len(rows), -1)
        self.vectors = dict(zip(rows["lk_digest"].to_pylist(), flat[:, : self.photo_dim], strict=True))
        if words:
            said = (
                description(row.pop("lk_title") or "", row) for row in rows.select(["lk_title", *texts]).to_pylist()
            )
            self.described = dict(zip(said, flat[:, self.photo_dim :], strict=True))

    def prune(self) -> None:
        """Remove what the catalog has from this source and the source no longer has."""
        here = {p.key for p in self.photos}
        sources = self.rows["lk_source"].to_pylist()
        ids, paths = self.rows["lk_id"].to_pylist(), self.rows["lk_path"].to_pylist()
        hidden = tuple(self.source.unreadable)
        gone = [
            key
            for key, n in self.known.items()
            if sources[n] == self.source.key and key not in here and ids[n] not in self.broken
            and not (hidden and paths[n].startswith(hidden))
        ]  # fmt: skip
        self.store.delete(gone)
        self.report.removed += len(gone)


class _Batch:
    """Rows waiting for one commit; ``whole``: one that waits for the last of them."""

    def __init__(self, run: _Run, whole: bool = False):
        self.run, self.whole = run, whole
        self.reads: list[_Read] = []
        self.vectors: list[NDArray[np.float32]] = []
        self.since = time.monotonic()

    def add(self, read: _Read, vector: NDArray[np.float32]) -> None:
        self.reads.append(replace(read, pixels=None))
        self.vectors.append(vector)
        if not self.whole and (len(self.reads) >= COMMIT_ROWS or time.monotonic() - self.since > COMMIT_SECONDS):
            self.commit()

    def commit(self, gone: Sequence[str] = ()) -> None:
        reads, vectors = self.reads, self.vectors
        self.reads, self.vectors = [], []
        if reads:
            replaces = any(r.photo.key in self.run.known for r in reads)
            self.run.store.commit(self._table(reads, vectors), replaces=replaces, gone=gone)
            self.run.store.compact()
        else:
            self.run.store.delete(gone)
        self.since = time.monotonic()

    def _table(self, reads: list[_Read], vectors: list[NDArray[np.float32]]) -> pa.Table:
        run, photos = self.run, [r.photo for r in reads]
        ours: dict[str, Iterable[Any]] = {
            "lk_photo": [p.key for p in photos],
            "lk_id": [p.product.id for p in photos],
            "lk_position": [p.position for p in photos],
            "lk_title": [p.product.title for p in photos],
            "lk_source": [run.source_of(p.product) for p in photos],
            "lk_path": [p.path for p in photos],
            "lk_digest": [r.digest for r in reads],
            "lk_size": [p.size for p in photos],
            "lk_mtime": [p.mtime for p in photos],
            "lk_colours": [r.colours or run.colours[r.digest] for r in reads],
            "lk_encoder": [run.encoder.id] * len(reads),
        }
        wanted = schema(run.encoder.dim)
        arrays = [pa.array(list(v), wanted.field(k).type) for k, v in ours.items()]
        flat = pa.array(np.concatenate(vectors).astype(np.float32))
        arrays.append(pa.FixedSizeListArray.from_arrays(flat, run.encoder.dim))
        fields = list(wanted)
        for name, kind in run.kinds.items():
            fields.append(pa.field(name, ARROW[kind]))
            arrays.append(pa.array([p.product.attributes.get(name) for p in photos], ARROW[kind]))
        return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def _fitting(name: str, value: Value, kind: str) -> Value:
    """The value in its column's kind. Raises ValueError, saying what does not fit."""
    if kind == "text":
        text = as_text(value)
        if is_unicode(text):
            return text
        raise ValueError(f"{name}: not Unicode; the cell is left out")
    if kind == "flag" and isinstance(value, bool):
        return value
    if kind == "flag" and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if kind == "number" and value is not None and kind_of(value) == "number":
        return float(value)
    raise ValueError(
        f"{name}: {value!r} is not a {kind}, which this column holds; the cell is left out. Mend it, or index into another "
        "--catalog, where the column becomes text"
    )


def remove(store: Store, ids: Sequence[str]) -> int:
    """Remove products; returns how many photos went.

    Raises:
        InputError: one of them is not in the catalog; nothing was changed.
    """
    wanted = set(ids)
    with store.writing("remove"):
        rows = store.rows(["lk_photo", "lk_id"])
        found = [
            (k, i) for k, i in zip(*(rows[c].to_pylist() for c in ("lk_photo", "lk_id")), strict=True) if i in wanted
        ]
        missing = sorted(wanted - {i for _, i in found})
        if missing:
            raise InputError(f"no product {missing[0]!r} in the catalog; nothing was removed")
        store.delete(k for k, _ in found)
    return len(found)


def verify(store: Store, progress: Progress | None = None) -> dict[str, Any]:
    """Compare the catalog with itself and with the files on disk.

    Returns:
        ``{"photos", "damaged": [...], "changed": [...], "missing": [...]}``: rows that cannot be trusted, and files that
        are no longer as indexed or no longer there.

    Raises:
        CatalogError: it cannot be read at all.
    """
    rows = store.rows()
    manifest = store.manifest()
    damaged: list[str] = []
    changed: list[str] = []
    missing: list[str] = []
    keys = rows["lk_photo"].to_pylist()
    if len(set(keys)) != len(keys):
        damaged.append(f"{len(keys) - len(set(keys))} photos stand twice")
    if len(rows) and manifest:
        flat = rows["lk_vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        cut = manifest.photo_dim or manifest.dim
        photo, words = (np.linalg.norm(part, axis=1) for part in np.split(flat.reshape(len(rows), -1), [cut], axis=1))
        sound = (np.abs(photo - 1) < 1e-3) & ((words == 0) | (np.abs(words - 1) < 1e-3))
        damaged += [
            f"{rows['lk_id'][int(n)].as_py()}: its vector has length {np.hypot(photo[n], words[n]):.3f}, not 1"
            for n in np.flatnonzero(~sound)[:100]
        ]
        others = set(rows["lk_encoder"].to_pylist()) - {manifest.encoder_id}
        damaged += [f"vectors of another encoder, {o}" for o in sorted(others)]
    for n, (path, digest) in enumerate(zip(rows["lk_path"].to_pylist(), rows["lk_digest"].to_pylist(), strict=True)):
        if not images.file_of(path).is_file():
            missing.append(path)
        else:
            try:
                if images.digest(images.load(path)) != digest:
                    changed.append(path)
            except InputError as error:
                changed.append(str(error))
        if progress:
            progress(n + 1, len(rows))
    return {"photos": len(rows), "damaged": damaged, "changed": changed, "missing": missing}
