"""A server under attack: everything is sent that a request must not be, more than can be answered, and for longer than is usual.

    python torture/server.py [shop.catalog] [--seed 1] [--only abuse,soak] [--seconds 1200] [--json FILE] [--plot FILE.png]

Parts, all by default: ``abuse`` (hand-written and mutated requests over raw sockets), ``described`` (schemathesis against
/openapi.json), ``idle`` (thousands of connections that say nothing), ``slow`` (heads, bodies and readers by drops), ``overload``
(three times what can be answered), ``stop`` (SIGTERM under load), ``soak`` (a mix of all that, with memory, threads and open
files read every five seconds). The server is a process of its own over a copy of the catalog (drawn garments where none is
named); clients share the machine with it. The exit code is 1 where anything broke: another 5xx than 503 with Retry-After, an
answer that never comes, a request lost, growth.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image

import lookalike

KEY = "a-key-that-must-be-in-no-log-line"
PARTS = ("abuse", "described", "idle", "slow", "overload", "stop", "soak")
GROWTH = 0.1
"""Share of its memory that the second half of a soak may add to a server."""
AT_REST = {"threads": 4, "files": 8}
"""More of them than after the warming up are a leak; both counted at rest, since a library's threads live on while they are used."""


@dataclass
class Target:
    """Where to send, and in the name of whom."""

    port: int
    key: str = KEY
    host: str = "127.0.0.1"
    product: str = "0"
    """One that is there."""


@dataclass
class Answer:
    """What came back on one connection."""

    raw: bytes = b""
    how: str = "closed"
    """``answered`` (whole), ``closed`` (by the server, before or in an answer), ``hangs``."""
    seconds: float = 0.0
    statuses: list[int] = field(default_factory=list)
    heads: list[bytes] = field(default_factory=list)


def photo(colour: str = "red", size: tuple[int, int] = (240, 320), quality: int = 90, noise: bool = False) -> bytes:
    """A JPEG."""
    image = Image.effect_noise(size, 80).convert("RGB") if noise else Image.new("RGB", size, colour)
    file = BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


# Requests


