"""Catalog work over HTTP: products put and deleted, the quarantine with its pictures, the sync with SOURCE and its progress."""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import anyio
import pyarrow as pa
import pyarrow.compute as pc
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from lookalike import images, objects
from lookalike.catalog import Catalog
from lookalike.errors import CatalogError, CatalogLocked, InputError, LookalikeError, NotFound, UsageError
from lookalike.indexing import Report, upload_item
from lookalike.server import schemas
from lookalike.server.observe import problem
from lookalike.server.security import decoded, form_of
from lookalike.sources import web
from lookalike.types import Product, Quarantined

OFF = "downloading is off; start with --download"
ORPHAN_SECONDS = 3600.0
"""Age at which an upload that no product has is thrown away: a process that was killed left it."""

TELL_SECONDS = 10.0
"""Between two lines in the log on the progress of a sync."""

log = logging.getLogger("lookalike")


@dataclass(frozen=True, slots=True)
class Given:
    """A product as it came: photos as bytes or addresses, None to keep those that it has."""

    id: str
    title: str
    attributes: dict[str, Any]
    photos: list[bytes | str] | None


@dataclass(frozen=True, slots=True)
class Downloads:
    """How addresses are fetched: hosts of one's own that may be private, and where files are kept (see ``Catalog.web``)."""

    allow_hosts: tuple[str, ...] = ()
    cache: Path | None = None


class Writer:
    """Writes to one catalog, one request after the other."""

    def __init__(self, catalog: Catalog, downloads: Downloads | None = None):
        self.catalog, self.downloads = catalog, downloads
        self.uploads = catalog.store.local.absolute() / "uploads"
        self._lock = threading.Lock()
        self.failed = False
        """Whether the catalog could not be written when that was last tried; somebody else's lock is no failure."""

    @contextlib.contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
                self.failed = False
            except CatalogLocked:
                raise
            except CatalogError:
                self.failed = True
                raise

    def put(self, given: list[Given]) -> Report:
        """Keep the photos, then commit all products at once.

        Raises:
            InputError: attributes that no column can hold, a photo's address while downloading is off, photos while the
                catalog is on object storage; nothing changed.
            NotFound: a product without photos that is not there.
            CatalogError: the catalog cannot be written just now.
        """
        if self.catalog.store.remote and any(one.photos for one in given):
            raise InputError(
                "this catalog is on object storage, where photos that are sent cannot be kept; index them from a source that "
                "every machine can read (products without photos, whose attributes change, can be sent)"
            )
        problems: list[Quarantined] = []
        loaded = [(one, [self._load(one, n, p, problems) for n, p in enumerate(one.photos or ())]) for one in given]
        with self._one_at_a_time():
            made: list[Path] = []
            names: dict[tuple[str, str], str] = {}
            products = []
            before = self._paths([one.id for one in given])
            for one, contents in loaded:
                photos = before[one.id] if one.photos is None else []
                if one.photos is None and not photos:
                    raise NotFound(f"no product {one.id!r} in the catalog whose photos it could keep; send its photos")
                for n, (content, asked) in enumerate(zip(contents, one.photos or (), strict=True), 1):
                    if content is not None:
                        box = images.split(asked)[1] if isinstance(asked, str) else ""
                        path = f"{self._keep(content, made)}{box}"
                        names.setdefault((one.id, path), f"photo {n}")
                        photos.append(path)
                products.append(Product(one.id, photos, one.title, one.attributes))
            try:
                return self.catalog.put(products, quarantined=problems, names=names)
            finally:
                self.tidy([*made, *(Path(p) for paths in before.values() for p in paths)])

    def remove(self, identity: str) -> None:
        """Remove a product, and the photos of it that were uploaded. Raises NotFound."""
        with self._one_at_a_time():
            before = self._paths([identity])[identity]
            if not before:
                raise NotFound(f"no product {identity!r} in the catalog")
            self.catalog.remove(identity)
            self.tidy(Path(p) for p in before)

    def sweep(self) -> None:
        """Throw away what a killed process left among the uploads."""
        if self.uploads.is_dir():
            old = time.time() - ORPHAN_SECONDS
            with self._lock, contextlib.suppress(OSError, LookalikeError):
                self.tidy(p for p in self.uploads.glob("*/*") if p.stat().st_mtime < old)

    def tidy(self, paths: Iterable[Path]) -> None:
        """Of these files, delete the uploads that no product has (any more)."""
        mine = {file.name: file for file in map(images.file_of, paths) if file.is_relative_to(self.uploads)}
        if mine:
            with contextlib.suppress(CatalogError):  # then the next sweep finds them
                # By their digests: rows of a catalog that was moved or is opened through a link have other paths. All rows
                # at each write, hence without Python and its lock: searches go on meanwhile.
                paths = self.catalog.store.rows(["lk_path"])["lk_path"]
                names = pc.replace_substring_regex(paths, r"(?s)^.*[/\\]|#xywh=[^/\\]*$", "")  # as images.split
                kept = names.filter(pc.is_in(names, pa.array(sorted(mine), names.type))).to_pylist()
                for name in mine.keys() - set(kept):
                    mine[name].unlink(missing_ok=True)

    def _paths(self, ids: list[str]) -> dict[str, list[str]]:
        """The files of each product's photos, as the latest version has them."""
        snapshot = self.catalog.snapshot()
        out: dict[str, list[str]] = {}
        for identity in ids:
            with contextlib.suppress(NotFound):
                out[identity] = [snapshot.paths[r] for r in snapshot.rows(snapshot.product(identity))]
        return {identity: out.get(identity, []) for identity in ids}

    def _load(self, one: Given, n: int, photo: bytes | str, problems: list[Quarantined]) -> bytes | None:
        if isinstance(photo, bytes):
            return photo
        if self.downloads is None:
            raise InputError(f"{one.id}, photo {n + 1} is an address: {OFF}")
        try:
            return web.fetch(photo, allow_hosts=self.downloads.allow_hosts)
        except InputError as error:
            problems.append(Quarantined(upload_item(one.id, f"photo {n + 1}"), str(error)))
            return None

    def _keep(self, content: bytes, made: list[Path]) -> Path:
        """The content's file, named by its digest: the same photo again is the same file."""
        digest = images.digest(content)
        path = self.uploads / digest[:2] / digest
        try:
            if path.is_file() and images.digest(images.load(path)) == digest:
                return path
            objects.make(path.parent)
            part = path.with_name(f"{digest}.{uuid.uuid4().hex}.part")
            made.append(part)
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            objects.fsync(path.parent)
        except OSError as error:
            raise CatalogError(f"the photo cannot be kept ({error.strerror or error}); nothing was changed") from error
        made.append(path)
        return path


