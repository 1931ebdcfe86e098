"""The routes. Work happens in threads, on the snapshot that is there; a newer one is loaded beside it and swapped in."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ctypes
import logging
import os
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlencode

import anyio.to_thread
import numpy as np
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from PIL import Image
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect
from starlette.staticfiles import StaticFiles

from lookalike import __version__, feedback, images, types
from lookalike import where as filters
from lookalike.catalog import Catalog
from lookalike.errors import (
    CatalogError,
    CatalogLocked,
    EncoderMismatch,
    InputError,
    LookalikeError,
    NotFound,
    UsageError,
)
from lookalike.insights import NEAR_DUPLICATE
from lookalike.search import MAX_DEPTH, MAX_K
from lookalike.server import schemas, writing
from lookalike.server.describe import describe
from lookalike.server.keys import Keys
from lookalike.server.observe import Meter, Observe, problem
from lookalike.server.security import QUEUE, Guard, Rate, decoded, form_of
from lookalike.stages import observer, timed

WEB = Path(__file__).parent.parent / "web"
POLL_SECONDS = 1.0
CHECK_SECONDS = 30.0
"""Between two searches of the server's own, by which it knows that searches are answered."""
START_SECONDS = 60.0
"""For which a request waits for the catalog to be loaded."""
MAX_THUMBNAILS = 64 * 2**20
"""Bytes of photos made ready that are kept in memory."""
COMPARING = 4
"""Requests for duplicates that may wait for one another."""
REINDEX_AGAIN = 600.0
"""Seconds after which an index that could not be made is tried again."""
log = logging.getLogger("lookalike")
R = TypeVar("R")


class Not(BaseModel):
    """What is not wanted."""

    model_config = ConfigDict(extra="forbid")
    text: str | list[str] = []
    like: str | list[str] = []


class Votes(BaseModel):
    """Products of the answer that were found good or bad."""

    model_config = ConfigDict(extra="forbid")
    up: str | list[str] = []
    down: str | list[str] = []


class Vote(BaseModel):
    """A hit was found good (``up``) or bad (``down``) for a query; ``none`` takes that back."""

    model_config = ConfigDict(extra="forbid")
    product: str
    vote: Literal["up", "down", "none"]
    query: dict[str, Any] = Field(default_factory=dict, description="text, like and where are kept; a photo never is.")


