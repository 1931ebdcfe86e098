"""Fetching addresses: what comes, what is kept, and every way around the guard that we know of.

The server is a real one on loopback, allowed by its name; nothing leaves the machine.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import lookalike
from conftest import draw, write_csv
from lookalike.errors import CatalogError, FetchError, InputError, UsageError
from lookalike.sources import open_source, web
from lookalike.sources.web import Web, fetch
from lookalike.types import Product

GETADDRINFO = socket.getaddrinfo


class Shop:
    """A web server whose answers are set by path: bytes, (status, headers, body), or a function of the handler."""

    def __init__(self, tls: ssl.SSLContext | None = None):
        self.pages: dict[str, Any] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.ended = threading.Event()
        shop = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                shop.asked.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
                page = shop.pages.get(self.path.split("?")[0], (404, {}, b"no"))
                with contextlib.suppress(ConnectionError, ssl.SSLError):
                    if callable(page):
                        page = page(self)
                    if page is not None:
                        status, headers, body = (200, {}, page) if isinstance(page, bytes) else page
                        self.send_response(status)
                        for name, value in {"Content-Length": str(len(body)), **headers}.items():
                            self.send_header(name, value)
                        self.end_headers()
                        self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *_: object) -> None:
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        if tls is not None:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    @property
    def allow(self) -> list[str]:
        return [f"127.0.0.1:{self.port}"]

    def at(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]

    def close(self) -> None:
        self.ended.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    monkeypatch.setattr(web, "BACKOFF_SECONDS", 0.01)
    made = Shop()
    yield made
    made.close()


@pytest.fixture
def photo(tmp_path: Path) -> bytes:
    return draw(tmp_path / "drawn" / "a.jpg", "red", "bag").read_bytes()


def names(monkeypatch: pytest.MonkeyPatch, **known: list[str]) -> list[str]:
    """A resolver that knows these names only (``_`` for a dot); returns the list of names that it was asked for."""
    asked: list[str] = []
    table = {name.replace("_", "."): ips for name, ips in known.items()}

    def resolve(host: str, port: int, *rest: Any, **options: Any) -> Any:
        if re.fullmatch(r"[\d.]+|.*:.*", host):
            return GETADDRINFO(host, port, *rest, **options)
        asked.append(host)
        if host not in table:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        ips = table[host]
        return [(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in ips]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return asked


def dialled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Where connections would go to; none is made."""
    calls: list[tuple[str, int]] = []

    def connect(address: tuple[str, int], *_: Any, **__: Any) -> socket.socket:
        calls.append(address)
        raise ConnectionRefusedError("refused by the test")

    monkeypatch.setattr("urllib3.util.connection.create_connection", connect)
    monkeypatch.setattr(web, "TRIES", 1)
    return calls


# What comes


def test_fetch_gives_the_bytes_and_says_who_asks(shop: Shop, photo: bytes):
    shop.pages["/a b.jpg"] = shop.pages["/a%20b.jpg"] = photo
    assert fetch(shop.at("/a b.jpg?v=1&w=300,h=400#top"), allow_hosts=shop.allow) == photo
    path, headers = shop.asked[0]
    assert path == "/a%20b.jpg?v=1&w=300,h=400"
    assert headers["user-agent"].startswith("Lookalike/")
    assert headers["host"] == f"127.0.0.1:{shop.port}"
    assert "cookie" not in headers and "referer" not in headers


def test_packed_bodies_are_unpacked(shop: Shop):
    shop.pages["/feed.xml"] = (200, {"Content-Encoding": "gzip"}, gzip.compress(b"<rss/>" * 100_000))
    assert fetch(shop.at("/feed.xml"), allow_hosts=shop.allow) == b"<rss/>" * 100_000
    shop.pages["/cut.xml"] = (200, {"Content-Encoding": "gzip"}, gzip.compress(b"<rss/>" * 100_000)[:-20])
    with pytest.raises(FetchError, match="broke off"):
        fetch(shop.at("/cut.xml"), allow_hosts=shop.allow)
    shop.pages["/br"] = (200, {"Content-Encoding": "br"}, b"x")
    with pytest.raises(FetchError, match="packed as br"):
        fetch(shop.at("/br"), allow_hosts=shop.allow)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_may_go_better_is_tried_again(shop: Shop, photo: bytes, status: int):
    answers = iter([(status, {}, b""), (status, {}, b""), photo])
    shop.pages["/a.jpg"] = lambda _: next(answers)
    assert fetch(shop.at("/a.jpg"), allow_hosts=shop.allow) == photo
    assert len(shop.asked) == 3