class Stopped(Exception):
    """The server ends; what is encoded is kept."""


class Sync:
    """The sync with SOURCE: in a thread of its own, one at a time; stopped or killed, the next one goes on."""

    def __init__(self, catalog: Catalog, source: str | None, downloads: Downloads | None = None):
        self.catalog, self.source, self.downloads = catalog, source, downloads
        self._state = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stop = False
        self.running = False
        self.done = self.total = self._first = 0
        self._since = self._told = 0.0
        self.report: Report | None = None
        self.error: str | None = None

    def start(self) -> bool:
        """Begin, unless one is running already."""
        with self._state:
            if self.running or self._stop:
                return False
            self.running, self.done, self.total, self._since, self.error = True, 0, 0, 0.0, None
            self._thread = threading.Thread(target=self._run, name="lookalike-index", daemon=True)
            self._thread.start()
            return True

    def stop(self, seconds: float = 10.0) -> None:
        """End after the photos at hand are committed."""
        self._stop = True
        if self._thread is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        try:
            fetched = self.downloads
            with contextlib.ExitStack() as stack:
                fetching: web.Web | bool = False
                if fetched is not None:
                    made = self.catalog.web(fetched.allow_hosts, fetched.cache, self._downloading)
                    fetching = stack.enter_context(contextlib.closing(made))
                report = self.catalog.index(self.source, progress=self._progress, download=fetching)
            self.catalog.snapshot()  # whoever learns that it is done finds what it did
            self.report = report
            counts = " ".join(f"{name}={value}" for name, value in report.to_json().items())
            log.info("indexed: %s", counts)
        except Stopped:
            log.info("indexing stopped after %d of %d photos; the next start goes on", self.done, self.total)
        except LookalikeError as error:
            self.error = str(error)
            log.error("indexing failed: %s", error)
        except Exception:
            self.error = "a bug in lookalike; its log has the details"
            log.exception("indexing failed; this is a bug in lookalike, please report it with these lines")
        finally:
            self.running = False

    def _downloading(self, done: int, total: int) -> None:
        if self._stop:
            raise Stopped

    def _progress(self, done: int, total: int) -> None:
        now = time.monotonic()
        if not self._since:
            self._since, self._first, self._told = now, done, now
        self.done, self.total = done, total
        if now - self._told > TELL_SECONDS:
            self._told = now
            log.info("indexing: %d of %d photos, %.0f/s", done, total, (done - self._first) / (now - self._since))
        if self._stop:
            raise Stopped

    def status(self) -> dict[str, Any]:
        """As ``GET /api/indexing`` answers."""
        done, total = self.done, self.total
        took = time.monotonic() - self._since if self._since else 0.0
        speed = (done - self._first) / took if self.running and took > 0.2 else 0.0
        return {
            "running": self.running,
            "done": done,
            "total": total,
            "photos_per_second": round(speed, 1) if speed else None,
            "seconds_left": round((total - done) / speed, 1) if speed else None,
            "report": self.report.to_json() if self.report else None,
            "error": without_paths(self.error, self.source or "") if self.error else None,
        }


