"""Keys, limits, observation, caching, description and catalog work over HTTP."""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import re
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

import lookalike
from conftest import draw
from lookalike import indexing
from lookalike.errors import CatalogError, InputError, UsageError
from lookalike.server import keys, observe, schemas, security, writing
from lookalike.server.app import create_app

HOSTS = {"testserver"}
WEB = Path(lookalike.__file__).parent / "web"


def served(catalog: lookalike.Catalog, api_key: str = "", **settings: object) -> TestClient:
    app = create_app(catalog, api_key, HOSTS, **settings)  # type: ignore[arg-type]
    return TestClient(app, raise_server_exceptions=False)


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def jpeg(colour: str = "red", size: tuple[int, int] = (60, 80)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "JPEG")
    return file.getvalue()


def wait_for(what: object, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def writer(catalog: lookalike.Catalog) -> Iterator[TestClient]:
    with served(catalog, "secret") as client:
        client.headers.update(bearer("secret"))
        yield client


# Keys


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "lookalike", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=60)


def test_keys_are_made_listed_and_removed_and_kept_as_hashes(tmp_path: Path):
    shop = tmp_path / "shop.catalog"
    made = run("keys", "add", "till", "--scope", "write", "--catalog", shop)
    secret = made.stdout.strip()
    assert re.fullmatch(r"lk_[\w-]{43}", secret)
    assert secret not in made.stderr
    file = shop / "keys.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert secret not in file.read_text()
    assert secret.removeprefix("lk_") not in file.read_text()
    listed = json.loads(run("keys", "list", "--json", "--catalog", shop).stdout)
    assert [(k["name"], k["scope"]) for k in listed] == [("till", "write")]
    assert run("keys", "add", "till", "--scope", "search", "--catalog", shop).returncode == 3
    assert run("keys", "add", "x", "--scope", "all", "--catalog", shop).returncode == 2
    assert run("keys", "add", "a b", "--scope", "search", "--catalog", shop).returncode == 2
    assert run("keys", "remove", "nobody", "--catalog", shop).returncode == 3
    assert run("keys", "remove", "till", "--catalog", shop).returncode == 0
    assert json.loads(run("keys", "list", "--json", "--catalog", shop).stdout) == []
    lookalike.open(shop, encoder="fake")  # a directory of keys can become a catalog


def test_two_keys_made_at_once_are_both_kept(tmp_path: Path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: keys.add(tmp_path, f"k{n}", "search"), range(16)))
    assert len(keys.read(tmp_path)) == 16


def test_a_running_server_sees_keys_come_and_go(catalog: lookalike.Catalog):
    directory = catalog.store.directory
    with served(catalog) as client:
        assert client.get("/api/status").json()["scopes"] == ["search"]
        search, write = keys.add(directory, "page", "search"), keys.add(directory, "till", "write")
        assert client.get("/api/status").status_code == 401
        assert client.get("/api/status", headers=bearer("lk_wrong")).status_code == 401
        assert client.get("/api/status", headers=bearer(search)).json()["scopes"] == ["search"]
        assert client.get("/api/status", headers={"x-api-key": write}).json()["scopes"] == ["search", "write"]
        keys.remove(directory, "page")
        assert client.get("/api/status", headers=bearer(search)).status_code == 401


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/api/products/p01"), ("PUT", "/api/products"), ("DELETE", "/api/products/p01"), ("POST", "/api/index"),
        ("GET", "/api/quarantine"), ("GET", "/api/quarantine/0/picture"), ("PATCH", "/api/search"),
    ],
)  # fmt: skip
def test_catalog_work_needs_a_key_that_writes(catalog: lookalike.Catalog, method: str, path: str):
    with served(catalog) as client:
        refused = client.request(method, path)  # open for searching, yet not for this
        assert refused.status_code == 401
        assert "--scope write" in refused.json()["detail"]
        assert refused.headers["www-authenticate"] == "Bearer"
        search, write = (keys.add(catalog.store.directory, s, s) for s in ("search", "write"))
        assert client.request(method, path, headers=bearer(search)).status_code == 403
        assert client.request(method, path, headers=bearer(write)).status_code not in (401, 403)


def test_every_route_that_changes_something_needs_scope_write(catalog: lookalike.Catalog):
    asking = {"/api/search", "/api/tag", "/api/feedback"}
    for path, operations in create_app(catalog).openapi()["paths"].items():
        for method in operations:
            if method != "get" and path not in asking:
                assert security.needed(method.upper(), path) == "write", (method, path)


def test_a_key_for_metrics_does_nothing_else(catalog: lookalike.Catalog):
    secret = keys.add(catalog.store.directory, "prometheus", "metrics")
    with served(catalog) as client:
        assert client.get("/metrics").status_code == 401
        assert client.get("/metrics", headers=bearer(secret)).status_code == 200
        assert client.get("/api/status", headers=bearer(secret)).status_code == 403


def test_a_damaged_file_of_keys_lets_nobody_in(catalog: lookalike.Catalog, caplog: pytest.LogCaptureFixture):
    secret = keys.add(catalog.store.directory, "page", "search")
    file = catalog.store.directory / "keys.json"
    with served(catalog) as client:
        assert client.get("/api/status", headers=bearer(secret)).status_code == 200
        for content in (
            "{",
            '{"keys": [{"name": "x"}]}',
            "[]",
            '{"keys": [{"name":"x","scope":"all","sha256":"","since":""}]}',
        ):
            file.write_text(content)
            assert client.get("/api/status").status_code == 401
            assert client.get("/api/status", headers=bearer(secret)).status_code == 401
            with pytest.raises(CatalogError, match=r"keys\.json"):
                keys.read(catalog.store.directory)
    assert "keys.json" in caplog.text


def test_a_public_server_stays_shut_when_its_last_key_is_gone(catalog: lookalike.Catalog):
    with served(catalog, public=True) as client:
        assert client.get("/api/status").status_code == 401
        assert client.get("/api/search?text=red").status_code == 401
        assert client.get("/healthz").status_code == 200


