"""The rows of one catalog version as arrays, in order of product and position: in memory, or as derived files, memory-mapped.

    DIR/generation.json       Lance's version and fragments, encoder, sizes of the files below
    DIR/column-000.arrow …    one column each (Arrow IPC): of photos, or of products
    DIR/{first,address,key,key_row,vectors,covariance}.npy, DIR/words/ (of titles), DIR/index/

Everything here is derived from the catalog's rows and can be made again at any time.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, overload
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from lookalike import objects
from lookalike.errors import CatalogError, CatalogLocked, UsageError
from lookalike.indexes import base as indexes
from lookalike.indexes.ivf import NAME, Ivf, Stored, build_ivf
from lookalike.indexes.lexical import Coded, Lexical
from lookalike.store import COLOURS, PREFIX, Manifest, Store

OF_PHOTOS = ("lk_photo", "lk_path", "lk_digest", "lk_colours")
"""Columns with a value for each photo; of the others that of a product's first photo is its own."""

LAYOUT = 2
"""Version of the derived files; those of another are made anew."""

BLOCK = 65_536
"""Rows read from the catalog at once."""

SAMPLE = 20_000
"""Photos that the covariance of the vectors is taken from."""

WIDE = 2**31 - 1
"""Bytes of text that one Arrow string array can hold."""

SAVED_FROM = indexes.EXACT_UP_TO
"""Photos from which on a catalog has derived files: fewer are read and scanned in no time."""

ASKED = 200
"""Texts that are asked for to measure an index."""

CODES, COMMON = 200, 30
"""A column with more different values holds codes rather than words; and how many of the frequent ones are asked for."""

Progress = Callable[[int, int], None]
Stages = Callable[[str, int, int], None]


class Column(Sequence[str]):
    """A text column that is decoded one value at a time; a missing value is ""."""

    def __init__(self, column: pa.ChunkedArray):
        self.arrow = column

    def __len__(self) -> int:
        return len(self.arrow)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            return [v or "" for v in self.arrow[at].to_pylist()]
        return self.arrow[int(at)].as_py() or ""

    def __iter__(self) -> Iterator[str]:
        for chunk in self.arrow.iterchunks():
            yield from (v or "" for v in chunk.to_pylist())

    def __eq__(self, other: object) -> bool:
        return list(self) == (list(other) if isinstance(other, Sequence) else other)

    __hash__ = None  # type: ignore[assignment]