class SearchRequest(BaseModel):
    """A search: any mix of photo, words and "like product X", within a filter."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)
    image: str | None = Field(None, description="A photo's bytes, base64.")
    text: str = ""
    like: str | list[str] = []
    not_: Not = Field(default_factory=Not, alias="not")
    where: str = Field("", description="gender = 'Women' and price < 50")
    k: int = Field(12, ge=1, le=MAX_K)
    offset: int = Field(0, ge=0, le=MAX_DEPTH, description="Hits to skip: what was shown already.")
    crop: list[float] | None = Field(None, description="[x0, y0, x1, y1] in fractions of the upright photo.")
    weights: dict[str, float] = Field(default_factory=dict, description="photo, text, like, colour: 1 each.")
    lexical: float = Field(0.0, ge=0, le=1, description="Share of word matching over titles and attributes.")
    pure: bool = Field(False, description="The plain order of the photo vectors.")
    colour: str = Field("", description="#rrggbb: what the garment should have.", examples=["#c81e3a"])
    feedback: Votes = Field(
        default_factory=lambda: Votes(), description="Hits found good or bad: they move the answer."
    )
    fold: bool = Field(False, description="Near-duplicates go under the first of them.")
    diversity: float = Field(0.0, ge=0, le=1, description="Keeps hits apart.")
    sort: str = Field("", description="A column that the best 200 hits are ordered by; -column for the largest first.")

    def query(self, upload: bytes | None = None) -> types.Query:
        """As the rest of Lookalike knows it. Raises UsageError where the image is not base64."""
        image = upload
        if image is None and self.image is not None:
            try:
                image = base64.b64decode(self.image, validate=True)
            except ValueError:  # binascii.Error, or characters outside ASCII
                raise UsageError("image is not base64; send the photo's bytes encoded so, or as multipart") from None
        return types.Query(
            image=image, text=self.text, like=_several(self.like), not_text=_several(self.not_.text),
            not_like=_several(self.not_.like), where=self.where, k=self.k, crop=self.crop, weights=self.weights,
            lexical=self.lexical, pure=self.pure, colour=self.colour, up=_several(self.feedback.up),
            down=_several(self.feedback.down), fold=self.fold, diversity=self.diversity, sort=self.sort, offset=self.offset,
        )  # fmt: skip


class Health:
    """Whether searches are answered, found out by asking one now and then, and what else is wrong."""

    def __init__(self, catalog: Catalog, sync: writing.Sync, writer: writing.Writer):
        self.catalog, self.sync, self.writer = catalog, sync, writer
        self.state = "starting"
        self.stale = self.fails = False
        self.loaded: asyncio.Event | None = None
        self._answered = time.monotonic()
        file = images.thumbnail(Image.new("RGB", (32, 32), "red"), 32)
        self._query = types.Query(image=file, k=1)

    async def begun(self) -> bool:
        """Whether the catalog is loaded. Waits for it a while: whoever comes early would rather wait than ask again."""
        if self.loaded is None:
            return True
        if not self.loaded.is_set():
            with anyio.move_on_after(START_SECONDS):
                await self.loaded.wait()
        return self.loaded.is_set() and self.catalog.loaded

    def stop(self) -> None:
        """Nobody waits any longer for a catalog that is being loaded."""
        self.state = "stopping"
        if self.loaded is not None:
            self.loaded.set()

    def search(self) -> None:
        """By photo, since that needs all there is: decoder, encoder, index."""
        self.catalog.answer(self._query, refresh=False)
        self._answered = time.monotonic()

    async def watch(self) -> None:
        """Search again and again."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                await run_in_threadpool(self.search)
                if self.fails:
                    log.info("searches are answered again")
                self.fails = False
            except Exception as error:
                if not self.fails:  # once, not every time
                    log.error("searches cannot be answered: %s", error)
                self.fails = True

    def problem(self) -> str:
        """Why no search is answered, empty where they are."""
        if self.state != "ready":
            return self.state
        waited = time.monotonic() - self._answered
        if self.fails:
            return "broken: searches fail; the server's log says why"
        return f"broken: no search has come to its end for {waited:.0f} s" if waited > 3 * CHECK_SECONDS else ""

    def reasons(self) -> list[str]:
        """What is wrong although searches are answered."""
        return [
            *(["the catalog cannot be read; what was read before goes on answering"] if self.stale else []),
            *(["the catalog could not be written when that was last tried"] if self.writer.failed else []),
            *(["the last sync with the source failed: GET /api/indexing"] if self.sync.error else []),
        ]


class Thumbnails:
    """Photos made ready, those not asked for the longest thrown away: bounded in bytes, since sizes differ hundredfold."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str, int], tuple[str, bytes]] = OrderedDict()
        self._lock, self._size = threading.Lock(), 0

    def __call__(self, path: str, digest: str, width: int) -> tuple[str, bytes]:
        """The photo's JPEG, and the digest of the file as it is now, which may have changed. Raises InputError."""
        key = (path, digest, width)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        content = images.load(path)
        found = images.digest(content)
        made = found, images.thumbnail(timed("decode", images.read, content, at_least=width), width)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made
                self._size += len(made[1])
            while self._size > MAX_THUMBNAILS:
                self._size -= len(self._kept.popitem(last=False)[1][1])
        return made


async def _in_turn(request: Request, function: Callable[..., R], *args: Any) -> R:
    """``function`` in a thread, once one is free; nothing is done for who has gone while waiting."""
    threads, me, start = anyio.to_thread.current_default_thread_limiter(), object(), time.perf_counter()
    await threads.acquire_on_behalf_of(me)
    try:
        if tell := observer.get():
            tell("wait", time.perf_counter() - start)
        if await request.is_disconnected():
            raise ClientDisconnect
        return await anyio.to_thread.run_sync(function, *args, limiter=anyio.CapacityLimiter(1))
    finally:
        threads.release_on_behalf_of(me)