def test_secrets_are_compared_in_constant_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = [keys.add(tmp_path, f"k{n}", "search") for n in range(3)]
    compared: list[str] = []
    real = keys.hmac.compare_digest
    monkeypatch.setattr(keys.hmac, "compare_digest", lambda a, b: compared.append(a) or real(a, b))
    known = keys.Keys(tmp_path)
    known.refresh()
    assert known.find(made[0]).name == "k0"
    assert known.find("x" * 100_000) is None
    assert known.find("\ud800") is None
    assert len(compared) == 9  # each against all, whichever fits


# Pages: of our own, of others


def test_a_cookie_writes_for_our_own_page_alone(catalog: lookalike.Catalog):
    with served(catalog, "secret") as client:
        client.cookies.set("lookalike_key", "secret")
        path = "/api/products/p01"
        for headers in (
            {}, {"origin": "http://evil.example"}, {"origin": "http://["}, {"origin": "testserver"},
            {"origin": "http://testserver:3000"}, {"origin": "null"},
            {"origin": "http://testserver", "sec-fetch-site": "same-site"},
            {"origin": "http://evil.example", "sec-fetch-site": "cross-site"},
        ):  # fmt: skip
            assert client.delete(path, headers=headers).status_code == 403, headers
        assert client.get(path).status_code == 200
        proxied = {"origin": "https://shop.example", "sec-fetch-site": "same-origin"}  # the proxy changed the Host
        assert client.delete(path, headers=proxied).status_code == 204
        assert client.delete("/api/products/p02", headers={"origin": "http://testserver"}).status_code == 204


def test_a_page_of_another_site_cannot_post_to_an_open_server(catalog: lookalike.Catalog):
    body = {"text": "red"}
    with served(catalog) as client:
        assert client.post("/api/search", json=body, headers={"origin": "http://evil.example"}).status_code == 403
        assert client.post("/api/search", json=body, headers={"origin": "http://testserver"}).status_code == 200
        assert client.post("/api/search", json=body).status_code == 200


def test_origins_on_the_list_may_call_and_read(catalog: lookalike.Catalog):
    shop = {"origin": "https://shop.example"}
    with served(catalog, "secret", cors=("https://shop.example",)) as client:
        asked = {"access-control-request-method": "PUT", "access-control-request-headers": "authorization,content-type"}
        allowed = client.options("/api/products/p01", headers={**shop, **asked})
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://shop.example"
        assert "PUT" in allowed.headers["access-control-allow-methods"]
        assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
        refused = client.options("/api/products/p01", headers={"origin": "https://other.example", **asked})
        assert "access-control-allow-origin" not in refused.headers
        answer = client.post("/api/search", json={"text": "red"}, headers={**shop, **bearer("secret")})
        assert answer.headers["access-control-allow-origin"] == "https://shop.example"
        assert "origin" in answer.headers["vary"].lower()
        exposed = answer.headers["access-control-expose-headers"].lower()
        assert {"x-request-id", "retry-after", "etag", "link"} <= set(exposed.split(", "))
        assert "access-control-allow-credentials" not in answer.headers  # no cookie goes along
        # a refusal can be read by the page, too
        assert client.get("/api/status", headers=shop).status_code == 401
        assert client.get("/api/status", headers=shop).headers["access-control-allow-origin"] == "https://shop.example"
        script = client.get("/web/lookalike-search.js", headers=shop)
        assert script.headers["access-control-allow-origin"] == "https://shop.example"
        assert script.headers["cross-origin-resource-policy"] == "cross-origin"
        assert "frame-ancestors 'none'" in script.headers["content-security-policy"]


def test_without_a_list_nothing_may_be_embedded_elsewhere(catalog: lookalike.Catalog):
    with served(catalog) as client:
        answer = client.get("/web/style.css", headers={"origin": "https://shop.example"})
        assert "access-control-allow-origin" not in answer.headers
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"


def test_a_photo_takes_a_searching_key_in_its_address(catalog: lookalike.Catalog):
    search, write = (keys.add(catalog.store.directory, s, s) for s in ("search", "write"))
    photo = indexing.photo_key("p01", 0)
    with served(catalog) as client:
        assert client.get(f"/api/photos/{photo}").status_code == 401
        assert client.get(f"/api/photos/{photo}?key={search}").status_code == 200
        assert client.get(f"/api/photos/{photo}?key={write}").status_code == 403  # addresses end up in histories
        assert client.get(f"/api/status?key={search}").status_code == 401


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("https://Shop.example/", "https://shop.example"), ("http://localhost:3000", "http://localhost:3000"),
        ("https://shop.example:443", "https://shop.example"), ("*", "*"),
        ("shop.example", None), ("https://shop.example/path", None), ("ftp://shop.example", None), ("https://", None),
        ("https://a@shop.example", None), ("https://shop.example:x", None),
    ],
)  # fmt: skip
def test_origins_are_read_as_browsers_write_them(text: str, read: str | None):
    if read:
        assert security.origin(text) == read
    else:
        with pytest.raises(UsageError, match="an origin is wanted"):
            security.origin(text)


def test_no_host_header_leads_past_the_key(catalog: lookalike.Catalog):
    with served(catalog, "secret") as client:
        for host in ("testserver/web/?", "testserver/healthz#", "x@testserver/web/", "[", "testserver/web/\\"):
            assert client.get("/api/status", headers={"host": host}).status_code == 401, host
            assert client.delete("/api/products/p01", headers={"host": host}).status_code == 401, host


# Limits


