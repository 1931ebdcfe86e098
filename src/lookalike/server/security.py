"""What every request passes through before work starts: size, time, host, origin, key, rate, room."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import math
import re
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import anyio
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lookalike.errors import UsageError
from lookalike.server.keys import Key, Keys
from lookalike.server.observe import Meter, problem

MAX_BODY = 32 * 2**20
"""Bytes of a request, all of it counted: a 64 MP photo fits, base64 included."""

MAX_HEADERS, MAX_HEADERS_SIZE = 100, 32 * 2**10
"""Of a request: their number, and their bytes (``protocol`` bounds them earlier; here also of pipelined requests)."""

MAX_VALUES = 100_000
"""Values of a JSON body, counted by its commas and brackets before it is parsed: each takes tens of times its bytes."""

MAX_FIELDS = 200
"""Fields of a form without files."""

MAX_FORM = 2**20
"""Bytes of a form's fields together; its photos come on top. Reading such a form takes tens of times its bytes."""

CHARSETS = {"utf-8", "iso8859-1", "cp1252", "ascii"}
"""Of a form's fields, as Python calls them. There are others whose decoding takes minutes for a megabyte (punycode)."""

MAX_BODIES = 512 * 2**20
"""Bytes of all requests that are being answered."""

BODY_SECONDS = 60.0
"""Within which a body must have come whole."""

QUEUE = 256
"""Requests to the interface at work or waiting for a thread; whoever comes then is sent away."""

CLIENTS = 10_000
"""Keys and addresses whose rate is remembered."""

LOOPBACK = {"localhost", "127.0.0.1", "[::1]"}
SAFE = {"GET", "HEAD", "OPTIONS"}
SEARCHING = {"/api/search", "/api/tag", "/api/feedback"}
"""What is posted to these only asks: scope search suffices."""


@dataclass(frozen=True, slots=True)
class Rate:
    """So many requests in so many seconds, also at once."""

    count: float
    seconds: float

    @classmethod
    def parse(cls, text: str) -> Rate | None:
        """``10/s``, ``600/m``; None for ``off``. Raises UsageError."""
        found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)/([sm])", text.strip())
        if text.strip() == "off":
            return None
        if not found or float(found[1]) <= 0:
            raise UsageError(f"--rate-limit {text}: write it as 20/s or 600/m, or off")
        return cls(float(found[1]), 60.0 if found[2] == "m" else 1.0)


class Buckets:
    """One token bucket for each client; the ones not seen for longest are forgotten first."""

    def __init__(self, rate: Rate):
        self.rate = rate
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str, cost: float = 1.0) -> float:
        """Take ``cost`` tokens; returns the seconds to wait for them, 0 where they were there."""
        now, speed, size = time.monotonic(), self.rate.count / self.rate.seconds, max(1.0, self.rate.count)
        left, since = self._left.pop(client, (size, now))
        left = min(size, left + (now - since) * speed)
        wait = max(0.0, (cost - left) / speed)
        self._left[client] = (left if wait else left - cost, now)
        if len(self._left) > CLIENTS:
            self._left.popitem(last=False)
        return wait


def origin(text: str) -> str:
    """An origin for the CORS list, as browsers write it. Raises UsageError."""
    parts = urlsplit(text.strip().rstrip("/").lower())
    try:
        whole = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        whole = False
    if text.strip() == "*":
        return "*"
    if not whole or parts.path or parts.query or parts.fragment or "@" in parts.netloc:
        raise UsageError(f"--cors-origin {text}: an origin is wanted, for example https://shop.example")
    usual = {"http": ":80", "https": ":443"}[parts.scheme]
    return f"{parts.scheme}://{parts.netloc.removesuffix(usual)}"


