"""What ``lookalike.open`` gives: one catalog with its encoder and its snapshot, for Python, the command line and the server."""

from __future__ import annotations

import contextlib
import csv
import json
import logging
import os
import re
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookalike.errors import CatalogError, InputError, LookalikeError, UsageError
from lookalike.types import Answer, Hit, ImageInput, Product, Quarantined, Query

if TYPE_CHECKING:  # imported when first needed: opening a catalog costs nothing
    from lookalike.encoders import Encoder
    from lookalike.indexing import Progress, Report
    from lookalike.segment import Stages
    from lookalike.snapshot import Snapshot
    from lookalike.sources.web import Web


log = logging.getLogger("lookalike")

EXPORTED = 50_000
"""Rows that are written at once."""

READS = 20
"""How often the latest version is looked for while it is cleaned up before it is read."""


class Catalog:
    """One catalog directory. Safe to search from several threads; writing takes the catalog's one lock."""

    def __init__(self, directory: str | Path, encoder: str | Encoder | None = None, threads: int = 0):
        """Open, or prepare to create, the catalog in ``directory``.

        Args:
            directory: a path, or an address of object storage (``s3://bucket/prefix``); made at the first ``index`` where it
                does not exist.
            encoder: a name, a directory, or an encoder; by default the one the catalog was made with, else ``builtin``.
            threads: cores that one encoding may use, 0 for all.

        Raises:
            CatalogError: the directory holds something else, or a damaged catalog.
        """
        from lookalike.store import Store

        self.store = Store(directory)
        manifest = self.store.manifest()
        self._given = encoder is not None
        self._wanted = encoder or (manifest.encoder if manifest else "builtin")
        self._threads = threads
        self._encoder: Encoder | None = None
        self._snapshot: Snapshot | None = None
        self._loading = threading.Lock()

    def __repr__(self) -> str:
        return f"<lookalike.Catalog {self.store.directory}>"

    @property
    def encoder(self) -> Encoder:
        """The encoder, loaded on first use.

        Raises:
            EncoderMismatch: the catalog's vectors were made by another one.
        """
        if self._encoder is None:
            from lookalike.encoders import load

            made = load(self._wanted, self._threads) if isinstance(self._wanted, str) else self._wanted
            self.store.check_encoder(made.id, made.name)
            self._encoder = made
        return self._encoder

    def snapshot(self, refresh: bool = True) -> Snapshot:
        """The latest version in memory; with ``refresh=False`` the one that is there already, if any."""
        current = self._snapshot
        if current is not None and (not refresh or self._is_latest(current)):
            return current
        with self._loading:
            if self._snapshot is None or not self._is_latest(self._snapshot):
                fresh = self._latest()
                made_by = fresh.manifest.encoder_id if fresh.manifest else None
                if made_by and self._encoder is not None and self._encoder.id != made_by:
                    self._encoder = None  # another catalog was put in the place of the one that was opened
                    if not self._given:
                        self._wanted = fresh.manifest.encoder if fresh.manifest else self._wanted
                self._snapshot = fresh
            return self._snapshot

    def _latest(self) -> Snapshot:
        """The latest version, read; the next one where a writer whose clock is ahead has cleaned that up meanwhile."""
        from lookalike.snapshot import Snapshot

        for _ in range(READS):
            tried = self.store.stamp()[0]
            try:
                return Snapshot(self.store, self._snapshot)
            except CatalogError:
                if self.store.version() == tried:
                    raise
                time.sleep(0.1)
        return Snapshot(self.store, self._snapshot)

    @property
    def loaded(self) -> bool:
        """Whether a version is in memory, so that ``snapshot(refresh=False)`` takes no time."""
        return self._snapshot is not None

    def _is_latest(self, snapshot: Snapshot) -> bool:
        from lookalike import segment

        return self.store.stamp() == snapshot.stamp and segment.latest(self.store.cache) == snapshot.generation

    def whole(self) -> Snapshot:
        """The latest version read anew, all of it into memory, its products in order of id and nothing else: to evaluate it."""
        from lookalike.snapshot import Snapshot

        return Snapshot(self.store, whole=True)

    # Searching

    def search(
        self, text: str = "", *, image: ImageInput | None = None, like: str | Sequence[str] = (),
        not_text: str | Sequence[str] = (), not_like: str | Sequence[str] = (), where: str = "", k: int = 12,
        crop: Sequence[float] | None = None, weights: Mapping[str, float] | None = None, lexical: float = 0.0,
        pure: bool = False, colour: str = "", up: str | Sequence[str] = (), down: str | Sequence[str] = (),
        fold: bool = False, diversity: float = 0.0, sort: str = "", offset: int = 0,
    ) -> tuple[Hit, ...]:  # fmt: skip
        """The ``k`` products most alike, best first; the arguments are those of ``Query``.

        Raises:
            UsageError: nothing to search for, a broken filter, a value out of range.
            ImageError: the photo cannot be used.
            NotFound: a product in ``like`` is not in the catalog.
        """
        query = Query(
            image, text or "", _several(like), _several(not_text), _several(not_like), where or "", k, crop, weights or {},
            lexical, pure, colour, _several(up), _several(down), fold, diversity, sort, offset,
        )  # fmt: skip
        return self.answer(query).hits

    def answer(self, query: Query, refresh: bool = True) -> Answer:
        """As ``search``, with the number of products that pass the filter and the time taken."""
        from lookalike.search import search

        return search(self.snapshot(refresh), self.encoder, query)

    def tag(self, image: ImageInput, crop: Sequence[float] | None = None, refresh: bool = True) -> dict[str, Any]:
        """What the catalog's products say of a photo.

        Returns:
            ``{"tags": [{"column", "role", "values": [{"value", "confidence"}, …]}, …], "box": [x0, y0, x1, y1] or None,
            "colours": [{"hex", "share"}, …]}``; ``box`` is where the garment lies on the whole photo, in fractions, where
            the background is plain.

        Raises:
            ImageError: the photo cannot be used.
            UsageError: the crop is no part of it.
        """
        from lookalike import colours, images, insights

        whole = images.read(image, at_least=max(self.encoder.size))
        photo = whole if crop is None else images.crop(whole, crop)
        snapshot = self.snapshot(refresh)
        vector = self.encoder.encode_photos(self.encoder.prepare(photo)[None])[0]
        near = insights.neighbours(snapshot, vector)
        box = colours.box(whole)
        return {
            "tags": insights.tags(snapshot, near),
            "box": None if box is None else [round(v, 4) for v in box],
            "colours": [
                {"hex": colours.shown(c), "share": round(float(c[3]) / 255, 3)} for c in colours.palette(photo) if c[3]
            ],
        }

    def duplicates(
        self, threshold: float | None = None, *, where: str = "", progress: Progress | None = None, refresh: bool = True
    ) -> list[dict[str, Any]]:
        """Groups of products whose photos show the same: ``[{"score", "products": [{"id", "title", "photo"}, …]}, …]``.

        ``threshold`` is a cosine, 0.9 … 1; see ``insights.duplicates``. Raises UsageError where it or the filter is wrong.
        """
        from lookalike import insights
        from lookalike import where as filters

        snapshot = self.snapshot(refresh)
        mask = snapshot.mask(filters.parse(where) if where.strip() else None)
        least = insights.NEAR_DUPLICATE if threshold is None else threshold
        return [
            {"score": round(g.score, 4), "products": [snapshot.small(f) for f in g.products]}
            for g in insights.duplicates(snapshot, least, mask, progress)
        ]

    # Writing

    def index(
        self, source: Any, *, roles: Mapping[str, str] | None = None, product_from: str = "photo", prune: bool = False,
        drawn: bool = False, progress: Progress | None = None, download: bool | Web = False, stages: Stages | None = None,
        ray: str = "",
    ) -> Report:  # fmt: skip
        """Bring the catalog in step with a source: a path, a DataFrame, an iterable of ``Product``, or an opened source.

        Args:
            source: also an address, with ``download``.
            roles: role → column of a table.
            product_from: ``photo`` or ``folder``.
            prune: remove what the catalog has from this source and the source no longer has.
            drawn: mark the catalog as drawings rather than photos.
            progress: called with photos done and photos in all.
            download: fetch what is given by its address; a ``Web`` (see ``web``) says more about how.
            stages: as ``progress`` of ``reindex``, which follows where the index of a large catalog fell behind.
            ray: the address of a Ray cluster that does the work; see ``cluster.index``.

        Raises:
            InputError: the source cannot be used, or contradicts the catalog; nothing was changed.
            CatalogError: the catalog cannot be written.
        """
        from lookalike import images, indexing
        from lookalike.sources import Source, open_source

        forced(), memory()  # wrong settings are told before the work
        web = self.web() if download is True else download or None
        found = source if isinstance(source, Source) else open_source(source, roles, product_from, web)
        name = self.encoder.name
        if ray:
            from lookalike import cluster

            report = cluster.index(
                self.store, self.encoder, name, found, ray, prune=prune, drawn=drawn, progress=progress
            )
        else:
            report = indexing.index(self.store, self.encoder, name, found, prune=prune, drawn=drawn, progress=progress)
        if prune and web is not None and web.cache == self._downloads:
            web.clean(keep=(images.split(p)[0] for p in self.store.rows(["lk_path"])["lk_path"].to_pylist()))
        try:
            if self.behind():
                self.reindex(progress=stages)
        except LookalikeError as error:  # the photos are there all the same
            log.warning("the index is as it was, what is new is scanned beside it: %s", error)
        return report

    @property
    def _downloads(self) -> Path:
        return self.store.local.absolute() / "downloads"

    def web(
        self, allow_hosts: Iterable[str] = (), cache: str | Path | None = None, progress: Progress | None = None
    ) -> Web:
        """What fetches addresses for this catalog, guarded; see ``sources.web``.

        Args:
            allow_hosts: names of own servers that may have private addresses: ``images.local``, ``images.local:8080``.
            cache: where fetched files are kept; by default ``downloads`` in the catalog's directory, or in its local
                cache where it is on object storage.
            progress: called with photos fetched and photos in all.

        Raises:
            UsageError: a name of a host that is none.
        """
        from lookalike.sources.web import Web

        return Web(cache or self._downloads, allow_hosts, progress)

    def put(
        self, products: Iterable[Product], *, quarantined: Sequence[Quarantined] = (),
        names: Mapping[tuple[str, str], str] | None = None,
    ) -> Report:  # fmt: skip
        """Add products, or put them in the place of those with the same ids, in one commit; see ``indexing.put``.

        ``quarantined`` are photos that did not even get as far as a file; ``names`` says what others are called there.

        Raises:
            InputError: two products of one id, a value that no column can hold; nothing was changed.
            CatalogError: the catalog cannot be written.
        """
        from lookalike import indexing
        from lookalike.sources import from_products

        labelled = [replace(p, where=p.where or "upload") for p in products]
        source = from_products(labelled)
        source.key = indexing.UPLOADS
        told = [q.item for q in quarantined]
        empty = [i for i in map(indexing.upload_item, sorted(source.broken)) if not any(t.startswith(i) for t in told)]
        source.quarantined = [*quarantined, *(Quarantined(i, "the product has no photo") for i in empty)]
        return indexing.put(self.store, self.encoder, self.encoder.name, source, names)

    def remove(self, *ids: str) -> int:
        """Remove products; returns how many photos went. Raises InputError where one is not there."""
        from lookalike import indexing

        self._existing()
        return indexing.remove(self.store, ids)

    def compact(self) -> None:
        """Merge small files and drop old versions; it is done while indexing, too."""
        self._existing()
        with self.store.writing("compact"):
            self.store.compact(force=True)

    def reindex(self, kind: str = "", progress: Stages | None = None) -> dict[str, Any]:
        """Make the index anew, beside the one that answers meanwhile; see ``segment.make``.

        Args:
            kind: ``auto`` (by size and memory), ``exact``, ``int8``, ``lsh``, ``hnsw`` or ``ivf``; by default as it was asked
                for last, else ``auto``.
            progress: called with the name of a stage, and how much of it is done and is to do.

        Raises:
            UsageError: no such kind, or what it needs is not installed.
            CatalogLocked: another process is at it.
            CatalogError: the catalog cannot be read, or the files cannot be written.
        """
        from lookalike import segment
        from lookalike.indexes.base import KINDS

        self._existing()
        if kind not in ("", "auto", *KINDS):
            raise UsageError(f"index {kind!r}: no such kind; there are auto, {', '.join(KINDS)}")
        texts = self.encoder.encode_texts if self.encoder.reads_text else None
        return segment.make(self.store, kind or forced(), memory(), texts, progress)

    def behind(self) -> bool:
        """Whether the index should be made anew: none for a large catalog, or much has changed since it was."""
        from lookalike import segment

        if not self.store.exists:
            return False
        if segment.latest(self.store.cache) is None:
            now = self._snapshot
            many = len(now.photos) if now is not None else self.store.dataset().count_rows()
            return bool(forced()) or many >= segment.SAVED_FROM
        return self.snapshot().base.directory is None or self.snapshot().outgrown

    # Reporting

    def status(self, refresh: bool = True) -> dict[str, Any]:
        """What the catalog holds, and which encoder made it."""
        snapshot = self.snapshot(refresh)
        manifest = snapshot.manifest
        roles = {column: role for role, column in (manifest.roles if manifest else {}).items()}
        kinds = manifest.kinds if manifest else {}
        made_by = None
        if manifest:
            made_by = {
                "name": manifest.encoder,
                "id": manifest.encoder_id,
                "dim": manifest.dim,
                "source": manifest.source,
            }
        return {
            "catalog": str(self.store.directory),
            "products": len(snapshot),
            "photos": snapshot.photo_count,
            "quarantined": len(self.store.quarantine()),
            "catalog_version": snapshot.version,
            "drawn": bool(manifest and manifest.drawn),
            "colours": snapshot.has_colours,
            "encoder": made_by,
            "index": self._index(snapshot),
            "columns": [
                {"name": c, "kind": kinds.get(c, "text"), "role": roles.get(c)}
                for c in snapshot.attributes.column_names
            ],
        }

    def _index(self, snapshot: Snapshot) -> dict[str, Any]:
        """What ``status`` says of the index: its kind, how it was chosen, what it finds, and what it does not hold yet."""
        from lookalike.segment import SAVED_FROM

        base = snapshot.base
        small = len(base) < SAVED_FROM
        why = "a catalog of this size is scanned whole" if small else "no index yet; make one: lookalike reindex"
        told = {
            "kind": base.index.kind if base.index is not None else "exact",
            "why": base.made.get("why", why),
            "photos": len(base),
            "newer": 0 if snapshot.delta is None else len(snapshot.delta),
            "version": base.version,
        }
        settings = base.made.get("settings", {})
        return {**told, "settings": settings} if settings else told

    def quarantine(self) -> list[Quarantined]:
        """What could not be used in the last run over each source, with the reason."""
        return self.store.quarantine()

    def verify(self, progress: Progress | None = None) -> dict[str, Any]:
        """Check rows, vectors and files; see ``indexing.verify``."""
        from lookalike import indexing

        self._existing()
        return indexing.verify(self.store, progress)

    def export(self, file: str | Path, *, vectors: bool = False) -> int:
        """Write one row per photo to .csv, .jsonl or .parquet, ordered by id and position; returns the rows written.

        Two catalogs of the same content give the same bytes: no times are written, and vectors only where asked for
        (not to CSV).

        Raises:
            InputError: another suffix, or vectors to CSV.
        """
        import pyarrow.compute as pc

        self._existing()
        path = Path(file)
        suffix = path.suffix.lower()
        if suffix not in (".csv", ".jsonl", ".parquet") or (vectors and suffix == ".csv"):
            raise InputError(f"{path}: export to .csv, .jsonl or .parquet (vectors not to .csv)")
        rows = self.store.rows([c for c in self.store.columns() if vectors or c != "lk_vector"])
        order = pc.sort_indices(rows, [("lk_id", "ascending"), ("lk_position", "ascending")])
        manifest = self.store.manifest()
        ours = {
            "id": "lk_id",
            "position": "lk_position",
            "title": "lk_title",
            "image": "lk_path",
            "digest": "lk_digest",
        }
        kinds = manifest.kinds if manifest else {}
        attributes = sorted(c for c in kinds if c in rows.column_names and rows[c].null_count < len(rows))
        columns = {**ours, **{c if c not in ours else f"{c}_": c for c in attributes}}
        if vectors:
            columns["vector"] = "lk_vector"
        table = rows.select(list(columns.values())).rename_columns(list(columns))
        part = path.with_name(path.name + ".part")
        try:
            _write(table, order, part, suffix)
            part.replace(path)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
        finally:
            part.unlink(missing_ok=True)
        return len(table)

    def backup(self, file: str | Path, *, overwrite: bool = False, progress: Progress | None = None) -> dict[str, Any]:
        """Write the catalog as it is now to one file, also while somebody writes to it; see ``backup.backup``.

        Raises:
            InputError: the file is there already and ``overwrite`` is not set, or it cannot be written.
            CatalogError: the catalog cannot be read.
        """
        from lookalike import backup

        self._existing()
        return backup.backup(self.store, file, overwrite=overwrite, progress=progress)

    def product(self, identity: str, refresh: bool = True) -> dict[str, Any]:
        """One product: ``{"id", "title", "photos": [photo ids], "attributes"}``. Raises NotFound."""
        snapshot = self.snapshot(refresh)
        n = snapshot.product(identity)
        return {
            "id": identity,
            "title": snapshot.titles[n],
            "photos": [snapshot.photos[r] for r in snapshot.rows(n)],
            "attributes": snapshot.attributes_of([n])[0],
        }

    def _existing(self) -> None:
        if not self.store.exists:
            raise CatalogError(f"{self.store.directory}: no catalog there; make one: lookalike index SOURCE")