def test_over_the_rate_is_429_until_the_time_that_is_told(catalog: lookalike.Catalog, monkeypatch: pytest.MonkeyPatch):
    now = [1000.0]
    monkeypatch.setattr(security.time, "monotonic", lambda: now[0])
    photo = f"/api/photos/{indexing.photo_key('p01', 0)}"
    with served(catalog, rate=security.Rate(3, 60)) as client:
        assert [client.get("/api/status").status_code for _ in range(4)] == [200, 200, 200, 429]
        refused = client.get("/api/status")
        assert refused.headers["retry-after"] == "20"
        assert refused.json()["request_id"] == refused.headers["x-request-id"]
        assert client.get("/healthz").status_code == client.get("/").status_code == 200
        now[0] += 20.1
        assert [client.get("/api/status").status_code for _ in range(2)] == [200, 429]
        now[0] += 20
        assert [client.get(photo).status_code for _ in range(11)] == [200] * 10 + [429]  # a tenth each
        assert "lookalike_rate_limited_total 4.0" in client.get("/metrics").text


def test_each_client_has_a_rate_of_its_own(catalog: lookalike.Catalog):
    directory = catalog.store.directory
    search, a, b = (
        keys.add(directory, "s", "search"),
        keys.add(directory, "a", "write"),
        keys.add(directory, "b", "write"),
    )
    app = create_app(catalog, rate=security.Rate(1, 60))

    def status(secret: str, address: str) -> int:
        with TestClient(app, client=(address, 1)) as client:
            return client.get("/api/status", headers=bearer(secret)).status_code

    assert [status(a, "1.1.1.1"), status(a, "2.2.2.2"), status(b, "1.1.1.1")] == [200, 429, 200]
    # the key of a public page is everybody's: there the address counts, of IPv6 the network
    assert [status(search, "1.1.1.1"), status(search, "1.1.1.1"), status(search, "2.2.2.2")] == [200, 429, 200]
    assert [status(search, "2001:db8::1"), status(search, "2001:db8::2"), status(search, "2001:db8:0:1::1")] == [
        200,
        429,
        200,
    ]
    assert [status("guess", "3.3.3.3"), status("guess2", "3.3.3.3")] == [401, 429]


def test_rates_are_read_and_forgotten():
    assert security.Rate.parse("20/s") == security.Rate(20, 1)
    assert security.Rate.parse("600/m") == security.Rate(600, 60)
    assert security.Rate.parse("off") is None
    for wrong in ("", "20", "0/s", "-1/s", "20/h", "1e9/s"):
        with pytest.raises(UsageError, match="--rate-limit"):
            security.Rate.parse(wrong)
    buckets = security.Buckets(security.Rate(1, 60))
    for n in range(security.CLIENTS + 50):
        assert buckets.take(str(n)) == 0
    assert len(buckets._left) == security.CLIENTS


def test_a_full_queue_is_503_and_recovers(catalog: lookalike.Catalog, monkeypatch: pytest.MonkeyPatch):
    go, inside = threading.Event(), threading.Semaphore(0)
    real = catalog.answer

    def slow(*arguments: object, **named: object) -> object:
        inside.release()
        assert go.wait(20)
        return real(*arguments, **named)  # type: ignore[arg-type]

    with served(catalog, queue=2) as client, ThreadPoolExecutor(2) as pool:
        monkeypatch.setattr(catalog, "answer", slow)  # not yet while it starts, which searches once
        waiting = [pool.submit(client.post, "/api/search", json={"text": "red"}) for _ in range(2)]
        for _ in waiting:
            assert inside.acquire(timeout=10)
        for refused in (client.post("/api/search", json={"text": "red"}), client.get("/api/search?text=red")):
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "1"
            assert refused.headers["content-type"] == "application/problem+json"
        assert client.get("/healthz").status_code == client.get("/metrics").status_code == 200
        go.set()
        assert [w.result().status_code for w in waiting] == [200, 200]
        assert client.post("/api/search", json={"text": "red"}).status_code == 200
        assert "lookalike_overloaded_total 2.0" in client.get("/metrics").text


class Connection:
    """One request to an application, its body sent piece by piece."""

    def __init__(self, app: object, loop: object, length: int):
        import asyncio

        self.loop, self.pieces, self.sent = loop, asyncio.Queue(), []
        headers = [
            (b"host", b"testserver"),
            (b"content-type", b"application/json"),
            (b"content-length", str(length).encode()),
        ]
        scope = {
            "type": "http", "method": "POST", "path": "/api/search", "raw_path": b"/api/search", "query_string": b"",
            "headers": headers, "client": ("1.1.1.1", 1), "server": ("testserver", 80), "scheme": "http",
            "http_version": "1.1", "root_path": "",
        }  # fmt: skip
        self.task = loop.create_task(app(scope, self.pieces.get, self.send))  # type: ignore[attr-defined, operator]

    async def send(self, message: dict[str, object]) -> None:
        self.sent.append(message)

    def piece(self, body: bytes, more: bool) -> None:
        self.pieces.put_nowait({"type": "http.request", "body": body, "more_body": more})

    def status(self) -> object:
        self.loop.run_until_complete(self.task)
        return self.sent[0]["status"]


def test_who_sends_slowly_takes_nobodys_place_and_is_sent_away(
    catalog: lookalike.Catalog, monkeypatch: pytest.MonkeyPatch
):
    import asyncio

    body = b'{"text": "red"}'
    app = create_app(catalog, hosts=HOSTS, queue=1)
    loop = asyncio.new_event_loop()
    try:
        slow = [Connection(app, loop, len(body)) for _ in range(5)]
        for one in slow:
            one.piece(body[:3], True)
        loop.run_until_complete(asyncio.sleep(0.05))
        quick = Connection(app, loop, len(body))
        quick.piece(body, False)
        assert quick.status() == 200
        slow[0].piece(body[3:], False)
        assert slow[0].status() == 200
        monkeypatch.setattr(security, "BODY_SECONDS", 0.05)
        late = Connection(app, loop, len(body))
        late.piece(body[:3], True)
        assert late.status() == 408
        assert b"did not come within" in late.sent[1]["body"]
        monkeypatch.setattr(security, "MAX_BODIES", 20)  # of all together: these four hold 12 bytes
        refused = Connection(app, loop, len(body))
        refused.piece(body, False)
        assert refused.status() == 503
        for one in slow[1:]:
            one.task.cancel()
        loop.run_until_complete(asyncio.gather(*(one.task for one in slow[1:]), return_exceptions=True))
        fresh = Connection(app, loop, len(body))
        fresh.piece(body, False)
        assert fresh.status() == 200  # what was let go counts no more
    finally:
        loop.close()


