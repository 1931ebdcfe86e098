"""Source → photos → vectors → catalog, as a sync: what is new is added, what changed is encoded again, the rest is left.

Nothing is remembered between runs but the catalog itself: a run that was killed is simply run again. Reading and decoding
happen in threads ahead of the encoder, so that the slower of the two sets the pace.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lookalike import images
from lookalike.colours import palette
from lookalike.encoders.base import Encoder, photo_dim
from lookalike.errors import CatalogError, EncoderMismatch, ImageError, InputError
from lookalike.sources import Source
from lookalike.sources.table import as_text, kind_of
from lookalike.store import ARROW, MEND, PREFIX, Manifest, Store, schema
from lookalike.types import Product, Quarantined, Value, is_unicode

BATCH = 32
"""Photos per call of the encoder."""

COMMIT_ROWS, COMMIT_SECONDS = 1024, 5.0
"""A commit is due after so many photos or so much time: what a killed run loses at most."""

AHEAD = 256
"""Photos decoded ahead of the encoder: bounds the memory whatever the size of the source."""

COMPARED = 8192
"""Rows of the catalog that are set beside the source's photos at a time."""

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
class Planned:
    """One photo of a source: what its row will say, and what the catalog has under that key, if anything.

    ``source`` is the key of the source that the row will belong to, ``item`` what quarantine calls the photo; ``known`` is the
    digest in the catalog.
    """

    key: str
    product: Product
    position: int
    path: str
    size: int
    mtime: int
    source: str
    item: str
    known: str | None = None


@dataclass(frozen=True, slots=True)
class _Read:
    """A photo after reading: digest, colours and pixels, or the reason why not. None of what is known already."""

    photo: Planned
    digest: str = ""
    pixels: NDArray[np.uint8] | None = None
    colours: bytes | None = None
    reason: str = ""