def create_app(
    catalog: Catalog, api_key: str = "", hosts: set[str] | None = None, *, public: bool = False,
    cors: tuple[str, ...] = (), rate: Rate | None = None, queue: int = QUEUE, source: str | None = None,
    downloads: writing.Downloads | None = None, failed: Callable[[Exception], None] | None = None,
) -> FastAPI:  # fmt: skip
    """The application over one catalog.

    Args:
        catalog: what is searched; its encoder and snapshot are loaded at start-up.
        api_key: a secret of all scopes, beside the catalog's own keys.
        hosts: Host headers answered without a key; loopback names by default.
        public: reachable from other machines: nothing under ``/api/`` is answered without a key.
        cors: origins whose pages may call, and embed photos and the page's parts.
        rate: of each client's requests, or None.
        queue: requests that may be at work or wait; more are sent away with 503.
        source: brought in step with when the server starts, in the background, and whenever it is asked to.
        downloads: how addresses, of SOURCE or of photos that are put, are fetched; None where they are not.
        failed: where given, the catalog is loaded while health is told already, and this is told why it cannot be.
    """
    meter, keys = Meter(catalog), Keys(catalog.store.directory, api_key)
    sync, writer = writing.Sync(catalog, source, downloads), writing.Writer(catalog, downloads)
    health = Health(catalog, sync, writer)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Searches hold the interpreter's lock most of their time: more threads would only take it from one another.
        anyio.to_thread.current_default_thread_limiter().total_tokens = 2 * (os.cpu_count() or 1)
        tasks: list[asyncio.Task[None]] = []

        async def load() -> None:
            # With a filter and its counts once, so that the first visitor does not wait for what is built on first use.
            await run_in_threadpool(lambda: (catalog.snapshot().lexical, _facets(catalog, "id is null")))
            await run_in_threadpool(health.search)
            await run_in_threadpool(writer.sweep)
            tasks.extend([asyncio.create_task(_watch(catalog, sync, health)), asyncio.create_task(health.watch())])
            if health.state == "starting":  # else it was told to stop meanwhile
                health.state = "ready"
                if source is not None:
                    sync.start()

        async def load_or_fail(failed: Callable[[Exception], None], loaded: asyncio.Event) -> None:
            try:
                await load()
            except Exception as error:
                failed(error)
            loaded.set()

        if failed is None:
            await load()
        else:
            health.loaded = asyncio.Event()
            tasks.append(asyncio.create_task(load_or_fail(failed, health.loaded)))
        yield
        health.stop()
        for task in tasks:
            task.cancel()
        await run_in_threadpool(sync.stop)

    # The default documentation pages load scripts from elsewhere; ours is web/docs.html.
    # Redirects to the path with or without its last slash would go to whatever the Host header says.
    app = FastAPI(
        title="Lookalike", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False
    )  # fmt: skip
    app.state.health, app.state.meter = health, meter
    app.add_middleware(GZipMiddleware, minimum_size=1024, compresslevel=4)
    app.add_middleware(
        Guard, keys=keys, meter=meter, begun=health.begun, public=public, hosts=hosts, cors=cors, rate=rate, queue=queue
    )  # fmt: skip
    if cors:
        app.add_middleware(
            CORSMiddleware, allow_origins=cors, allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "If-None-Match", "X-API-Key", "X-Request-Id"],
            expose_headers=["ETag", "Link", "Retry-After", "X-Request-Id"],
        )  # fmt: skip
    app.add_middleware(Observe, meter=meter, shared=bool(cors))
    _errors(app)
    _searches(app, catalog)
    writing.routes(app, catalog, writer, sync)
    _things(app, catalog, meter, health)
    app.mount("/web", Parts(directory=WEB), name="web")
    describe(app)
    return app


