"""What is told of every request: an id, a line in the log, figures for Prometheus; and the headers that every answer has.

Never in any of them: secrets, query texts, file names, bodies, addresses of people.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lookalike import stages
from lookalike.errors import LookalikeError

if TYPE_CHECKING:
    from lookalike.catalog import Catalog

HEADERS = {
    "content-security-policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""Of every answer. Data and photos are no pages: whoever opens them as one gets nothing that runs or loads."""

PAGE = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
"""The policy of the pages. ``data:`` and ``blob:`` are the photos that a visitor chose, shown before they are sent."""

PAGES = {"/", "/docs"}
MAX_DETAIL = 1000
"""Characters of an error's text: it may quote what was sent."""

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, which nobody reads
METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"}
request_id: ContextVar[str] = ContextVar("request_id", default="")
log = logging.getLogger("lookalike")
access = logging.getLogger("lookalike.access")


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An RFC 9457 problem document, with the request's id."""
    if len(detail) > MAX_DETAIL:
        detail = detail[:MAX_DETAIL] + " …"
    detail = detail.encode("utf-8", "backslashreplace").decode()  # halves of surrogate pairs, which JSON can hold
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    if request_id.get():
        body["request_id"] = request_id.get()
    return JSONResponse(body, status, headers, media_type="application/problem+json")


class Meter(Collector):
    """The figures of one application, in a registry of its own."""

    def __init__(self, catalog: Catalog):
        self.catalog = catalog
        self.registry = made = CollectorRegistry()
        self.seconds = Histogram(
            "lookalike_request_seconds", "Time to answer.", ["method", "route"], buckets=BUCKETS, registry=made
        )
        self.requests = Counter("lookalike_requests", "Answers.", ["method", "route", "status"], registry=made)
        self.stages = Histogram(
            "lookalike_stage_seconds",
            "Time of a stage of the work, in all of a request.",
            ["stage"],
            buckets=BUCKETS,
            registry=made,
        )
        self.running = Gauge("lookalike_requests_running", "Requests that are being answered.", registry=made)
        self.limited = Counter("lookalike_rate_limited", "Requests over the rate limit (429).", registry=made)
        self.overloaded = Counter("lookalike_overloaded", "Requests that found the queue full (503).", registry=made)
        self.cut = Counter("lookalike_connections_cut", "Connections ended before their time.", ["why"], registry=made)
        for stage in ("wait", "decode", "encode", "search"):
            self.stages.labels(stage)  # there from the start, for alerts on what has not happened yet
        ProcessCollector(registry=made)
        made.register(self)

    def refused(self, status: int, identity: str) -> None:
        """Count and log what was refused before there was a request."""
        self.requests.labels("OTHER", "none", str(status)).inc()
        if access.isEnabledFor(logging.INFO):
            fields = {"method": "OTHER", "route": "none", "status": status, "request_id": identity}
            access.info("request", extra={"fields": fields})

    def describe(self) -> list[Metric]:
        """Nothing: registering must not read the catalog."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The catalog as it is now, once it is loaded: loading it here would hold up the event loop."""
        if not self.catalog.loaded:
            return
        figures: dict[str, tuple[str, float]] = {}
        try:
            snapshot = self.catalog.snapshot(refresh=False)
            figures["products"] = "Products in the catalog.", len(snapshot)
            figures["photos"] = "Photos in the catalog.", snapshot.photo_count
            figures["version"] = "Version of the catalog that answers.", snapshot.version
            figures["quarantined"] = "Inputs that could not be used.", len(self.catalog.quarantine())
        except LookalikeError as error:  # the other figures matter all the more then
            log.warning("the catalog's figures cannot be had: %s", error)
        for name, (about, value) in figures.items():
            yield GaugeMetricFamily(f"lookalike_catalog_{name}", about, value=value)