def test_retry_after_is_kept_to_by_all_that_is_asked_of_the_host(shop: Shop, photo: bytes, tmp_path: Path):
    times: dict[str, list[float]] = {}
    told = threading.Event()

    def page(handler: BaseHTTPRequestHandler) -> Any:
        times.setdefault(handler.path, []).append(time.monotonic())
        if not told.is_set():
            told.set()
            return 429, {"Retry-After": "1"}, b""
        return photo

    for n in range(12):
        shop.pages[f"/{n}.jpg"] = page
    source = open_source(
        [Product(str(n), [shop.at(f"/{n}.jpg")]) for n in range(12)], web=Web(tmp_path / "cache", shop.allow)
    )
    assert not source.unfetched
    first = min(t[0] for t in times.values())
    late = [t for all_ in times.values() for t in all_ if t - first > 0.9]
    assert len(late) >= 12 - web.PER_HOST  # only what was under way already came before
    with pytest.raises(FetchError, match=r"429 Too Many Requests"):
        shop.pages["/long"] = (429, {"Retry-After": "3600"}, b"")
        fetch(shop.at("/long"), allow_hosts=shop.allow, seconds=5)
    assert shop.paths().count("/long") == 1


def test_what_is_not_there_is_asked_for_once(shop: Shop):
    with pytest.raises(FetchError, match=r"/no\.jpg: the server answers 404 Not Found; mend the address"):
        fetch(shop.at("/no.jpg"), allow_hosts=shop.allow)
    assert len(shop.asked) == 1


def test_a_host_that_never_answers_is_given_up(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(web, "TRIES", 2)
    products = [Product(str(n), [shop.at(f"/{n}.jpg")]) for n in range(60)]
    for n in range(60):
        shop.pages[f"/{n}.jpg"] = (503, {}, b"")
    source = open_source(products, web=Web(tmp_path / "cache", shop.allow))
    assert len(source.unfetched) == 60
    assert sum("given up" in reason for reason in source.unfetched.values()) >= 60 - web.GIVE_UP - web.PER_HOST
    assert len(shop.asked) <= 2 * (web.GIVE_UP + web.PER_HOST)


def test_few_requests_to_one_host_at_a_time(shop: Shop, photo: bytes, tmp_path: Path):
    now, most, lock = 0, 0, threading.Lock()

    def page(_: Any) -> bytes:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.02)
        with lock:
            now -= 1
        return photo

    for n in range(30):
        shop.pages[f"/{n}.jpg"] = page
    seen: list[tuple[int, int]] = []
    client = Web(tmp_path / "cache", shop.allow, progress=lambda done, total: seen.append((done, total)))
    source = open_source([Product(str(n), [shop.at(f"/{n}.jpg")]) for n in range(30)], web=client)
    assert not source.unfetched
    assert 1 < most <= web.PER_HOST
    assert seen == [(n, 30) for n in range(1, 31)]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates; it is not on the PATH")
def test_tls_is_verified_against_the_name_though_an_address_is_called(
    tmp_path: Path, photo: bytes, monkeypatch: pytest.MonkeyPatch
):
    for name in ("images.test", "other.test"):
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}", "-addext",
             f"subjectAltName=DNS:{name}", "-keyout", f"{name}.key", "-out", f"{name}.pem"],
            cwd=tmp_path, check=True, capture_output=True,
        )  # fmt: skip
    trusted = (tmp_path / "images.test.pem").read_text() + (tmp_path / "other.test.pem").read_text()
    (tmp_path / "trusted.pem").write_text(trusted)
    names(monkeypatch, images_test=["127.0.0.1"])
    for name, reached in (("images.test", True), ("other.test", False)):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / f"{name}.pem", tmp_path / f"{name}.key")
        server = Shop(context)
        server.pages["/a.jpg"] = photo
        address, allow = f"https://images.test:{server.port}/a.jpg", [f"images.test:{server.port}"]
        try:
            with monkeypatch.context() as patch:
                patch.setenv("SSL_CERT_FILE", str(tmp_path / "trusted.pem"))
                if reached:
                    assert fetch(address, allow_hosts=allow) == photo
                else:
                    with pytest.raises(FetchError, match=r"certificate of images\.test cannot be trusted"):
                        fetch(address, allow_hosts=allow)
            with pytest.raises(FetchError, match="cannot be trusted"):
                fetch(address, allow_hosts=allow)
        finally:
            server.close()