def test_who_hangs_up_while_sending_is_no_bug(catalog: lookalike.Catalog, caplog: pytest.LogCaptureFixture):
    import asyncio

    caplog.set_level(logging.INFO, "lookalike")
    loop = asyncio.new_event_loop()
    try:
        gone = Connection(create_app(catalog, hosts=HOSTS), loop, 100)
        gone.piece(b'{"text', True)
        gone.pieces.put_nowait({"type": "http.disconnect"})
        loop.run_until_complete(gone.task)
    finally:
        loop.close()
    assert gone.sent == []
    assert [r.fields["status"] for r in caplog.records] == [499]


# Observation


def test_request_ids_are_taken_where_sane_and_are_in_answers_problems_and_the_log(
    catalog: lookalike.Catalog, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "lookalike.access")
    with served(catalog) as client:
        assert (
            client.get("/api/status", headers={"x-request-id": "shop-42.a:b"}).headers["x-request-id"] == "shop-42.a:b"
        )
        for wrong in ("a b", "x" * 129, "é".encode(), '"', ""):
            made = client.get("/api/status", headers={"x-request-id": wrong}).headers["x-request-id"]
            assert re.fullmatch(r"[0-9a-f]{32}", made)
        problem = client.get("/api/products/nope", headers={"x-request-id": "42"})
        assert problem.json()["request_id"] == "42"
    assert "42" in [r.fields["request_id"] for r in caplog.records if r.name == "lookalike.access"]


def test_one_line_for_each_request_without_secrets_or_what_was_asked(catalog: lookalike.Catalog):
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(observe.JsonLines())
    logger = logging.getLogger("lookalike")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    secret = keys.add(catalog.store.directory, "till", "write")
    try:
        with served(catalog) as client:
            client.headers.update(bearer(secret))
            client.get("/api/search?text=confidential+gown")
            client.post("/api/search", files={"image": ("my-face.jpg", jpeg())}, data={"text": "confidential"})
            client.get("/api/products/p01")
            client.get("/api/secret-place/confidential")
            client.get("/api/status", headers=bearer("confidential"))
            client.head("/api/status")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    told = [(r["method"], r["route"], r["status"], r["key"]) for r in lines]
    assert told == [
        ("GET", "/api/search", 200, "till"),
        ("POST", "/api/search", 200, "till"),
        ("GET", "/api/products/{identity}", 200, "till"),
        ("GET", "none", 404, "till"),
        ("GET", "/api/status", 401, None),
        ("HEAD", "/api/status", 200, "till"),
    ]
    assert all(r["ms"] > 0 and r["request_id"] and r["time"] for r in lines)
    assert {"decode_ms", "encode_ms", "search_ms"} <= set(lines[1])
    for word in ("confidential", "gown", "face", secret, "testclient"):
        assert word not in stream.getvalue()


def test_text_lines_say_the_same(catalog: lookalike.Catalog):
    record = logging.LogRecord("lookalike.access", logging.INFO, "", 0, "request", (), None)
    record.fields = {"method": "GET", "route": "/api/search", "status": 200, "ms": 1.5, "request_id": "r", "key": None}
    assert observe.TextLines().format(record).split(" ", 1)[1] == "GET /api/search 200 ms=1.5 request_id=r"


def test_metrics_count_requests_stages_and_the_catalog(catalog: lookalike.Catalog):
    with served(catalog) as client:
        client.post("/api/search", files={"image": ("a.jpg", jpeg())}, data={"text": "red"})
        client.get("/api/products/nope")
        client.get("/api/%7Bsurprise%7D")
        text = client.get("/metrics").text
    for line in (
        'lookalike_requests_total{method="POST",route="/api/search",status="200"} 1.0',
        'lookalike_requests_total{method="GET",route="/api/products/{identity}",status="404"} 1.0',
        'lookalike_requests_total{method="GET",route="none",status="404"} 1.0',
        'lookalike_request_seconds_count{method="POST",route="/api/search"} 1.0',
        'lookalike_stage_seconds_count{stage="decode"} 1.0',
        'lookalike_stage_seconds_count{stage="encode"} 1.0',
        'lookalike_stage_seconds_count{stage="search"} 1.0',
        "lookalike_catalog_products 12.0",
        "lookalike_catalog_photos 13.0",
        "lookalike_catalog_quarantined 0.0",
    ):
        assert line in text.splitlines(), line
    assert f"lookalike_catalog_version {catalog.store.version()}.0" in text
    assert "surprise" not in text