def request(
    target: Target, method: str, path: str, body: bytes = b"", kind: str = "", more: str = "", close: bool = True
) -> bytes:
    """One request as bytes, with the key."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"X-API-Key: {target.key}"]
    lines += [f"Content-Type: {kind}"] if kind else []
    lines += [f"Content-Length: {len(body)}"] if body or method in ("POST", "PUT") else []
    lines += ["Connection: close"] if close else []
    return ("\r\n".join(lines) + "\r\n" + more + "\r\n").encode("latin-1") + body


def form(**fields: bytes) -> tuple[bytes, str]:
    """A multipart body and its type; ``image`` and ``photo`` are files."""
    out = b""
    for name, value in fields.items():
        file = f'; filename="{name}.jpg"' if name in ("image", "photo") else ""
        out += f'--b0\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + value + b"\r\n"
    return out + b"--b0--\r\n", "multipart/form-data; boundary=b0"


def valid(target: Target, close: bool = True) -> dict[str, bytes]:
    """One good request of each kind: what mutations begin with."""
    text = json.dumps({"text": "red dress", "k": 5, "where": "colour = 'Red'", "not": {"text": "blue"}}).encode()
    coded = json.dumps({"image": base64.b64encode(photo()).decode(), "k": 3}).encode()
    upload, kind = form(image=photo("blue"), text=b"dress", k=b"4")
    plain = "application/json"
    return {
        "words": request(target, "GET", "/api/search?text=red+dress&k=5&lexical=0.3", close=close),
        "filter": request(target, "GET", "/api/search?text=bag&where=colour%3D%27Red%27&fold=true", close=close),
        "json": request(target, "POST", "/api/search", text, plain, close=close),
        "base64": request(target, "POST", "/api/search", coded, plain, close=close),
        "upload": request(target, "POST", "/api/search", upload, kind, close=close),
        "chunked": request(target, "POST", "/api/search", close=close).replace(
            b"Content-Length: 0", b"Content-Type: application/json\r\nTransfer-Encoding: chunked"
        )
        + b'7\r\n{"text"\r\n7\r\n:"red"}\r\n0\r\n\r\n',
        "urlencoded": request(
            target, "POST", "/api/search", b"text=red&k=3", "application/x-www-form-urlencoded", close=close
        ),
        "tag": request(target, "POST", "/api/tag", *form(image=photo("green")), close=close),
        "products": request(target, "GET", "/api/products?limit=5", close=close),
        "vote": request(
            target,
            "POST",
            "/api/feedback",
            json.dumps({"product": target.product, "vote": "up"}).encode(),
            plain,
            close=close,
        ),
        "page": request(target, "GET", "/", close=close),
        "part": request(target, "GET", "/web/style.css", more="Range: bytes=0-99\r\n", close=close),
        "status": request(target, "GET", "/api/status", close=close),
        "head": request(target, "HEAD", "/api/facets", close=close),
    }


def abuses(target: Target) -> dict[str, bytes]:
    """Requests as they must not be, by name: smuggling, framing, paths, methods, headers, bodies, values."""
    key, out = f"X-API-Key: {target.key}\r\n".encode(), {}
    start = b"POST /api/search HTTP/1.1\r\nHost: localhost\r\n" + key + b"Content-Type: application/json\r\n"
    get = b"GET /api/status HTTP/1.1\r\nHost: localhost\r\n" + key
    inner = b"GET /api/quarantine HTTP/1.1\r\nHost: localhost\r\nX-Smuggled: 1\r\n\r\n"
    chunks = b"0\r\n\r\n"

    # Framing: where does a request end?
    for name, headers, body in (
        ("te and cl", b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", chunks + inner),
        ("cl and te", b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", chunks + inner),
        ("te with a space", b"Transfer-Encoding : chunked\r\n", chunks + inner),
        ("te tab", b"Transfer-Encoding:\tchunked\r\n", chunks),
        ("te vertical tab", b"Transfer-Encoding: \x0bchunked\r\n", chunks + inner),
        ("te folded", b"Transfer-Encoding:\r\n chunked\r\n", chunks),
        ("te xchunked", b"Transfer-Encoding: xchunked\r\n", chunks + inner),
        ("te identity", b"Transfer-Encoding: identity\r\n", inner),
        ("te gzip, chunked", b"Transfer-Encoding: gzip, chunked\r\n", chunks),
        ("te chunked, identity", b"Transfer-Encoding: chunked, identity\r\n", chunks),
        ("te twice", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", chunks),
        ("te case", b"tRANSFER-eNCODING: cHUNKED\r\n", b"2\r\n{}\r\n" + chunks),
        ("te with nul", b"Transfer-Encoding: chunked\x00\r\n", chunks),
        ("cl twice, unlike", b"Content-Length: 0\r\nContent-Length: 50\r\n", inner),
        ("cl twice, alike", b"Content-Length: 2\r\nContent-Length: 2\r\n", b"{}"),
        ("cl list", b"Content-Length: 2, 2\r\n", b"{}"),
        ("cl plus", b"Content-Length: +2\r\n", b"{}"),
        ("cl minus", b"Content-Length: -2\r\n", b"{}"),
        ("cl hex", b"Content-Length: 0x2\r\n", b"{}"),
        ("cl float", b"Content-Length: 2.0\r\n", b"{}"),
        ("cl exponent", b"Content-Length: 1e1\r\n", b"{}"),
        ("cl empty", b"Content-Length: \r\n", b"{}"),
        ("cl word", b"Content-Length: two\r\n", b"{}"),
        ("cl arabic digits", "Content-Length: ٢\r\n".encode(), b"{}"),
        ("cl underscore", b"Content-Length: 1_0\r\n", b"{}"),
        ("cl 33 MiB", b"Content-Length: 34603008\r\n", b"{}"),
        ("cl 2**64", b"Content-Length: 18446744073709551617\r\n", b"{}"),
        ("cl 4000 digits", b"Content-Length: " + b"9" * 4000 + b"\r\n", b"{}"),
        ("cl too small", b"Content-Length: 1\r\n", b'{"text": "red"}'),
        ("cl too large", b"Content-Length: 500\r\n", b'{"text": "red"}'),
        ("no length", b"", b'{"text": "red"}'),
        ("length missing, closing", b"Connection: close\r\n", b'{"text": "red"}'),
        ("chunk negative", b"Transfer-Encoding: chunked\r\n", b"-1\r\nx\r\n" + chunks),
        ("chunk 0x", b"Transfer-Encoding: chunked\r\n", b"0x2\r\n{}\r\n" + chunks),
        ("chunk overflow", b"Transfer-Encoding: chunked\r\n", b"ffffffffffffffff1\r\n{}\r\n" + chunks),
        ("chunk 21 digits", b"Transfer-Encoding: chunked\r\n", b"0" * 20 + b"2\r\n{}\r\n" + chunks),
        ("chunk huge", b"Transfer-Encoding: chunked\r\n", b"7fffffffffffffff\r\n{}"),
        ("chunk no digits", b"Transfer-Encoding: chunked\r\n", b"\r\n{}\r\n" + chunks),
        ("chunk underscore", b"Transfer-Encoding: chunked\r\n", b"1_0\r\n" + b"x" * 16 + b"\r\n" + chunks),
        ("chunk lf alone", b"Transfer-Encoding: chunked\r\n", b"2\n{}\n0\n\n"),
        ("chunk without its end", b"Transfer-Encoding: chunked\r\n", b"2\r\n{}0\r\n\r\n"),
        ("chunk longer than said", b"Transfer-Encoding: chunked\r\n", b"2\r\n{}{}{}\r\n" + chunks),
        ("chunk extension", b"Transfer-Encoding: chunked\r\n", b"2;a=b;c\r\n{}\r\n" + chunks),
        ("chunk extension long", b"Transfer-Encoding: chunked\r\n", b"2;" + b"a" * 300_000 + b"\r\n{}\r\n" + chunks),
        ("trailers", b"Transfer-Encoding: chunked\r\n", b"2\r\n{}\r\n0\r\nContent-Length: 100\r\nX: y\r\n\r\n"),
        ("trailers long", b"Transfer-Encoding: chunked\r\n", b"2\r\n{}\r\n0\r\n" + b"X: y\r\n" * 100_000 + b"\r\n"),
        ("crumbs", b"Transfer-Encoding: chunked\r\n", b"1\r\n \r\n" * 30_000 + chunks),
    ):
        out[name] = start + headers + b"\r\n" + body
    out["get with a body"] = get + b"Content-Length: 5\r\n\r\nGET /" + get + b"Connection: close\r\n\r\n"
    out["pipelined"] = (get + b"\r\n") * 30 + get + b"Connection: close\r\n\r\n"
    out["pipelined after a refusal"] = start + b"Content-Length: 99999999\r\n\r\n" + inner
    out["expect"] = start + b"Expect: 100-continue\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"
    out["expect the odd"] = (
        start + b"Expect: the-spanish-inquisition\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"
    )
    # Lines
    for name, line in (
        ("http 0.9", b"GET /\r\n\r\n"), ("http 9.9", b"GET / HTTP/9.9\r\n\r\n"), ("http 2", b"GET / HTTP/2\r\n\r\n"),
        ("http 1.", b"GET / HTTP/1.\r\n\r\n"), ("http 1.0", b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n"),
        ("http lower case", b"GET / http/1.1\r\nHost: localhost\r\n\r\n"),
        ("h2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"),
        ("tls hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200))),
        ("noise", random.Random(7).randbytes(4000) + b"\r\n\r\n"), ("nuls", bytes(3000) + b"\r\n\r\n"),
        ("empty lines", b"\r\n" * 2000), ("line feeds", b"\n" * 3000), ("one word", b"GET\r\n\r\n"),
        ("two words", b"GET /\r\nHost: localhost\r\n\r\n"), ("four words", b"GET / / HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("tabs", b"GET\t/\tHTTP/1.1\r\nHost: localhost\r\n\r\n"), ("no path", b"GET  HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("nul in path", b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        ("bytes in path", b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        ("no host", b"GET /healthz HTTP/1.1\r\n\r\n"), ("two hosts", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
        ("space before a name", b"GET / HTTP/1.1\r\n Host: localhost\r\n\r\n"),
        ("name without colon", b"GET / HTTP/1.1\r\nHost localhost\r\n\r\n"),
        ("empty name", b"GET / HTTP/1.1\r\nHost: localhost\r\n: x\r\n\r\n"),
        ("nul in a name", b"GET / HTTP/1.1\r\nHost: localhost\r\na\x00b: x\r\n\r\n"),
        ("nul in a value", b"GET / HTTP/1.1\r\nHost: localhost\r\na: x\x00y\r\n\r\n"),
        ("bare cr", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\na: x\rX-Injected: 1\r\n\r\n"),
        ("bare lf", b"GET /healthz HTTP/1.1\nHost: localhost\nConnection: close\n\n"),
        ("long path", b"GET /" + b"a" * 60_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        ("long name", b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a" * 60_000 + b": b\r\n\r\n"),
        ("long value", b"GET / HTTP/1.1\r\nHost: a\r\na: " + b"b" * 2_000_000 + b"\r\n\r\n"),
        ("many headers", b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a: b\r\n" * 3000 + b"\r\n"),
        ("endless head", b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a: b\r\n" * 300_000),
        ("connect", b"CONNECT localhost:22 HTTP/1.1\r\nHost: localhost:22\r\n\r\n"),
        ("options *", b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"),
        ("websocket", get + b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
         b"Sec-WebSocket-Version: 13\r\n\r\n"),
        ("h2c", get + b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"),
    ):  # fmt: skip
        out[name] = line
    for method in ("TRACE", "PROPFIND", "PURGE", "PATCH", "DELETE", "OPTIONS", "get", "G" * 3000, "__import__"):
        for path in ("/", "/api/search", "/api/products/p", "/web/style.css"):
            out[f"{method[:12]} {path}"] = request(target, method, path)
    # Paths
    up = ("../", "..%2f", "%2e%2e/", "%2e%2e%2f", "..%5c", "..\\", "%252e%252e%252f", "....//", "..;/", "%c0%ae%c0%ae/",
          "..%00/", "%uff0e%uff0e/", "..%ef%bc%8f")  # fmt: skip
    places = ("/web/", "/api/photos/", "/api/products/", "/api/quarantine/", "/", "//", "/web//")
    for place in places:
        for step in up:
            for goal in ("etc/passwd", "pyproject.toml", "keys.json"):
                out[f"path {place}{step}{goal}"] = request(target, "GET", f"{place}{step * 8}{goal}")
                out[f"path {place}{step}{goal}, less"] = request(target, "GET", f"{place}{step}{goal}")
        for whole in ("/etc/passwd", "%2fetc%2fpasswd", "file:///etc/passwd", "C:%5cwindows%5cwin.ini", "%00", "%0d%0aX-Injected:%201",
                      "~root", "con", "." * 3000, "%", "%zz", "%ff%fe", "%ed%a0%80", "?" * 99, "{photo_id}", "*", "%23"):  # fmt: skip
            out[f"path {place}{whole[:30]}"] = request(target, "GET", place + whole)
    for whole in ("http://evil.example/api/status", "http://localhost/api/quarantine", "//evil.example/%2e%2e", "/api/status/",
                  "/API/status", "/api//status", "/./api/status", "/x/../api/status", "/%61pi/status", "/api%2fstatus", "/healthz/",
                  "/web", "/docs/", "/api/status;x=1", "/api/status%20", "/api/status%00", "/openapi.json/..", "/metrics/."):  # fmt: skip
        out[f"path {whole}"] = request(target, "GET", whole)
    # Headers
    for header in (
        "Host: evil.example", "Origin: null", "Origin: http://evil.example", "Origin: \xff", "Range: bytes=0-,-1",
        "Range: bytes=" + ",".join(f"{n}-{n}" for n in range(3000)), "Range: bytes=-99999999999999999999",
        "If-None-Match: " + '"x",' * 3000, "If-Modified-Since: Mon, 99 Foo 99999999 99:99:99 GMT", "Accept-Encoding: gzip;q=x, *;q=0",
        "Accept: " + "a/b," * 3000, "Content-Encoding: gzip", "X-Forwarded-For: 1.2.3.4, \xff, ::", "X-Forwarded-Proto: javascript",
        "X-Request-Id: a%0d%0aX-Injected: 1", "X-Request-Id: <script>", "Authorization: Bearer", "Authorization: Basic \xff\xfe",
        "Authorization: Bearer " + "\xff" * 500, "Cookie: " + "a=b; " * 3000, "Cookie: lookalike_key=\xff", "X-HTTP-Method-Override: DELETE",
        "X-Original-URL: /api/quarantine", "Forwarded: for=unknown", "Upgrade-Insecure-Requests: \x7f", "Connection: X-API-Key",
        "Accept-Language: \u2028".encode().decode("latin-1"), "TE: trailers", "Keep-Alive: timeout=99999999", "Via: " + "x," * 2000,
    ):  # fmt: skip
        for path in ("/api/status", "/", "/web/style.css"):
            out[f"header {header[:40]} {path}"] = request(target, "GET", path, more=header + "\r\n")

    # Bodies
    def post(
        name: str, body: bytes, kind: str = "application/json", path: str = "/api/search", how: str = "POST"
    ) -> None:
        out[f"{how} {path} {name}"] = request(target, how, path, body, kind)

    half = b"\\ud800"
    jpeg = base64.b64encode(photo())
    numbers = ("NaN", "Infinity", "-Infinity", "1e400", "-1", "1" + "0" * 30, "1" + "0" * 5000, "true", "null", "[]", "{}", '"\\u0661"',
               "1.5", "-0.0", "[NaN, 0, 1, 1]", "[0, 0, 1e308, 1]", '{"text": NaN}', '{"text": 1e308}', '"' + "9" * 100_000 + '"')  # fmt: skip
    for name in (
        "k",
        "offset",
        "lexical",
        "diversity",
        "weights",
        "crop",
        "sort",
        "colour",
        "fold",
        "pure",
        "feedback",
        "not",
        "like",
    ):
        for number in numbers:
            body = f'{{"text": "red", "image": "{jpeg.decode()}", "{name}": {number}}}'.encode()
            post(f"{name} {number[:20]}", body)
            if len(number) < 100:
                out[f"GET {name} {number}"] = request(target, "GET", f"/api/search?text=red&{name}={quote(number)}")
    for name, body in (
        ("deep", b"[" * 90_000), ("deep objects", b'{"a":' * 50_000), ("deep in not", b'{"not": ' + b"[" * 900 + b"]" * 900 + b"}"),
        ("wide", b"[" + b"[]," * 3_000_000 + b"[]]"), ("commas", b"," * 5_000_000), ("wide keys", b'{"a":1,' * 40_000),
        ("half a pair", b'{"text": "' + half + b'"}'), ("half a key", b'{"' + half + b'": 1}'), ("half in like", b'{"like": ["' + half + b'"]}'),
        ("half in where", b'{"text": "red", "where": "' + half + b"\"}"), ("half in sort", b'{"text": "red", "sort": "' + half + b'"}'),
        ("half in weights", b'{"text": "red", "weights": {"' + half + b'": 1}}'), ("nul", b'{"text": "a\\u0000b"}'),
        ("twice", b'{"text": "a", "text": "b"}'), ("utf-16", '{"text": "red"}'.encode("utf-16")), ("utf-32", '{"text": "r"}'.encode("utf-32")),
        ("mark", b'\xef\xbb\xbf{"text": "red"}'), ("not utf-8", b'{"text": "\xff"}'), ("empty", b""), ("null", b"null"), ("number", b"1"),
        ("long key", b'{"' + b"k" * 1_000_000 + b'": 1}'), ("long text", b'{"text": "' + b"x" * 1_000_000 + b'"}'), ("nan", b"NaN"),
        ("long filter", b'{"text": "a", "where": "' + b"(" * 1_000_000 + b'"}'), ("emoji", '{"text": "👗🧥"}'.encode() * 1),
        ("likes", json.dumps({"like": ["0"] * 50_000}).encode()), ("script", b'{"like": "<script>alert(1)</script>"}'),
        ("image is no base64", b'{"image": "####"}'), ("image is empty", b'{"image": ""}'), ("image is a list", b'{"image": []}'),
        ("image is 30 MiB of nothing", b'{"image": "' + b"A" * (30 * 2**20) + b'"}'), ("header injected", b'{"like": "a\\r\\nX-Injected: 1"}'),
    ):  # fmt: skip
        post(name, body)
        if len(body) < 2**20:
            post(name, body, path="/api/tag")
            post(name, body, path="/api/feedback")
            post(name, body, path="/api/products", how="PUT")
            post(name, body, path="/api/products/torture", how="PUT")
    for query in (
        b'{"text": "' + half + b'"}',
        b'{"like": 5}',
        b'{"like": [' + half[:0] + b"1e999, {}, []]}",
        b'{"text": ' + b"[" * 500 + b"]" * 500 + b"}",
    ):
        post(
            f"vote {query[:20]!r}",
            json.dumps({"product": target.product, "vote": "up"}).encode()[:-1] + b', "query": ' + query + b"}",
            path="/api/feedback",
        )
    # Forms
    part = b'--b0\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
    end, kind = b"--b0--\r\n", "multipart/form-data; boundary=b0"
    file = b'--b0\r\nContent-Disposition: form-data; name="image"; filename="%s"\r\n\r\n%s\r\n'
    for name, body, content in (
        ("100,000 parts", (part % (b"text", b"x")) * 100_000 + end, kind), ("100,000 files", (file % (b"a", b"x")) * 100_000 + end, kind),
        ("no end", file[:-2] % (b"a.jpg", photo()), kind), ("only an end", end, kind), ("nothing", b"", kind), ("noise", bytes(range(256)) * 500, kind),
        ("part of many headers", b"--b0\r\n" + b"a: b\r\n" * 100_000 + b"\r\nx\r\n" + end, kind),
        ("part of a long header", b"--b0\r\nContent-Disposition: form-data; name=\"" + b"n" * 1_000_000 + b"\"\r\n\r\nx\r\n" + end, kind),
        ("part without a name", b"--b0\r\n\r\nx\r\n" + end, kind), ("file name with a path", file % (b"../../../etc/passwd", photo()) + end, kind),
        ("file name with nul", file % (b"a\x00.jpg", photo()) + end, kind), ("file name half", file % ("\ud800".encode("utf-8", "surrogatepass"), b"x") + end, kind),
        ("photo twice", file % (b"a", photo()) * 2 + end, kind), ("photo as a field", part % (b"image", photo()) + end, kind),
        ("line breaks", file % (b"a", b"\r\n" * 4_000_000) + end, kind), ("near the boundary", file % (b"a", b"\r\n--b" * 2_000_000) + end, kind),
        ("no boundary", part % (b"text", b"red") + end, "multipart/form-data"), ("long boundary", b"x", "multipart/form-data; boundary=" + "b" * 300),
        ("empty boundary", b"x", "multipart/form-data; boundary="), ("nested", b"x", "multipart/mixed; boundary=b0"),
        ("ampersands", b"&" * 10_000_000, "application/x-www-form-urlencoded"), ("fields", b"text=a&" * 3000, "application/x-www-form-urlencoded"),
        ("percent signs", b"text=%" * 100 + b"%zz%ff", "application/x-www-form-urlencoded"), ("text", b"red", "text/plain"), ("odd type", b"x", "\xff/\xfe"),
    ):  # fmt: skip
        post(f"form {name}", body, content)
        post(f"form {name}", body, content, "/api/products/torture", "PUT")
    for charset in (
        "undefined",
        "idna",
        "punycode",
        "zlib",
        "rot13",
        "utf-7",
        "unicode_escape",
        "utf-16",
        "hex",
        "x" * 500,
        "\xff",
    ):
        post(
            f"form charset {charset[:9]}",
            part % (b"text", b"r\xc3\xa9d \xff" + b"a" * 90) + end,
            f"{kind}; charset={charset}",
        )
    # What is put
    for name, value in (
        ("nan", b"NaN"), ("infinite", b"1e999"), ("400 digits", b"1" + b"0" * 400), ("half", b'"' + half + b'"'), ("nul", b'"a\\u0000"'),
        ("list of half", b'["' + half + b'"]'), ("nested", b'{"a": [1]}'), ("10 MB", b'"' + b"x" * 10_000_000 + b'"'), ("formula", b'"=1+1"'),
    ):  # fmt: skip
        post(f"value {name}", b'{"attributes": {"colour": ' + value + b"}}", path="/api/products/torture", how="PUT")
    for name in ("", "lk_id", "a\\nb", "\\ud800", "k" * 10_000, "a.b", "`", "__proto__", "..", "select"):
        post(
            f"column {name[:9]}",
            b'{"attributes": {"' + name.encode() + b'": "x"}}',
            path="/api/products/torture",
            how="PUT",
        )
    many = json.dumps({"attributes": {f"c{n}": n for n in range(20_000)}}).encode()
    post("20,000 columns", many, path="/api/products/torture", how="PUT")
    for identity in (
        "%00",
        "%0a",
        "%2e%2e",
        "a" * 600,
        "%ed%a0%80",
        "%e2%80%ae",
        "%f0%9f%91%97",
        "a%2f..%2fb",
        "%20",
        "x?key=" + target.key,
    ):
        post(f"id {identity[:9]}", b"{}", path=f"/api/products/{identity}", how="PUT")
        out[f"DELETE id {identity[:9]}"] = request(target, "DELETE", f"/api/products/{identity}")
    for address in ("/api/quarantine/99999999999999999999999/picture", "/api/quarantine/-1/picture", "/api/products?limit=1&offset=99999999999999999999",
                    "/api/products?offset=9223372036854775807", "/api/duplicates?offset=99999999999999999999999", "/api/duplicates?threshold=nan",
                    "/api/quarantine?k=1&offset=99999999999999999999", "/api/facets?where=%00", "/api/photos/x?width=99999999999999999999",
                    f"/api/photos/x?key={target.key}", f"/api/status?key={target.key}", "/api/search?" + "&" * 30_000, "/api/search?text=%ff&where=%ff"):  # fmt: skip
        out[f"GET {address[:60]}"] = request(target, "GET", address)
    return out


def mutated(rng: random.Random, good: dict[str, bytes]) -> bytes:
    """A good request after one to four accidents."""
    data = bytearray(rng.choice(list(good.values())))
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) or 1) if rng.random() < 0.5 else rng.randrange(min(len(data), 250) or 1)
        end = min(len(data), at + rng.choice((1, 2, 8, 40)))
        how = rng.randrange(6)
        if how == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif how == 1:
            del data[at:end]
        elif how == 2:
            data[at:at] = rng.choice(
                (b"\r\n", b"\x00", b"\n", b"%", b"\xff", b":", b" ", b'"', b"[", b"99999999999999999999", b"\r\n\r\n")
            )
        elif how == 3:
            data[at:at] = data[at:end] * rng.choice((1, 3, 50))
        elif how == 4:
            del data[at + rng.randrange(60) :]
        else:
            other = rng.choice(list(good.values()))
            data[at:end] = other[rng.randrange(len(other)) :][: rng.choice((5, 50, 500))]
    return bytes(data)


# What comes back


async def exchange(target: Target, data: bytes, limit: float, patience: float = 0.0, linger: float = 0.05) -> Answer:
    """Send, and read until the server closes or an answer is whole; ``patience``: leave without one after so long."""
    found, start = Answer(), time.monotonic()
    try:
        reader, writer = await asyncio.open_connection(target.host, target.port)
    except OSError:
        return Answer(how="refused")

    async def send() -> None:
        with contextlib.suppress(OSError):
            writer.write(data)
            await writer.drain()

    sending = asyncio.create_task(send())
    try:
        end = start + (patience or limit)
        while (left := end - time.monotonic()) > 0:
            wait = min(left, linger) if found.how == "answered" else left
            try:
                piece = await asyncio.wait_for(reader.read(65536), wait)
            except asyncio.TimeoutError:
                break
            except OSError:
                break
            if not piece:
                break
            found.raw += piece
            parse(found, data[:5] == b"HEAD ")
        else:
            if not found.statuses and not patience:
                found.how = "hangs"
        if not found.statuses and not patience and time.monotonic() - start >= limit:
            found.how = "hangs"
    finally:
        sending.cancel()
        writer.close()
    found.seconds = time.monotonic() - start
    return found


def parse(found: Answer, head: bool) -> None:
    """The answers in what came so far; ``answered`` where the last of them is whole."""
    found.statuses, found.heads, at, raw = [], [], 0, found.raw
    found.how = "closed"
    while (end := raw.find(b"\r\n\r\n", at)) >= 0:
        top = raw[at:end]
        line = re.match(rb"HTTP/1\.[01] (\d{3}) ", top)
        if not line:
            found.statuses.append(0)
            return
        status = int(line[1])
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", top)
        size = 0 if head or status in (204, 304) or status < 200 else int(length[1]) if length else len(raw)
        found.statuses.append(status)
        found.heads.append(top)
        at = end + 4 + size
        found.how = "answered" if len(raw) >= at else "closed"


def wrong(found: Answer) -> str:
    """What is wrong with an answer, empty where nothing is."""
    if found.how == "hangs":
        return f"no answer within {found.seconds:.0f} s"
    if found.how == "refused":
        return "the server takes no connection"
    for status, head in zip(found.statuses, [*found.heads, b""], strict=False):
        if status == 0:
            return f"no HTTP: {found.raw[:80]!r}"
        if status >= 500 and not (status == 503 and b"retry-after" in head.lower()):
            return f"status {status}: {found.raw[-200:]!r}"
        if re.search(rb"(?i)\r\nx-injected", head):
            return f"a header was injected: {head!r}"
        if b"evil.example" in head:
            return f"the Host header leads away: {head!r}"
        if status >= 200 and b"x-content-type-options: nosniff" not in head.lower():
            return f"an answer without the usual headers: {head!r}"
    if b"root:x:0" in found.raw or b"[build-system]" in found.raw or b'"sha256"' in found.raw:
        return "a file of this machine"
    return ""


async def gathered(jobs: list[Callable[[], Any]], at_once: int) -> list[Any]:
    """The results of all jobs, so many at a time."""
    turn = asyncio.Semaphore(at_once)

    async def one(job: Callable[[], Any]) -> Any:
        async with turn:
            return await job()

    return await asyncio.gather(*(one(j) for j in jobs))


async def abuse(
    target: Target, seed: int, mutations: int, limit: float, only: int | None = None, every: int = 1
) -> dict[str, Any]:
    """Every abuse once (or one of ``every`` that are small), and so many mutations. Each mutation's seed is its number: ``--only abuse:N`` sends that one again."""
    broken: dict[str, str] = {}
    statuses: Counter[str] = Counter()

    async def judged(name: str, data: bytes, patience: float = 0.0) -> None:
        found = await exchange(target, data, limit, patience)
        statuses[str(found.statuses[0]) if found.statuses else found.how] += 1
        if what := wrong(found):
            broken[name] = what

    good = valid(target)
    for name, data in good.items():
        found = await exchange(target, data, limit)
        if not found.statuses or found.statuses[0] >= 400:
            broken[f"good: {name}"] = f"{found.statuses} {found.raw[-200:]!r}"
    if only is None:
        hand = abuses(target)
        if every > 1:
            hand = dict([i for i in hand.items() if len(i[1]) < 2**19][seed % every :: every])
        await gathered([lambda n=n, d=d: judged(n, d) for n, d in hand.items()], 32)
        numbers = range(mutations)
    else:
        hand, numbers = {}, range(only, only + 1)
    accident = [(n, mutated(random.Random(f"{seed}-{n}"), good)) for n in numbers]
    await gathered([lambda n=n, d=d: judged(f"mutation {n}", d, 1.0) for n, d in accident], 32)
    for name, data in good.items():  # and after all that
        found = await exchange(target, data, limit)
        if not found.statuses or found.statuses[0] >= 400:
            broken[f"afterwards: {name}"] = f"{found.statuses} {found.raw[-200:]!r}"
    return {"by hand": len(hand), "mutations": len(accident), "first statuses": dict(statuses), "broken": broken}