def forced() -> str:
    """The kind of index that ``LOOKALIKE_INDEX`` asks for, "" where it does not. Raises UsageError where it is none."""
    from lookalike.indexes.base import KINDS

    said = os.environ.get("LOOKALIKE_INDEX", "").strip().lower()
    if said not in ("", "auto", *KINDS):
        raise UsageError(f"LOOKALIKE_INDEX is {said!r}; it takes auto, {', '.join(KINDS)}")
    return said


def memory() -> int:
    """Bytes that searching may use: ``LOOKALIKE_MEMORY`` (``4GB``, ``512 MB``, bytes), else half of what the machine has.

    Raises:
        UsageError: the variable is no size.
    """
    said = os.environ.get("LOOKALIKE_MEMORY", "").strip()
    if said:
        found = re.fullmatch(r"(\d+\.?\d*)\s*([kmgt]?)i?b?", said.casefold())
        size = int(float(found[1]) * 1000 ** " kmgt".index(found[2] or " ")) if found else 0
        if size <= 0:
            raise UsageError(f"LOOKALIKE_MEMORY is {said!r}; write a size, such as 4GB")
        return size
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows does not tell
        size = 8 * 1000**3
    with contextlib.suppress(OSError, ValueError):  # what a container may have
        size = min(size, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return size // 2


def _several(value: str | Sequence[str]) -> Sequence[str]:
    return [value] if isinstance(value, str) else value


def _write(table: Any, order: Any, path: Path, suffix: str) -> None:
    """The rows of a table in an order, some at a time."""
    from lookalike.snapshot import number
    from lookalike.sources.table import guarded

    parts = (table.take(order[start : start + EXPORTED]) for start in range(0, max(1, len(order)), EXPORTED))
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        with pq.ParquetWriter(path, table.schema, compression="zstd") as file:
            for part in parts:
                file.write_table(part)
        return
    with path.open("w", encoding="utf-8", newline="") as text:
        writer = csv.writer(text)
        if suffix == ".csv":
            writer.writerow([guarded(name) for name in table.column_names])
        for part in parts:
            for row in part.to_pylist():
                if suffix == ".csv":
                    writer.writerow(["" if v is None else guarded(number(v)) for v in row.values()])
                else:
                    text.write(json.dumps({k: number(v) for k, v in row.items()}, ensure_ascii=False) + "\n")