class Guard:
    """Pure ASGI, so that nothing of a body is read before it is counted."""

    def __init__(
        self, app: ASGIApp, keys: Keys, meter: Meter, begun: Callable[[], Awaitable[bool]], public: bool = False,
        hosts: set[str] | None = None, cors: tuple[str, ...] = (), rate: Rate | None = None, queue: int = QUEUE,
    ):  # fmt: skip
        """Wrap ``app``.

        Args:
            app: what is guarded.
            keys: where there is any, every call under ``/api/`` wants one; writing wants one always.
            meter: counts what is sent away.
            begun: whether there is something to search; may wait until there is.
            public: reachable from other machines: a key is wanted even when the last one has been removed.
            hosts: Host headers that are answered when there is no key (a page of another site may resolve its own name
                to this machine); None for loopback names.
            cors: origins whose pages may call.
            rate: for each client, or None.
            queue: requests under ``/api/`` that may be at work or wait.
        """
        self.app, self.keys, self.meter, self.begun, self.public = app, keys, meter, begun, public
        self.hosts = LOOPBACK if hosts is None else hosts
        self.cors = cors
        self.buckets = Buckets(rate) if rate else None
        self.queue = queue
        self.inside = self.bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on with the body counted and timed."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        await self.keys.follow()
        try:
            self._check(request)
        except HTTPException as refusal:
            await problem(refusal.status_code, refusal.detail, refusal.headers)(scope, receive, send)
            return
        works = request.scope["path"].startswith("/api/")
        whole = "transfer-encoding" not in request.headers and request.headers.get("content-length", "0") == "0"
        deadline = anyio.current_time() + BODY_SECONDS
        form = request.headers.get("content-type", "").lower().startswith("multipart/")
        seen = values = 0
        entered = False

        def enter() -> None:
            nonlocal entered
            if works and not entered:
                if self.inside >= self.queue:
                    raise self._full()
                entered = True
                self.inside += 1

        async def counted() -> Message:
            # What is raised here is a refusal that routes pass on to the problem documents.
            nonlocal seen, values, whole
            if whole:
                return await receive()
            with anyio.move_on_after(deadline - anyio.current_time()) as late:
                message = await receive()
            if late.cancelled_caught:
                raise HTTPException(408, f"the body did not come within {BODY_SECONDS:.0f} s", {"connection": "close"})
            body = message.get("body", b"")
            seen += len(body)
            self.bytes += len(body)
            if seen > MAX_BODY:
                raise _too_large()
            if not form:
                values += _values(body)
            if values > MAX_VALUES:
                raise HTTPException(413, f"the body has more than {MAX_VALUES:,} values; send fewer at a time")
            if self.bytes > MAX_BODIES:
                raise self._full()
            if not message.get("more_body", False):
                whole = True
                enter()  # work begins: whoever sends slowly takes nobody's place until then
            return message

        try:
            if works and self.inside >= self.queue:
                raise self._full()  # before the body is read, which is half of the work
            if whole:
                enter()
            if works and not await self.begun():
                raise HTTPException(503, "the catalog is not loaded", {"retry-after": "1"})
            await self.app(scope, counted, send)
        except HTTPException as refusal:  # before, or outside of, any route
            await problem(refusal.status_code, refusal.detail, refusal.headers)(scope, receive, send)
        finally:
            self.inside -= entered
            self.bytes -= seen

    def _full(self) -> HTTPException:
        self.meter.overloaded.inc()
        return HTTPException(503, "too many requests are waiting already; try again in a moment", {"retry-after": "1"})

    def _check(self, request: Request) -> None:
        """Raises HTTPException for what is refused."""
        sent = request.scope["headers"]
        if len(sent) > MAX_HEADERS or sum(len(name) + len(value) for name, value in sent) > MAX_HEADERS_SIZE:
            raise HTTPException(431, f"more than {MAX_HEADERS} headers, or {MAX_HEADERS_SIZE // 2**10} KiB of them")
        if "transfer-encoding" in request.headers and "content-length" in request.headers:
            # Where a proxy in front believes the one and we the other, a second request hides in the first.
            raise HTTPException(400, "both Content-Length and Transfer-Encoding; send one", {"connection": "close"})
        length = request.headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()) or int(length) > MAX_BODY:
            raise _too_large()
        # Not request.url: that is put together with the Host header, which may say anything.
        path, guarded = request.scope["path"], self.public or bool(self.keys)
        if not guarded:
            host = request.headers.get("host", "")
            name = host[: host.index("]") + 1] if host.startswith("[") and "]" in host else host.split(":")[0]
            if name not in self.hosts:
                raise HTTPException(
                    400, f"this server does not answer for the host {name[:80]!r}; call it by localhost"
                )
        scope = needed(request.method, path)
        if not scope:
            return
        secret, way = _secret(request)
        key = self.keys.find(secret) if secret else None
        if key:
            request.state.key = key.name
        self._limit(request, key)
        scopes = key.scopes if key else () if guarded else ("search", "metrics")
        if way == "address" and "write" in scopes:
            raise HTTPException(403, f"the key {key and key.name} may write: it must not stand in an address")
        request.state.scopes = [s for s in ("search", "write") if s in scopes]
        if scope not in scopes:
            raise _not_allowed(scope, key, guarded, bool(secret))
        if (
            request.method not in SAFE
            and way != "header"
            and not self._own_page(request, way == "cookie" and bool(key))
        ):
            raise HTTPException(
                403, "a page of another site may not do this; send the key as Authorization: Bearer KEY"
            )

    def _limit(self, request: Request, key: Key | None) -> None:
        """A key that writes is one integration; one that searches may stand in a page that many people have open."""
        if not self.buckets or not request.scope["path"].startswith("/api/"):
            return
        client = f"key {key.name}" if key and "write" in key.scopes else _network(request)
        cost = 0.1 if request.scope["path"].startswith("/api/photos/") else 1.0  # a page shows dozens of them
        wait = self.buckets.take(client, cost)
        if wait:
            self.meter.limited.inc()
            rate = f"{self.buckets.rate.count:g} in {self.buckets.rate.seconds:g} s"
            raise HTTPException(429, f"more requests than {rate}", {"retry-after": str(math.ceil(wait))})

    def _own_page(self, request: Request, by_cookie: bool) -> bool:
        """Whether this comes from our own page, or from no page at all: cookies are sent whoever made a browser ask."""
        sent = request.headers.get("origin")
        if sent is None:
            return not by_cookie
        if not by_cookie and (sent in self.cors or "*" in self.cors):
            return True
        site = request.headers.get("sec-fetch-site")  # also right behind a proxy that changes the Host
        return site == "same-origin" if site else sent.partition("://")[2] == request.headers.get("host")


