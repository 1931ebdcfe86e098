"""The server under attack: a real one over sockets, with patience cut short; torture/server.py does the same at full length."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import io
import json
import logging
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from urllib.request import urlopen

import pytest
from starlette.testclient import TestClient

import lookalike
from lookalike import feedback, images, indexing
from lookalike.errors import CatalogError
from lookalike.server import app as application
from lookalike.server import listen, observe, protocol, security
from lookalike.server.app import Thumbnails, create_app
from test_platform import bearer, jpeg, served, wait_for
from test_platform import run as command

KEY = "a-key-that-must-be-in-no-log-line"


@pytest.fixture(scope="module")
def torture() -> ModuleType:
    path = Path(__file__).parents[1] / "torture" / "server.py"
    spec = importlib.util.spec_from_file_location("torture_server", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def live(catalog: lookalike.Catalog, wait: bool = True, **settings: object) -> Iterator[tuple[int, Callable[[], None]]]:
    """A server on a port of its own, in a thread; with what tells it to stop."""
    with listen("127.0.0.1", 0, KEY) as bound:
        server = protocol.of(create_app(catalog, KEY, **settings))

        def stop() -> None:
            server.should_exit = True

        thread = threading.Thread(target=server.run, args=([bound],))
        thread.start()
        try:
            port = bound.getsockname()[1]
            if wait:
                assert urlopen(f"http://127.0.0.1:{port}/readyz", timeout=30).status == 200
            yield port, stop
        finally:
            stop()
            thread.join(20)
            assert not thread.is_alive()


def connected(port: int, data: bytes = b"") -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port), timeout=15)
    made.sendall(data)
    return made


def rest(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    out = b""
    with connection, contextlib.suppress(ConnectionError):
        while piece := connection.recv(65536):
            out += piece
    return out


def first(connection: socket.socket, data: bytes) -> bytes:
    """One answer of /healthz, on a connection that stays."""
    connection.sendall(data)
    out = b""
    while not out.endswith(b'{"status":"ok"}'):
        out += connection.recv(65536)
    return out


def shut(port: int) -> bool:
    with socket.socket() as made:
        return made.connect_ex(("127.0.0.1", port)) != 0


def ask(method: str, path: str, more: str = "", close: bool = True) -> bytes:
    end = "Connection: close\r\n" if close else ""
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {KEY}\r\n{end}{more}\r\n".encode()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.6)
    monkeypatch.setattr(protocol, "CLOSE_SECONDS", 0.3)
    monkeypatch.setattr(protocol, "STALL_SECONDS", 0.6)
    monkeypatch.setattr(security, "BODY_SECONDS", 1.0)


# Connections


def test_no_abuse_is_answered_by_5xx_hangs_or_tells_a_secret(
    catalog: lookalike.Catalog, torture: ModuleType, impatient: None, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    with live(catalog) as (port, _):
        found = asyncio.run(torture.abuse(torture.aimed(port), 1, 150, 15, every=4))
    assert found["broken"] == {}
    assert found["by hand"] > 300
    assert {"200", "400", "404", "422", "431"} <= set(found["first statuses"])
    text = "\n".join(
        r.getMessage() + str(getattr(r, "fields", "")) for r in caplog.records if r.name.startswith("look")
    )
    assert KEY not in text
    assert "bug in lookalike" not in caplog.text


def test_the_description_holds(catalog: lookalike.Catalog, torture: ModuleType, tmp_path: Path):
    pytest.importorskip("schemathesis", reason="pip install 'lookalike[dev]'")
    with live(catalog) as (port, _):
        found = torture.described(torture.aimed(port), 7, 2, tmp_path, "examples,fuzzing")
    assert found["broken"] == {}, found["broken"]
    assert found["cases"] > 30  # the number differs from run to run


def test_heads_have_their_time_and_size(catalog: lookalike.Catalog, impatient: None):
    with live(catalog) as (port, _):
        start = time.monotonic()
        silent, half = connected(port), connected(port, b"GET /healthz HTTP/1.1\r\nHost:")
        assert rest(silent) == b""
        assert b" 408 " in rest(half)
        drops = connected(port, b"GET / HTTP/1.1\r\nA: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(40):
                drops.sendall(b"a")
                time.sleep(0.05)
        assert b" 408 " in rest(drops)  # more bytes win no more time
        assert time.monotonic() - start < 10
        for piece in (b"GET /" + b"a" * protocol.MAX_HEAD, ask("GET", "/healthz", "A: b\r\n" * 6000)):
            answer = rest(connected(port, piece))
            assert answer.startswith(b"HTTP/1.1 431 ")
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["status"] == 431
        assert b" 431 " in rest(connected(port, ask("GET", "/healthz", "A: b\r\n" * 101)))
        one, second = ask("GET", "/healthz", close=False), ask("GET", "/healthz", "A: " + "b" * 20_000 + "\r\n")
        assert rest(connected(port, one + second)).count(b"HTTP/1.1 200 OK") == 2
        slow = connected(port)
        assert first(slow, one).startswith(b"HTTP/1.1 200 OK")
        slow.sendall(b"GET /")
        assert b" 408 " in rest(slow)  # also of a second request


def test_what_is_no_http_is_told_so_with_an_id_that_the_log_has(
    catalog: lookalike.Catalog, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "lookalike.access")
    with live(catalog) as (port, _):
        for data in (
            b"\x00\xff\r\n\r\n",
            ask("POST", "/api/search", "Transfer-Encoding: chunked\r\n", False) + b"zz\r\n",
        ):
            head, _, body = rest(connected(port, data)).partition(b"\r\n\r\n")
            assert b" 400 " in head and b"nosniff" in head
            identity = json.loads(body)["request_id"]
            assert identity.encode() in head
            assert identity in [r.fields["request_id"] for r in caplog.records if hasattr(r, "fields")]
        metrics = rest(connected(port, ask("GET", "/metrics")))
        assert b'lookalike_requests_total{method="OTHER",route="none",status="400"} 2.0' in metrics


def test_who_is_refused_while_sending_gets_to_read_why(catalog: lookalike.Catalog, monkeypatch: pytest.MonkeyPatch):
    body = b"x" * 5_000_000
    with live(catalog) as (port, _):
        for path, more, status in (
            ("/api/search", "X-API-Key: wrong\r\nContent-Length: 5000000\r\n", b" 401 "),
            ("/nowhere", "Content-Length: 5000000\r\n", b" 404 "),
            ("/nowhere", "Transfer-Encoding: chunked\r\n", b" 400 "),  # in the middle of a body that is no chunks
        ):
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{more}\r\n".encode()
            answer = rest(connected(port, head + body))  # all of it is taken, and thrown away
            assert status in answer and b"request_id" in answer
        monkeypatch.setattr(protocol, "CLOSE_SECONDS", 0.3)
        endless = connected(port, head.replace(b"chunked", b"chunked\r\nContent-Length: 5"))
        with pytest.raises(OSError):
            while True:
                endless.sendall(body)
        endless.close()


def test_a_request_cannot_hide_in_another(catalog: lookalike.Catalog):
    hidden = ask("GET", "/healthz")
    with live(catalog) as (port, _):
        both = "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n"
        answer = rest(connected(port, ask("POST", "/api/search", both, False) + b"0\r\n\r\n" + hidden))
        assert b" 400 " in answer and b"Transfer-Encoding; send one" in answer
        assert answer.count(b"HTTP/1.1 ") == 1
        crumbs = ask("POST", "/api/search", "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n")
        assert b" 400 " in rest(connected(port, crumbs + b"1\r\n \r\n" * 11_000))


def test_who_takes_an_answer_by_sips_is_cut_off(catalog: lookalike.Catalog, impatient: None):
    with live(catalog) as (port, _):
        thirsty = socket.socket()
        thirsty.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        thirsty.settimeout(15)
        thirsty.connect(("127.0.0.1", port))
        script = ask("GET", "/web/lookalike-search.js", "Accept-Encoding: identity\r\n", close=False)
        with contextlib.suppress(ConnectionError, TimeoutError):
            thirsty.sendall(script * 300)
        meter = protocol.Bounded.meter
        wait_for(lambda: meter.cut.labels("slow reader")._value.get() == 1, 15)
        thirsty.close()
        assert b" 200 " in rest(connected(port, ask("GET", "/api/status")))


def test_who_takes_an_answer_steadily_has_it_whole(catalog: lookalike.Catalog, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(protocol, "STALL_SECONDS", 0.3)
    with live(catalog) as (port, _):
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        slow.settimeout(15)
        slow.connect(("127.0.0.1", port))
        script = ask("GET", "/web/lookalike-search.js", "Accept-Encoding: identity\r\n", close=False)
        threading.Thread(target=slow.sendall, args=(script * 120 + ask("GET", "/healthz"),)).start()
        out = 0
        with slow:  # the kernel takes some MiB, and asks for more only when a third of them has gone
            for n in range(10_000):
                if not (piece := slow.recv(65536)):
                    break
                out += len(piece)
                time.sleep(0.05 if n < 40 else 0)
        assert out > 120 * len((application.WEB / "lookalike-search.js").read_bytes())
        assert protocol.Bounded.meter.cut.labels("slow reader")._value.get() == 0


def test_who_is_refused_in_one_piece_is_let_go(catalog: lookalike.Catalog, impatient: None):
    with live(catalog) as (port, _):
        stays = connected(port, ask("POST", "/api/search", "Transfer-Encoding: chunked\r\n", False) + b"zz\r\n")
        assert b" 400 " in stays.recv(65536)
        with stays, pytest.raises(ConnectionError):  # reset, though we never close
            for _ in range(40):
                time.sleep(0.05)
                stays.sendall(b"z")


def test_the_rest_of_a_refused_body_may_take_its_time(catalog: lookalike.Catalog, impatient: None):
    with live(catalog) as (port, _):
        sent = connected(port, b"POST /api/tag HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n" + b"x")
        for _ in range(10):  # 0.8 s, more than a head has
            time.sleep(0.08)
            sent.sendall(b"x" * 100)
        assert b" 401 " in sent.recv(65536)
        assert first(sent, ask("GET", "/healthz", close=False)).startswith(b"HTTP/1.1 200 OK")
        sent.sendall(b"POST /api/tag HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\nx")
        start = time.monotonic()
        with sent, contextlib.suppress(ConnectionError):
            for _ in range(200):
                time.sleep(0.05)
                sent.sendall(b"x")
        assert time.monotonic() - start < 8  # but not for ever


def hold(
    catalog: lookalike.Catalog, monkeypatch: pytest.MonkeyPatch
) -> tuple[threading.Event, threading.Semaphore, list[str]]:
    """No search is answered before the event; the semaphore counts those that wait for it, the list has their texts."""
    go, inside, asked = threading.Event(), threading.Semaphore(0), []
    real = catalog.answer

    def slow(query: object, **named: object) -> object:
        asked.append(query.text)
        inside.release()
        assert go.wait(20)
        return real(query, **named)

    monkeypatch.setattr(catalog, "answer", slow)
    return go, inside, asked


def test_idle_connections_make_room_and_busy_ones_do_not(catalog: lookalike.Catalog, monkeypatch: pytest.MonkeyPatch):
    with live(catalog) as (port, _):
        go, inside, _ = hold(catalog, monkeypatch)
        monkeypatch.setattr(protocol.Bounded, "most", 3)
        oldest, other = connected(port), connected(port)
        time.sleep(0.1)
        busy = [connected(port, ask("GET", "/api/search?text=red"))]
        assert inside.acquire(timeout=10)
        busy.append(connected(port, ask("GET", "/api/search?text=red")))
        assert inside.acquire(timeout=10)
        assert rest(oldest) == b""  # and not the other, which came later
        assert first(other, ask("GET", "/healthz", close=False)).startswith(b"HTTP/1.1 200 OK")
        busy.append(connected(port, ask("GET", "/api/search?text=red")))
        assert inside.acquire(timeout=10)
        assert rest(other) == b""
        refused = rest(connected(port, ask("GET", "/healthz")))
        assert b" 503 " in refused and b"retry-after: 1" in refused
        go.set()
        assert all(b" 200 OK" in rest(one) for one in busy)
        assert b" 200 OK" in rest(connected(port, ask("GET", "/healthz")))


def test_the_limit_on_open_files_is_raised_and_kept_to(monkeypatch: pytest.MonkeyPatch):
    import resource

    limits = [(1024, 1_000_000)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: limits.append(wanted))
    assert protocol.room() == protocol.CONNECTIONS
    assert limits[-1][0] == protocol.CONNECTIONS + protocol.FILES_KEPT
    limits[:] = [(256, 1024)]
    assert protocol.room() == 1024 - protocol.FILES_KEPT


def test_a_stop_answers_what_is_on_its_way(catalog: lookalike.Catalog, monkeypatch: pytest.MonkeyPatch):
    with live(catalog) as (port, stop):
        go, inside, _ = hold(catalog, monkeypatch)
        kept = connected(port)
        assert first(kept, ask("GET", "/healthz", close=False)).startswith(b"HTTP/1.1 200 OK")
        working = connected(port, ask("GET", "/api/search?text=red", close=False))
        assert inside.acquire(timeout=10)
        fresh = connected(port)
        stop()
        wait_for(lambda: shut(port))  # the port is let go at once
        kept.sendall(ask("GET", "/readyz", close=False))
        fresh.sendall(ask("GET", "/healthz", close=False))
        told, whole = rest(kept), rest(fresh)
        assert b" 503 " in told and b'"stopping"' in told
        go.set()
        for answer in (told, whole, rest(working)):
            assert b"connection: close" in answer.lower()
        assert whole.startswith(b"HTTP/1.1 200 OK")


# Bodies


def test_nothing_that_is_sent_reaches_the_disk(catalog: lookalike.Catalog, monkeypatch: pytest.MonkeyPatch):
    def rollover(*_: object) -> None:
        raise AssertionError("a photo went to a file")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", rollover)
    from PIL import Image

    file = io.BytesIO()
    Image.effect_noise((1500, 1500), 90).convert("RGB").save(file, "JPEG", quality=95)
    assert len(file.getvalue()) > 2**20  # from where starlette's own parser uses a file
    with served(catalog, "secret") as client:
        client.headers.update(bearer("secret"))
        sent = {"image": ("a.jpg", file.getvalue())}
        assert client.post("/api/search", files=sent).status_code == 200
        assert client.post("/api/tag", files=sent).status_code == 200
        before = {p for p in catalog.store.directory.rglob("*") if p.is_file()}
        client.post("/api/feedback", json={"product": "p01", "vote": "up", "query": {"image": "AAAA"}})
    new = {p.name for p in catalog.store.directory.rglob("*") if p.is_file()} - {p.name for p in before}
    assert new == {"feedback.jsonl"}
    assert "AAAA" not in (catalog.store.directory / "feedback.jsonl").read_text()


def test_bodies_that_would_grow_are_refused_before_they_are_read(catalog: lookalike.Catalog):
    js = {"content-type": "application/json"}
    with served(catalog) as client:
        for path in ("/api/search", "/api/tag", "/api/feedback"):
            wide = client.post(path, content=b"[" + b"[]," * 50_000 + b"[]]", headers=js)
            assert (wide.status_code, "values" in wide.json()["detail"]) == (413, True), path
        form = {"content-type": "application/x-www-form-urlencoded"}
        start = time.monotonic()
        assert client.post("/api/search", content=b"&" * 1_000_000, headers=form).status_code == 400
        assert time.monotonic() - start < 2  # half a second of the event loop, as it was
        hits = client.post("/api/search", content=b"text=red+shirt&k=2", headers=form).json()["hits"]
        assert hits == client.get("/api/search?text=red+shirt&k=2").json()["hits"]
        broken = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + jpeg()
        answer = client.post("/api/search", content=broken, headers={"content-type": "multipart/form-data; boundary=b"})
        assert (answer.status_code, "breaks off" in answer.json()["detail"]) == (400, True)
        part = b'--b\r\nContent-Disposition: form-data; name="text"\r\n\r\nr\xff\r\n--b--\r\n'
        multipart, field = "multipart/form-data; boundary=b", part.partition(b"\r\nr\xff")[0]
        for kind, body, status, why in (
            (form["content-type"], b"text=" + b"%41" * 400_000, 413, "1 MiB"),  # 4 s and 2 GB for 30 MB
            (multipart, (field + b"\r\n" + b"x" * 900_000 + b"\r\n") * 2 + b"--b--\r\n", 400, "1 MiB"),
            (multipart, part.replace(b"text", b"not").replace(b"r\xff", b"[" + b"0," * 110_000), 400, "values"),
            (f"{multipart}; charset=punycode", part, 400, "charset"),  # 5 s for 200 kB of it
        ):
            answer = client.post("/api/search", content=body, headers={"content-type": kind})
            assert (answer.status_code, why in answer.json()["detail"]) == (status, True), why
        for charset in ("undefined", "punycode", "zlib"):
            kind = {"content-type": f"multipart/form-data; boundary=b; charset={charset}"}
            assert client.post("/api/search", content=part, headers=kind).status_code < 500


def test_a_vote_of_odd_words_is_kept_as_far_as_it_can_be(
    catalog: lookalike.Catalog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    js = {"content-type": "application/json"}
    with served(catalog) as client:
        for query in (
            b'{"text": "a\\ud800"}',
            b'{"like": 5}',
            b'{"like": [1e999, {}, "p02"], "where": []}',
            b'{"text": {}}',
        ):
            body = b'{"product": "p01", "vote": "up", "query": ' + query + b"}"
            assert client.post("/api/feedback", content=body, headers=js).status_code == 204, query
        assert (
            client.post("/api/feedback", content=b'{"product": "\\ud800", "vote": "up"}', headers=js).status_code == 404
        )
        kept = feedback.read(catalog.store.directory)
        assert (kept[0].text, kept[0].like) == ("a?", ())
        assert ("", ("", "", "p02")) in [(v.text, v.like) for v in kept]
        monkeypatch.setattr(feedback, "MAX_FILE", 10)  # whoever may search must not fill the disk
        assert client.post("/api/feedback", json={"product": "p01", "vote": "up"}).status_code == 503
        with pytest.raises(CatalogError, match="of votes; move it away"):
            feedback.keep(catalog.store.directory, feedback.vote("p01", "up", {}))


def test_products_are_put_within_bounds(catalog: lookalike.Catalog):
    with served(catalog, "secret") as client:
        client.headers.update(bearer("secret"))
        for fields in ({"k" * 201: "x"}, {"colour": "x" * 20_001}, {f"c{n}": n for n in range(501)}):
            refused = client.put("/api/products/p01", json={"attributes": fields})
            assert refused.status_code == 422
            assert len(refused.content) < 2 * observe.MAX_DETAIL  # what was sent is not all sent back


# Work


def test_nothing_is_done_for_who_has_gone(catalog: lookalike.Catalog, monkeypatch: pytest.MonkeyPatch):
    with live(catalog) as (port, _):
        go, inside, asked = hold(catalog, monkeypatch)
        threads = 2 * (application.os.cpu_count() or 1)
        busy = [connected(port, ask("GET", "/api/search?text=busy")) for _ in range(threads)]
        for _ in busy:
            assert inside.acquire(timeout=10)
        gone = [connected(port, ask("GET", "/api/search?text=gone")) for _ in range(20)]
        stays = connected(port, ask("GET", "/api/search?text=stays"))
        time.sleep(0.2)
        for one in gone:
            one.close()
        time.sleep(0.2)
        go.set()
        assert all(b" 200 OK" in rest(one) for one in [*busy, stays])
    assert sorted(set(asked)) == ["busy", "stays"]


def test_who_looks_for_duplicates_keeps_no_search_waiting(catalog: lookalike.Catalog, monkeypatch: pytest.MonkeyPatch):
    go = threading.Event()

    def compare(*_: object, **__: object) -> list[object]:
        assert go.wait(20)
        return []

    monkeypatch.setattr(catalog, "duplicates", compare)
    with served(catalog) as client, ThreadPoolExecutor(20) as pool:
        calls = [pool.submit(client.get, f"/api/duplicates?where=price>{n}") for n in range(16)]
        wait_for(lambda: sum(c.done() for c in calls) == 16 - application.COMPARING - 1)
        assert client.get("/api/search?text=red").status_code == 200
        go.set()
        statuses = sorted(c.result().status_code for c in calls)
    assert statuses == [200] * (application.COMPARING + 1) + [503] * (15 - application.COMPARING)
    assert all(c.result().headers["retry-after"] == "10" for c in calls if c.result().status_code == 503)


def test_of_duplicates_little_is_kept(catalog: lookalike.Catalog, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []
    monkeypatch.setattr(catalog, "duplicates", lambda threshold, where, refresh: asked.append(where) or [])
    with served(catalog) as client:
        for where in ("", "", "price > 1", "", "price > 2", "price > 2", ""):
            assert client.get("/api/duplicates", params={"where": where}).json() == {"groups": [], "total": 0}
    assert asked == ["", "price > 1", "price > 2", ""]  # two, while the catalog stays as it is


def test_photos_made_ready_are_kept_within_a_bound(
    tmp_path: Path, catalog: lookalike.Catalog, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(application, "MAX_THUMBNAILS", 5000)
    made = Thumbnails()
    path = str(tmp_path / "img" / "1.jpg")
    sizes = [len(made(path, "d", width)[1]) for width in range(16, 60)]
    assert sum(sizes) > 5000 >= made._size == sum(len(kept[1]) for kept in made._kept.values())
    assert len(made._kept) >= 3
    calls: list[object] = []
    monkeypatch.setattr(images, "read", lambda *a, **k: calls.append(a))
    assert made(path, "d", 59)[1][:2] == b"\xff\xd8"
    assert calls == []


# Health and headers


def test_readiness_tells_starting_ready_stopping_and_broken_apart(
    catalog: lookalike.Catalog, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(application, "CHECK_SECONDS", 0.1)
    monkeypatch.setattr(application, "POLL_SECONDS", 0.02)
    app = create_app(catalog, "secret", {"testserver"})

    def detail() -> str:
        answer = client.get("/readyz")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        return answer.json()["detail"]

    client = TestClient(app)
    assert detail() == "starting"
    with client:
        assert client.get("/readyz").json() == {"status": "ok"}
        with monkeypatch.context() as patch:
            patch.setattr(catalog.encoder, "encode_photos", lambda *_: 1 / 0)
            wait_for(lambda: client.get("/readyz").status_code == 503)
            assert detail() == "broken: searches fail; the server's log says why"
            assert client.get("/healthz").json() == {"status": "ok"}  # nothing that a restart would mend for sure
        wait_for(lambda: client.get("/readyz").status_code == 200)
        hang = threading.Event()
        with monkeypatch.context() as patch:
            patch.setattr(catalog.encoder, "encode_photos", lambda *_: hang.wait(10) and 1 / 0)
            wait_for(lambda: client.get("/readyz").status_code == 503)
            assert detail().startswith("broken: no search has come to its end for")
            hang.set()
        wait_for(lambda: client.get("/readyz").json() == {"status": "ok"})
        monkeypatch.setattr(application, "CHECK_SECONDS", 60)  # what follows is found out otherwise
        time.sleep(0.3)
        with monkeypatch.context() as patch:
            patch.setattr(catalog, "snapshot", lambda *a, **k: (_ for _ in ()).throw(CatalogError("/srv/x is gone")))
            wait_for(lambda: client.get("/readyz").json().get("status") == "degraded")
            found = client.get("/readyz").json()
            assert found["reasons"] == ["the catalog cannot be read; what was read before goes on answering"]
        wait_for(lambda: client.get("/readyz").json() == {"status": "ok"})
        with monkeypatch.context() as patch:
            patch.setattr(catalog, "remove", lambda *_: (_ for _ in ()).throw(CatalogError("/srv/x: no space left")))
            assert client.delete("/api/products/p02", headers=bearer("secret")).status_code == 503
            assert "written" in client.get("/readyz").json()["reasons"][0]
        assert client.delete("/api/products/p02", headers=bearer("secret")).status_code == 204
        assert client.get("/readyz").json() == {"status": "ok"}
    assert detail() == "stopping"


def test_health_is_told_while_the_catalog_is_loaded_and_searches_wait(
    catalog: lookalike.Catalog, monkeypatch: pytest.MonkeyPatch
):
    go, real = threading.Event(), catalog.snapshot
    monkeypatch.setattr(catalog, "snapshot", lambda *given, **named: go.wait(20) and real(*given, **named))
    with live(catalog, failed=print, wait=False) as (port, _):
        answer = rest(connected(port, ask("GET", "/readyz")))
        assert b" 503 " in answer and b'"detail":"starting"' in answer
        assert b"lookalike_requests_total" in rest(connected(port, ask("GET", "/metrics")))  # which loads nothing
        assert b" 200 OK" in rest(connected(port, ask("GET", "/healthz")))
        early = connected(port, ask("GET", "/api/search?text=red"))
        go.set()
        assert b" 200 OK" in rest(early)
        assert b" 200 OK" in rest(connected(port, ask("GET", "/readyz")))


def test_a_stop_while_the_catalog_is_loaded_answers_who_waits(
    catalog: lookalike.Catalog, monkeypatch: pytest.MonkeyPatch
):
    go, real = threading.Event(), catalog.snapshot
    monkeypatch.setattr(catalog, "snapshot", lambda *given, **named: go.wait(20) and real(*given, **named))
    with live(catalog, failed=print, wait=False) as (port, stop):
        early = connected(port, ask("GET", "/api/search?text=red"))
        time.sleep(0.2)
        stop()
        answer = rest(early)
        go.set()
    assert b" 503 " in answer and b"retry-after" in answer


def test_a_catalog_that_cannot_be_read_ends_the_server_with_the_reason(catalog: lookalike.Catalog):
    for file in (catalog.store.directory / "photos.lance" / "data").iterdir():
        file.write_bytes(b"x" * 100)
    ended = command("serve", "--catalog", catalog.store.directory, "--port", "0")
    assert ended.returncode == 4, ended.stderr
    assert "restore it from a backup" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_stages_are_measured_where_they_happen(catalog: lookalike.Catalog, monkeypatch: pytest.MonkeyPatch):
    def later(function: Callable[..., object], seconds: float) -> Callable[..., object]:
        def slow(*arguments: object, **named: object) -> object:
            time.sleep(seconds)
            return function(*arguments, **named)

        return slow

    app = create_app(catalog, hosts={"testserver"})
    with TestClient(app) as client:
        monkeypatch.setattr(images, "read", later(images.read, 0.03))
        monkeypatch.setattr(type(catalog.encoder), "encode_photos", later(type(catalog.encoder).encode_photos, 0.12))
        for _ in range(2):
            assert client.post("/api/search", files={"image": ("a.jpg", jpeg())}).status_code == 200
        value = app.state.meter.registry.get_sample_value

        def stage(name: str, bucket: str) -> float:
            return value("lookalike_stage_seconds_bucket", {"stage": name, "le": bucket})

        assert (stage("decode", "0.025"), stage("encode", "0.1"), stage("encode", "+Inf")) == (0, 0, 2)
        sums = {s: value("lookalike_stage_seconds_sum", {"stage": s}) for s in ("wait", "decode", "encode", "search")}
        assert sums["decode"] >= 0.06 and sums["encode"] >= 0.24
        whole = value("lookalike_request_seconds_sum", {"method": "POST", "route": "/api/search"})
        assert sum(sums.values()) <= whole
        assert value("lookalike_request_seconds_count", {"method": "POST", "route": "/api/search"}) == 2


def test_only_pages_may_load_or_run_anything(catalog: lookalike.Catalog):
    photo = f"/api/photos/{indexing.photo_key('p01', 0)}"
    with served(catalog) as client:
        for path in (
            "/",
            "/docs",
            "/web/style.css",
            "/api/search?text=red",
            photo,
            "/openapi.json",
            "/metrics",
            "/nowhere",
        ):
            headers = client.get(path).headers
            page = path in ("/", "/docs")
            assert headers["content-security-policy"] == (
                observe.PAGE if page else observe.HEADERS["content-security-policy"]
            )
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cross-origin-opener-policy"] == "same-origin"
            assert headers["cross-origin-resource-policy"] == "same-origin"
            assert headers["referrer-policy"] == "no-referrer"
            assert "camera=()" in headers["permissions-policy"]
    assert "unsafe" not in observe.PAGE and "*" not in observe.PAGE
    assert "require-trusted-types-for 'script'" in observe.PAGE


def test_no_answer_leads_where_the_host_header_says(catalog: lookalike.Catalog):
    with served(catalog, "secret") as client:
        client.headers.update({**bearer("secret"), "host": "evil.example"})
        for path in ("/healthz/", "/api/status/", "/web", "/docs/", "/api/products/"):
            answer = client.get(path, follow_redirects=False)
            assert answer.status_code in (404, 405) and "location" not in answer.headers, path


def test_errors_quote_little_and_only_what_can_be_written(catalog: lookalike.Catalog):
    with served(catalog) as client:
        answer = client.get("/api/products/" + "x" * 30_000)
        assert answer.status_code == 404
        assert len(answer.json()["detail"]) < observe.MAX_DETAIL + 10
    assert json.loads(observe.problem(400, "a\ud800b").body)["detail"] == "a\\ud800b"