def test_a_bug_is_a_problem_with_an_id_that_the_log_explains(
    catalog: lookalike.Catalog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    with served(catalog) as client:
        monkeypatch.setattr(catalog, "answer", lambda *a, **k: 1 / 0)
        answer = client.get("/api/search?text=red")
    assert answer.status_code == 500
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert "ZeroDivisionError" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "ZeroDivisionError" in caplog.text
    assert answer.json()["request_id"] in caplog.text


# Caching


def test_photos_have_strong_tags_of_content_and_width(tmp_path: Path, catalog: lookalike.Catalog):
    address = f"/api/photos/{indexing.photo_key('p01', 0)}"
    with served(catalog) as client:
        first = client.get(f"{address}?width=32")
        tag = first.headers["etag"]
        assert re.fullmatch(r'"[0-9a-f]{32}-32"', tag)
        assert first.headers["cache-control"] == "public, max-age=300"
        again = client.get(f"{address}?width=32", headers={"if-none-match": f'"x", {tag}'})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert client.get(f"{address}?width=40", headers={"if-none-match": tag}).status_code == 200
    with served(catalog, "secret") as client:
        kept = client.get(address, headers=bearer("secret")).headers["cache-control"]
        assert kept == "private, max-age=300"  # no shared cache may answer those without a key
    draw(tmp_path / "img" / "1.jpg", "green", "bag")  # changed, and not indexed yet
    with served(catalog) as client:
        changed = client.get(f"{address}?width=32")
        assert changed.headers["etag"] not in (tag, "")
        assert changed.content != first.content


def test_parts_of_the_page_are_asked_for_again_and_compressed(catalog: lookalike.Catalog):
    with served(catalog) as client:
        plain = client.get("/web/style.css", headers={"accept-encoding": "identity"})
        assert plain.headers["cache-control"] == "no-cache"
        tag = plain.headers["etag"]
        assert client.get("/web/style.css", headers={"if-none-match": tag}).status_code == 304
        packed = client.get("/web/style.css", headers={"accept-encoding": "gzip"})
        assert packed.headers["content-encoding"] == "gzip"
        assert packed.headers["etag"] == f"W/{tag}"  # other bytes
        assert client.get("/web/style.css", headers={"if-none-match": f"W/{tag}"}).status_code == 304


def test_json_is_compressed_where_it_pays_and_photos_never(catalog: lookalike.Catalog):
    with served(catalog) as client:
        assert client.get("/api/search?text=red").headers["content-encoding"] == "gzip"
        assert "content-encoding" not in client.get("/healthz").headers
        photo = client.get(f"/api/photos/{indexing.photo_key('p01', 0)}?width=2048")
        assert "content-encoding" not in photo.headers
        assert client.get("/api/search?text=red").headers["cache-control"] == "no-store"


def test_lists_tell_where_they_go_on(catalog: lookalike.Catalog):
    with served(catalog) as client:
        first = client.get("/api/products", params={"where": "price > 1", "limit": 5, "offset": 0})
        following = re.fullmatch(r'<(.+)>; rel="next"', first.headers["link"])[1]
        second = client.get(following)
        third = client.get(re.fullmatch(r'<(.+)>; rel="next"', second.headers["link"])[1])
    ids = [p["id"] for page in (first, second, third) for p in page.json()["products"]]
    assert ids == [f"p{n:02}" for n in range(12)]
    assert "link" not in third.headers


# Description


def test_the_description_is_whole(catalog: lookalike.Catalog):
    described = create_app(catalog).openapi()
    known = described["components"]["schemas"]
    for name in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(described)):
        assert name in known
    assert set(described["components"]["securitySchemes"]) == {"bearer", "header"}
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            place = f"{method} {path}"
            assert operation.get("description"), place
            good = [c for c in operation["responses"] if c < "400"]
            assert len(good) == 1, place
            content = operation["responses"][good[0]].get("content", {})
            if good != ["204"]:
                assert content, place
            for kind, form in content.items():
                if kind == "application/json":
                    assert "$ref" in form["schema"], place
            if path.startswith("/api/"):
                assert {"400", "401", "403", "404", "422", "429", "503"} <= set(operation["responses"]), place
                assert operation["security"], place
                for code in set(operation["responses"]) - set(good):
                    assert "application/problem+json" in operation["responses"][code]["content"], place


def test_examples_in_the_description_can_be_sent(writer: TestClient):
    paths = writer.get("/openapi.json").json()["paths"]
    for example in paths["/api/search"]["post"]["requestBody"]["content"]["application/json"]["examples"].values():
        answer = writer.post("/api/search", json=example["value"])
        assert answer.status_code == 200, answer.text
    for path in ("/api/products", "/api/products/{identity}"):
        example = paths[path]["put"]["requestBody"]["content"]["application/json"]["example"]
        answer = writer.put(path.replace("{identity}", "p05"), json=example)
        assert answer.status_code in (200, 422), answer.text
        if answer.status_code == 422:
            assert "downloading is off" in answer.json()["detail"]


def test_answers_are_as_described(writer: TestClient):
    def check(model: type, answer: object) -> None:
        model.model_validate(answer)
        unknown = set(answer) - {f.alias or n for n, f in model.model_fields.items()}
        assert not unknown, unknown

    check(schemas.SearchAnswer, writer.get("/api/search?text=red").json())
    check(schemas.Hit, writer.get("/api/search?text=red").json()["hits"][0])
    check(schemas.TagAnswer, writer.post("/api/tag", files={"image": ("a.jpg", jpeg())}).json())
    check(schemas.DuplicatesAnswer, writer.get("/api/duplicates").json())
    check(schemas.FacetsAnswer, writer.get("/api/facets").json())
    check(schemas.StatusAnswer, writer.get("/api/status").json())
    check(schemas.Problem, writer.get("/api/products/nope").json())


def test_the_documentation_asks_nothing_of_other_machines(catalog: lookalike.Catalog):
    with served(catalog) as client:
        page = client.get("/docs")
        assert page.status_code == 200
        assert page.headers["content-security-policy"] == observe.PAGE
        parts = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert {"/web/docs.js", "/web/docs.css"} <= set(parts)
        for part in parts:
            assert part.startswith(("/", "data:,")) and not part.startswith("//")
            if part.startswith("/web/"):
                assert client.get(part).status_code == 200
    for name in ("docs.html", "docs.js", "docs.css"):
        text = (WEB / name).read_text()
        assert "http://" not in text and "https://" not in text
        assert "innerHTML" not in text and "style=" not in text


# Catalog work


def test_a_product_is_put_by_form_and_found(writer: TestClient, catalog: lookalike.Catalog):
    files = [("photo", ("a.jpg", jpeg("red"))), ("photo", ("b.jpg", jpeg("blue")))]
    data = {"title": "New dress", "attributes": json.dumps({"colour": "Red", "price": 20, "sizes": ["S", "M"]})}
    answer = writer.put("/api/products/new%2F1", files=files, data=data)
    assert answer.status_code == 200, answer.text
    report = answer.json()
    assert (report["added"], report["updated"], report["quarantined"], report["problems"]) == (2, 0, 0, [])
    product = writer.get("/api/products/new/1").json()
    assert product["title"] == "New dress"
    assert product["attributes"] == {"colour": "Red", "price": 20, "sizes": "S, M"}
    assert len(product["photos"]) == 2
    assert writer.get(f"/api/photos/{product['photos'][1]}").status_code == 200
    hits = writer.post("/api/search", files={"image": ("a.jpg", jpeg("blue"))}, data={"k": 1}).json()["hits"]
    assert hits[0]["id"] == "new/1"
    stored = [p for p in (catalog.store.directory / "uploads").rglob("*") if p.is_file()]
    assert len(stored) == 2
    assert catalog.verify() == {"photos": 15, "damaged": [], "changed": [], "missing": []}