class Known:
    """Content that has a vector already and need not be encoded again; nothing, where no catalog is at hand.

    ``places`` are the rows of digests, ``described`` those of descriptions, ``coloured`` the digests that have a palette, all
    in one version of the catalog, from which vectors are read when they are wanted.
    """

    def __init__(self, store: Store | None = None, version: int = 0):
        self.store, self.version = store, version
        self.places: dict[str, int] = {}
        self.described: dict[str, int] = {}
        self.coloured: set[str] = set()

    def rows(self, places: Sequence[int]) -> dict[int, tuple[NDArray[np.float32], bytes | None]]:
        """Place → vector (dim,) and palette."""
        if not places or self.store is None:
            return {}
        rows = self.store.take(places, ["lk_vector", *(["lk_colours"] if self.coloured else [])], self.version)
        flat = rows["lk_vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(len(places), -1)
        colours = rows["lk_colours"].to_pylist() if self.coloured else [None] * len(places)
        return dict(zip(places, zip(flat, colours, strict=True), strict=True))


@dataclass(frozen=True)
class Work:
    """Planned photos → rows for the store, in whatever process: holds no encoder and no catalog, and can be sent.

    ``encoder`` is the name by which the encoder can be loaded there; ``kinds`` has each attribute's kind, for the columns.
    """

    encoder: str
    encoder_id: str
    dim: int
    photo_dim: int
    kinds: Mapping[str, str]

    def rows(
        self, encoder: Encoder, photos: Iterable[Planned], known: Known | None = None, workers: int = 1
    ) -> tuple[pa.Table, list[Quarantined]]:  # fmt: skip
        """The rows of those photos that can be used, in order, and the others with the reason; arguments as for ``blocks``."""
        tables, refused = [self.schema.empty_table()], []
        for table, problems in self.blocks(encoder, photos, known, workers):
            tables.append(table)
            refused += problems
        return pa.concat_tables(tables).combine_chunks(), refused

    def blocks(
        self, encoder: Encoder, photos: Iterable[Planned], known: Known | None = None, workers: int = 1,
        seen: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[pa.Table, list[Quarantined]]]:  # fmt: skip
        """As ``rows``, ``BATCH`` usable photos at a time; threads read and decode ahead of the encoder meanwhile.

        Args:
            encoder: the one that ``encoder`` names.
            photos: any part of a plan's photos.
            known: content that need not be encoded again.
            workers: threads that read and decode.
            seen: called after each photo that was read.

        Raises:
            EncoderMismatch: the encoder is not the one that was planned for.
        """
        if encoder.id != self.encoder_id:
            raise EncoderMismatch(
                f"planned for the encoder {self.encoder_id}, not {encoder.id}; install the same one here"
            )
        known = known or Known()
        waiting: list[_Read] = []
        refused: list[Quarantined] = []
        for read in self._read_ahead(encoder, photos, known, workers):
            if read.reason:
                refused.append(Quarantined(read.photo.item, read.reason))
            else:
                waiting.append(read)
            if len(waiting) == BATCH:
                yield self._table(encoder, waiting, known), refused
                waiting, refused = [], []
            seen()
        if waiting or refused:
            yield self._table(encoder, waiting, known), refused

    def _read_ahead(self, encoder: Encoder, photos: Iterable[Planned], known: Known, workers: int) -> Iterator[_Read]:
        """Photos read and decoded by threads, in order, at most ``AHEAD`` ahead."""
        pending: deque[Future[_Read]] = deque()
        pool = ThreadPoolExecutor(workers, "lookalike-read")
        try:
            rest = iter(photos)
            pending.extend(pool.submit(self._read, encoder, p, known) for p in itertools.islice(rest, AHEAD))
            while pending:
                result = pending.popleft().result()
                pending.extend(pool.submit(self._read, encoder, p, known) for p in itertools.islice(rest, 1))
                yield result
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _read(self, encoder: Encoder, photo: Planned, known: Known) -> _Read:
        try:
            content = images.load(photo.path)
            if os.stat(images.file_of(photo.path)).st_size != photo.size:
                # Of another machine, or changed meanwhile; a row would say that this is how it was planned.
                return _Read(photo, reason="is not the file that was planned; it is read again in the next run")
            digest = images.digest(content)
            if digest in known.coloured:
                return _Read(photo, digest)
            image = images.read(content, at_least=max(encoder.size), name=photo.path)
            pixels = None if digest in known.places else encoder.prepare(image)
            return _Read(photo, digest, pixels, palette(image).tobytes())
        except OSError as error:
            return _Read(photo, reason=f"cannot be read ({error.strerror or error})")
        except (ImageError, InputError) as error:
            return _Read(photo, reason=str(error).removeprefix(f"{photo.path}: "))

    @property
    def schema(self) -> pa.Schema:
        """The columns of the rows: the store's, then the attributes'."""
        return pa.schema([*schema(self.dim), *(pa.field(name, ARROW[kind]) for name, kind in self.kinds.items())])

    def _table(self, encoder: Encoder, reads: Sequence[_Read], known: Known) -> pa.Table:
        """Rows of what was read; vectors of photos, and of the words beside them, are made where they are not known yet."""
        photos = [r.photo for r in reads]
        said = [description(p.product.title, p.product.attributes) if self.photo_dim < self.dim else "" for p in photos]
        places = {known.places[r.digest] for r in reads if r.pixels is None}
        found = known.rows(sorted(places | {known.described[text] for text in said if text in known.described}))
        fresh = [r.pixels for r in reads if r.pixels is not None]
        texts = [text for text in dict.fromkeys(said) if text and text not in known.described]
        made = iter(encoder.encode_photos(np.stack(fresh)) if fresh else ())
        words = dict(zip(texts, encoder.encode_texts(texts) if texts else (), strict=True))
        vectors, colours = np.zeros((len(reads), self.dim), np.float32), []
        for row, read, text in zip(vectors, reads, said, strict=True):
            old, palette_of = found[known.places[read.digest]] if read.pixels is None else (next(made), None)
            row[: self.photo_dim] = old[: self.photo_dim]
            colours.append(read.colours or palette_of)
            if text:
                spoken = words[text] if text in words else found[known.described[text]][0]
                row[self.photo_dim :] = spoken[self.photo_dim :]
        columns: dict[str, Iterable[Any]] = {
            "lk_photo": (p.key for p in photos),
            "lk_id": (p.product.id for p in photos),
            "lk_position": (p.position for p in photos),
            "lk_title": (p.product.title for p in photos),
            "lk_source": (p.source for p in photos),
            "lk_path": (p.path for p in photos),
            "lk_digest": (r.digest for r in reads),
            "lk_size": (p.size for p in photos),
            "lk_mtime": (p.mtime for p in photos),
            "lk_colours": colours,
            "lk_encoder": itertools.repeat(encoder.id, len(reads)),
            **{name: [p.product.attributes.get(name) for p in photos] for name in self.kinds},
        }
        flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), self.dim)
        wanted = self.schema
        arrays = [flat if f.name == "lk_vector" else pa.array(list(columns[f.name]), f.type) for f in wanted]
        return pa.Table.from_arrays(arrays, schema=wanted)


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
    with store.writing():
        planned = Plan(store, encoder, encoder_name, source, drawn=drawn, prune=prune)
        try:
            _sync(planned, encoder, progress or (lambda done, total: None), workers or os.cpu_count() or 1)
            planned.finish()
        finally:
            planned.close()
        store.compact()
    return planned.report


