"""The durable catalog: one directory, one row per photo, in Lance format (https://lancedb.github.io/lance/).

DIR is a local directory or a prefix of an object store (``objects.py``).

    DIR/catalog.json      format version, encoder, column roles; written once, replaced whole
    DIR/photos.lance/     the rows: product, photo, attributes, vector
    DIR/quarantine.json   what could not be used, and why; replaced whole
    DIR/uploads/          photos that came over HTTP, named by their digests
    DIR/keys.json         API keys, as hashes (``server.keys``)
    DIR/feedback.jsonl    votes (``feedback``)
    DIR/downloads/        photos fetched from the web (``sources/web.py``)
    DIR/index/            files derived from the rows, to search large catalogs (``segment``)
    DIR/writer.lock       held (by the operating system) while somebody writes; writer.json names who, and is the lock itself
                          on object storage

Knows nothing of images, encoders or searches. Lance itself never calls fsync, and two writers can duplicate keys: each
commit here is made durable before it is acknowledged, and is made under one lock. What an object store has acknowledged is
durable.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta, timezone
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote

import pyarrow as pa

from lookalike import objects
from lookalike.errors import CatalogError, CatalogLocked, EncoderMismatch, InputError
from lookalike.types import Quarantined

# On two cores or fewer Lance gives its arithmetic one thread, on which making an index of ten million vectors stood still for
# good; with more of them it does not. Read when Lance is first used.
os.environ.setdefault("LANCE_CPU_THREADS", str(max(4, os.cpu_count() or 1)))

T = TypeVar("T")
log = logging.getLogger("lookalike")

FORMAT = 1
"""Version of the layout above; a catalog of a later format is refused."""

COLOURS = 16
"""Bytes of a palette: four colours, each red, green, blue and its share."""

PREFIX = "lk_"
"""Columns of ours begin so; all others are the source's attributes under their own names."""

COMPACT_AT, SMALLEST = 24, 1024
"""So many fragments of like size are merged into one: small commits slow every later read. Sizes are alike below ``SMALLEST``
rows, then up to ``COMPACT_AT`` times as many, then up to its square times as many, 0.6 million; larger ones stay as they are.
A row is rewritten once per size, however large the catalog."""

BLOCK = 262_144
"""Rows of a block that ``scan`` gives, where nothing else is said."""

HELD = "indexing"
"""Lance's tag of the version that a run reads from while its commits replace rows."""

BACKUP, BACKUP_SECONDS = "backup-", 86_400
"""Tags of versions that backups read from begin so, then comes the time in seconds; one that is so old was killed."""

KEEP_VERSIONS = timedelta(minutes=10)
"""Readers of an older version go on reading it for this long."""

MANY_VERSIONS = 100
"""More versions than that are looked through for old ones, every ``COMPACT_AT`` commits, where nothing is to be merged."""

STAMP_SECONDS = 1.0
"""How long a stamp on object storage is held to be true, where a look costs two requests."""


def schema(dim: int) -> pa.Schema:
    """Our columns; ``lk_photo`` is the key, ``lk_vector`` a unit vector of ``dim`` float32 made by ``lk_encoder``.

    ``lk_colours`` is the palette of ``colours.palette``; null in catalogs from before there was one. Where the manifest has a
    ``photo_dim``, the vector is two beside each other, of length 1 each: the photo's, and that of the product's words (zeros
    where it has none).
    """
    return pa.schema(
        [
            pa.field("lk_photo", pa.string(), nullable=False),
            pa.field("lk_id", pa.string(), nullable=False),
            pa.field("lk_position", pa.int32(), nullable=False),
            pa.field("lk_title", pa.string()),
            pa.field("lk_source", pa.string(), nullable=False),
            pa.field("lk_path", pa.string(), nullable=False),
            pa.field("lk_digest", pa.string(), nullable=False),
            pa.field("lk_size", pa.int64(), nullable=False),
            pa.field("lk_mtime", pa.int64(), nullable=False),
            pa.field("lk_colours", pa.binary(COLOURS)),
            pa.field("lk_encoder", pa.string(), nullable=False),
            pa.field("lk_vector", pa.list_(pa.float32(), dim), nullable=False),
        ]
    )