def routes(app: FastAPI, catalog: Catalog, writer: Writer, sync: Sync) -> None:
    """Add the routes of catalog work to ``app``."""
    # Not the threads of searches: a slow download must not keep those waiting.
    limiter: list[anyio.CapacityLimiter] = []

    async def work(function: Any, *args: Any) -> Any:
        if not limiter:
            limiter.append(anyio.CapacityLimiter(4))
        return await anyio.to_thread.run_sync(function, *args, limiter=limiter[0])

    def put(given: list[Given]) -> dict[str, Any]:
        report = writer.put(given)
        catalog.snapshot()  # whoever wrote sees it from the next request on
        return {
            **report.to_json(),
            "problems": [
                {"item": q.item, "reason": without_paths(q.reason, str(catalog.store.directory))}
                for q in report.problems
            ],
        }

    def body(model: type[BaseModel], *more: str) -> dict[str, Any]:
        schema = {"$ref": f"#/components/schemas/{model.__name__}"}
        return {
            "requestBody": {"required": True, "content": {t: {"schema": schema} for t in ("application/json", *more)}}
        }

    @app.put("/api/products", response_model=schemas.PutAnswer, openapi_extra=body(schemas.ProductsPut))
    async def put_products(request: Request) -> Any:
        """Add or replace up to 100 products, as a shop's webhook tells them: what can be used is written in one commit,
        and each photo that cannot is told under ``problems``.
        """
        fields = _valid(schemas.ProductsPut, await _json(request))
        twice = sorted({p.id for p in fields.products if sum(q.id == p.id for q in fields.products) > 1})
        if twice:
            raise InputError(f"the product {twice[0]!r} is there twice; nothing was changed")
        given = [_given(p.id, p, f"products.{n}.") for n, p in enumerate(fields.products)]
        return await work(put, given)

    @app.put(
        "/api/products/{identity:path}",
        response_model=schemas.PutAnswer,
        openapi_extra=body(schemas.ProductFields, "multipart/form-data"),
    )
    async def put_product(identity: str, request: Request) -> Any:
        """Add or replace a product: multipart (title; attributes as JSON; photo, a file, repeatable) or JSON. A product
        that comes without photos keeps those that it has.
        """
        if not 1 <= len(identity) <= 512 or not identity.isprintable():
            raise UsageError("the id has 1 to 512 characters that can be printed")
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if kind == "multipart/form-data":
            given = await _from_form(identity, request)
        else:
            given = _given(identity, _valid(schemas.ProductFields, await _json(request)), "")
        found = await work(put, [given])
        if found["problems"] and not found["added"] + found["updated"] + found["unchanged"]:
            first = found["problems"][0]
            return problem(422, f"{first['item']}: {first['reason']}; nothing was changed")
        return found

    @app.delete("/api/products/{identity:path}", status_code=204, response_class=Response)
    async def delete_product(identity: str) -> Response:
        """Remove a product from the catalog; of its photos, those that were uploaded go, too."""

        def remove() -> None:
            writer.remove(identity)
            catalog.snapshot()

        await work(remove)
        return Response(status_code=204)

    @app.get("/api/quarantine", response_model=schemas.QuarantineAnswer)
    def quarantine(
        response: Response,
        k: Annotated[int, Query(ge=1, le=1000)] = 50,
        offset: Annotated[int, Query(ge=0)] = 0,
    ) -> Any:
        """What could not be used in the last run over each source, with the reason."""
        entries = catalog.quarantine()
        if offset + k < len(entries):
            response.headers["link"] = f'</api/quarantine?k={k}&offset={offset + k}>; rel="next"'
        items = [
            {
                "n": n,
                "item": without_paths(q.item, q.source),
                "reason": without_paths(q.reason, q.source),
                "source": Path(q.source).name,
                "picture": _picture(catalog, q) is not None,
            }
            for n, q in enumerate(entries[offset : offset + k], offset)
        ]
        return {"items": items, "total": len(entries)}

    @app.get("/api/quarantine/{n}/picture", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
    def picture(n: int, width: Annotated[int, Query(ge=16, le=2048)] = 480) -> Response:
        """What can be shown of an entry: the part of a photo before its damage, or the product's photo; 404 where nothing."""
        entries = catalog.quarantine()
        path = _picture(catalog, entries[n]) if 0 <= n < len(entries) else None
        if path is None:
            raise NotFound(f"the quarantine's entry {n} has no picture")
        try:
            content = images.thumbnail(images.remains(path), width)
        except InputError:
            raise NotFound(f"nothing of the picture of entry {n} can be shown") from None
        return Response(content, media_type="image/jpeg")

    @app.get("/api/indexing", response_model=schemas.IndexingAnswer)
    async def indexing() -> Any:
        """How far the sync with SOURCE is."""
        return sync.status()

    @app.post("/api/index", status_code=202, response_model=schemas.IndexingAnswer)
    async def index() -> Any:
        """Sync with SOURCE again; where that is going on, it simply goes on."""
        if sync.source is None:
            raise HTTPException(409, "this server was started without a source; start it so: lookalike serve SOURCE")
        sync.start()
        return sync.status()


def without_paths(text: str, source: str) -> str:
    """``text`` without absolute paths: relative to its source where they lie in it, else their last part."""
    root = source if Path(source).is_dir() else str(Path(source).parent)
    if os.path.isabs(root) and len(root) > 1:  # noqa: PTH117 (of a text that need not be a path)
        text = text.replace(root.rstrip("/\\") + os.sep, "")
    if Path(text).is_absolute():
        return Path(text).name
    return re.sub(r"(?<![\w:/.])/(?:[^\s/:;,'\"()]+/)+", "", text)


def _picture(catalog: Catalog, entry: Quarantined) -> Path | None:
    """The file of a quarantined photo, or the first photo of the product whose row is meant, if there is one."""
    found = re.search(r", id (.+?)(?:, photo \d+)?$", entry.item)
    try:
        item = images.file_of(entry.item)
        path = Path(entry.source) / item if os.path.isabs(entry.source) else item  # noqa: PTH117
        if path.is_absolute() and path.is_file():
            return path
        if found:
            snapshot = catalog.snapshot(refresh=False)
            return Path(snapshot.paths[snapshot.rows(snapshot.product(found[1]))[0]])
    except (NotFound, OSError, ValueError):
        pass
    return None


async def _json(request: Request) -> Any:
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, f"{kind or 'no content type'}: send application/json")
    try:
        return await request.json()
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the body is not JSON ({error})") from None