def test_replacing_and_deleting_leaves_no_upload_behind(writer: TestClient, catalog: lookalike.Catalog):
    def stored() -> int:
        return sum(p.is_file() for p in (catalog.store.directory / "uploads").rglob("*"))

    red = {"title": "x", "photos": [base64.b64encode(jpeg("red")).decode()]}
    both = {**red, "photos": [*red["photos"], base64.b64encode(jpeg("blue")).decode()]}
    assert writer.put("/api/products/a", json=both).json()["added"] == 2
    assert writer.put("/api/products/b", json=red).json()["added"] == 1
    assert stored() == 2  # the same photo is one file
    assert writer.put("/api/products/a", json=both).json()["unchanged"] == 2
    report = writer.put("/api/products/a", json=red).json()
    assert (report["unchanged"], report["removed"]) == (1, 1)
    assert stored() == 1
    assert writer.delete("/api/products/a").status_code == 204
    assert writer.get("/api/products/a").status_code == 404
    assert stored() == 1  # b has it still
    assert writer.delete("/api/products/b").status_code == 204
    assert stored() == 0
    assert writer.delete("/api/products/b").status_code == 404


def test_a_product_without_photos_keeps_its_own(writer: TestClient, catalog: lookalike.Catalog, table: Path):
    before = writer.get("/api/products/p00").json()
    answer = writer.put("/api/products/p00", json={"title": "Cheaper", "attributes": {"price": 1, "colour": "Red"}})
    assert (answer.status_code, answer.json()["updated"]) == (200, 2)
    after = writer.get("/api/products/p00").json()
    assert (after["title"], after["photos"]) == ("Cheaper", before["photos"])
    assert after["attributes"] == {"price": 1, "colour": "Red"}
    assert Path(catalog.store.rows(["lk_path"])["lk_path"][0].as_py()).is_file()  # the shop's own file is left alone
    assert writer.put("/api/products/unknown", json={"title": "x"}).status_code == 404
    assert catalog.index(table).updated == 2  # the table has the last word
    wait_for(lambda: writer.get("/api/products/p00").json() == before)


def test_a_webhook_puts_many_and_is_told_of_each_that_failed(writer: TestClient, catalog: lookalike.Catalog):
    good, bad = base64.b64encode(jpeg("green")).decode(), base64.b64encode(b"not a photo").decode()
    version = catalog.store.version()
    products = [
        {"id": "n1", "title": "one", "photos": [good, bad]},
        {"id": "n2", "title": "two", "photos": [bad]},
        {"id": "p03", "title": "three", "photos": [bad]},
        {"id": "p04", "title": "four", "attributes": {"price": "cheap"}},
    ]
    answer = writer.put("/api/products", json={"products": products})
    assert answer.status_code == 200, answer.text
    report = answer.json()
    assert (report["added"], report["updated"], report["quarantined"]) == (1, 1, 4)
    items = {p["item"] for p in report["problems"]}
    assert items == {
        "upload, id n1, photo 2", "upload, id n2, photo 1", "upload, id p03, photo 1", "upload, id p04",
    }  # fmt: skip
    assert all(p["reason"] and str(catalog.store.directory) not in p["reason"] for p in report["problems"])
    assert catalog.store.version() == version + 1  # one commit
    assert writer.get("/api/products/n1").json()["title"] == "one"
    assert writer.get("/api/products/n2").status_code == 404
    assert writer.get("/api/products/p03").json()["title"] == "black shirt"
    assert {q["item"] for q in writer.get("/api/quarantine").json()["items"]} == items
    stored = [p for p in (catalog.store.directory / "uploads").rglob("*") if p.is_file()]
    assert len(stored) == 1  # what could not be used is not kept


@pytest.mark.parametrize(
    ("sent", "status", "detail"),
    [
        ({"json": {"photos": ["###"]}}, 422, "photos.0 is neither base64 nor an http"),
        ({"json": {"photos": []}}, 422, "photos is empty"),
        ({"json": {"photos": [""]}}, 422, "is empty (0 bytes)"),
        ({"json": {"photos": ["https://x.example/a.jpg"]}}, 422, "downloading is off; start with --download"),
        ({"json": {"colour": "red"}}, 422, "colour: extra inputs"),
        ({"json": {"photos": ["AA"] * 21}}, 422, "at most 20"),
        ({"json": [1]}, 422, "dictionary"),
        ({"json": {"title": "x", "attributes": {"lk_id": "x"}, "photos": ["QQ=="]}}, 422, "begins with lk_"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "not JSON"),
        ({"content": b"[" * 100_000, "headers": {"content-type": "application/json"}}, 400, "not JSON"),
        ({"content": b"x", "headers": {"content-type": "text/plain"}}, 415, "application/json"),
        ({"files": {"image": ("a.jpg", b"x")}}, 400, "go into the field photo"),
        ({"files": {"photo": ("a.jpg", b"x")}}, 422, "not an image that can be read"),
        ({"files": [("photo", ("a.jpg", b"x"))] * 21}, 400, "too many files"),
        ({"files": {"photo": ("a.jpg", jpeg())}, "data": {"attributes": "{"}}, 400, "attributes is not JSON"),
        ({"files": {"photo": ("a.jpg", jpeg())}, "data": {"attributes": "[1]"}}, 422, "attributes"),
    ],
)  # fmt: skip
def test_what_cannot_be_put_is_refused_by_name_and_changes_nothing(
    writer: TestClient, catalog: lookalike.Catalog, sent: dict[str, object], status: int, detail: str
):
    before = catalog.store.version()
    answer = writer.put("/api/products/p01", **sent)  # type: ignore[arg-type]
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    assert (answer.status_code, answer.json()["status"]) == (status, status), answer.text
    assert detail.lower() in answer.json()["detail"].lower()
    assert catalog.store.version() == before
    assert writer.get("/api/products/p01").json()["title"] == "blue shirt"
    assert not [p for p in (catalog.store.directory / "uploads").rglob("*") if p.is_file()]