# The guard


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("http://127.0.0.1/a.jpg", "loopback"),
        ("http://127.8.9.1/", "loopback"),
        ("http://0.0.0.0/", "no address at all"),
        ("http://10.1.2.3/", "private"),
        ("http://172.31.0.1/", "private"),
        ("http://192.168.1.1/", "private"),
        ("http://100.64.0.1/", "private"),
        ("http://169.254.169.254/latest/meta-data/", "link-local"),
        ("http://168.63.129.16/", "metadata"),
        ("http://100.100.100.200/", "metadata"),
        ("http://224.0.0.1/", "multicast"),
        ("http://240.0.0.1/", "private|reserved"),
        ("http://255.255.255.255/", "private|reserved"),
        ("http://192.0.2.1/", "private"),
        ("http://192.0.0.192/", "private|reserved"),
        ("http://192.88.99.1/", "private|reserved"),
        ("http://[3fff::1]/", "private|reserved"),
        ("http://[::1]/", "loopback"),
        ("http://[::]/", "no address at all"),
        ("http://[fe80::1]/", "link-local"),
        ("http://[fe80::1%25eth0]/", "not an IPv6 address|link-local"),
        ("http://[fec0::1]/", "private|reserved"),
        ("http://[fd00:ec2::254]/", "metadata"),
        ("http://[fc00::1]/", "private"),
        ("http://[ff02::1]/", "multicast"),
        ("http://[::ffff:127.0.0.1]/", "loopback"),
        ("http://[::ffff:a9fe:a9fe]/", "link-local"),
        ("http://[::127.0.0.1]/", "private|reserved"),
        ("http://[64:ff9b::7f00:1]/", "loopback"),
        ("http://[64:ff9b:1::a00:1]/", "private|reserved"),
        ("http://[2002:7f00:1::]/", "loopback"),
        ("http://[2001:0:7f00:1::1]/", "private"),
        ("http://[2001:db8::1]/", "private"),
        ("http://2130706433/", "four decimal numbers"),
        ("http://0x7f000001/", "four decimal numbers"),
        ("http://0177.0.0.1/", "four decimal numbers"),
        ("http://0x7f.0.0.1/", "four decimal numbers"),
        ("http://127.1/", "four decimal numbers"),
        ("http://127.0.0.1./", "loopback"),
        ("http://１２７.0.0.1/", "loopback"),
        ("http://127。0。0。1/", "loopback"),
        ("http://%31%32%37.0.0.1/", "no name of a host"),
        ("http://localhost/", "loopback"),
        ("http://LOCALHOST./", "loopback"),
        ("file:///etc/passwd", "only http and https"),
        ("gopher://127.0.0.1:6379/_INFO", "only http and https"),
        ("ftp://example.com/a.jpg", "only http and https"),
        ("http://shop@127.0.0.1/", "name or password"),
        ("http://example.com@127.0.0.1/", "name or password"),
        ("http://user:geheim@example.com/", "name or password"),
        ("http://127.0.0.1\\@example.com/", "characters"),
        ("http://exa\nmple.com/", "characters"),
        ("http://example.com/\r\nX-Evil: 1", "characters"),
        ("http:///a.jpg", "no name of a host"),
        ("http://exa mple.com/", "no name of a host"),
        ("http://example.com:99999/", "not an address"),
        ("http://example.com:22/", "port 22"),
        ("http://example.com:6379/", "port 6379"),
        ("http://[::1/", "not an address"),
        ("http://-/\udcff", "not an address|no host"),
        ("http://" + "a" * 300 + ".com/", "no name of a host"),
    ],
)
def test_addresses_that_are_never_asked(address: str, reason: str, monkeypatch: pytest.MonkeyPatch):
    names(monkeypatch, localhost=["127.0.0.1", "::1"], example_com=["93.184.216.34"])
    calls = dialled(monkeypatch)
    with pytest.raises(FetchError, match=reason) as caught:
        fetch(address)
    assert not calls
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("ips", [["127.0.0.1"], ["93.184.216.34", "10.0.0.1"], ["::ffff:192.168.0.1"], ["fe80::1%2"]])
def test_a_name_that_means_a_private_address_is_not_asked(ips: list[str], monkeypatch: pytest.MonkeyPatch):
    names(monkeypatch, shop_example=ips)
    calls = dialled(monkeypatch)
    with pytest.raises(FetchError, match=r"shop\.example \(.*which is not asked"):
        fetch("https://shop.example/a.jpg")
    assert not calls