def _sync(planned: Plan, encoder: Encoder, progress: Progress, workers: int) -> None:
    """Read, encode and commit what is not in the catalog as it is in the source."""
    total = len(planned.photos)
    counter = itertools.count(total - len(planned.todo))
    progress(next(counter), total)
    commits, ended = _Commits(planned), False
    try:
        for table, refused in planned.work.blocks(
            encoder, planned.todo, planned.known, workers, lambda: progress(next(counter), total)
        ):
            planned.count(table, refused)
            commits.add(table)
        ended = True
    finally:  # interrupted, too: what is encoded is kept
        commits.close(ended)


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
    with store.writing("put"):
        old = store.manifest()
        planned = Plan(store, encoder, encoder_name, source, bool(old and old.drawn), names or {})
        table, refused = planned.work.rows(encoder, planned.todo, workers=os.cpu_count() or 1)
        planned.count(table, refused)
        planned.replace(table)
        report = planned.report
        report.problems, report.quarantined = planned.quarantined, len(planned.quarantined)
        ids = [p.id for p in source.products] + sorted(source.broken)
        before = [q for q in store.quarantine() if q.source == UPLOADS]
        after = [q for q in before if not any(_about(q.item, i) for i in ids)] + planned.quarantined
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


@dataclass(frozen=True, slots=True)
class _Left:
    """A row that the plan has no photo for; ``path`` where that can matter."""

    key: str
    product: str
    source: str
    path: str


