"""The same indexing on several machines: planned here, read, encoded and written by a Ray cluster, committed here.

The photos that ``indexing.Plan`` finds due go in chunks through Ray Data. Each of its actors is a core somewhere: it makes rows
by the plan's own ``Work``, writes them as fragments of the catalog where all machines reach it, and sends back their names. No
row is in the catalog until this process, which alone holds the write lock, commits those names: so each chunk counts once,
however many actors died over it and were started again elsewhere. Rows that take the place of others come back whole.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lookalike import errors, images, indexing, objects
from lookalike.encoders import load
from lookalike.encoders.base import Encoder
from lookalike.errors import CatalogError, InputError, LookalikeError, UsageError
from lookalike.sources import Source
from lookalike.store import Store
from lookalike.types import Quarantined

CHUNK = 1024
"""Photos of a chunk, at most: what the death of an actor loses. A small source is cut finer, so that every core has some."""

READERS = 2
"""Threads of an actor that read and decode, so that one waits for the storage while the other works."""

CONNECT_SECONDS, JOIN_SECONDS = 5.0, 60.0


def index(
    store: Store, encoder: Encoder, encoder_name: str, source: Source, address: str, *, prune: bool = False,
    drawn: bool = False, progress: indexing.Progress | None = None,
) -> indexing.Report:  # fmt: skip
    """Bring the catalog in step with a source, as ``indexing.index`` does, by the cluster at ``address``.

    Args:
        store: the catalog, where every machine reaches it: an address, or a directory that all mount under one path.
        encoder: as it is loaded here; the machines load ``encoder_name`` and must find the same.
        encoder_name: by which it can be loaded there.
        source: read whole already; its photos' paths must hold on every machine.
        address: ``HOST:PORT`` of the cluster's head, ``auto`` for the one that this machine is part of, ``ray://HOST:PORT`` for
            a Ray client, ``local`` for a cluster of this machine alone that ends with the run.
        prune: remove what the catalog has from this source and the source no longer has.
        drawn: mark the catalog as drawings rather than photos.
        progress: called with photos done and photos in all.

    Raises:
        UsageError: Ray is not installed, or no cluster is there.
        InputError: as ``indexing.index``; and a machine of the cluster that does not see a photo, or has another encoder.
        CatalogError: it cannot be written; what was committed is kept, and the next run goes on.
    """
    with _connected(address) as ray, store.writing("index --ray"):
        planned = indexing.Plan(store, encoder, encoder_name, source, drawn=drawn, prune=prune)
        try:
            _sync(ray, planned, progress or (lambda done, total: None))
            planned.finish()
        finally:
            planned.close()
        store.compact()
    return planned.report


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Ray, quiet and telling nobody of its use; let go of afterwards."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UsageError(f"--ray wants {error.name}: pip install 'lookalike[cluster]'") from error
    ours = not ray.is_initialized()  # in Python a caller may be connected already
    if ours:
        _must_answer(address)
        more: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="lance is not fork-safe")  # what is forked here starts anew
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **more)
        except (ConnectionError, RuntimeError, ValueError) as error:
            said = str(error).strip().split("\n")[0]
            raise UsageError(f"--ray {address}: no Ray cluster answers there ({said}); see docs/scaling.md") from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    with contextlib.redirect_stdout(
        sys.stderr
    ):  # Ray prints there what it does about a node that died, also while it ends
        try:
            yield ray
        finally:
            if ours:
                ray.shutdown()


def _must_answer(address: str) -> None:
    """Raises UsageError where nobody listens: Ray itself would wait for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        except OSError as error:
            raise UsageError(
                f"--ray {address}: no Ray cluster answers there ({error.strerror or error}); see docs/scaling.md"
            ) from error


@dataclass(frozen=True)
class _Chunk:
    """Some of a plan's photos; where the catalog has a vector already, its row's place by digest and by description."""

    number: int
    photos: Sequence[indexing.Planned]
    places: Mapping[str, int]
    described: Mapping[str, int]
    coloured: frozenset[str]