@dataclass(frozen=True)
class Manifest:
    """What ``catalog.json`` holds.

    ``roles`` maps a role (``id``, ``title``, ``image``, ``category``, ``colour``, ``gender``, ``price``) to the source's
    own column name; ``kinds`` maps an attribute to ``text``, ``number`` or ``flag``. ``photo_dim`` is how many of a vector's
    values are the photo's where the rest is the product's words; 0 where all are. ``source`` says where the encoder's
    weights came from: ``hub`` and ``revision`` or ``file``, ``licence``.
    """

    encoder: str
    encoder_id: str
    dim: int
    roles: Mapping[str, str] = field(default_factory=dict)
    kinds: Mapping[str, str] = field(default_factory=dict)
    drawn: bool = False
    photo_dim: int = 0
    format: int = FORMAT
    source: Mapping[str, str] = field(default_factory=dict)


ARROW = {"text": pa.string(), "number": pa.float64(), "flag": pa.bool_()}


class Store:
    """One catalog. Reading needs no lock; writing happens inside ``with store.writing():``.

    ``directory`` is its path, or its address; ``local`` the directory here for what is no part of it but belongs to it.
    """

    def __init__(self, directory: str | Path):
        """Open, or prepare to create.

        Raises:
            CatalogError: the directory holds something else, cannot be read, or is an address of a kind that is not known.
            UsageError: an address, while obstore is not installed.
        """
        self.folder = objects.at(directory)
        self._stamp: tuple[float, tuple[int, int, int]] | None = None
        self._lease = objects.Lock()
        self._held: set[str] = set()
        if isinstance(self.folder, objects.Remote):
            self.directory: Path | str = self.folder.address
            self.local = objects.cache(self.folder.address)
            self.photos: Path | str = f"{self.folder.address}/photos.lance"
            self.options: dict[str, str] | None = self.folder.options
            return
        self.directory = self.local = self.folder.path
        # Absolute, because Lance would take the "a:" of a relative a:b for a protocol.
        self.photos = self.directory.absolute() / "photos.lance"
        self.options = None
        with self.errors(reading=True):
            if self.directory.exists() and not self.directory.is_dir():
                raise CatalogError(f"{self.directory}: a file, not a catalog directory; give another --catalog")
            if self.directory.is_dir() and not self.exists and self._foreign(self._entries()):
                raise CatalogError(_NOT_OURS.format(self.directory))

    @property
    def cache(self) -> Path:
        """The local directory of what is derived from the rows, and can be made again."""
        return self.local.absolute() / "index"

    @property
    def remote(self) -> bool:
        """Whether it is on object storage."""
        return isinstance(self.folder, objects.Remote)

    @staticmethod
    def _foreign(names: set[str]) -> set[str]:
        """What is no part of a catalog that is yet to be made; nothing where there is one."""
        if _MANIFEST in names:  # made since it was looked for
            return set()
        # A writer that was killed leaves a part; votes and keys may be there before the first photo is.
        names = {n.removesuffix(".part") for n in names}
        return {n for n in names - _OURS if not n.startswith(("keys-writer.", "writer.try-"))}

    @property
    def exists(self) -> bool:
        """Whether anything was ever committed here."""
        with self.errors(reading=True):
            return self.folder.stamp(_MANIFEST) is not None

    def manifest(self) -> Manifest | None:
        """The manifest, or None for a catalog that does not exist yet.

        Raises:
            CatalogError: ``catalog.json`` is damaged, or of a later format.
        """
        file = self.folder.where(_MANIFEST)
        try:
            text = self.folder.read(_MANIFEST)
            if text is None:
                return None
            content = json.loads(text.decode("utf-8"))
            if content.get("format", 0) > FORMAT:
                raise CatalogError(
                    f"{self.directory}: of format {content['format']}, this version reads up to {FORMAT}; upgrade lookalike"
                )
            if not isinstance(content["roles"], dict) or not isinstance(content["kinds"], dict):
                raise ValueError("roles and kinds must be objects")
            return Manifest(**content)
        except OSError as error:
            raise CatalogError(f"{file}: cannot be read ({error.strerror}); check its permissions") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CatalogError(f"{file}: damaged ({error}); {MEND}") from error

    def create(self, manifest: Manifest) -> None:
        """Make an empty catalog: the empty table first, so that a catalog with a manifest always has one.

        Raises:
            CatalogError: rows without a manifest lie here, or the directory cannot be written.
        """
        self.create_rows(manifest.dim)
        self.write_manifest(manifest)

    def create_rows(self, dim: int) -> None:
        """The empty table alone: until there is a manifest, nobody takes it for a catalog. Errors as for ``create``."""
        import lance

        with self.errors():
            if self._entries("photos.lance"):  # left by a creation that was killed, unless it holds rows
                held = (
                    self.version() > 1
                )  # the first is empty, and where a later one is, rows may be, readable now or not
                if not held:
                    with contextlib.suppress(ValueError, OSError):
                        held = bool(lance.dataset(str(self.photos), storage_options=self.options).count_rows())
                if held:
                    raise CatalogError(f"{self.directory}: photos.lance is here but catalog.json is gone; {MEND}")
                self._discard("photos.lance")
            empty = schema(dim).empty_table()
            lance.write_dataset(empty, str(self.photos), mode="create", storage_options=self.options)
            if not self.remote:  # made now, by whom it belongs to, and not by the first backup, which root may make
                (Path(self.photos) / "_refs" / "tags").mkdir(parents=True)
            self._make_durable(set())

    def write_manifest(self, manifest: Manifest) -> None:
        """Replace ``catalog.json``, durably."""
        with self.errors():
            self.folder.replace(_MANIFEST, json.dumps(asdict(manifest), indent=2, ensure_ascii=False))

    def check_encoder(self, encoder_id: str, name: str = "") -> None:
        """Refuse vectors of another encoder; ``name`` is what this one was asked for by.

        Raises:
            EncoderMismatch: the catalog was made by another one, or by this one with other weights.
        """
        manifest = self.manifest()
        if manifest and manifest.encoder_id != encoder_id:
            mend = f"use --encoder {manifest.encoder}, or"
            if name == manifest.encoder:
                told = ", ".join(
                    f"{key} {manifest.source[key]}" for key in ("hub", "revision") if key in manifest.source
                )
                mend = f"its weights are others now: bring those back{told and f' ({told})'}, or"
                if name == "builtin":
                    mend = "Lookalike's model is another one now: install the version that made them, or"
            raise EncoderMismatch(
                f"{self.directory}: its vectors were made by {manifest.encoder_id}, not by {encoder_id}; "
                f"{mend} index into another --catalog"
            )

    # Reading

    def dataset(self, version: int = 0) -> Any:
        """The rows at a version, by default their latest (``lance.LanceDataset``).

        Raises:
            CatalogError: the rows cannot be opened.
        """
        import lance

        with self.errors(reading=True):
            dataset = lance.dataset(str(self.photos), storage_options=self.options)
            gone = set(schema(1).names) - {"lk_colours"} - set(dataset.schema.names)  # catalogs from before colours
            if gone:  # a manifest of zeros opens as a table without columns
                raise ValueError(f"photos.lance lacks the columns {', '.join(sorted(gone))}")
            return dataset.checkout_version(version) if version and version != dataset.version else dataset

    def mark(self, version: int) -> str:
        """A digest of the names of a version's files, which no other catalog has. Errors as for ``rows``."""
        with self.errors(reading=True):
            files = [f.path for fragment in self.dataset(version).get_fragments() for f in fragment.metadata.files]
        return hashlib.blake2b("\n".join(files).encode(), digest_size=8).hexdigest()

    def version(self) -> int:
        """Version of the latest commit; 0 where there is none. Costs one listing of a directory."""
        with self.errors(reading=True):
            names = [e.removesuffix(".manifest") for e in self._entries("photos.lance/_versions")]
        # Lance counts down from 2⁶⁴ − 1, so that the latest sorts first.
        return max((2**64 - 1 - int(n) for n in names if n.isdigit()), default=0)

    def stamp(self) -> tuple[int, int, int]:
        """Changes with every commit, and when another catalog is put in this one's place.

        On object storage others' changes are seen ``STAMP_SECONDS`` later at most.
        """
        if self._stamp is not None and time.monotonic() - self._stamp[0] < STAMP_SECONDS:
            return self._stamp[1]
        looked = time.monotonic()
        try:
            manifest = self.folder.stamp(_MANIFEST)
        except OSError:
            manifest = None
        if manifest is None:
            return 0, 0, 0
        found = (self.version(), manifest[0], manifest[1])
        if self.remote:
            self._stamp = looked, found
        return found

    def _entries(self, name: str = "") -> set[str]:
        """Names in a directory of the catalog; none where it does not exist."""
        if isinstance(self.folder, objects.Remote):
            return self.folder.entries(name and f"{name}/")
        try:
            with os.scandir(self.folder.path / name) as entries:
                return {e.name for e in entries}
        except FileNotFoundError:
            return set()

    def _discard(self, name: str) -> None:
        if isinstance(self.folder, objects.Remote):
            self.folder.delete(self.folder.under(f"{name}/"))
        else:
            shutil.rmtree(self.folder.path / name)

    def rows(self, columns: list[str] | None = None, version: int | None = None) -> pa.Table:
        """Rows as Arrow; an empty table with our columns where the catalog does not exist yet.

        Raises:
            CatalogError: the rows cannot be read.
        """
        if self.manifest() is None:
            empty = schema(1).empty_table()
            return empty.select(columns) if columns else empty
        with self.errors(reading=True):
            table = self.dataset(version or 0).to_table(columns=[_on_disk(c) for c in columns] if columns else None)
            return table.rename_columns([unquote(c) for c in table.column_names])

    def scan(self, columns: list[str], version: int | None = None, block: int = BLOCK) -> Iterator[pa.RecordBatch]:
        """Some columns of all rows, at most ``block`` at a time, in the order of their places. Errors as for ``rows``."""
        if self.exists:
            with self.errors(reading=True):
                for rows in self.dataset(version or 0).to_batches(
                    columns=[_on_disk(c) for c in columns], batch_size=block
                ):
                    yield rows.rename_columns([unquote(c) for c in rows.schema.names])

    def take(self, places: Sequence[int], columns: list[str], version: int) -> pa.Table:
        """Rows by their places in a version, which are 0 … in the order of ``scan``. Errors as for ``rows``."""
        with self.errors(reading=True):
            table = self.dataset(version or 0).take(list(places), columns=[_on_disk(c) for c in columns])
            return table.rename_columns([unquote(c) for c in table.column_names])

    def columns(self, version: int = 0) -> list[str]:
        """Names of all columns at a version, by default the latest; ours where the catalog does not exist yet."""
        return [unquote(c) for c in self.dataset(version).schema.names] if self.exists else schema(1).names

    def quarantine(self) -> list[Quarantined]:
        """What could not be used in the last run over each source."""
        found = self._quarantine().items()
        return [Quarantined(e["item"], e["reason"], source) for source, entries in found for e in entries]

    def _quarantine(self) -> dict[str, list[dict[str, str]]]:
        file = self.folder.where(_QUARANTINE)
        try:
            text = self.folder.read(_QUARANTINE)
            content: dict[str, list[dict[str, str]]] = json.loads(text.decode("utf-8")) if text is not None else {}
            for entries in content.values():
                [(e["item"], e["reason"]) for e in entries]
        except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
            raise CatalogError(f"{file}: damaged ({error}); remove it and index again, it is made anew") from error
        return content

    # Writing

    @contextlib.contextmanager
    def writing(self, purpose: str = "index") -> Iterator[None]:
        """Hold the catalog's one write lock; on object storage a lease, which each write checks.

        Raises:
            CatalogLocked: another process holds it; the message names it.
            CatalogError: the directory cannot be written.
        """
        with contextlib.ExitStack() as stack:
            with self.errors():
                if self.remote and not self.exists and self._foreign(self._entries()):
                    raise CatalogError(_NOT_OURS.format(self.directory))
                try:
                    self._lease = stack.enter_context(self.folder.lock("writer", purpose))
                except objects.Busy as busy:
                    raise CatalogLocked(
                        f"{self.directory}: {busy} is writing to it; wait for that to end, or stop it, and try again"
                    ) from None
            try:
                yield
            finally:
                self._lease = objects.Lock()

    def commit(self, rows: pa.Table, *, replaces: bool, gone: Iterable[str] = ()) -> None:
        """Add rows, or put them in the place of those with the same ``lk_photo`` where ``replaces``: one atomic commit.

        ``gone`` has the ``lk_photo`` keys of rows that are removed in the same commit.

        On return the rows are on the disk. Raises CatalogError (disk full, not writable), and then nothing has changed.
        """
        import lance

        dataset = self.dataset()
        with self.errors():
            before = self._files()
            rows = rows.rename_columns([_on_disk(c) for c in rows.column_names])
            _widen(dataset, rows.schema)
            gone = sorted(gone)
            if replaces or gone:
                merge = dataset.merge_insert("lk_photo").when_matched_update_all().when_not_matched_insert_all()
                if gone:
                    merge = merge.when_not_matched_by_source_delete(_among(gone))
                merge.execute(_with_all(rows, dataset.schema))
            else:
                lance.write_dataset(rows, str(self.photos), mode="append", storage_options=self.options)
            self._make_durable(before)

    def widen(self, wanted: pa.Schema) -> None:
        """Add the columns that are missing, so that rows of this schema can be written by others, too."""
        dataset = self.dataset()
        with self.errors():
            before = self._files()
            _widen(dataset, pa.schema([f.with_name(_on_disk(f.name)) for f in wanted]))
            self._make_durable(before)

    def write(self, rows: pa.Table) -> list[str]:
        """Write rows that no version has until ``append``, on any machine and under no lock; durable as those of ``commit``.

        Returns:
            Lance's fragments, as JSON. What is never appended is removed by a later compaction, after seven days.
        """
        from lance.fragment import write_fragments

        dataset = self.dataset()
        with self.errors():
            rows = rows.rename_columns([_on_disk(c) for c in rows.column_names])
            made = write_fragments(_with_all(rows, dataset.schema), dataset, storage_options=self.options)
            if not self.remote:
                data = Path(self.photos) / "data"
                for path in [*(data / file.path for fragment in made for file in fragment.files), data]:
                    objects.fsync(path)
            return [json.dumps(fragment.to_json()) for fragment in made]

    def append(self, fragments: Mapping[str, str]) -> None:
        """Add what ``write`` wrote, which must be done but once: one atomic, durable commit.

        Args:
            fragments: what ``write`` gave, and the name of the machine that it was called on.

        Raises:
            InputError: a machine's files are not here: by this name it finds another directory. Nothing was added.
            CatalogError: as for ``commit``.
        """
        import lance

        dataset = self.dataset()
        with self.errors():
            before = self._files()
            made = {text: lance.FragmentMetadata.from_json(text) for text in fragments}
            for text, missing in self._missing(made).items():
                raise InputError(
                    f"{fragments[text]} writes to another directory or bucket of the name {self.directory} ({missing} is not "
                    "here); give the catalog as an address (s3://…), or in a folder that every machine shares"
                )
            added = lance.LanceOperation.Append(list(made.values()))
            lance.LanceDataset.commit(
                str(self.photos), added, read_version=dataset.version, storage_options=self.options
            )
            self._make_durable(before)

    def _missing(self, made: Mapping[str, Any]) -> dict[str, str]:
        """Fragments that have a file which is not here, and that file: Lance would commit them all the same."""
        here = self._entries("photos.lance/data") if self.remote else set()
        data = Path(self.photos) / "data"
        return {
            text: file.path
            for text, fragment in made.items()
            for file in fragment.files
            if not (file.path in here if self.remote else (data / file.path).is_file())
        }

    def delete(self, keys: Iterable[str]) -> None:
        """Remove the photos with these ``lk_photo`` keys: one atomic, durable commit."""
        keys = sorted(keys)
        if not keys:
            return
        dataset = self.dataset()
        with self.errors():
            before = self._files()
            dataset.delete(_among(keys))
            self._make_durable(before)

    def write_quarantine(self, source: str, entries: list[Quarantined]) -> None:
        """Replace what is known of one source."""
        content = self._quarantine()
        content.pop(source, None)
        if entries:
            content[source] = [{"item": _printable(e.item), "reason": _printable(e.reason)} for e in entries]
        with self.errors(mend="what was committed is kept, the list of what could not be used is as it was"):
            self.folder.replace(_QUARANTINE, json.dumps(content, indent=1, ensure_ascii=False))

    def compact(self, *, force: bool = False) -> bool:
        """Merge small fragments, write those anew that are mostly removed, and drop old versions, where that is due.

        What goes wrong is told in the log: what was committed before is there all the same. With ``force`` it is raised.
        """
        try:
            return self._compact(force)
        except CatalogError as error:
            if force:
                raise
            log.warning("small files are merged another time: %s", error)
            return False

    def _compact(self, force: bool) -> bool:
        dataset = self.dataset()
        found = [f.metadata for f in dataset.get_fragments()]
        target = _targets()[-1] if force else _due([f.num_rows for f in found])
        if target is None and any(2 * f.num_deletions > f.physical_rows for f in found):
            target = SMALLEST
        if target is None and (
            dataset.version % COMPACT_AT or len(self._entries("photos.lance/_versions")) <= MANY_VERSIONS
        ):
            return False
        with self.errors(mend="what was there is untouched"):
            before = self._files()
            for name in set(_tags(dataset)) - self._held:
                # Of a run that was killed: under the write lock there is no other; or of a backup that was.
                if name == HELD or _lapsed(name):
                    dataset.tags.delete(name)
            if target is not None:
                dataset.optimize.compact_files(target_rows_per_fragment=target)
            self._make_durable(before)
            self._clean(dataset)
        return True

    def _clean(self, dataset: Any) -> None:
        """Drop the versions that have not been the latest for ``KEEP_VERSIONS``.

        Lance goes by when a version was committed: one that stood for a day would go at the next commit, under its readers.
        """
        dataset.checkout_latest()
        now = datetime.now(timezone.utc)
        ages = [now - _aware(v["timestamp"]) for v in dataset.versions()]
        old = [age for age in ages if age >= KEEP_VERSIONS]
        if len(old) > 1:  # the youngest of them was the latest until lately
            margin = timedelta(seconds=0.5)
            dataset.cleanup_old_versions(older_than=min(old) + margin, error_if_tagged_old_versions=False)

    def hold(self, version: int, name: str = HELD) -> None:
        """Keep a version readable until ``release``, however old it grows. One of each name."""
        dataset = self.dataset()
        with self.errors():
            if name in _tags(dataset):  # of a run that was killed
                dataset.tags.update(name, version)
            else:
                dataset.tags.create(name, version)
        self._held.add(name)

    def release(self, name: str = HELD) -> None:
        """The version of that name is held no more."""
        self._held.discard(name)
        if self.exists:
            dataset = self.dataset()
            with self.errors(mend="what was committed is kept"):
                if name in _tags(dataset):
                    dataset.tags.delete(name)

    def held(self) -> list[str]:
        """Names of the versions that are held."""
        if not self.exists:
            return []
        dataset = self.dataset()
        with self.errors(reading=True):
            return _tags(dataset)

    def change(self, work: Callable[[Any], T]) -> T:
        """Have ``work`` change the rows' dataset in ways that leave the rows as they are, durably; within ``writing``."""
        dataset = self.dataset()
        with self.errors():
            before = self._files()
            done = work(dataset)
            self._make_durable(before)
        return done

    def _files(self) -> set[str]:
        walked = () if self.remote else os.walk(self.photos)
        return {os.path.join(folder, f) for folder, _, files in walked for f in files}  # noqa: PTH118

    def _make_durable(self, before: set[str]) -> None:
        """Fsync what is new, data before the manifests that name it, and the directories that hold them."""
        if self.remote:
            return
        new = sorted(self._files() - before, key=lambda p: (p.endswith(".manifest"), p))
        folders = {str(Path(p).parent) for p in new} | {str(self.photos), str(self.directory)}
        with self.errors(mend="what was written is there, and may be gone after a power cut"):
            for path in [*new, *sorted(folders)]:
                with contextlib.suppress(FileNotFoundError):
                    objects.fsync(path)

    @contextlib.contextmanager
    def errors(self, reading: bool = False, mend: str = "") -> Iterator[None]:
        """What goes wrong within, with Lance or the files, as a CatalogError that names the catalog and the mend.

        Args:
            reading: nothing is written within: an error is the catalog's.
            mend: what is left, or to be done; by default that of damage or of a commit.
        """
        kept = mend or "nothing of this batch was kept, what was there before is untouched"
        try:
            if not reading:
                self._lease.check()
            yield
        except (OSError, ValueError, RuntimeError, pa.ArrowException) as error:
            message = str(error)
            short = message.split(", /")[0].split("\n")[0][:300]
            if "No space left" in message or getattr(error, "errno", 0) == 28:
                raise CatalogError(
                    f"{self.directory}: the disk is full; {kept}. Free some space and run again"
                ) from error
            if isinstance(error, PermissionError) or "ermission denied" in message or "Read-only" in message:
                told = f"cannot be {'read' if reading else 'written'} ({short})"
                raise CatalogError(f"{self.directory}: {told}; check its permissions") from error
            if self.remote and (why := objects.explained(message, str(self.directory))):
                raise CatalogError(f"{self.directory}: {why}") from error
            if reading and _GONE.search(message):
                raise CatalogError(
                    f"{self.directory}: the version that was being read has been cleaned up meanwhile; try again"
                ) from error
            raise CatalogError(f"{self.directory}: {short}; {(mend or MEND) if reading else kept}") from error
        finally:
            if not reading:
                self._stamp = None