def test_the_connection_goes_to_the_address_that_was_checked(monkeypatch: pytest.MonkeyPatch):
    """A name that means something else the second time (rebinding) is not asked what it means a second time."""
    answers = iter([["93.184.216.34"], ["127.0.0.1"], ["127.0.0.1"]])

    def resolve(host: str, port: int, *_: Any, **__: Any) -> Any:
        ip = host if re.fullmatch(r"[\d.]+", host) else next(answers)[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port))]

    calls = dialled(monkeypatch)
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(FetchError, match="cannot be reached"):
        fetch("http://rebind.example/a.jpg")
    assert calls == [("93.184.216.34", 80)]
    monkeypatch.setattr(web, "TRIES", 2)  # a further try resolves again, and checks again
    monkeypatch.setattr(web, "BACKOFF_SECONDS", 0.01)
    answers = iter([["93.184.216.34"], ["127.0.0.1"]])
    with pytest.raises(FetchError, match="loopback"):
        fetch("http://rebind.example/a.jpg")
    assert calls[1:] == [("93.184.216.34", 80)]


def test_public_names_are_asked_each_of_their_addresses(monkeypatch: pytest.MonkeyPatch):
    names(monkeypatch, shop_example=["2606:2800:220:1::1", "93.184.216.34"])
    calls = dialled(monkeypatch)
    with pytest.raises(FetchError, match="cannot be reached"):
        fetch("https://shop.example/a.jpg")
    assert calls == [("2606:2800:220:1::1", 443), ("93.184.216.34", 443)]
    with pytest.raises(FetchError, match=r"no host nowhere\.example"):
        fetch("https://nowhere.example/a.jpg")


def test_allowed_hosts_are_that_host_and_port_alone(shop: Shop, photo: bytes, monkeypatch: pytest.MonkeyPatch):
    shop.pages["/a.jpg"] = photo
    names(monkeypatch, images_local=["127.0.0.1"], other_local=["127.0.0.1"], cloud_local=["169.254.169.254"])
    assert fetch(shop.at("/a.jpg", "Images.Local"), allow_hosts=[f"images.local:{shop.port}"]) == photo
    for allow in ([], ["images.local"], [f"images.local:{shop.port + 1}"], [f"other.local:{shop.port}"]):
        with pytest.raises(FetchError, match=rf"--allow-host images\.local:{shop.port}"):
            fetch(shop.at("/a.jpg", "images.local"), allow_hosts=allow)
    with pytest.raises(FetchError, match="link-local"):  # never, whoever allows it
        fetch("http://cloud.local/", allow_hosts=["cloud.local"])
    for ip in ("100.100.100.200", "fd00:ec2::254", "168.63.129.16"):
        names(monkeypatch, cloud_local=[ip])
        with pytest.raises(FetchError, match="metadata"):
            fetch("http://cloud.local/", allow_hosts=["cloud.local"])
    for wrong in ("http://images.local", "", "images.local:x", "a@b", "a/b"):
        with pytest.raises(UsageError, match="--allow-host"):
            Web(allow_hosts=[wrong])


def test_redirects_are_followed_and_checked_each(shop: Shop, photo: bytes):
    shop.pages["/a.jpg"] = photo
    for n in range(1, 7):
        shop.pages[f"/{n}"] = (302, {"Location": "a.jpg" if n == 1 else f"/{n - 1}"}, b"")
    assert fetch(shop.at("/5"), allow_hosts=shop.allow) == photo
    with pytest.raises(FetchError, match="more than 5 times"):
        fetch(shop.at("/6"), allow_hosts=shop.allow)
    for to, reason in (
        ("http://127.0.0.1/", "loopback"),
        ("http://127.0.0.1:1/", "port 1"),
        ("//10.0.0.1/a.jpg", "private"),
        ("http://169.254.169.254/", "link-local"),
        ("file:///etc/passwd", "only http and https"),
        ("http://u:p@127.0.0.1/", "name or password"),
        ("http://[::1]/", "loopback"),
        ("http://[::1", "redirected to no address"),
    ):
        shop.pages["/out"] = (301, {"Location": to}, b"")
        with pytest.raises(FetchError, match=reason) as caught:
            fetch(shop.at("/out"), allow_hosts=shop.allow)
        assert shop.at("/out") in str(caught.value)  # named as the source names it
    shop.pages["/lost"] = (302, {}, b"")
    with pytest.raises(FetchError, match="without saying where to"):
        fetch(shop.at("/lost"), allow_hosts=shop.allow)