@dataclass
class Segment:
    """Photos in order of (product id, position), and the products that they belong to.

    Attributes:
        photos: a row per photo: ``OF_PHOTOS``.
        products: a row per product: ``lk_id``, ``lk_title`` and the source's columns; text as dictionaries.
        first: (products + 1,) int64: where each product's photos begin; the last is the number of photos.
        address: (photos,) uint64: Lance's address of each row, fragment in the upper half.
        key: (photos,) uint64, sorted: the first 16 hex digits of each ``lk_photo``; ``key_row`` (photos,) is whose they are.
        vectors: (photos, dim) float32, or what stands for them.
        fragments: name of a fragment → its deletion file; what of the catalog's version is in here.
        encoder: id of the encoder that made the vectors; "" where there are none.
        directory: where the files are, or None for what is in memory alone.
        index: over the vectors; None where they are scanned.
        columns: names of all columns, in the order of their files.
        made: what ``generation.json`` says of the index.
    """

    photos: pa.Table
    products: pa.Table
    first: NDArray[np.int64]
    address: NDArray[np.uint64]
    key: NDArray[np.uint64]
    key_row: NDArray[np.int64]
    vectors: Any
    fragments: dict[str, str]
    version: int
    encoder: str
    directory: Path | None = None
    index: Any = None
    columns: Sequence[str] = ()
    made: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.photos)

    @cached_property
    def ids(self) -> Column:
        """Ids of the products, ascending."""
        return Column(self.products["lk_id"])

    def product(self, identity: str) -> int:
        """Position of a product, −1 where it is not here."""
        at = self.place(identity)
        return at if at < len(self.ids) and self.ids[at] == identity else -1

    def place(self, identity: str) -> int:
        """Position of the first product whose id is not smaller."""
        low, high = 0, len(self.ids)
        while low < high:
            middle = (low + high) // 2
            if self.ids[middle] < identity:
                low = middle + 1
            else:
                high = middle
        return low

    def photo(self, key: str) -> int:
        """Row of a photo, −1 where it is not here."""
        try:
            wanted = np.uint64(int(key[:16], 16))
        except (ValueError, OverflowError):
            return -1
        start = int(np.searchsorted(self.key, wanted))
        while start < len(self.key) and self.key[start] == wanted:
            row = int(self.key_row[start])
            if self.photos["lk_photo"][row].as_py() == key:
                return row
            start += 1
        return -1

    @cached_property
    def palettes(self) -> NDArray[np.uint8] | None:
        """Colours of each photo (photos, COLOURS / 4, 4), shares of 0 where there are none; None where no photo has any."""
        if "lk_colours" not in self.photos.column_names or self.photos["lk_colours"].null_count == len(self):
            return None
        column = self.photos["lk_colours"]
        if column.null_count:
            column = pc.fill_null(column, bytes(COLOURS))
        parts = [
            np.frombuffer(c.buffers()[1], np.uint8)[c.offset * COLOURS : (c.offset + len(c)) * COLOURS]
            for c in column.iterchunks()
        ]
        return (parts[0] if len(parts) == 1 else np.concatenate(parts)).reshape(-1, COLOURS // 4, 4)

    @cached_property
    def lexical(self) -> Lexical:
        """Words of titles, ids and text attributes; read from the files where they are there, else built."""
        if self.directory is not None and (self.directory / "words").is_dir():
            return Lexical.load(self.directory / "words")
        return self.words()

    def words(self, mean: float | None = None) -> Lexical:
        """The same built anew, ``mean`` words in a text taken for usual."""
        table = self.products
        coded: list[Coded] = []
        for name in table.column_names:
            if not name.startswith(PREFIX) and pa.types.is_dictionary(table[name].type):
                column = _whole(table[name])
                codes = column.indices.cast(pa.int64()).fill_null(-1).to_numpy()
                coded.append((["" if v is None else v for v in column.dictionary.to_pylist()], codes))
        return Lexical(zip(Column(table["lk_title"]), self.ids, strict=True), coded, mean)

    @cached_property
    def covariance(self) -> NDArray[np.float32]:
        """Of the vectors (dim, dim), from a sample of ``SAMPLE`` photos evenly spread over them."""
        if self.directory is not None and (self.directory / "covariance.npy").is_file():
            return np.asarray(np.load(self.directory / "covariance.npy"), np.float32)
        if not len(self):
            return np.zeros((self.vectors.shape[1],) * 2, np.float32)
        sample = self.vectors[np.arange(0, len(self), max(1, len(self) // SAMPLE))]
        centred = sample - sample.mean(0)
        return np.asarray(centred.T @ centred / max(1, len(sample)), np.float32)


def read(
    dataset: Any, kinds: Sequence[str], encoder: str, *, directory: Path | None = None, vectors: bool = True,
    rows: pa.Table | None = None, progress: Progress | None = None,
) -> Segment:  # fmt: skip
    """The rows of a version of the catalog, one column at a time.

    Args:
        dataset: ``Store.dataset()``, at the version that is wanted.
        kinds: the columns that are text.
        encoder: id of the encoder that made the vectors.
        directory: an empty folder for the files; None to keep all in memory.
        vectors: whether they are copied, too; else there are none.
        rows: some of the version's rows, with their addresses; all are read by default.
        progress: called with rows of vectors read and rows in all.
    """

    def some(*names: str, address: bool = False) -> pa.Table:
        if rows is not None:
            return rows
        return dataset.scanner(columns=list(names), with_row_address=address).to_table()

    keys = some("lk_id", "lk_position", address=True)
    order = pc.sort_indices(keys, [("lk_id", "ascending"), ("lk_position", "ascending")])
    ids = _whole(keys["lk_id"].take(order))
    new = np.ones(len(ids), np.bool_)
    if len(ids):
        new[1:] = pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
    starts = np.flatnonzero(new)
    first = np.append(starts, len(ids)).astype(np.int64)
    address = np.asarray(keys["_rowaddr"].to_numpy(), np.uint64)[order.to_numpy()]
    heads = order.take(pa.array(starts))
    columns = ["lk_id"]  # in the order of their files
    photos: dict[str, Any] = {}
    products: dict[str, Any] = {"lk_id": _kept(ids.take(pa.array(starts)), 0, directory)}
    del ids, keys  # of many millions of photos each column is large
    for name in dataset.schema.names:
        told = unquote(name)
        if name in OF_PHOTOS or name == "lk_title" or not name.startswith(PREFIX):
            column = _whole(some(name)[name].take(order if name in OF_PHOTOS else heads))
            if told in kinds and not name.startswith(PREFIX):
                column = column.dictionary_encode()
            columns.append(told)
            (photos if name in OF_PHOTOS else products)[told] = _kept(column, len(photos) + len(products), directory)
    key = _numbers(photos["lk_photo"])
    row = np.argsort(key, kind="stable")
    matrix = _vectors(dataset, rows, order.to_numpy(), directory, progress) if vectors else None
    fragments = {name_of(f): str(f.deletion_file() or "") for f in dataset.get_fragments()}
    segment = Segment(
        pa.table(photos), pa.table(products), first, address, key[row], row.astype(np.int64), matrix, fragments,
        dataset.version, encoder,
    )  # fmt: skip
    segment.columns = columns
    if directory is not None:
        for name in ("first", "address", "key", "key_row"):
            np.save(directory / f"{name}.npy", getattr(segment, name))
        words = segment.lexical
        (directory / "words").mkdir()
        words.save(directory / "words")
        segment.directory = directory
    return segment


def nothing(dim: int) -> Segment:
    """No rows at all."""
    none = pa.array([], pa.string())
    photos = pa.table(dict.fromkeys(OF_PHOTOS[:3], none))
    empty, no = np.empty(0, np.int64), np.empty(0, np.uint64)
    products = pa.table({"lk_id": none, "lk_title": none})
    return Segment(photos, products, np.zeros(1, np.int64), no, no, empty, np.empty((0, dim), np.float32), {}, 0, "")


def name_of(fragment: Any) -> str:
    """What tells a fragment from any other, also of another catalog: its number and its first file's name."""
    return f"{fragment.fragment_id}/{fragment.metadata.files[0].path}"


def seal(segment: Segment, more: dict[str, Any]) -> None:
    """Write ``generation.json``, without which the files count as nothing; ``more`` is kept in it.

    All is on the disk before: after a power cut a file may be as long as it was, and its content zeros.
    """
    directory = segment.directory
    assert directory is not None
    for path in directory.rglob("*"):
        objects.fsync(path)
    files = {p.relative_to(directory).as_posix(): p.stat().st_size for p in sorted(directory.rglob("*")) if p.is_file()}
    content = {
        "layout": LAYOUT,
        "version": segment.version,
        "encoder": segment.encoder,
        "columns": segment.columns,
        "fragments": segment.fragments,
        "files": files,
        **more,
    }
    objects.Local(directory).replace("generation.json", json.dumps(content, ensure_ascii=False))
    objects.fsync(directory.parent)


def load(directory: Path, store: Store) -> Segment:
    """The files of ``read`` and ``seal``, memory-mapped; vectors that are not among them stay in ``store``.

    Raises:
        OSError: they are not there.
        ValueError: of another layout, or not whole.
        CatalogError: the index cannot be read.
        UsageError: what the index needs is not installed.
    """
    content = json.loads((directory / "generation.json").read_text("utf-8"))
    if not isinstance(content, dict) or content.get("layout") != LAYOUT:
        raise ValueError(f"{directory}: derived files of another layout")
    for name, size in content["files"].items():
        if (directory / name).stat().st_size != size:
            raise ValueError(f"{directory / name}: not whole")
    tables: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for number, name in enumerate(content["columns"]):
        tables[0 if name in OF_PHOTOS else 1][name] = _mapped(directory, number)
    photos, products = map(pa.table, tables)
    arrays: dict[str, Any] = {n: _array(directory, n) for n in ("first", "address", "key", "key_row")}
    kind = content["index"]["kind"]
    stored = kind == "ivf"
    matrix: Any = (
        Stored(store.dataset(content["version"]), arrays["address"]) if stored else _array(directory, "vectors")
    )
    segment = Segment(
        photos, products, vectors=matrix, fragments=content["fragments"], version=content["version"],
        encoder=content["encoder"], directory=directory, **arrays,
    )  # fmt: skip
    segment.made = content["index"]
    segment.index = None if kind == "exact" else indexes.load(kind, directory / "index", matrix)
    return segment


_GENERATION = re.compile(r"\d+-[0-9a-f]{8}")
"""Names of folders that are ours."""


def latest(cache: Path) -> Path | None:
    """The folder of the newest generation of derived files in ``cache``, if there is one."""
    try:
        name = json.loads((cache / "current.json").read_text("utf-8"))["generation"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return cache / name if isinstance(name, str) and _GENERATION.fullmatch(name) else None


def make(
    store: Store, kind: str, memory: int, texts: Callable[[Sequence[str]], NDArray[np.float32]] | None = None,
    progress: Stages | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write a new generation of derived files beside the one in use, then put it in its place; nobody waits for it.

    Args:
        store: a catalog that exists.
        kind: of the index: one of ``indexes.base.KINDS``; "" for the kind there is, if it was asked for by name, else ``auto``,
            which chooses by size and memory.
        memory: bytes that searching may use.
        texts: makes vectors of titles, to measure what the index finds of what words ask for.
        progress: called with what is being done, and how much of it is done and is to do.

    Returns:
        What ``generation.json`` says of the index: ``{"kind", "why", "asked", "settings", "seconds"}``.

    Raises:
        CatalogLocked: another process makes one.
        CatalogError: the catalog cannot be read, or the files cannot be written.
        UsageError: what the kind of index needs is not installed.
    """
    if kind == "ivf":
        manifest = store.manifest()
        if manifest and manifest.dim % 8:
            raise UsageError(
                f"index ivf: Lance's codes want a multiple of 8 dimensions, this encoder's vectors have {manifest.dim}; "
                "choose auto, int8 or lsh"
            )
    cache = store.cache
    with store.errors(mend="the index that was there is as it was"):
        cache.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(cache / "reindex.lock", timeout=0):
                told = _made(store, cache, kind, memory, texts, progress or (lambda stage, done, total: None))
                _sweep(store, cache)
                return told
        except Timeout:
            raise CatalogLocked(f"{cache}: another process makes the index anew; wait for that to end") from None


def _made(store: Store, cache: Path, kind: str, memory: int, texts: Any, tell: Stages) -> dict[str, Any]:
    """A generation, complete and in use; or nothing."""
    started, version = time.monotonic(), store.version()
    manifest = store.manifest()  # after the version: it names the columns of that one at least
    assert manifest is not None
    dataset = store.dataset(version)
    place = latest(cache)
    old: Segment | None = None
    if place is not None:
        with contextlib.suppress(OSError, ValueError, KeyError, AttributeError, CatalogError, UsageError):
            old = load(place, store)  # else all is computed
    asked = kind or (old.made["asked"] if old else "auto")
    chosen, why = asked, "asked for"
    if asked == "auto":
        n = dataset.count_rows()
        chosen, why = indexes.choose(
            n, manifest.dim, memory, not store.remote, texts is not None, bool(manifest.photo_dim)
        )
    folder = cache / f"{version}-{secrets.token_hex(4)}"
    folder.mkdir()
    try:
        told = _fill(store, manifest, dataset, folder, old, chosen, texts, tell, {"why": why, "asked": asked}, started)
        objects.Local(cache).replace("current.json", json.dumps({"generation": folder.name}))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(CatalogError):
            store.release(folder.name)
        raise
    if chosen != "ivf":
        with contextlib.suppress(CatalogError):
            store.release(folder.name)
    return told


def _fill(
    store: Store, manifest: Manifest, dataset: Any, folder: Path, old: Segment | None, kind: str, texts: Any, tell: Stages,
    more: dict[str, Any], started: float,
) -> dict[str, Any]:  # fmt: skip
    """All files of a generation, and what they say of the index.

    The version that they are of is held meanwhile, and stays so where Lance searches it.
    """
    report = lambda done, total: tell("index", done, total)  # noqa: E731
    kept: indexes.Index | None = None
    if kind == "ivf":  # Lance's own, a commit; then the base is of that version
        kept, dataset = _in_lance(store, old, report)
    with contextlib.suppress(CatalogError):  # who may not write there reads as long as there is what is read
        store.hold(dataset.version, folder.name)
    segment = read(
        dataset, [name for name, what in manifest.kinds.items() if what == "text"], manifest.encoder_id,
        directory=folder, vectors=kind != "ivf", progress=lambda done, total: tell("reading", done, total),
    )  # fmt: skip
    index: indexes.Index
    if kept is not None:
        segment.vectors = Stored(dataset, segment.address)
        index = Ivf(segment.vectors, kept.settings)
    elif old is not None and old.index is not None and old.index.kind == kind and old.encoder == segment.encoder:
        index = old.index.carried(segment.vectors, _carried(old, segment), report)
    else:
        index = indexes.build(kind, segment.vectors, None, report)
    said = sayings(segment) if texts is not None else []
    tell("recall", 0, 1)
    index = indexes.tuned(index, segment.vectors, texts(said) if said else None)
    tell("recall", 1, 1)
    (folder / "index").mkdir()
    index.save(folder / "index")
    np.save(folder / "covariance.npy", segment.covariance)
    seconds = round(time.monotonic() - started, 1)
    told = {"kind": kind, **more, "settings": index.settings, "seconds": seconds}
    seal(segment, {"index": told})
    return told


def _sweep(store: Store, cache: Path) -> None:
    """Remove what no longer is in use: but for the generation before, which somebody may be about to open."""
    ours = sorted((p for p in cache.iterdir() if _GENERATION.fullmatch(p.name)), key=lambda p: p.stat().st_mtime)
    now = latest(cache)
    stays = {now, *[p for p in ours if p != now and (p / "generation.json").is_file()][-1:]}
    for left in ours:
        if left not in stays:
            shutil.rmtree(left, ignore_errors=True)
    here = {p.name for p in stays if p is not None}
    with contextlib.suppress(CatalogError):
        if not store.remote:  # there, other machines hold versions of their own
            for tag in store.held():
                if _GENERATION.fullmatch(tag) and tag not in here:
                    store.release(tag)
        if _indexed(store.dataset()) and not any(_GENERATION.fullmatch(tag) for tag in store.held()):
            with store.writing("reindex"):
                store.change(lambda dataset: dataset.drop_index(NAME))


def _indexed(dataset: Any) -> bool:
    """Whether Lance has an index of the vectors."""
    return any(one.name == NAME for one in dataset.describe_indices())


def sayings(segment: Segment, count: int = ASKED, seed: int = 0) -> list[str]:
    """Texts as people ask: titles, and one to three words of the columns, half of each; none where there are no words.

    A title names one product; words name thousands, whose cosines lie so closely together that they are harder to find.
    """
    rng = np.random.default_rng(seed)
    table, out = segment.products, []
    for at in rng.permutation(len(table))[: count // 2].tolist():
        out.append(table["lk_title"][at].as_py() or "")
    columns = []
    for name in table.column_names:
        column = _whole(table[name])
        if not name.startswith(PREFIX) and pa.types.is_dictionary(column.type) and 2 < len(column.dictionary) <= CODES:
            counts = np.bincount(column.indices.drop_null().to_numpy(), minlength=len(column.dictionary))
            columns.append([column.dictionary[int(n)].as_py() for n in np.argsort(-counts, kind="stable")[:COMMON]])
    for _ in range(count // 2 if columns else 0):
        chosen = rng.choice(len(columns), min(int(rng.integers(1, 4)), len(columns)), replace=False)
        out.append(" ".join(columns[n][int(rng.integers(len(columns[n])))] for n in chosen))
    return [text for text in dict.fromkeys(out) if text.strip()]


def _in_lance(store: Store, old: Segment | None, report: Progress) -> tuple[Ivf, Any]:
    """Lance's index over all rows there are, carried on from the one before where there is one, and the dataset with it.

    Writers wait meanwhile, or are told who writes; searches do not.
    """
    with store.writing("reindex"):

        def work(dataset: Any) -> tuple[Ivf, Any]:
            none = np.empty(dataset.count_rows(), np.uint64)
            if _indexed(dataset) and old is not None and isinstance(old.index, Ivf):
                index = old.index.carried(Stored(dataset, none), np.empty(0, np.int64), report)
            else:
                index = build_ivf(dataset, none, report)
            dataset.checkout_latest()
            return index, dataset

        return store.change(work)


def _carried(old: Segment, new: Segment) -> NDArray[np.int64]:
    """Which of the old rows has the same photo and vector as each new one, −1 where none (photos,)."""
    at = np.minimum(np.searchsorted(old.key, new.key), max(0, len(old.key) - 1))
    same = old.key[at] == new.key if len(old.key) else np.zeros(len(new.key), np.bool_)
    out = np.full(len(new), -1, np.int64)
    out[new.key_row[same]] = old.key_row[at[same]]
    for start in range(0, len(out), BLOCK):
        part = out[start : start + BLOCK]
        known = np.flatnonzero(part >= 0)
        equal = (new.vectors[start + known] == old.vectors[part[known]]).all(1)
        part[known[~equal]] = -1
    return out


def _whole(column: Any) -> Any:
    """A column as one array; as large strings where its text is more than one array of strings holds."""
    if pa.types.is_string(column.type) and column.nbytes >= WIDE:
        column = column.cast(pa.large_string())
    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks) if column.num_chunks else (
        pa.array([], column.type)
    )  # fmt: skip


def _array(directory: Path, name: str) -> NDArray[Any]:
    """An array's file, mapped: as a plain array, since numpy's own class for it makes each look-up slow."""
    mapped: NDArray[Any] = np.load(directory / f"{name}.npy", mmap_mode="r").view(np.ndarray)
    return mapped


def _file(directory: Path, number: int) -> Path:
    return directory / f"column-{number:03}.arrow"  # a column's name need not be one for a file


def _kept(column: Any, number: int, directory: Path | None) -> Any:
    """The column; written to a file and mapped from there where there is a directory."""
    if directory is None:
        return column
    table = pa.table({"values": column})
    with pa.OSFile(str(_file(directory, number)), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    return _mapped(directory, number)


def _mapped(directory: Path, number: int) -> Any:
    return _whole(pa.ipc.open_file(pa.memory_map(str(_file(directory, number)))).read_all()["values"])


def _vectors(
    dataset: Any, rows: pa.Table | None, order: NDArray[Any], directory: Path | None, progress: Progress | None
) -> NDArray[np.float32]:
    """The vectors in ``order``, a block at a time: however many there are, memory holds one."""
    dim = dataset.schema.field("lk_vector").type.list_size
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    out: NDArray[np.float32]
    if directory is None:
        out = np.empty((len(order), dim), np.float32)
    else:
        file = directory / "vectors.npy"
        out = np.lib.format.open_memmap(file, "w+", np.float32, (len(order), dim))
        if hasattr(os, "posix_fallocate"):  # a full disk is an error here, and not the death of the process later
            with file.open("r+b") as made:
                os.posix_fallocate(made.fileno(), 0, file.stat().st_size)
    done = 0
    whole = dataset.scanner(columns=["lk_vector"], batch_size=BLOCK) if rows is None else rows.select(["lk_vector"])
    for batch in whole.to_batches():
        values = batch["lk_vector"].flatten().to_numpy(zero_copy_only=False)
        out[place[done : done + len(batch)]] = values.reshape(-1, dim)
        done += len(batch)
        if progress:
            progress(done, len(order))
    if isinstance(out, np.memmap):
        assert directory is not None
        out.flush()
        out = _array(directory, "vectors")
    return out


def _numbers(keys: Any) -> NDArray[np.uint64]:
    """The first 16 of the hexadecimal digits of each key, as a number (keys,)."""
    out = np.empty(len(keys), np.uint64)
    for start in range(0, len(keys), BLOCK):
        digits = keys[start : start + BLOCK].to_pylist()
        raw = bytes.fromhex("".join(k[:16] for k in digits))
        out[start : start + len(digits)] = np.frombuffer(raw, ">u8")
    return out