_MANIFEST, _QUARANTINE = "catalog.json", "quarantine.json"

_OURS = {
    *(_MANIFEST, _QUARANTINE, "photos.lance", "uploads", "downloads", "index", "feedback.jsonl"),
    *("writer.lock", "writer.json", "keys.json", "keys.lock"),
}
"""Names in a catalog's directory."""

_NOT_OURS = "{}: not a catalog (no catalog.json, but other files); give an empty or new directory"

_GONE = re.compile(r"_versions/.*not found|not found.*_versions/|version .* (not found|does not exist)", re.IGNORECASE)
"""What Lance says of a version that was cleaned up."""

MEND = "the catalog is damaged: restore it from a backup, or remove it and index again"


def _targets() -> list[int]:
    return [SMALLEST, SMALLEST * COMPACT_AT, SMALLEST * COMPACT_AT**2]


def _due(sizes: Sequence[int]) -> int | None:
    """Rows that a fragment should have where many smaller ones of like size could be merged; None where none are too many.

    Lance merges neighbours alone: those between which a larger one stands do not count together.
    """
    least, due = 0, None
    for target in _targets():
        runs = (list(run) for small, run in groupby(sizes, target.__gt__) if small)
        if any(sum(size >= least for size in run) >= COMPACT_AT for run in runs):
            due = target
        least = target
    return due