def test_batches_are_bounded_and_refused_whole(writer: TestClient, catalog: lookalike.Catalog):
    one = {"id": "x", "photos": [base64.b64encode(jpeg()).decode()]}
    before = catalog.store.version()
    assert writer.put("/api/products", json={"products": [one, one]}).status_code == 422
    assert writer.put("/api/products", json={"products": []}).status_code == 422
    assert (
        writer.put("/api/products", json={"products": [{**one, "id": str(n)} for n in range(101)]}).status_code == 422
    )
    answer = writer.put("/api/products", json={"products": [one, {"id": ""}]})
    assert "products.1.id" in answer.json()["detail"]
    assert catalog.store.version() == before


def test_addresses_go_through_the_guarded_downloader(catalog: lookalike.Catalog, monkeypatch: pytest.MonkeyPatch):
    def fetch(address: str, allow_hosts: tuple[str, ...]) -> bytes:
        assert allow_hosts == ("images.local",)
        if "bad" in address:
            raise InputError("the server answers 404")
        return jpeg("green")

    monkeypatch.setattr("lookalike.sources.web.fetch", fetch)
    with served(catalog, "secret", downloads=writing.Downloads(("images.local",))) as client:
        client.headers.update(bearer("secret"))
        photos = ["https://shop.example/bad.jpg", "https://shop.example/good.jpg"]
        report = client.put("/api/products/n1", json={"photos": photos}).json()
        assert report["added"] == 1
        assert report["problems"] == [{"item": "upload, id n1, photo 1", "reason": "the server answers 404"}]
        none = client.put("/api/products/n2", json={"photos": photos[:1]})
        assert none.status_code == 422
        assert "404" in none.json()["detail"]
        client.put("/api/products/n2", json={"photos": photos[:1]})  # a shop tries again and again
        assert client.get("/api/quarantine").json()["total"] == 2
        parts = [f"{photos[1]}#xywh={box}" for box in ("0,0,10,12", "999,0,5,5")]
        report = client.put("/api/products/n3", json={"photos": parts}).json()
        assert report["added"] == 1
        assert report["problems"][0]["item"] == "upload, id n3, photo 2"
        assert "lies outside of the photo's" in report["problems"][0]["reason"]
        assert client.delete("/api/products/n1").status_code == 204  # its file is n3's, too, and stays
        (photo,) = client.get("/api/products/n3").json()["photos"]
        picture = Image.open(io.BytesIO(client.get(f"/api/photos/{photo}?width=16").content))
        assert picture.size == (10, 12)


def test_a_catalog_that_is_being_written_says_when_to_come_back(writer: TestClient, catalog: lookalike.Catalog):
    with catalog.store.writing("index"):
        answer = writer.put("/api/products/p01", files={"photo": ("a.jpg", jpeg())})
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        assert writer.delete("/api/products/p01").status_code == 503
        assert str(catalog.store.directory.parent) not in answer.text
    assert not [p for p in (catalog.store.directory / "uploads").rglob("*") if p.is_file()]
    assert writer.put("/api/products/p01", files={"photo": ("a.jpg", jpeg())}).status_code == 200


def test_puts_at_once_all_arrive(writer: TestClient, catalog: lookalike.Catalog):
    def put(n: int) -> int:
        return writer.put(f"/api/products/n{n}", files={"photo": ("a.jpg", jpeg("red", (40 + n, 50)))}).status_code

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(put, range(8))) == [200] * 8
    assert len(catalog.snapshot()) == 20
    assert catalog.verify()["damaged"] == []


def test_what_a_killed_process_left_is_swept(catalog: lookalike.Catalog):
    folder = catalog.store.directory / "uploads" / "ab"
    folder.mkdir(parents=True)
    old, new = folder / "abc.part", folder / "abd.part"
    for file in (old, new):
        file.write_bytes(b"half")
    os.utime(old, (1, 1))
    with served(catalog):
        assert not old.exists()
        assert new.exists()  # somebody may be at it


def test_the_quarantine_has_pictures_where_something_can_be_seen_and_no_paths(tmp_path: Path):
    photos = tmp_path / "shop photos"
    draw(photos / "good.jpg", "red", "dress")
    noise = Image.effect_noise((200, 200), 90).convert("RGB")
    noise.save(photos / "cut.jpg")
    (photos / "cut.jpg").write_bytes((photos / "cut.jpg").read_bytes()[:9000])
    (photos / "no.jpg").write_bytes(b"not a photo")
    (photos / "sub").mkdir()
    (photos / "sub" / "phone.heic").write_bytes(b"x")
    catalog = lookalike.open(tmp_path / "c", encoder="fake")
    catalog.index(photos)
    with served(catalog, "secret") as client:
        client.headers.update(bearer("secret"))
        listed = client.get("/api/quarantine?k=2")
        assert str(tmp_path) not in listed.text
        assert listed.json()["total"] == 3
        assert listed.headers["link"] == '</api/quarantine?k=2&offset=2>; rel="next"'
        items = {i["item"]: i for i in listed.json()["items"] + client.get("/api/quarantine?offset=2").json()["items"]}
        assert set(items) == {"cut.jpg", "no.jpg", "sub/phone.heic"}
        assert {i["source"] for i in items.values()} == {"shop photos"}
        assert "cut short" in items["cut.jpg"]["reason"]
        seen = client.get(f"/api/quarantine/{items['cut.jpg']['n']}/picture?width=100")
        assert seen.headers["content-type"] == "image/jpeg"
        shown = Image.open(io.BytesIO(seen.content)).convert("L")
        assert shown.width == 100
        assert shown.crop((0, 0, 100, 20)).getextrema()[0] < 100 < shown.crop((0, 0, 100, 20)).getextrema()[1]
        for n in (items["no.jpg"]["n"], 3, 99999):
            missing = client.get(f"/api/quarantine/{n}/picture")
            assert missing.status_code == 404
            assert str(tmp_path) not in missing.text