def _valid(model: type[Any], fields: Any) -> Any:
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


def _given(identity: str, fields: schemas.ProductFields, place: str) -> Given:
    """Raises InputError naming the photo that is neither base64 nor an address."""
    photos: list[bytes | str] | None = None if fields.photos is None else []
    for n, photo in enumerate(fields.photos or ()):
        assert photos is not None
        if re.match(r"https?://", photo, re.IGNORECASE):
            photos.append(photo)
            continue
        try:
            photos.append(base64.b64decode(photo, validate=True))
        except ValueError:
            raise InputError(
                f"{place}photos.{n} is neither base64 nor an http(s) address; nothing was changed"
            ) from None
    if photos == []:
        raise InputError(f"{place}photos is empty; give one, or leave the field out to keep those that are there")
    return Given(identity, fields.title, dict(fields.attributes), photos)


async def _from_form(identity: str, request: Request) -> Given:
    async with form_of(request, files=schemas.MAX_PHOTOS, fields=10) as form:
        photos: list[bytes | str] = []
        fields: dict[str, Any] = {}
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if not (value.filename or value.size):
                    continue  # a field left empty
                if name != "photo":
                    raise UsageError(f"a file in the field {name!r}; photos go into the field photo")
                photos.append(await value.read())
            elif name == "attributes":
                try:
                    fields[name] = decoded(name, value) if value.strip() else {}
                except ValueError as error:
                    raise UsageError(str(error)) from None
            elif name in fields:
                raise UsageError(f"{name} is given twice")
            else:
                fields[name] = value
    if "photos" in fields:
        raise UsageError("photos is a field of the JSON form; here each goes into a file field called photo")
    valid = _valid(schemas.ProductFields, fields)
    return Given(identity, valid.title, dict(valid.attributes), photos or None)