def described(
    target: Target, seed: int, examples: int, folder: Path, phases: str = "examples,coverage,fuzzing,stateful"
) -> dict[str, Any]:
    """schemathesis, so many examples for each operation and phase."""
    checks = (
        "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
        "response_schema_conformance,missing_required_header,unsupported_method,use_after_free,ignored_auth"
    )
    words = [
        str(Path(sys.executable).with_name("schemathesis")), "run", f"http://{target.host}:{target.port}/openapi.json",
        "-H", f"Authorization: Bearer {target.key}", "--seed", str(seed), "-n", str(examples), "--checks", checks,
        "--phases", phases, "--continue-on-failure", "--suppress-health-check", "all", "--no-color",
    ]  # fmt: skip
    run = subprocess.run(words, capture_output=True, text=True, cwd=folder)
    cases = re.search(r"(\d+) generated", run.stdout)
    broken = {} if run.returncode == 0 else {"schemathesis": run.stdout[-6000:] + run.stderr[-2000:]}
    return {"examples each": examples, "cases": int(cases[1]) if cases else 0, "broken": broken}


# Load


async def one_search(target: Target) -> float:
    """Seconds of an ordinary search on a connection of its own; infinite where there was no answer 200."""
    found = await exchange(target, request(target, "GET", "/api/search?text=red&k=5"), 30)
    return found.seconds if found.statuses[:1] == [200] else float("inf")