# Bounds


def test_more_bytes_than_allowed_are_refused_before_or_while_they_come(shop: Shop):
    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        while not shop.ended.is_set():
            handler.wfile.write(b"\xff\xd8\xff" * 10_000)

    shop.pages["/told"] = (200, {"Content-Length": str(10**12)}, b"x")
    shop.pages["/endless"] = endless
    for path in ("/told", "/endless"):
        with pytest.raises(FetchError, match="more than 1 MiB"):
            fetch(shop.at(path), allow_hosts=shop.allow, max_bytes=2**20)


def test_a_bomb_is_unpacked_no_further_than_allowed(shop: Shop):
    import tracemalloc

    shop.pages["/bomb"] = (200, {"Content-Encoding": "gzip"}, gzip.compress(bytes(300 * 2**20)))
    tracemalloc.start()
    with pytest.raises(FetchError, match="more than 8 MiB"):
        fetch(shop.at("/bomb"), allow_hosts=shop.allow, max_bytes=8 * 2**20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * 2**20


def drip(where: str, shop: Shop) -> Callable[[BaseHTTPRequestHandler], None]:
    """Bytes that come one by one, for ever, each well before the time-out for one: in the body, a header, or before both."""

    def page(handler: BaseHTTPRequestHandler) -> None:
        if where == "body":
            handler.send_response(200)
            handler.send_header("Content-Length", "100000")
            handler.end_headers()
        elif where == "header":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        while not shop.ended.is_set():
            handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n" if where == "before" else b"a")
            handler.wfile.flush()
            time.sleep(0.05)

    return page


@pytest.mark.parametrize("where", ["body", "header", "before"])
def test_slow_answers_end_at_the_deadline(shop: Shop, where: str):
    shop.pages["/slow"] = drip(where, shop)
    start = time.monotonic()
    with pytest.raises(FetchError, match="takes too long"):
        fetch(shop.at("/slow"), allow_hosts=shop.allow, seconds=1)
    assert time.monotonic() - start < 6


def test_a_server_that_says_nothing_is_left(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(web, "IDLE_SECONDS", 0.2)
    shop.pages["/silent"] = lambda _: shop.ended.wait(3) and None
    with pytest.raises(FetchError, match="answers too slowly"):
        fetch(shop.at("/silent"), allow_hosts=shop.allow, seconds=5)
    assert len(shop.asked) == web.TRIES


def test_what_is_no_http_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(web, "BACKOFF_SECONDS", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer() -> None:
            for _ in range(web.TRIES):
                connection, _ = server.accept()
                connection.sendall(b"220 mail ready\r\n")
                connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(FetchError, match="does not speak HTTP"):
            fetch(f"http://127.0.0.1:{port}/", allow_hosts=[f"127.0.0.1:{port}"])
        thread.join()


# The cache


def files(cache: Path) -> list[Path]:
    return sorted(p for p in cache.glob("??/*") if not p.suffix)


def test_what_is_fresh_is_not_asked_for_again_and_what_is_not_is_asked_for_changes(
    shop: Shop, photo: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def page(handler: BaseHTTPRequestHandler) -> Any:
        if handler.headers.get("If-None-Match") == '"1"':
            return 304, {"Cache-Control": "max-age=10"}, b""
        return 200, {"Cache-Control": "max-age=10", "ETag": '"1"'}, photo

    shop.pages["/a.jpg"] = page
    cache = tmp_path / "cache"
    path = Web(cache, shop.allow).file(shop.at("/a.jpg"))
    before = path.stat()
    assert path.read_bytes() == photo
    assert Web(cache, shop.allow).file(shop.at("/a.jpg")) == path
    assert len(shop.asked) == 1
    real = time.time
    monkeypatch.setattr(web.time, "time", lambda: real() + 60)
    assert Web(cache, shop.allow).file(shop.at("/a.jpg")) == path
    assert len(shop.asked) == 2
    assert path.stat().st_mtime_ns == before.st_mtime_ns  # so that the sync does not even read it
    assert Web(cache, shop.allow).file(shop.at("/a.jpg")) == path
    assert len(shop.asked) == 2  # fresh once more


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, web.FRESH_SECONDS),
        ({"cache-control": "public, max-age=600"}, 600),
        ({"cache-control": "no-cache, max-age=600"}, 0),
        ({"cache-control": "max-age=99999999999"}, web.LONGEST_FRESH),
        ({"expires": "in 5000 s"}, 5000),
        ({"expires": "0"}, web.FRESH_SECONDS),
        ({"cache-control": "max-age=x"}, web.FRESH_SECONDS),
    ],
)
def test_freshness(headers: dict[str, str], seconds: float):
    headers = {k: formatdate(time.time() + 5000) if v == "in 5000 s" else v for k, v in headers.items()}
    assert web._fresh_seconds(headers) == pytest.approx(seconds, abs=30)


def test_an_older_copy_serves_while_the_server_is_down_but_not_when_the_photo_is_gone(
    shop: Shop, photo: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shop.pages["/a.jpg"] = (200, {"Cache-Control": "no-cache"}, photo)
    path = Web(tmp_path / "c", shop.allow).file(shop.at("/a.jpg"))
    shop.pages["/a.jpg"] = (503, {}, b"")
    assert Web(tmp_path / "c", shop.allow).file(shop.at("/a.jpg")) == path
    shop.pages["/a.jpg"] = (410, {}, b"")
    with pytest.raises(FetchError, match="410 Gone"):
        Web(tmp_path / "c", shop.allow).file(shop.at("/a.jpg"))


def test_what_is_no_photo_is_not_kept(shop: Shop, tmp_path: Path):
    shop.pages["/a.jpg"] = (200, {"Content-Type": "text/html\x1b[31m"}, b"<html>please log in</html>")
    with pytest.raises(FetchError, match=r"no photo, but text/html\\x1b\[31m"):
        Web(tmp_path / "c", shop.allow).file(shop.at("/a.jpg"))
    assert not [p for p in (tmp_path / "c").rglob("*") if p.is_file()]


def test_a_damaged_cache_is_made_anew(shop: Shop, photo: bytes, tmp_path: Path):
    shop.pages["/a.jpg"] = photo
    path = Web(tmp_path / "c", shop.allow).file(shop.at("/a.jpg"))
    for damage in (lambda: path.with_suffix(".json").write_text("{"), path.unlink, path.with_suffix(".json").unlink):
        damage()
        assert Web(tmp_path / "c", shop.allow).file(shop.at("/a.jpg")).read_bytes() == photo
    assert len(shop.asked) == 4
    (tmp_path / "file").write_text("x")
    with pytest.raises(CatalogError, match="cannot be kept there"):
        Web(tmp_path / "file", shop.allow).file(shop.at("/a.jpg"))


# Within a sync


@pytest.fixture
def feed(shop: Shop, tmp_path: Path) -> Path:
    """A table of four products whose photos are addresses; one is not there, one is no photo."""
    rows: list[dict[str, object]] = []
    for n, colour in enumerate(("red", "blue", "green", "black")):
        shop.pages[f"/{n}.jpg"] = draw(tmp_path / "served" / f"{n}.jpg", colour, "bag").read_bytes()
        rows.append({"sku": f"p{n}", "title": f"{colour} bag", "image": shop.at(f"/{n}.jpg")})
    shop.pages["/2.jpg"] = b"<html>"
    rows[3]["image"] = f"{shop.at('/gone.jpg')}, {shop.at('/3.jpg')}"
    return write_csv(tmp_path / "feed.csv", rows)


def test_nothing_is_fetched_unless_asked_for(feed: Path, shop: Shop, tmp_path: Path):
    catalog = lookalike.open(tmp_path / "c", encoder="fake")
    with pytest.raises(InputError, match=r"feed\.csv: its photos are addresses .*--download.*LOOKALIKE_DOWNLOAD"):
        catalog.index(feed)
    with pytest.raises(InputError, match=r"an address.*--download"):
        catalog.index(shop.at("/feed.csv"))
    assert not shop.asked
    assert not catalog.store.exists


def test_sync_of_addresses(feed: Path, shop: Shop, tmp_path: Path):
    catalog = lookalike.open(tmp_path / "c", encoder="fake")
    report = catalog.index(feed, download=catalog.web(shop.allow))
    assert (report.added, report.quarantined) == (3, 2)
    assert [(q.item, q.reason) for q in catalog.quarantine()] == [
        (f"feed.csv, line 4, id p2: {shop.at('/2.jpg')}",
         "what comes is no photo, but something of no kind; mend the address"),
        (f"feed.csv, line 5, id p3: {shop.at('/gone.jpg')}", "the server answers 404 Not Found; mend the address"),
    ]  # fmt: skip
    asked = len(shop.asked)
    again = catalog.index(feed, download=catalog.web(shop.allow), prune=True)
    assert (again.added, again.updated, again.unchanged, again.removed, again.quarantined) == (0, 0, 3, 0, 2)
    assert shop.paths()[asked:].count("/0.jpg") == 0
    # The first photo of p3 comes back: the second keeps its place.
    shop.pages["/gone.jpg"] = shop.pages["/1.jpg"]
    third = catalog.index(feed, download=catalog.web(shop.allow))
    assert (third.added, third.updated, third.unchanged) == (1, 0, 3)
    assert len(catalog.product("p3")["photos"]) == 2
    assert catalog.search(like="p0", k=3)[0].path.startswith(str(tmp_path / "c" / "downloads"))


def test_a_photo_that_changed_at_its_address_is_encoded_again(shop: Shop, tmp_path: Path):
    one, other = (draw(tmp_path / f"{c}.jpg", c, "bag").read_bytes() for c in ("red", "blue"))
    shop.pages["/a.jpg"] = (200, {"Cache-Control": "no-cache"}, one)
    catalog = lookalike.open(tmp_path / "c", encoder="fake")
    products = [Product("1", [shop.at("/a.jpg")])]
    catalog.index(products, download=catalog.web(shop.allow))
    assert catalog.index(products, download=catalog.web(shop.allow)).unchanged == 1
    shop.pages["/a.jpg"] = (200, {"Cache-Control": "no-cache"}, other)
    assert catalog.index(products, download=catalog.web(shop.allow)).updated == 1


def test_prune_clears_the_cache_and_broken_photos_are_named_by_their_address(shop: Shop, photo: bytes, tmp_path: Path):
    for n in range(2):
        shop.pages[f"/{n}.jpg"] = photo + bytes(n)
    shop.pages["/cut.jpg"] = photo[: len(photo) // 2]
    catalog = lookalike.open(tmp_path / "c", encoder="fake")
    products = [Product(str(n), [shop.at(f"/{name}.jpg")]) for n, name in enumerate(("0", "1", "cut"))]
    catalog.index(products, download=catalog.web(shop.allow))
    (entry,) = catalog.quarantine()
    assert entry.item == f"2, id 2: {shop.at('/cut.jpg')}"
    assert "cut short or damaged" in entry.reason
    assert len(files(tmp_path / "c" / "downloads")) == 3
    catalog.index(products[:1], prune=True, download=catalog.web(shop.allow))
    assert len(files(tmp_path / "c" / "downloads")) == 1


def test_two_parts_of_a_photo_at_an_address_are_fetched_once(shop: Shop, photo: bytes, tmp_path: Path):
    shop.pages["/a.jpg"] = photo
    catalog = lookalike.open(tmp_path / "c", encoder="fake")
    addresses = [shop.at(f"/{name}#xywh={box}") for name in ("a.jpg", "gone.jpg") for box in ("0,0,20,20", "9,9,20,20")]
    products = [Product(str(n), [address]) for n, address in enumerate(addresses)]
    assert catalog.index(products, download=catalog.web(shop.allow)).added == 2
    assert len(files(tmp_path / "c" / "downloads")) == 1
    assert [q.item for q in catalog.quarantine()] == [f"{n}, id {n}: {addresses[n]}" for n in (2, 3)]
    assert catalog.index(products, prune=True, download=catalog.web(shop.allow)).unchanged == 2
    assert len(files(tmp_path / "c" / "downloads")) == 1  # in use


def test_an_interrupted_download_goes_on_where_it_was(shop: Shop, photo: bytes, tmp_path: Path):
    class Interrupted(BaseException):
        pass

    for n in range(40):
        shop.pages[f"/{n}.jpg"] = photo
    products = [Product(str(n), [shop.at(f"/{n}.jpg")]) for n in range(40)]

    def stop(done: int, total: int) -> None:
        if done == 20:
            raise Interrupted

    with pytest.raises(Interrupted):
        open_source(products, web=Web(tmp_path / "cache", shop.allow, stop))
    kept = len(files(tmp_path / "cache"))
    assert 20 <= kept < 40
    shop.asked.clear()
    assert not open_source(products, web=Web(tmp_path / "cache", shop.allow)).unfetched
    assert len(shop.asked) == 40 - kept


def test_an_interrupt_does_not_wait_for_slow_servers(shop: Shop, photo: bytes, tmp_path: Path):
    shop.pages["/slow.jpg"] = drip("body", shop)
    client = Web(tmp_path / "cache", shop.allow)
    threading.Timer(0.3, client.close).start()
    start = time.monotonic()
    with pytest.raises(FetchError):
        client.file(shop.at("/slow.jpg"))
    assert time.monotonic() - start < 6


def test_a_source_at_an_address_is_read_with_photos_relative_to_it_and_none_of_this_machine(
    shop: Shop, photo: bytes, tmp_path: Path
):
    secret = draw(tmp_path / "secret.jpg", "red", "bag")
    shop.pages["/shop/list"] = f"id,image\n1,img/a.jpg\n2,{secret}\n3,file://{secret}\n".encode()
    shop.pages["/shop/img/a.jpg"] = photo
    source = open_source(shop.at("/shop/list"), web=Web(tmp_path / "cache", shop.allow))
    assert source.key == shop.at("/shop/list")
    assert shop.paths()[1:] != []
    usable = [p for product in source.products for p in product.photos if isinstance(p, Path)]
    assert [p.read_bytes() for p in usable] == [photo]
    assert sorted(reason.split(";")[0] for reason in source.unfetched.values()) == [
        "only http and https are fetched", "the server answers 404 Not Found",
    ]  # fmt: skip
    shop.pages["/shop/list"] = b"id,image\n"
    with pytest.raises(InputError, match=rf"http://127.*{shop.port}/shop/list|list: no rows"):
        open_source(shop.at("/shop/list"), web=Web(tmp_path / "cache", shop.allow))


def test_a_feed_at_an_address_that_does_not_say_what_it_is(shop: Shop, photo: bytes, tmp_path: Path):
    shop.pages["/photo"] = photo
    item = "<item><g:id>{}</g:id><g:title>Bag</g:title><g:image_link>{}</g:image_link><g:price>5 EUR</g:price></item>"
    feed = item.format("a", shop.at("/photo?1")) + item.format("b", "http://169.254.169.254/x.jpg")
    content = f'<rss xmlns:g="http://base.google.com/ns/1.0"><channel>{feed}</channel></rss>'.encode()
    shop.pages["/feed.php"] = (200, {"Content-Encoding": "gzip", "ETag": '"7"'}, gzip.compress(content))
    catalog = lookalike.open(tmp_path / "c", encoder="fake")
    report = catalog.index(shop.at("/feed.php?lang=de"), download=catalog.web(shop.allow), prune=True)
    assert (report.added, report.quarantined) == (1, 1)
    assert catalog.quarantine()[0].item == "feed.php, line 1, id b: http://169.254.169.254/x.jpg"
    assert "link-local" in catalog.quarantine()[0].reason
    assert catalog.product("a")["attributes"]["price"] == 5
    shop.pages["/feed.php"] = lambda h: (304, {}, b"") if h.headers["If-None-Match"] == '"7"' else (500, {}, b"")
    again = catalog.index(shop.at("/feed.php?lang=de"), download=catalog.web(shop.allow), prune=True)
    assert (again.unchanged, again.removed) == (1, 0)


def test_the_command_line_downloads_when_told_to(feed: Path, shop: Shop, tmp_path: Path):
    from test_cli import run

    catalog = tmp_path / "shop"
    arguments = ("index", feed, "--catalog", catalog, "--encoder", "fake", "--json")
    refused = run(*arguments)
    assert refused.returncode == 3
    assert "--download" in refused.stderr
    done = run(*arguments, "--download", "--allow-host", shop.allow[0])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) | {"seconds": 0} == {
        "added": 3, "updated": 0, "unchanged": 0, "removed": 0, "quarantined": 2, "seconds": 0,
    }  # fmt: skip
    cache = tmp_path / "elsewhere"
    variables = {"LOOKALIKE_DOWNLOAD": "1", "LOOKALIKE_ALLOW_HOST": shop.allow[0], "LOOKALIKE_CACHE": str(cache)}
    assert run(*arguments, **variables).returncode == 0
    assert len(files(cache)) == 3
    listed = run("quarantine", "--catalog", catalog).stdout
    assert shop.at("/gone.jpg") in listed
    assert "id p3" in listed