def needed(method: str, path: str) -> str:
    """The scope that a call needs; empty for what anybody may have: the page, its parts, the documentation, health."""
    if path == "/metrics":
        return "metrics"
    if not path.startswith("/api/"):
        return ""
    if path.startswith("/api/quarantine") or (method not in SAFE and not (method == "POST" and path in SEARCHING)):
        return "write"
    return "search"


def _not_allowed(scope: str, key: Key | None, guarded: bool, given: bool) -> HTTPException:
    if key:
        return HTTPException(403, f"the key {key.name} may not do this; a key of scope {scope} is needed")
    bearer = {"www-authenticate": "Bearer"}
    if not guarded:
        return HTTPException(
            401, "writing needs an API key, on this machine, too: lookalike keys add NAME --scope write", bearer
        )
    wrong = "this API key is not known" if given else "an API key is wanted"
    return HTTPException(401, f"{wrong}: send it as Authorization: Bearer KEY", bearer)


def _secret(request: Request) -> tuple[str, str]:
    """The secret that is given, and the way: ``header``, ``address`` or ``cookie``, which a browser sends by itself."""
    kind, _, value = request.headers.get("authorization", "").partition(" ")
    given = value.strip() if kind.lower() == "bearer" else ""
    given = given or request.headers.get("x-api-key", "").strip()
    if given:
        return given, "header"
    given = request.query_params.get("key", "") if request.scope["path"].startswith("/api/photos/") else ""
    if given:  # an <img> on a page of another origin can send nothing else
        return given, "address"
    return request.cookies.get("lookalike_key", ""), "cookie"


def _network(request: Request) -> str:
    """The client's address; of IPv6 the /64, which one client has for itself."""
    host = request.client.host if request.client else ""
    try:
        address = ipaddress.ip_address(host.split("%")[0])
    except ValueError:
        return host
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else host


def _too_large() -> HTTPException:
    return HTTPException(413, f"the request is larger than {MAX_BODY // 2**20} MiB; send a smaller photo")


class _InMemory(MultiPartParser):
    """Keeps a customer's photo in memory: by default what is larger than 1 MiB goes through a file."""

    spool_max_size = MAX_BODY + 1
    whole = False
    fields = 0

    def on_part_begin(self) -> None:
        """As ``MultiPartParser.on_part_begin``, which comes before anything is decoded."""
        if self._charset not in CHARSETS:
            raise MultiPartException("the form's charset must be utf-8")
        super().on_part_begin()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        """As ``MultiPartParser.on_part_data``, with the fields bounded together."""
        if self._current_part.file is None:
            self.fields += end - start
            if self.fields > MAX_FORM:
                raise MultiPartException(f"the form's fields are larger than {MAX_FORM // 2**20} MiB")
        super().on_part_data(data, start, end)

    def on_end(self) -> None:
        """As ``MultiPartParser.on_end``."""
        self.whole = True

    async def parse(self) -> FormData:
        """As ``MultiPartParser.parse``, but what breaks off is refused, and its files are closed."""
        form = await super().parse()
        if not self.whole:
            for file in self._files_to_close_on_error:
                file.close()
            raise MultiPartException("the form breaks off: its last boundary is missing")
        return form


@contextlib.asynccontextmanager
async def form_of(request: Request, files: int, fields: int = MAX_FIELDS) -> AsyncIterator[FormData]:
    """The fields and files of a form of at most so many. Nothing of it reaches the disk.

    Raises:
        HTTPException: 400 or 413, it is no form, or larger.
    """
    try:
        if request.headers.get("content-type", "").lower().startswith("multipart/"):
            form = await _InMemory(request.headers, request.stream(), max_files=files, max_fields=fields).parse()
        else:
            body = await _small(request)
            form = FormData([*parse_qsl(body, keep_blank_values=True, max_num_fields=fields)])
    except MultiPartException as error:
        raise HTTPException(400, error.message) from None
    except ValueError:
        raise HTTPException(400, f"the form has more than {fields} fields, or cannot be read") from None
    try:
        yield form
    finally:
        await form.close()


async def _small(request: Request) -> str:
    """A form without photos. Raises HTTPException where it is larger than one can be."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_FORM:
            raise HTTPException(
                413, f"the form is larger than {MAX_FORM // 2**20} MiB; send photos as multipart/form-data"
            )
    return body.decode("latin-1")


def _values(piece: bytes) -> int:
    """How many values a piece of JSON can have."""
    return sum(piece.count(mark) for mark in (b",", b"[", b"{"))


def decoded(name: str, value: str) -> Any:
    """A form or address field that holds JSON. Raises ValueError naming it."""
    try:
        if _values(value.encode("utf-8", "replace")) > MAX_VALUES:
            raise ValueError
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError(f"{name} is not JSON, or has too many values: {value[:80]!r}") from None