async def searches(target: Target, seconds: float, pause: float = 0.05) -> list[float]:
    """Ordinary searches, one after the other."""
    out, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        out.append(await one_search(target))
        await asyncio.sleep(pause)
    return out


def told(times: list[float]) -> dict[str, float]:
    """Number, median and 99th percentile in ms, and how many had no answer."""
    good = [t * 1000 for t in times if t < float("inf")]
    p50, p99 = np.percentile(good, [50, 99]) if good else (float("nan"), float("nan"))
    return {
        "searches": len(times),
        "p50 ms": round(p50, 1),
        "p99 ms": round(p99, 1),
        "unanswered": len(times) - len(good),
    }


async def idle(target: Target, server: Server, count: int, seconds: float) -> dict[str, Any]:
    """So many connections that say nothing, beside ordinary searches; all are gone some seconds later."""
    before, files = told(await searches(target, 3)), server.figures()["files"]
    memory = server.figures()["memory"]
    silent = []
    for _ in range(count):
        with contextlib.suppress(OSError):
            silent.append(await asyncio.open_connection(target.host, target.port))
    most = server.figures()
    during = told(await searches(target, 3))
    ended = await asyncio.gather(*(asyncio.wait_for(r.read(), seconds) for r, _ in silent), return_exceptions=True)
    for _, writer in silent:
        writer.close()
    await asyncio.sleep(0.5)
    after, broken = server.figures(), {}
    if during["unanswered"]:
        broken["searches beside idle connections"] = str(during)
    if left := sum(isinstance(e, Exception) and not isinstance(e, ConnectionError) for e in ended):
        broken["idle connections that stay"] = str(left)
    if after["files"] > files + 20:
        broken["files that stay open"] = f"{files} before, {after['files']} after"
    return {
        "connections": len(silent), "open files at most": most["files"],
        "KiB a connection": round((most["memory"] - memory) * 1024 / max(1, len(silent)), 1), "before": before, "during": during,
        "broken": broken,
    }  # fmt: skip