class Parts(StaticFiles):
    """The page's parts: kept by browsers, but asked for again (304) each time, so that an upgrade is seen at once."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """As ``StaticFiles.file_response``."""
        response = super().file_response(*args, **kwargs)
        response.headers["cache-control"] = "no-cache"
        return response


async def _watch(catalog: Catalog, sync: writing.Sync, health: Health) -> None:
    """Load a newer version when there is one. A failed load keeps the old one and is tried again.

    An index that fell behind is made anew by a process of its own: it would take this one's time from searches.
    """
    told, took = "", 0.0
    maker: subprocess.Popen[bytes] | None = None
    pause = 0.0
    try:
        while True:
            # While the catalog grows with every second, loading it must not take the time that encoding needs.
            await asyncio.sleep(max(POLL_SECONDS, 10 * took if sync.running else 0))
            start = time.monotonic()
            try:
                await run_in_threadpool(lambda: catalog.snapshot().lexical)
                took = time.monotonic() - start
                told, health.stale = "", False
                if maker is not None and maker.poll() is not None:
                    pause = time.monotonic() + REINDEX_AGAIN if maker.returncode else 0.0
                    maker = None
                idle = maker is None and not sync.running and time.monotonic() > pause
                if idle and await run_in_threadpool(catalog.behind):
                    maker = subprocess.Popen(
                        [
                            sys.executable,
                            "-m",
                            "lookalike",
                            "reindex",
                            "--catalog",
                            str(catalog.store.directory),
                            "--json",
                        ],
                        stdout=subprocess.DEVNULL,
                    )
            except Exception as error:
                health.stale = True
                if str(error) != told:  # once, not every second
                    told = str(error)
                    log.warning(
                        "the new version of the catalog cannot be read, the old one goes on answering: %s", told
                    )
    finally:
        if maker is not None and maker.poll() is None:
            maker.terminate()
            maker.wait()


def _errors(app: FastAPI) -> None:
    @app.exception_handler(LookalikeError)
    async def ours(request: Request, error: LookalikeError) -> JSONResponse:
        if isinstance(error, CatalogLocked):
            busy = "the catalog is being written by somebody else; try again in a moment"
            return problem(error.status, busy, {"retry-after": "5"})
        if isinstance(error, (CatalogError, EncoderMismatch)):  # messages for whoever runs the server: with its paths
            log.error("%s", error)
            return problem(error.status, "the catalog cannot be read or written; the server's log says why")
        return problem(error.status, str(error))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        return problem(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return problem(422, _first(error.errors()))


def _searches(app: FastAPI, catalog: Catalog) -> None:
    def asked(fields: dict[str, Any], upload: bytes | None) -> types.Query:
        try:
            return SearchRequest.model_validate(fields).query(upload)
        except ValidationError as error:
            raise RequestValidationError(error.errors()) from None

    async def answer(request: Request, fields: dict[str, Any], upload: bytes | None) -> dict[str, Any]:
        def work() -> dict[str, Any]:
            query = asked(fields, upload)
            found = catalog.answer(query, refresh=False)
            return {
                "hits": [h.to_json() for h in found.hits],
                "total": found.total,
                "more": found.more,
                "facets": _facets(catalog, query.where)["facets"],
                "no_good_match": found.no_good_match,
                "corrected": dict(found.corrected),
                "took_ms": round(found.took_ms, 2),
            }

        return await _in_turn(request, work)

    schema = SearchRequest.model_json_schema(by_alias=True, ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    schema["properties"] |= {"not": Not.model_json_schema(), "feedback": Votes.model_json_schema()}
    contents = {t: {"schema": schema} for t in ("application/json", "multipart/form-data")}

    async def upload_of(request: Request) -> tuple[dict[str, Any], bytes | None]:
        """Fields and photo of a body, JSON (image as base64) or a form (image as a file)."""
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if kind == "application/json":
            try:
                fields = await request.json()
            except (ValueError, RecursionError) as error:
                raise UsageError(f"the body is not JSON ({error})") from None
            if not isinstance(fields, dict):
                raise UsageError("the body must be a JSON object")
            return fields, None
        if kind not in ("multipart/form-data", "application/x-www-form-urlencoded"):
            raise HTTPException(415, f"{kind or 'no content type'}: send multipart/form-data or application/json")
        async with form_of(request, files=1) as form:
            upload = None
            for name, value in form.multi_items():
                if isinstance(value, UploadFile) and (value.filename or value.size):  # else a field left empty
                    if name != "image":
                        raise UsageError(f"a file in the field {name!r}; a photo goes into the field image")
                    upload = await value.read()
            pairs = [(k, v) for k, v in form.multi_items() if isinstance(v, str)]
        return _fields(pairs), upload

    @app.post("/api/search", openapi_extra={"requestBody": {"required": True, "content": contents}})
    async def search(request: Request) -> dict[str, Any]:
        """Search by photo, words, likes, or several at once; multipart (image as a file) or JSON (image as base64)."""
        fields, upload = await upload_of(request)
        return await answer(request, fields, upload)

    @app.get("/api/search")
    async def search_by_address(
        request: Request,
        text: str = "",
        like: Annotated[list[str] | None, Query()] = None,
        where: str = "",
        k: Annotated[int, Query(ge=1, le=MAX_K)] = 12,
        lexical: Annotated[float, Query(ge=0, le=1)] = 0.0,
        pure: bool = False,
        colour: str = "",
        fold: bool = False,
        diversity: Annotated[float, Query(ge=0, le=1)] = 0.0,
        sort: str = "",
        offset: Annotated[int, Query(ge=0, le=MAX_DEPTH)] = 0,
    ) -> dict[str, Any]:
        """The same search without an upload; ``not``, ``weights`` and ``feedback`` are written as JSON."""
        return await answer(request, _fields(request.query_params.multi_items()), None)

    tag_schema = {
        "type": "object", "required": ["image"],
        "properties": {name: schema["properties"][name] for name in ("image", "crop")},
    }  # fmt: skip
    tag_contents = {t: {"schema": tag_schema} for t in ("application/json", "multipart/form-data")}

    @app.post("/api/tag", openapi_extra={"requestBody": {"required": True, "content": tag_contents}})
    async def tag(request: Request) -> dict[str, Any]:
        """Attributes of any photo with their confidence, where the garment lies, and its colours; fields: image, crop."""
        fields, upload = await upload_of(request)

        def work() -> dict[str, Any]:
            query = asked(fields, upload)
            if query.image is None:
                raise UsageError("no photo; send it in the field image")
            return catalog.tag(query.image, query.crop, refresh=False)

        return await _in_turn(request, work)

    pairs: dict[tuple[int, float, str], list[dict[str, Any]]] = {}
    comparing = anyio.Lock()

    def compare(threshold: float, where: str) -> list[dict[str, Any]]:
        try:
            return catalog.duplicates(threshold, where=where, refresh=False)
        finally:  # glibc would keep what this took, up to 200 MB for 44,000 photos, for the threads that it was freed in
            with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
                ctypes.CDLL(None).malloc_trim(0)

    @app.get("/api/duplicates")
    async def duplicates(
        threshold: Annotated[float, Query(ge=0.9, le=1)] = NEAR_DUPLICATE,
        where: str = "",
        k: Annotated[int, Query(ge=1, le=MAX_K)] = 50,
        offset: Annotated[int, Query(ge=0)] = 0,
    ) -> dict[str, Any]:
        """Groups of products whose photos show the same. The first call of a catalog version compares all pairs."""
        key = (catalog.snapshot(refresh=False).version, threshold, where)
        if key not in pairs:
            if comparing.statistics().tasks_waiting >= COMPARING:
                raise HTTPException(503, "others look for duplicates already; try again later", {"retry-after": "10"})
            async with comparing:  # one at a time, and in a thread that no search waits for
                if key not in pairs:
                    found = await anyio.to_thread.run_sync(compare, threshold, where, limiter=anyio.CapacityLimiter(1))
                    if len(pairs) > 1 or any(version != key[0] for version, _, _ in pairs):
                        pairs.clear()  # tens of megabytes each: the page turns the leaves of one
                    pairs[key] = found
        found = pairs[key]
        return {"groups": found[offset : offset + k], "total": len(found)}

    @app.post("/api/feedback", status_code=204)
    def vote(body: Vote) -> Response:
        """Keep that a hit was found good or bad, without anything that tells who found it so."""
        if not feedback.wanted():
            raise HTTPException(409, "votes are not kept here (LOOKALIKE_FEEDBACK=off)")
        catalog.snapshot(refresh=False).product(body.product)
        feedback.keep(catalog.store.directory, feedback.vote(body.product, body.vote, body.query))
        return Response(status_code=204)


def _things(app: FastAPI, catalog: Catalog, meter: Meter, health: Health) -> None:
    thumbnail = Thumbnails()

    @app.get("/api/products", response_model=schemas.ProductsAnswer)
    def products(
        response: Response,
        where: str = "",
        limit: Annotated[int, Query(ge=1, le=MAX_K)] = 24,
        offset: Annotated[int, Query(ge=0)] = 0,
    ) -> Any:
        """The first products by id that pass the filter; without filter and offset, some spread evenly over the catalog."""
        snapshot = catalog.snapshot(refresh=False)
        mask = snapshot.mask(filters.parse(where) if where.strip() else None)
        passing = snapshot.positions
        if mask is snapshot.live and not offset:
            chosen = passing[np.unique(np.linspace(0, len(passing) - 1, min(limit, len(passing))).astype(int))]
        else:
            if mask is not None:
                passing = passing[mask[passing]]
            chosen = passing[offset : offset + limit]
            if offset + limit < len(passing):
                following = urlencode({"where": where, "limit": limit, "offset": offset + limit})
                response.headers["link"] = f'</api/products?{following}>; rel="next"'
        return {"products": [catalog.product(snapshot.ids[n], refresh=False) for n in chosen]}

    @app.get("/api/products/{identity:path}", response_model=schemas.ProductAnswer)
    def product(identity: str) -> Any:
        """One product with its attributes and the ids of its photos."""
        return catalog.product(identity, refresh=False)

    @app.get("/api/photos/{photo_id}", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
    def photo(request: Request, photo_id: str, width: Annotated[int, Query(ge=16, le=2048)] = 480) -> Response:
        """A photo as JPEG without metadata, at most ``width`` pixels wide; answers 304 to the ETag that it gave."""
        snapshot = catalog.snapshot(refresh=False)
        row = snapshot.photo(photo_id)
        digest = snapshot.digests[row]
        # A shared cache may keep what needs no key. The same id may show another photo one day: not for ever.
        who = "private" if getattr(request.state, "key", None) else "public"
        headers = {"etag": f'"{digest}-{width}"', "cache-control": f"{who}, max-age=300"}
        asked = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
        if headers["etag"] in asked:
            return Response(status_code=304, headers=headers)
        try:
            found, content = thumbnail(snapshot.paths[row], digest, width)
        except InputError:  # its message has the path, which stays here
            raise NotFound(f"the file of photo {photo_id} is gone or damaged; run index again") from None
        headers["etag"] = f'"{found}-{width}"'
        return Response(content, media_type="image/jpeg", headers=headers)

    @app.get("/api/facets", response_model=None, responses={200: {"model": schemas.FacetsAnswer}})
    def facets(where: str = "") -> dict[str, Any]:
        """Counts of each column's values among the products that pass the filter."""
        return _facets(catalog, where)

    @app.get("/api/status", response_model=None, responses={200: {"model": schemas.StatusAnswer}})
    def status(request: Request) -> dict[str, Any]:
        """What the catalog holds, what the encoder can, and what the caller may do."""
        found = catalog.status(refresh=False)
        found.pop("catalog")  # a path of this machine
        found["feedback"] = feedback.wanted()
        encoder = {"name": catalog.encoder.name, "id": catalog.encoder.id, "dim": catalog.encoder.dim}
        found["encoder"] = {**encoder, "text": catalog.encoder.reads_text}
        if Path(catalog.encoder.name).is_absolute():
            found["encoder"]["name"] = Path(catalog.encoder.name).name
        elif "@" in catalog.encoder.name:
            found["encoder"]["name"] = catalog.encoder.id.rpartition("-")[0]
        return {"name": "lookalike", "version": __version__, **found, "scopes": request.state.scopes}

    # These three are answered by the event loop itself, also while every thread is busy.

    @app.get("/healthz", response_model=schemas.Health, response_model_exclude_defaults=True)
    async def alive() -> Any:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/readyz", response_model=schemas.Health, response_model_exclude_defaults=True)
    async def ready() -> Any:
        """Searches are answered. 503 says why they are not: ``starting``, ``stopping``, or ``broken: …``."""
        if why := health.problem():
            return problem(503, why, {"retry-after": "1"})
        reasons = health.reasons()
        return {"status": "degraded" if reasons else "ok", "reasons": reasons}

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(generate_latest(meter.registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    @app.get("/docs", include_in_schema=False)
    def docs() -> FileResponse:
        return FileResponse(WEB / "docs.html", headers={"cache-control": "no-cache"})

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(WEB / "index.html", headers={"cache-control": "no-cache"})


def _facets(catalog: Catalog, where: str) -> dict[str, Any]:
    snapshot = catalog.snapshot(refresh=False)
    expression = filters.parse(where) if where.strip() else None
    mask = snapshot.mask(expression)
    return {"products": len(snapshot) if mask is None else int(mask.sum()), "facets": snapshot.facets(expression)}


def _fields(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """Form or address fields → those of ``SearchRequest``. Raises UsageError naming the field."""
    out: dict[str, Any] = {}
    for name, value in pairs:
        if name == "like":
            out.setdefault("like", []).append(value)
        elif name == "image":
            if value:
                raise UsageError("image must be a file part")
        elif name in ("not", "weights", "crop", "feedback"):
            try:
                out[name] = decoded(name, value)
            except ValueError as error:
                raise UsageError(str(error)) from None
        elif name in out:
            raise UsageError(f"{name} is given twice")
        else:
            out[name] = value
    return out


def _first(errors: Any) -> str:
    """The first of pydantic's findings in a sentence that names the field."""
    found: Mapping[str, Any] = errors[0]
    place = ".".join(str(p) for p in found["loc"] if p not in ("query", "body"))
    return f"{place or 'the request'}: {found['msg'].lower()}"


def _several(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