def _tags(dataset: Any) -> list[str]:
    """Names of the versions that are held. Lance reads one after the other, and fails where one is let go meanwhile."""
    for left in range(20, -1, -1):
        try:
            return list(dataset.tags.list())
        except (OSError, ValueError):
            if not left:
                raise
    return []


def _lapsed(tag: str) -> bool:
    """Whether a tag is that of a backup that must have been killed."""
    found = re.fullmatch(re.escape(BACKUP) + r"(\d+)-\w+", tag)
    return found is not None and time.time() - int(found[1]) > BACKUP_SECONDS


def _aware(moment: datetime) -> datetime:
    return moment.astimezone(timezone.utc)  # Lance gives local time without a zone


def _among(keys: Iterable[str]) -> str:
    """A condition of Lance; the keys are hex digits."""
    return "lk_photo in (" + ",".join(f"'{k}'" for k in keys) + ")"


def _on_disk(column: str) -> str:
    """A source's column name as Lance takes it: dots (and whatever else is special somewhere) as %2E."""
    return quote(column, safe=" ").replace(".", "%2E")


def _printable(text: str) -> str:
    """Names of files need not be UTF-8; what is written down must be."""
    return text.encode("utf-8", "backslashreplace").decode()


def _widen(dataset: Any, wanted: pa.Schema) -> None:
    missing = [f for f in wanted if f.name not in dataset.schema.names]
    if missing:
        dataset.add_columns(missing)


def _with_all(rows: pa.Table, wanted: pa.Schema) -> pa.Table:
    """``rows`` with every column of ``wanted`` in its order, nulls where missing: a merge wants them all."""
    return pa.table(
        [rows[f.name].cast(f.type) if f.name in rows.schema.names else pa.nulls(len(rows), f.type) for f in wanted],
        schema=wanted,
    )