async def slow(target: Target, count: int, limit: float) -> dict[str, Any]:
    """Heads and bodies by drops, and readers by sips, beside ordinary searches: each is cut off within ``limit`` seconds.

    When a reader was let go, the server tells (``/metrics``): on the client's side its kernel still has an answer to sip at.
    """
    before = told(await searches(target, 3))
    head = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
    body = request(target, "POST", "/api/search", b"x" * 100_000, "application/json")[:-99_000]
    listed = request(target, "GET", "/api/products?limit=200", more="Accept-Encoding: identity\r\n", close=False)
    gone: dict[str, list[float]] = {"head": [], "body": [], "reader": []}

    async def drops(kind: str, first: bytes) -> None:
        start = time.monotonic()
        reader, writer = await asyncio.open_connection(target.host, target.port)
        try:
            writer.write(first)
            ended = asyncio.create_task(reader.read())
            while not ended.done() and time.monotonic() - start < limit + 5:
                writer.write(b"a")
                await asyncio.wait([ended], timeout=1)
            ended.cancel()
        except OSError:
            pass
        gone[kind].append(time.monotonic() - start)
        writer.close()

    async def sips() -> None:
        import socket

        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.setblocking(False)
        loop, start = asyncio.get_running_loop(), time.monotonic()
        await loop.sock_connect(plain, (target.host, target.port))
        try:
            with contextlib.suppress(OSError):
                await loop.sock_sendall(plain, listed * 40)  # more than the kernel buffers
                while time.monotonic() - start < limit + 5:
                    if not await loop.sock_recv(plain, 50):
                        break
                    await asyncio.sleep(1)
        finally:
            plain.close()

    async def let_go() -> None:
        start, asked = time.monotonic(), request(target, "GET", "/metrics")
        before = None
        while len(gone["reader"]) < count // 5 and time.monotonic() - start < limit + 5:
            said = (await exchange(target, asked, 10)).raw
            found = re.search(rb'lookalike_connections_cut_total\{why="slow reader"\} (\d+)', said)
            now = int(found[1]) if found else 0
            before = now if before is None else before
            gone["reader"] += [time.monotonic() - start] * (now - before - len(gone["reader"]))
            await asyncio.sleep(1)
        gone["reader"] += [time.monotonic() - start] * (count // 5 - len(gone["reader"]))

    crowd = asyncio.gather(
        *(drops("head", head) for _ in range(count)), *(drops("body", body) for _ in range(count)), *(sips() for _ in range(count // 5)),
        let_go(),
    )  # fmt: skip
    during = told(await searches(target, min(limit, 20), 0.2))
    await crowd
    broken = {f"slow {k}": f"{max(v):.0f} s" for k, v in gone.items() if max(v) > limit}
    if during["unanswered"]:
        broken["searches beside slow clients"] = str(during)
    longest = {k: round(max(v), 1) for k, v in gone.items()}
    return {
        "heads and bodies": count,
        "readers": count // 5,
        "longest s": longest,
        "before": before,
        "during": during,
        "broken": broken,
    }


def photo_search(target: Target, close: bool) -> bytes:
    """A search by a photo as phones take it, made smaller by the page."""
    return request(target, "POST", "/api/search", *form(image=photo(size=(480, 640), noise=True)), close=close)


async def overload(target: Target, seconds: float, times: float, seed: int) -> dict[str, Any]:
    """What can be answered (closed loop), then ``times`` that (open loop, each on a connection of its own), then calm."""
    data, rng = photo_search(target, True), random.Random(seed)
    calm = statistics.median([await one_search(target) for _ in range(10)])
    start, done = time.monotonic(), 0

    async def loop() -> None:
        nonlocal done
        while time.monotonic() - start < min(10.0, seconds):
            found = await exchange(target, data, 60)
            done += found.statuses[:1] == [200]

    await asyncio.gather(*(loop() for _ in range(16)))
    capacity = done / (time.monotonic() - start)
    answers: list[Answer] = []
    rate, sent, tasks, start = capacity * times, 0, set(), time.monotonic()

    async def shot() -> None:
        answers.append(await exchange(target, data, 60))

    while time.monotonic() - start < seconds:
        task = asyncio.create_task(shot())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        sent += 1
        await asyncio.sleep(max(0.0, start + sent / rate - time.monotonic()) * rng.uniform(0.9, 1.1))
    offered = sent / (time.monotonic() - start)
    ended = time.monotonic()
    await asyncio.gather(*tasks)
    while await one_search(target) > max(0.05, 3 * calm) and time.monotonic() - ended < 60:
        await asyncio.sleep(0.1)
    good = [a.seconds * 1000 for a in answers if a.statuses[:1] == [200]]
    refused = [a for a in answers if a.statuses[:1] == [503]]
    broken = {f"overload {n}": what for n, a in enumerate(answers) if (what := wrong(a))}
    if len(good) + len(refused) < len(answers):
        broken["answers"] = str(Counter(str(a.statuses[:1] or a.how) for a in answers))
    if not good:
        broken["overload"] = "nothing was answered"
    p50, p99 = np.percentile(good or [0], [50, 99])
    return {
        "can be answered per s": round(capacity, 1), "offered per s": round(offered, 1), "seconds": seconds, "requests": len(answers),
        "answered": len(good), "refused 503": len(refused), "p50 ms": round(p50, 1), "p99 ms": round(p99, 1),
        "refused p99 ms": round(np.percentile([a.seconds * 1000 for a in refused] or [0], 99), 1),
        "calm again after s": round(time.monotonic() - ended, 1), "broken": dict(list(broken.items())[:10]),
    }  # fmt: skip


async def served_until_told(target: Target, keeps: bool, rng: random.Random, counts: Counter[str]) -> None:
    """Search after search until the server says that it ends; ``lost`` counts requests on its connections without an answer."""
    data = [photo_search(target, False), request(target, "GET", "/api/search?text=red", close=False)]
    while True:
        try:
            reader, writer = await asyncio.open_connection(target.host, target.port)
        except OSError:
            return
        try:
            last = b""
            while not last or (keeps and b"connection: close" not in last.lower()):
                writer.write(rng.choice(data))
                await writer.drain()
                last = await reader.readuntil(b"\r\n\r\n")
                found = re.search(rb"(?i)content-length: (\d+)", last)
                await reader.readexactly(int(found[1]) if found else 0)
                counts["answered"] += 1
                counts["answered while stopping"] += b"connection: close" in last.lower()
        except (OSError, asyncio.IncompleteReadError):
            counts["lost"] += 1
        finally:
            writer.close()


async def stop(make: Callable[[], contextlib.AbstractContextManager[Server]], rounds: int, seed: int) -> dict[str, Any]:
    """SIGTERM under load, again and again: each request on a connection that the server took has its answer."""
    rng, counts = random.Random(seed), Counter({"lost": 0})
    for _ in range(rounds):
        with make() as server:
            target = Target(server.port)
            # A third of them with a connection for each request.
            crowd = [asyncio.create_task(served_until_told(target, n % 3 > 0, rng, counts)) for n in range(24)]
            await asyncio.sleep(rng.uniform(0.5, 1.5))
            server.process.send_signal(signal.SIGTERM)
            await asyncio.gather(*crowd)
            counts["stops"] += 1
            counts["clean ends"] += server.process.wait(30) in (0, -signal.SIGTERM)
    broken = {"requests lost": str(counts["lost"])} if counts["lost"] else {}
    if counts["clean ends"] < rounds or not counts["answered while stopping"]:
        broken["stops"] = str(counts)
    return {**counts, "broken": broken}


def aimed(port: int, key: str = KEY) -> Target:
    """At a server that is ready, with one of its products."""
    with urlopen(
        Request(f"http://127.0.0.1:{port}/api/products?limit=1", headers={"X-API-Key": key}), timeout=120
    ) as answer:
        return Target(port, key, product=json.load(answer)["products"][0]["id"])


async def soak(target: Target, server: Server, seconds: float, seed: int, plot: Path | None) -> dict[str, Any]:
    """Twelve clients with all kinds of requests, good and bad, uploads and writes; figures of the process each five seconds."""
    statuses, times, broken = Counter(), [], {}
    good = valid(target, close=False)
    bad = {n: d for n, d in abuses(target).items() if len(d) < 20_000 and "DELETE" not in n}
    photos = [photo(size=(w, w * 4 // 3), noise=True) for w in (100, 600, 1200)]
    found = await exchange(target, request(target, "GET", "/api/products?limit=100"), 30)
    ids = re.findall(rb'"photos":\["(\w+)"', found.raw)

    async def client(number: int, until: float) -> None:
        rng = random.Random(f"{seed}-{number}")
        while time.monotonic() < until:
            kind, start = rng.random(), time.monotonic()
            patience = 0.0
            if kind < 0.45:
                data = rng.choice(list(good.values()))
            elif kind < 0.6:
                width = rng.choice((120, 240, 480, rng.randint(16, 2048)))
                data = request(target, "GET", f"/api/photos/{rng.choice(ids).decode()}?width={width}", close=False)
            elif kind < 0.75:
                data = request(target, "POST", "/api/search", *form(image=rng.choice(photos), text=b"red"), close=False)
            elif kind < 0.78:
                path = f"/api/products/soak-{rng.randrange(20)}"
                data = (
                    request(target, "DELETE", path)
                    if rng.random() < 0.4
                    else request(target, "PUT", path, *form(photo=photos[0]))
                )
            elif kind < 0.9:
                data, patience = rng.choice(list(bad.values())), 0.5
            elif kind < 0.95:  # gone in the middle of sending, or before the answer
                data, patience = photo_search(target, False), rng.uniform(0, 0.03)
                data = data[: rng.randrange(1, len(data))] if rng.random() < 0.7 else data
            else:
                data, patience = mutated(rng, good), 0.5
            answer = await exchange(target, data, 60, patience, 0)
            statuses[str(answer.statuses[0]) if answer.statuses else "left" if patience else answer.how] += 1
            if not patience:
                times.append(time.monotonic() - start)
            if what := wrong(answer):
                broken[f"{len(broken)}"] = f"{what} for {data[:80]!r}"

    series: list[dict[str, float]] = []

    async def watch(until: float) -> None:
        start = time.monotonic()
        while time.monotonic() < until:
            series.append({"seconds": time.monotonic() - start, **server.figures()})
            await asyncio.sleep(min(5.0, seconds / 20))

    async def load(span: float, *more: Any) -> dict[str, float]:
        """The load for so long, and the figures after a rest."""
        until = time.monotonic() + span
        await asyncio.gather(*(client(n, until) for n in range(12)), *(one(until) for one in more))
        await asyncio.sleep(min(20.0, seconds / 10))
        return server.figures()

    before = await load(min(60.0, seconds / 4))
    statuses.clear()
    times.clear()
    after = await load(seconds, watch)
    half = series[len(series) // 2 :]
    slopes = {
        n: np.polyfit([s["seconds"] for s in half], [s[n] for s in half], 1)[0] for n in ("memory", "threads", "files")
    }
    added = slopes["memory"] * (half[-1]["seconds"] - half[0]["seconds"])
    if added > GROWTH * half[0]["memory"] and seconds >= 300:  # shorter runs are still warming up
        broken["growth of memory"] = f"{added:.1f} MiB in the second half"
    for name, more in AT_REST.items():
        if after[name] > before[name] + more:
            broken[f"growth of {name}"] = f"{before[name]} at rest before, {after[name]} after"
    if plot:
        drawn(series, plot)
    return {
        "seconds": seconds, "requests": sum(statuses.values()), "per s": round(sum(statuses.values()) / seconds, 1),
        "first statuses": dict(statuses), "p50 ms": round(float(np.percentile(times, 50)) * 1000, 1),
        "p99 ms": round(float(np.percentile(times, 99)) * 1000, 1), "slopes per minute in the second half": {n: round(v * 60, 3) for n, v in slopes.items()},
        "at rest": {n: [round(before[n], 1), round(after[n], 1)] for n in before},
        "broken": dict(list(broken.items())[:20]),
    }  # fmt: skip


def drawn(series: list[dict[str, float]], file: Path) -> None:
    """The figures over time as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(3, 1, sharex=True, figsize=(9, 7))
    minutes = [s["seconds"] / 60 for s in series]
    for axis, (name, label) in zip(
        axes, {"memory": "memory, MiB (RSS)", "threads": "threads", "files": "open files"}.items(), strict=True
    ):
        values = [s[name] for s in series]
        axis.plot(minutes, values, linewidth=1)
        half = len(series) // 2
        slope, base = np.polyfit(minutes[half:], values[half:], 1)
        axis.plot(minutes[half:], [slope * m + base for m in minutes[half:]], "--", label=f"{slope:+.3f} a minute")
        axis.set_ylabel(label)
        axis.set_ylim(0, max(values) * 1.2)
        axis.legend(loc="lower right")
    axes[-1].set_xlabel("minutes")
    figure.tight_layout()
    figure.savefig(file, dpi=110)


# The server


@dataclass
class Server:
    """A server that was started."""

    process: subprocess.Popen[str]
    port: int
    log: Path

    def figures(self) -> dict[str, float]:
        """Its resident memory (MiB), threads and open files."""
        folder = Path(f"/proc/{self.process.pid}")
        status = (folder / "status").read_text()
        memory, threads = (int(re.search(rf"{n}:\s+(\d+)", status)[1]) for n in ("VmRSS", "Threads"))
        return {"memory": memory / 1024, "threads": threads, "files": len(list((folder / "fd").iterdir()))}


@contextlib.contextmanager
def served(catalog: Path, folder: Path, *options: str) -> Iterator[Server]:
    """A server over a catalog, on any port, ready; stopped at the end."""
    log = folder / f"server-{time.monotonic_ns()}.log"
    words = [
        sys.executable,
        "-m",
        "lookalike",
        "serve",
        "--catalog",
        str(catalog),
        "--port",
        "0",
        "--log-format",
        "json",
    ]
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*words, *options], stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, "LOOKALIKE_API_KEY": KEY}
        )  # fmt: skip
    try:
        line = process.stdout.readline()
        if not (found := re.search(r":(\d+)/", line)):
            raise SystemExit(f"the server does not start: {log.read_text()[-2000:]}")
        server = Server(process, int(found[1]), log)
        aimed(server.port)  # answered once the catalog is loaded
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(30)


def log_says(server: Server) -> dict[str, str]:
    """What must not be in the log."""
    text, broken = server.log.read_text(errors="replace"), {}
    if KEY in text:
        broken["the key is in the log"] = next(line for line in text.splitlines() if KEY in line)[:300]
    for line in text.splitlines():
        if "Traceback" in line or "bug in lookalike" in line:
            broken.setdefault("a bug", f"{line[:300]} … {line[-2000:]}")
        elif not line.startswith("{"):
            broken.setdefault("a line that is no JSON", line[:300])
    return broken


def main() -> None:
    """Run the parts, print each one's figures, and leave with 1 where anything broke."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("catalog", type=Path, nargs="?", help="it is copied; drawn garments by default")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, by commas; abuse:N sends mutation N alone")
    parser.add_argument("--mutations", type=int, default=20_000)
    parser.add_argument("--examples", type=int, default=200, help="of schemathesis, for each operation and phase")
    parser.add_argument("--connections", type=int, default=3000, help="that say nothing")
    parser.add_argument("--stops", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=1200, help="of the soak; overload takes a twentieth of it")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, default=Path("soak.png"))
    options = parser.parse_args()
    parts = dict(one.partition(":")[::2] for one in options.only.split(","))
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    results: dict[str, Any] = {"seed": options.seed}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        if options.catalog:
            shutil.copytree(options.catalog, folder / "catalog")
        else:
            from lookalike.demo import draw

            lookalike.open(folder / "catalog").index(draw(folder / "drawings", 300), drawn=True)
        work: dict[str, Callable[[Target, Server], Any]] = {
            "abuse": lambda t, s: abuse(t, options.seed, options.mutations, 75, int(parts["abuse"]) if parts["abuse"] else None),
            "described": lambda t, s: described(t, options.seed, options.examples, folder),
            "idle": lambda t, s: idle(t, s, options.connections, 30),
            "slow": lambda t, s: slow(t, 100, 75),
            "overload": lambda t, s: overload(t, options.seconds / 20, 3, options.seed),
            "stop": lambda t, s: stop(lambda: served(folder / "catalog", folder), options.stops, options.seed),
            "soak": lambda t, s: soak(t, s, options.seconds, options.seed, options.plot),
        }  # fmt: skip
        for part in [p for p in PARTS if p in parts]:
            start = time.monotonic()
            with served(folder / "catalog", folder) as server:
                found = work[part](aimed(server.port), server)
                found = asyncio.run(found) if asyncio.iscoroutine(found) else found
                if server.process.poll() is not None:
                    found["broken"]["server"] = f"it ended with {server.process.returncode}"
            found["broken"] |= log_says(server)
            found["took s"] = round(time.monotonic() - start, 1)
            results[part] = found
            print(f"{part}: {'BROKEN' if found['broken'] else 'ok'}", flush=True)
            print(json.dumps(found, indent=1, ensure_ascii=False), flush=True)
            if options.json:
                options.json.write_text(json.dumps(results, indent=1))
    sys.exit(any(isinstance(r, dict) and r["broken"] for r in results.values()))


if __name__ == "__main__":
    main()