class Observe:
    """The outermost layer, so that refusals and bugs have an id, a line and the headers, too."""

    def __init__(self, app: ASGIApp, meter: Meter, shared: bool = False):
        """Wrap ``app``; ``shared``: pages of other origins may embed photos and the page's parts."""
        self.app, self.meter = app, meter
        self.headers = {**HEADERS, "cross-origin-resource-policy": "cross-origin" if shared else "same-origin"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, then tell."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        identity = given if re.fullmatch(r"[\w.:-]{1,128}", given, re.ASCII) else uuid.uuid4().hex
        request_id.set(identity)
        took: dict[str, float] = {}

        def tell(stage: str, seconds: float) -> None:
            took[stage] = took.get(stage, 0.0) + seconds

        stages.observer.set(tell)
        method, path = scope["method"], scope["path"]
        # HEAD is answered wherever GET is, without its body. A copy, for uvicorn looks at the method of its own.
        scope = {**scope, "method": "GET" if method == "HEAD" else method, "state": {**scope.get("state", {})}}
        status = 0

        async def headed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(raw=list(message.get("headers", [])))
                for name, value in self.headers.items():
                    headers[name] = value
                if path in PAGES:
                    headers["content-security-policy"] = PAGE
                headers["x-request-id"] = identity
                if path.startswith("/api/"):
                    headers.setdefault("cache-control", "no-store")
                if "content-encoding" in headers and headers.get("etag", "").startswith('"'):
                    headers["etag"] = f"W/{headers['etag']}"  # other bytes than those without compression
                message = {**message, "headers": headers.raw}
            elif method == "HEAD":
                message = {**message, "body": b""}
            await send(message)

        start = time.perf_counter()
        self.meter.running.inc()
        try:
            await self.app(scope, receive, headed)
        except ClientDisconnect:  # in the middle of sending; there is nobody to answer
            pass
        except asyncio.CancelledError:  # the server ends, and waits no longer
            if status:
                raise
            await problem(503, "the server is stopping", {"retry-after": "1"})(scope, receive, headed)
        except Exception:
            log.exception("this is a bug in lookalike; please report it with these lines (request %s)", identity)
            if status:
                raise  # too late for another answer: the connection is cut
            await problem(500, "this is a bug in lookalike; its log has the details")(scope, receive, headed)
        finally:
            self.meter.running.dec()
            self._tell(scope, method, status or 499, time.perf_counter() - start, identity, took)

    def _tell(
        self, scope: Scope, method: str, status: int, seconds: float, identity: str, took: dict[str, float]
    ) -> None:
        route = _route(scope)
        method = method if method in METHODS else "OTHER"
        self.meter.seconds.labels(method, route).observe(seconds)
        self.meter.requests.labels(method, route, str(status)).inc()
        for stage, spent in took.items():
            self.meter.stages.labels(stage).observe(spent)
        if access.isEnabledFor(logging.INFO):
            fields = {
                "method": method, "route": route, "status": status, "ms": round(seconds * 1000, 2),
                "request_id": identity, "key": scope["state"].get("key"),
                **{f"{stage}_ms": round(s * 1000, 2) for stage, s in took.items()},
            }  # fmt: skip
            access.info("request", extra={"fields": fields})


def _route(scope: Scope) -> str:
    """The route's template, never the path itself: that may hold anything. Also of what was refused on the way there."""
    route, path = scope.get("route"), scope["path"]
    if route is None and path.startswith("/api/"):
        for one in scope["app"].routes:
            if one.matches(scope)[0] == Match.FULL:
                route = one
                break
    fixed = "/openapi.json" if path == "/openapi.json" else "/web" if path.startswith("/web/") else "none"
    return str(getattr(route, "path_format", "") or fixed)


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """As ``logging.Formatter.format``."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {"time": f"{moment}.{record.msecs:03.0f}Z", "level": record.levelname.lower()}
        line["message"] = record.getMessage()
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class TextLines(logging.Formatter):
    """The same for people."""

    def format(self, record: logging.LogRecord) -> str:
        """As ``logging.Formatter.format``."""
        fields = dict(getattr(record, "fields", {}))
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        if not fields:
            record.message = record.getMessage()
            trace = "\n" + self.formatException(record.exc_info) if record.exc_info else ""
            return f"{clock} {record.levelname.lower()}: {record.message}{trace}"
        first = " ".join(str(fields.pop(name)) for name in ("method", "route", "status"))
        rest = " ".join(f"{name}={value}" for name, value in fields.items() if value is not None)
        return f"{clock} {first} {rest}"


def log_to_stderr(form: str = "") -> None:
    """Send our lines, and the web server's warnings, to standard error.

    Args:
        form: ``json`` or ``text``; by default text on a terminal.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(
        TextLines() if (form or ("text" if sys.stderr.isatty() else "json")) == "text" else JsonLines()
    )
    # What uvicorn and the form parser warn of, requests that are none, has a line of ours.
    levels = {
        "": logging.WARNING,
        "lookalike": logging.INFO,
        "uvicorn": logging.ERROR,
        "python_multipart": logging.ERROR,
    }
    for name, level in levels.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
