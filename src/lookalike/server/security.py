"""What every request passes through: size, host, key; and what every answer carries."""

from __future__ import annotations

import hmac
import json
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 32 * 2**20
"""Bytes of a request, all of it counted: a 64 MP photo fits, base64 included."""

HEADERS = {
    b"content-security-policy": b"default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
    b"form-action 'self'; frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
}
LOOPBACK = {"localhost", "127.0.0.1", "[::1]"}


def problem(status: int, detail: str) -> JSONResponse:
    """An RFC 9457 problem document."""
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return JSONResponse(body, status, media_type="application/problem+json")


class TooLarge(Exception):
    """The body went over ``MAX_BODY`` while it was read."""


class Guard:
    """Pure ASGI, so that nothing of a body is read before it is counted."""

    def __init__(self, app: ASGIApp, api_key: str = "", hosts: set[str] | None = None):
        """Wrap ``app``.

        Args:
            app: what is guarded.
            api_key: wanted of every call under ``/api/``, if not empty.
            hosts: Host headers that are answered when there is no key (a page of another site may resolve its own name
                to this machine); None for loopback names.
        """
        self.app, self.api_key = app, api_key
        self.hosts = LOOPBACK if hosts is None else hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on with the body counted and the headers added."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(Request(scope))
        if refusal:
            await refusal(scope, receive, send)
            return
        seen = 0
        started = False
        head = scope["method"] == "HEAD"  # answered wherever GET is, without its body
        if head:
            scope = {**scope, "method": "GET"}

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > MAX_BODY:
                raise TooLarge
            return message

        async def headed(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": [*message.get("headers", []), *HEADERS.items()]}
            elif head:
                message = {**message, "body": b""}
            await send(message)

        try:
            await self.app(scope, counted, headed)
        except TooLarge:
            if not started:
                await _too_large()(scope, receive, headed)

    def _refusal(self, request: Request) -> JSONResponse | None:
        length = request.headers.get("content-length", "0")
        if not length.isdigit() or int(length) > MAX_BODY:
            return _too_large()
        if self.api_key:
            if request.url.path.startswith("/api/") and not self._knows_key(request):
                return problem(401, "an API key is wanted: send it as Authorization: Bearer KEY")
            return None
        host = request.headers.get("host", "")
        name = host[: host.index("]") + 1] if host.startswith("[") and "]" in host else host.split(":")[0]
        if name not in self.hosts:
            return problem(400, f"this server does not answer for the host {name[:80]!r}; call it by localhost")
        return None

    def _knows_key(self, request: Request) -> bool:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        given = given or request.headers.get("x-api-key", "") or request.cookies.get("lookalike_key", "")
        return hmac.compare_digest(given.encode(), self.api_key.encode())


def _too_large() -> JSONResponse:
    return problem(413, f"the request is larger than {MAX_BODY // 2**20} MiB; send a smaller photo")


def decoded(name: str, value: str) -> Any:
    """A form or address field that holds JSON. Raises ValueError naming it."""
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError(f"{name} is not JSON: {value[:80]!r}") from None