def test_a_row_in_quarantine_shows_its_product(catalog: lookalike.Catalog):
    catalog.store.write_quarantine("/shops/a.csv", [lookalike.Quarantined("a.csv, line 3, id p02", "price: no number")])
    with served(catalog, "secret") as client:
        client.headers.update(bearer("secret"))
        item = client.get("/api/quarantine").json()["items"][0]
        assert (item["picture"], item["source"]) == (True, "a.csv")
        assert client.get("/api/quarantine/0/picture").status_code == 200


# serve SOURCE


def test_a_source_is_indexed_in_the_background_with_progress(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lookalike.server.app.POLL_SECONDS", 0.02)
    go = threading.Event()
    real = indexing.Work._read

    def slow(*args: object) -> object:
        if not go.is_set():
            time.sleep(0.05)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(indexing.Work, "_read", slow)
    catalog = lookalike.open(tmp_path / "c", encoder="fake")
    with served(catalog, "secret", source=str(folder)) as client:
        client.headers.update(bearer("secret"))
        assert client.get("/readyz").status_code == 200
        assert client.get("/api/search?text=red").json()["hits"] == []  # answers at once, with what is there
        wait_for(lambda: client.get("/api/indexing").json()["photos_per_second"])
        now = client.get("/api/indexing").json()
        assert now["running"] and 0 < now["done"] < now["total"] == 24
        assert now["seconds_left"] > 0 and now["report"] is None
        assert client.post("/api/index").status_code == 202  # it simply goes on
        assert client.delete("/api/products/nope").status_code == 404
        go.set()
        wait_for(lambda: not client.get("/api/indexing").json()["running"])
        assert client.get("/api/indexing").json()["report"]["added"] == 24
        assert client.get("/api/status").json()["photos"] == 24  # at once: nobody has to wait for the next look
        wait_for(lambda: client.get("/api/status").json()["products"] == 24)
        draw(folder / "men" / "bag" / "new.jpg", "green", "bag", 9)
        assert client.post("/api/index").status_code == 202
        wait_for(lambda: (client.get("/api/indexing").json()["report"] or {}).get("unchanged") == 24)
        wait_for(lambda: client.get("/api/products/men/bag/new").status_code == 200)


def test_stopped_in_the_middle_it_goes_on_at_the_next_start(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(indexing, "BATCH", 2)
    real = indexing.Work._read

    def slow(*args: object) -> object:
        time.sleep(0.05)
        return real(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(indexing.Work, "_read", slow)
        patch.setattr(indexing, "AHEAD", 2)
        with served(lookalike.open(tmp_path / "c", encoder="fake"), source=str(folder)) as client:
            wait_for(lambda: client.get("/api/indexing").json()["done"] >= 6)
            start = time.monotonic()
        assert time.monotonic() - start < 5
    assert not [t for t in threading.enumerate() if t.name == "lookalike-index"]
    catalog = lookalike.open(tmp_path / "c")
    kept = len(catalog.snapshot())
    assert 4 <= kept < 24
    assert catalog.verify()["damaged"] == []
    with served(catalog, source=str(folder)) as client:
        wait_for(lambda: client.get("/api/indexing").json()["report"])
        report = client.get("/api/indexing").json()["report"]
    assert (report["unchanged"], report["added"]) == (kept, 24 - kept)


def test_a_source_that_fails_is_told_and_the_rest_goes_on(tmp_path: Path, catalog: lookalike.Catalog):
    (tmp_path / "empty").mkdir()
    with served(catalog, source=str(tmp_path / "empty")) as client:
        wait_for(lambda: client.get("/api/indexing").json()["error"])
        found = client.get("/api/indexing").json()
        assert "no photos in it" in found["error"]
        assert str(tmp_path) not in found["error"]
        assert not found["running"]
        assert client.get("/api/search?text=red").status_code == 200


def test_without_a_source_there_is_nothing_to_sync(writer: TestClient):
    assert writer.post("/api/index").status_code == 409
    assert writer.get("/api/indexing").json() == {
        "running": False, "done": 0, "total": 0, "photos_per_second": None, "seconds_left": None, "report": None,
        "error": None,
    }  # fmt: skip


def test_the_command_serves_a_source_at_once_and_logs_json(tmp_path: Path, folder: Path):
    import signal
    import urllib.request

    words = [
        sys.executable,
        "-u",
        "-m",
        "lookalike",
        "serve",
        str(folder),
        "--catalog",
        str(tmp_path / "c"),
        "--encoder",
        "fake",
    ]
    process = subprocess.Popen([*words, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        address = re.search(r"http://[\d.:]+/", process.stdout.readline())[0]
        deadline = time.monotonic() + 30
        while json.load(urllib.request.urlopen(f"{address}api/indexing", timeout=20))["report"] is None:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
    lines = [json.loads(line) for line in errors.splitlines()]
    assert any(line["message"].startswith("indexed: added=24") for line in lines)
    assert any(line.get("route") == "/api/indexing" and line["status"] == 200 for line in lines)
    assert run("serve", tmp_path / "nowhere", "--port", "0").returncode == 3
    assert "start with --download" in run("serve", "https://shop.example/feed.xml", "--port", "0").stderr
    assert run("serve", "--catalog", tmp_path / "c", "--port", "0", "--log-format", "xml").returncode == 2
    assert run("serve", "--catalog", tmp_path / "c", "--port", "0", "--cors-origin", "shop").returncode == 2