class Plan:
    """A source beside what the catalog has of it.

    ``todo`` are the photos to be read, of ``photos``, all of the source's; ``work`` makes rows of them, anywhere, and ``known``
    spares it what the catalog has. Rows whose ``Planned.known`` is None are new; the others take the place of theirs. Say
    with ``count`` what became rows; ``finish`` and, in any case, ``close`` in the end.
    """

    def __init__(
        self, store: Store, encoder: Encoder, encoder_name: str, source: Source, drawn: bool = False,
        names: Mapping[tuple[str, str], str] | None = None, prune: bool = False,
    ):  # fmt: skip
        """Compare; creates the catalog where there is none.

        The caller holds the store's write lock, from before this until after ``close``. Arguments and errors as for ``index``;
        ``names`` are those of ``put``, None is a sync.
        """
        self.start = time.monotonic()
        store.check_encoder(encoder.id, encoder_name)
        self.store, self.source, self.names, self.prune = store, source, names, prune
        self.report = Report()
        self.quarantined = list(source.quarantined)
        self.broken = set(source.broken)
        self.left: list[_Left] = []
        self.changed: set[str] = set()
        manifest, version = store.manifest(), store.version()
        if manifest is not None and not version:
            raise CatalogError(f"{store.directory}: catalog.json is here but photos.lance has no version; {MEND}")
        self.known = Known(store, version)
        kinds = self._kinds(manifest)
        self.work = Work(encoder_name, encoder.id, encoder.dim, photo_dim(encoder), kinds)
        self.photos = self._plan()
        due = self._compare(version) if version else [True] * len(self.photos)
        self.todo = [p for p, is_due in zip(self.photos, due, strict=True) if is_due]
        self.replaced = {p.key: p.known for p in self.todo if p.known is not None}
        self.report.unchanged = len(self.photos) - len(self.todo)
        self._write_manifest(drawn, getattr(encoder, "source", {}))
        if names is None and self.todo and self.known.places:
            store.hold(version)  # vectors of known content are read from it after commits of this run replaced them

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

    def _plan(self) -> list[Planned]:
        """The source's photos; attributes that do not fit their column and names that cannot be kept go to quarantine."""
        out: list[Planned] = []
        seen: set[str] = set()
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
                item = self._item(product, label, position, path)
                size, mtime = status.st_size, status.st_mtime_ns
                out.append(Planned(key, product, position, path, size, mtime, self.source.key, item))
        return out

    def _item(self, product: Product, label: str, position: int, path: str) -> str:
        """What quarantine calls a photo."""
        if self.names is not None:
            return upload_item(product.id, self.names.get((product.id, path), f"photo {position + 1}"))
        address = self.source.files.get(path)
        return f"{label}, id {product.id}: {address}" if address else path

    def _usable(self, product: Product, label: str) -> Product:
        """The product with its values in their columns' kinds; one that does not fit is left out and told."""
        values: dict[str, Value] = {}
        for name, value in product.attributes.items():
            if value is None:
                continue
            try:
                values[name] = _fitting(name, value, self.work.kinds[name])
            except ValueError as error:
                self.quarantined.append(Quarantined(f"{label}, id {product.id}", str(error)))
        title = product.title
        if not is_unicode(title):
            self.quarantined.append(
                Quarantined(f"{label}, id {product.id}", "the title is not Unicode; it is left out")
            )
            title = ""
        if title == product.title and all(
            values.get(name) == value for name, value in product.attributes.items() if value is not None
        ):
            return product  # nothing to mend: a second copy of each would double the memory
        return replace(product, attributes=values, title=title)

    def _compare(self, version: int) -> list[bool]:
        """Set the photos beside the rows of one version of the catalog: which of them are to be read?

        Raises:
            InputError: another source brought one of them, with other content; what was put one by one always moves over.
        """
        due = [True] * len(self.photos)
        at = {photo.key: n for n, photo in enumerate(self.photos)}
        owners: dict[str, str] = {}
        sources: dict[str, str] = {}  # each once, not once a row
        foreign: dict[int, str] = {}
        kinds = self.work.kinds
        texts = [n for n, kind in kinds.items() if kind == "text"] if self.work.photo_dim < self.work.dim else None
        for place, row in self._rows(version):
            digest, source = row["lk_digest"], sources.setdefault(row["lk_source"], row["lk_source"])
            title, coloured = row["lk_title"] or "", row.get("lk_colours") is not None
            if coloured or digest not in self.known.places:
                self.known.places[digest] = place
            if coloured:
                self.known.coloured.add(digest)
            if texts is not None:
                self.known.described[description(title, {n: row.get(n) for n in texts})] = place
            if self.names is not None:
                owners[row["lk_id"]] = source
            n = at.get(row["lk_photo"])
            if n is None:
                path = row["lk_path"] if self.source.unreadable else ""
                self.left.append(_Left(row["lk_photo"], row["lk_id"], source, path))
                continue
            photo = self.photos[n] = replace(self.photos[n], known=digest)
            if self.names is None and source not in (self.source.key, UPLOADS):
                foreign[n] = source
            attributes = photo.product.attributes
            moved = self.names is None and source != self.source.key
            if moved or title != photo.product.title or any(row.get(k) != attributes.get(k) for k in kinds):
                self.changed.add(photo.key)
            file = row["lk_path"], row["lk_size"], row["lk_mtime"]
            due[n] = photo.key in self.changed or not coloured or file != (photo.path, photo.size, photo.mtime)
        if self.names is not None:
            self.photos = [replace(p, source=owners.get(p.product.id, p.source)) for p in self.photos]
        self._refuse_others(foreign)
        return due

    def _rows(self, version: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Rows of the planned products and, in a sync, of this source, without their vectors: (place, row)."""
        key = self.source.key if self.names is None else None
        places = _places(self.store, version, {p.product.id for p in self.photos}, key)
        columns = [c for c in self.store.columns() if c != "lk_vector"]
        for first in range(0, len(places), COMPARED):
            part = places[first : first + COMPARED]
            yield from zip(part, self.store.take(part, columns, version).to_pylist(), strict=True)

    def _refuse_others(self, foreign: Mapping[int, str]) -> None:
        clashes = []
        for n, source in sorted(foreign.items()):
            photo = self.photos[n]
            try:
                same = images.digest(images.load(photo.path)) == photo.known
            except InputError:
                continue  # it will be quarantined when it is read
            if not same:
                clashes.append(f"{photo.product.id!r} (already from {source})")
        if clashes:
            more = f" and {len(clashes) - 5} more" if len(clashes) > 5 else ""
            raise InputError(
                f"{self.source.key}: ids that the catalog has with other content: {', '.join(clashes[:5])}{more}. "
                "Nothing was changed; remove those products first, or index into another --catalog"
            )

    def _write_manifest(self, drawn: bool, origin: dict[str, str]) -> None:
        old, work = self.store.manifest(), self.work
        if old is None:
            part = work.photo_dim if work.photo_dim < work.dim else 0
            self.store.create(
                Manifest(
                    work.encoder,
                    work.encoder_id,
                    work.dim,
                    self.source.roles,
                    dict(work.kinds),
                    drawn,
                    part,
                    source=origin,
                )
            )
        else:
            roles = {**self.source.roles, **old.roles}
            new = replace(old, roles=roles, kinds=dict(work.kinds), drawn=old.drawn and drawn)
            if new != old:
                self.store.write_manifest(new)

    # Doing

    def count(self, rows: pa.Table, refused: Sequence[Quarantined]) -> None:
        """Take down what became of photos of ``todo``: rows for the store, or nothing."""
        self.quarantined += refused
        for key, digest in zip(rows["lk_photo"].to_pylist(), rows["lk_digest"].to_pylist(), strict=True):
            if key not in self.replaced:
                self.report.added += 1
            elif self.names is None and key not in self.changed and self.replaced[key] == digest:
                self.report.unchanged += 1  # only touched: its new time is worth keeping
            else:
                self.report.updated += 1

    def commit(self, rows: pa.Table) -> None:
        """Commit rows of ``todo``: new ones, and those that take the place of others; photos that their products lost go."""
        gone = [row.key for i in set(rows["lk_id"].to_pylist()) for row in self._surplus.pop(i, ())]
        replaces = any(key in self.replaced for key in rows["lk_photo"].to_pylist())
        self.store.commit(rows, replaces=replaces, gone=gone)
        self.report.removed += len(gone)
        self.store.compact()

    @cached_property
    def _surplus(self) -> dict[str, list[_Left]]:
        """What is to be removed of each product: of those that are not had any more, all."""
        out: dict[str, list[_Left]] = {}
        ids = {p.product.id for p in self.photos} - self.broken
        hidden = tuple(self.source.unreadable)
        for row in self.left:
            # Put once, and this source's now; or, with ``prune``, what left the source.
            moved = row.source == UPLOADS and row.product in ids
            left = self.prune and row.source == self.source.key and row.product not in self.broken
            if moved or (left and not (hidden and row.path.startswith(hidden))):
                out.setdefault(row.product, []).append(row)
        return out

    def replace(self, rows: pa.Table) -> None:
        """Commit products as a whole: photos that they no longer have go."""
        made = set(rows["lk_photo"].to_pylist())
        kept = {p.key for p in self.photos} - {p.key for p in self.todo} | made
        alive = {p.product.id for p in self.photos if p.key in kept}
        gone = [p.key for p in self.todo if p.known and p.product.id in alive and p.key not in kept]
        gone += [row.key for row in self.left if row.product in alive]
        if len(rows):
            self.store.commit(rows, replaces=any(key in self.replaced for key in made), gone=gone)
            self.store.compact()
        else:
            self.store.delete(gone)
        self.report.removed = len(gone)

    def finish(self) -> None:
        """After the last commit: remove what moved here and is no longer had, and with ``prune`` what left the source."""
        gone = [row.key for rows in self._surplus.values() for row in rows]
        self.store.delete(gone)
        self.report.removed += len(gone)

    def close(self) -> None:
        """However the run ended: keep what could not be used, and complete the report."""
        self.report.problems, self.report.quarantined = self.quarantined, len(self.quarantined)
        self.report.seconds = time.monotonic() - self.start
        try:
            self.store.write_quarantine(self.source.key, self.quarantined)
        finally:
            self.store.release()


class _Commits:
    """Rows on their way into the store: committed in a thread of its own, while the next photos are encoded.

    A product is committed whole: nobody sees half of its photos as they were, and half as they are now.
    """

    def __init__(self, planned: Plan):
        self.plan = planned
        self.tables: list[pa.Table] = []
        self.since = time.monotonic()
        self.thread = ThreadPoolExecutor(1, "lookalike-commit")
        self.last: Future[None] | None = None

    def add(self, table: pa.Table) -> None:
        """Commit these rows soon. Raises what the commit before the last raised."""
        if len(table):
            self.tables.append(table)
        if sum(map(len, self.tables)) >= COMMIT_ROWS or time.monotonic() - self.since > COMMIT_SECONDS:
            self._commit()

    def _commit(self, ended: bool = False) -> None:
        tables, self.tables = self.tables, []
        try:
            if self.last is not None:
                self.last.result()  # one waits, one is written: no more are in memory
        finally:
            if tables:
                rows = pa.concat_tables(tables).combine_chunks()
                whole = len(rows) if ended else self._whole(rows["lk_id"])
                if whole < len(rows):
                    self.tables = [rows[whole:]]
                if whole:
                    self.last = self.thread.submit(self.plan.commit, rows[:whole])
            self.since = time.monotonic()

    @staticmethod
    def _whole(ids: Any) -> int:
        """Rows but for those of the last product, more of whose photos may come."""
        return len(ids) - int(np.argmin(pc.equal(ids, ids[-1]).to_numpy()[::-1])) if ids[0] != ids[-1] else 0

    def close(self, ended: bool) -> None:
        """Commit what is left, unless the run did not end and it is half a product. Raises what the last commits raised."""
        try:
            for table in self.tables[-1:]:
                last = table.slice(len(table) - 1).select(["lk_photo", "lk_id"]).to_pylist()[0]
                ended = ended or last["lk_photo"] == self._last_of(last["lk_id"])
            self._commit(ended)
            if self.last is not None:
                self.last.result()
        finally:
            while self.last is not None and not self.last.done():
                # The lock must not be let go within a commit, however often somebody interrupts.
                with contextlib.suppress(KeyboardInterrupt):
                    wait([self.last])  # no join: where that was interrupted, the next returns at once
            self.thread.shutdown(wait=True)

    def _last_of(self, identity: str) -> str:
        """The key of a product's last photo that is to be read."""
        return next(p.key for p in reversed(self.plan.todo) if p.product.id == identity)


def _places(store: Store, version: int, ids: Iterable[str], source: str | None = None) -> list[int]:
    """Where the rows of these products, and of this source, are: all ids are looked at, in blocks, and no other column."""
    wanted = pa.array(ids, pa.string())
    found = [np.empty(0, np.int64)]
    start = 0
    for block in store.scan(["lk_id"] if source is None else ["lk_id", "lk_source"], version):
        mask = pc.is_in(block["lk_id"], wanted)
        if source is not None:
            mask = pc.or_(mask, pc.equal(block["lk_source"], source))
        found.append(np.flatnonzero(mask) + start)
        start += len(block)
    places: list[int] = np.concatenate(found).tolist()
    return places


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
        version = store.version()
        places = _places(store, version, wanted)
        found = store.take(places, ["lk_photo", "lk_id"], version).to_pylist() if places else []
        missing = sorted(wanted - {row["lk_id"] for row in found})
        if missing:
            raise InputError(f"no product {missing[0]!r} in the catalog; nothing was removed")
        store.delete(row["lk_photo"] for row in found)
        store.compact()
    return len(found)


def verify(store: Store, progress: Progress | None = None) -> dict[str, Any]:
    """Compare the catalog with itself and with the files on disk.

    Returns:
        ``{"photos", "damaged": [...], "changed": [...], "missing": [...]}``: rows that cannot be trusted, and files that
        are no longer as indexed or no longer there.

    Raises:
        CatalogError: it cannot be read at all.
    """
    manifest, version = store.manifest(), store.version()
    damaged: list[str] = []
    changed: list[str] = []
    missing: list[str] = []
    keys = pa.chunked_array([block["lk_photo"] for block in store.scan(["lk_photo"], version)], pa.string())
    if len(pc.unique(keys)) != len(keys):
        damaged.append(f"{len(keys) - len(pc.unique(keys))} photos stand twice")
    done, others = 0, set()
    for rows in store.scan(store.columns(), version, COMPARED):
        if manifest:
            flat = rows["lk_vector"].flatten().to_numpy(zero_copy_only=False).reshape(len(rows), -1)
            cut = manifest.photo_dim or manifest.dim
            photo, words = (np.linalg.norm(part, axis=1) for part in np.split(flat, [cut], axis=1))
            sound = (np.abs(photo - 1) < 1e-3) & ((words == 0) | (np.abs(words - 1) < 1e-3))
            damaged += [
                f"{rows['lk_id'][int(n)].as_py()}: its vector has length {np.hypot(photo[n], words[n]):.3f}, not 1"
                for n in np.flatnonzero(~sound)[: max(0, 100 - len(damaged))]
            ]
            others |= set(pc.unique(rows["lk_encoder"]).to_pylist()) - {manifest.encoder_id}
        for path, digest in zip(rows["lk_path"].to_pylist(), rows["lk_digest"].to_pylist(), strict=True):
            if not images.file_of(path).is_file():
                missing.append(path)
            else:
                try:
                    if images.digest(images.load(path)) != digest:
                        changed.append(path)
                except InputError as error:
                    changed.append(str(error))
            done += 1
            if progress:
                progress(done, len(keys))
    damaged += [f"vectors of another encoder, {o}" for o in sorted(others)]
    return {"photos": len(keys), "damaged": damaged, "changed": changed, "missing": missing}