def _chunks(planned: indexing.Plan, size: int) -> Iterator[_Chunk]:
    """Of so many photos, and as many more as their last product has: a product is committed whole."""
    known, todo = planned.known, planned.todo
    number = end = 0
    while end < len(todo):
        first, end = end, min(end + size, len(todo))
        while end < len(todo) and todo[end].product.id == todo[end - 1].product.id:
            end += 1
        photos = todo[first:end]
        digests = {p.known for p in photos if p.known in known.places}
        places = {d: known.places[d] for d in digests if d is not None}
        said = (indexing.description(p.product.title, p.product.attributes) for p in photos if known.described)
        described = {text: known.described[text] for text in said if text in known.described}
        yield _Chunk(number, photos, places, described, frozenset(places) & known.coloured)
        number += 1


def _sync(ray: Any, planned: indexing.Plan, progress: indexing.Progress) -> None:
    """Chunks out, fragments in, and a commit whenever one is due."""
    store, todo, total = planned.store, planned.todo, len(planned.photos)
    done = total - len(todo)
    progress(done, total)
    if not todo:
        return
    cores = _cores(ray)
    chunks = list(_chunks(planned, max(1, min(CHUNK, -(-len(todo) // (4 * cores))))))
    left = {chunk.number: len(chunk.photos) for chunk in chunks}
    store.widen(planned.work.schema)
    place = str(store.directory) if store.remote else os.path.abspath(store.directory)
    mark = store.mark(planned.known.version) if planned.known.places else ""
    actors = ray.data.ActorPoolStrategy(min_size=1, initial_size=min(cores, len(chunks)), max_size=cores)
    results = ray.data.from_items([{"chunk": c} for c in chunks], override_num_blocks=len(chunks)).map(
        _Worker, fn_constructor_args=(place, planned.work, planned.known.version, _settings(store), mark),
        compute=actors, num_cpus=1,
    )  # fmt: skip
    commits = _Fragments(planned)
    try:
        for result in results.iter_rows():
            _check(result)
            photos = left.pop(result["number"], None)
            if photos is None:
                continue  # a part that was done over after all: what it wrote is never committed
            planned.count(_table(result["made"]), [Quarantined(*entry) for entry in json.loads(result["refused"])])
            commits.add(result)
            done += photos
            progress(done, total)
    except ray.exceptions.RayError as error:
        said = str(error).strip().split("\n")[-1]
        raise CatalogError(f"the cluster gave up ({said}); what was committed is kept, run again to go on") from error
    finally:  # interrupted, too: what is written is kept
        commits.close()
    if left:
        raise CatalogError(f"the cluster lost {len(left)} of {len(chunks)} parts of the source; run again to go on")


def _cores(ray: Any) -> int:
    """Cores that the cluster gives. Raises UsageError where none join in time: Ray would wait for ever."""
    deadline = time.monotonic() + JOIN_SECONDS
    while (cores := int(ray.cluster_resources().get("CPU", 0))) < 1:
        if time.monotonic() > deadline:
            raise UsageError("the Ray cluster gives no core; start a node that does: ray start --address=HOST:PORT")
        time.sleep(0.5)
    return cores


def _check(result: Mapping[str, Any]) -> None:
    """Raises what a worker raised, and InputError where it could not read photos that can be read here."""
    if result["error"]:
        raise getattr(errors, result["kind"])(result["error"])
    for path in json.loads(result["unseen"]):
        if os.access(images.file_of(path), os.R_OK):
            raise InputError(
                f"{result['host']} cannot read {path}, which is here: every machine must have the photos under the same "
                "path (a shared folder), as the user that runs Ray there"
            )


def _settings(store: Store) -> dict[str, str]:
    """The variables that lead to the object storage: the command's count, not those of whoever started Ray on a machine."""
    wanted = objects.FAMILIES if store.remote else ()
    return {name: value for name, value in os.environ.items() if name.startswith(wanted)}


def _take_over(settings: Mapping[str, str]) -> None:
    """Put the variables in the place of this process's own, a provider's all or none: halves of two keys open nothing."""
    for family in objects.FAMILIES:
        theirs = {name: value for name, value in settings.items() if name.startswith(family)}
        for name in [n for n in os.environ if theirs and n.startswith(family)]:
            del os.environ[name]
        os.environ.update(theirs)


class _Fragments:
    """What the workers wrote, on its way into a version of the catalog."""

    def __init__(self, planned: indexing.Plan):
        self.plan = planned
        self.fragments: dict[str, str] = {}
        self.replacing: list[pa.Table] = []
        self.since = time.monotonic()

    def add(self, result: Mapping[str, Any]) -> None:
        """Commit this, and what came before it, if that is due."""
        self.fragments |= dict.fromkeys(json.loads(result["fragments"]), result["host"])
        self.replacing.append(_table(result["replacing"]))
        if time.monotonic() - self.since > indexing.COMMIT_SECONDS:
            self.close()

    def close(self) -> None:
        """Commit what is left."""
        fragments, replacing = self.fragments, self.replacing
        self.fragments, self.replacing = {}, []
        if fragments:
            self.plan.store.append(fragments)
            self.plan.store.compact()
        if any(map(len, replacing)):
            self.plan.commit(pa.concat_tables(replacing).combine_chunks())
        self.since = time.monotonic()


class _Worker:
    """One core of the cluster: chunk → rows → fragments."""

    def __init__(self, directory: str, work: indexing.Work, version: int, settings: Mapping[str, str], mark: str = ""):
        """The encoder and the catalog, as this machine finds them; what is wrong there each chunk tells.

        ``mark`` is the version's, where vectors are read from it: another catalog's would be taken for them.
        """
        _take_over(settings)
        self.work, self.version = work, version
        self.host = socket.gethostname()
        self.wrong: LookalikeError | None = None
        try:
            self.encoder = load(work.encoder, threads=1)
            self.store = Store(directory)
            if not self.store.exists:
                raise CatalogError(
                    f"{directory}: not there; use an address (s3://…) or a directory that every machine has under this path"
                )
            if mark and self.store.mark(version) != mark:
                raise InputError(
                    f"{directory}: another catalog than the command's; use an address (s3://…) or a folder that is shared"
                )
        except LookalikeError as error:
            self.wrong = error

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """A chunk's rows, written; ``made`` has key and digest of each, ``replacing`` those of known products."""
        chunk: _Chunk = row["chunk"]
        nothing = self.work.schema.empty_table()
        told = {
            "number": chunk.number, "host": self.host, "kind": "", "error": "", "rows": 0, "refused": "[]", "unseen": "[]",
            "fragments": "[]", "made": _bytes(nothing.select(_COUNTED)), "replacing": _bytes(nothing),
        }  # fmt: skip
        try:
            if self.wrong is not None:
                raise self.wrong
            return {**told, **self._done(chunk)}
        except LookalikeError as error:
            return {**told, "kind": type(error).__name__, "error": f"on {self.host}: {error}"}

    def _done(self, chunk: _Chunk) -> dict[str, Any]:
        known = indexing.Known(self.store, self.version)
        known.places, known.described, known.coloured = dict(chunk.places), dict(chunk.described), set(chunk.coloured)
        rows, refused = self.work.rows(self.encoder, chunk.photos, known, READERS)
        items = {q.item for q in refused}
        unseen = [p.path for p in chunk.photos if p.item in items and not os.access(images.file_of(p.path), os.R_OK)]
        # Of a product that is there a new photo, too: what is appended and what is replaced are two commits.
        there = pa.array(list({p.product.id for p in chunk.photos if p.known is not None}), pa.string())
        replaces = pc.is_in(rows["lk_id"], there)
        added = rows.filter(pc.invert(replaces))
        return {
            "rows": len(rows),
            "refused": json.dumps([(q.item, q.reason) for q in refused]),
            "unseen": json.dumps(unseen),
            "fragments": json.dumps(self.store.write(added) if len(added) else []),
            "made": _bytes(rows.select(_COUNTED)),
            "replacing": _bytes(rows.filter(replaces)),
        }


_COUNTED = ["lk_photo", "lk_digest"]


def _bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return bytes(sink.getvalue())


def _table(content: bytes) -> pa.Table:
    return pa.ipc.open_stream(content).read_all()
