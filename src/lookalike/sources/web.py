"""Photos and feeds from the web: only when asked for, guarded, polite, and kept in a cache on disk.

An address in somebody's product file may point anywhere, so that it could make this machine ask its own network for what
nobody else may see. Therefore: http and https alone; the host's name is resolved once, every address it has is checked, and
the connection goes to one of those very addresses (TLS is still verified against the name); redirects are checked again;
bytes, time and kind of content are bounded. ``fetch`` is the whole of it for one address, ``Web`` adds cache and many.
"""

from __future__ import annotations

import contextlib
import email.utils
import filecmp
import hashlib
import http.client
import io
import ipaddress
import json
import math
import os
import random
import re
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, urljoin, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from lookalike import __version__, images
from lookalike.errors import CatalogError, FetchError, UsageError
from lookalike.sources import Source, is_address
from lookalike.types import printable

USER_AGENT = f"Lookalike/{__version__} (product search; it reads the photos of a catalogue)"

SECONDS = 120.0
"""For one photo in all: waiting, redirects and repeated tries included."""

SOURCE_BYTES, SOURCE_SECONDS = 2 * 2**30, 3600.0
"""The same bounds for a whole source (a feed, a table); photos have those of ``images.MAX_BYTES``."""

CONNECT_SECONDS, IDLE_SECONDS = 10.0, 20.0
"""The longest waits for a connection, and for the next bytes."""

REDIRECTS = 5
TRIES = 4
BACKOFF_SECONDS = 1.0
"""The wait before the second try, doubled before each further one, less some chance; ``Retry-After`` goes before."""

PER_HOST = 4
"""Requests to one host at a time: what a browser would do."""

WORKERS = 16
GIVE_UP = 10
"""A host that failed so often in a row, each time after all tries, is asked no more in this run."""

FRESH_SECONDS = 24 * 3600.0
"""How long a photo is taken for unchanged where its server does not say; what it says counts up to ``LONGEST_FRESH``."""

LONGEST_FRESH = 30 * FRESH_SECONDS

TEMPORARY = {408, 425, 429, 500, 502, 503, 504}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_PUBLIC6 = ipaddress.ip_network("2000::/3")
_RESERVED = [ipaddress.ip_network(n) for n in ("192.0.0.0/24", "192.88.99.0/24", "3fff::/20")]
"""What older versions of Python take for public."""

_METADATA = {"168.63.129.16", "100.100.100.200", "fd00:ec2::254", "fd20:ce::254"}
"""Where clouds tell a machine its secrets, beside 169.254.169.254, which is link-local."""

_OWN = [
    ipaddress.ip_network(n)
    for n in ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "::1/128", "fc00::/7")
]
"""What a host that was allowed by name may have for an address, beside public ones."""


def fetch(
    address: str, *, allow_hosts: Iterable[str] = (), max_bytes: int = images.MAX_BYTES, seconds: float = SECONDS
) -> bytes:
    """The content at an http(s) address, guarded; nothing is cached.

    Args:
        address: redirects are followed, at most ``REDIRECTS``, each checked as this one is.
        allow_hosts: names (``images.local``, ``images.local:8080``) that may lead to private addresses and, with a
            port, to that port; all others must lead to public addresses at the ports 80 and 443.
        max_bytes: the most that is taken, after unpacking.
        seconds: the most time in all, repeated tries included.

    Raises:
        FetchError: not allowed, not there, too large, too slow; the message names the address and the reason.
    """
    sink = io.BytesIO()
    with contextlib.closing(Web(allow_hosts=allow_hosts)) as web:
        web._get(address, sink, max_bytes, seconds, {})
    return sink.getvalue()


class _Temporary(FetchError):
    """May go better another time: ``wait`` seconds from now, if that is known."""

    def __init__(self, message: str, wait: float | None = None):
        super().__init__(message)
        self.wait = wait


@dataclass(frozen=True, slots=True)
class _Place:
    """A checked spelling of an address: where to connect to, and what to ask for there."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def netloc(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == {"http": 80, "https": 443}[self.scheme] else f"{host}:{self.port}"


@dataclass(slots=True)
class _Host:
    """One scheme, host and port: its checked IP addresses, its pool of connections, and how it behaves."""

    ips: list[str] = field(default_factory=list)
    pool: urllib3.HTTPConnectionPool | None = None
    slots: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(PER_HOST))
    lock: threading.Lock = field(default_factory=threading.Lock)
    failures: int = 0
    rest_until: float = 0.0


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: Mapping[str, str]


_current = threading.local()


class _Watched(HTTPConnection):
    """Tells which socket this thread's request uses, so that it can be cut from another thread at the deadline."""

    def request(self, *args: Any, **options: Any) -> None:
        super().request(*args, **options)
        if self.sock is not None:
            _current.sockets.append(self.sock)


class _WatchedTLS(_Watched, HTTPSConnection):
    pass


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Watched


class _TLSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _WatchedTLS


class Web:
    """Fetches many addresses into a cache on disk. Safe to use from several threads; ``close`` it at the end."""

    def __init__(
        self,
        cache: str | Path | None = None,
        allow_hosts: Iterable[str] = (),
        progress: Callable[[int, int], None] | None = None,
    ):
        """Prepare; nothing is fetched yet.

        Args:
            cache: a directory, made where it is missing; ``file`` and ``photos`` need one.
            allow_hosts: as in ``fetch``.
            progress: called by ``photos`` with photos done and photos in all.

        Raises:
            UsageError: a host to be allowed that is no name of one.
        """
        self.cache = None if cache is None else Path(cache).absolute()
        self.allowed = {_allowed(host) for host in allow_hosts}
        self.progress = progress
        self.used: set[Path] = set()
        self._hosts: dict[tuple[str, str, int], _Host] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._busy: dict[int, list[socket.socket]] = {}
        self._tls: ssl.SSLContext | None = None

    def close(self) -> None:
        """End what is under way, and the connections kept open."""
        self._stop.set()
        with self._lock:
            for sockets in self._busy.values():
                _cut(sockets)
        self._hang_up()

    def _hang_up(self) -> None:
        for host in self._hosts.values():
            with host.lock:
                if host.pool is not None:
                    host.pool.close()
                host.pool = None

    # Many, with the cache

    def photos(self, source: Source) -> None:
        """Put files in the place of the addresses among a source's photos, in parallel, each address once.

        What cannot be fetched stays as it is, with the reason in ``source.unfetched``. Interrupted, it keeps what it has;
        the next call goes on there.

        Raises:
            CatalogError: the cache cannot be written.
        """
        named = [str(p) for product in source.products for p in product.photos if is_address(p)]
        wanted = list(dict.fromkeys(images.split(p)[0] for p in named))  # several parts of one photo are one file
        files: dict[str, Path] = {}
        failed: dict[str, str] = {}
        hosts = {a.split("/")[2] for a in wanted}
        pool = ThreadPoolExecutor(min(WORKERS, PER_HOST * max(1, len(hosts))), "lookalike-fetch")
        try:
            waiting = {pool.submit(self.file, address): address for address in wanted}
            for done, future in enumerate(as_completed(waiting), 1):
                address = waiting[future]
                try:
                    files[address] = future.result()
                except FetchError as error:
                    failed[address] = str(error).removeprefix(f"{_shown(address)}: ")
                if self.progress:
                    self.progress(done, len(wanted))
        except BaseException:
            self.close()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            self._hang_up()
        paths: dict[str, str | Path] = {}
        for name in named:
            address, box = images.split(name)
            if address in files:
                paths[name] = f"{files[address]}{box}" if box else files[address]
                source.files[str(paths[name])] = name
            else:
                source.unfetched[name] = failed[address]
        source.products = [
            replace(product, photos=[paths.get(str(p), p) for p in product.photos]) for product in source.products
        ]

    def file(self, address: str) -> Path:
        """The cached file of a photo's address, fetched where it is missing or no longer fresh.

        Where the server cannot be reached, an older copy serves.

        Raises:
            FetchError: as ``fetch``; also where the content is no photo.
            CatalogError: the cache cannot be written.
        """
        path = self._path(address)
        known = _known(path)
        if known and time.time() < known["fresh_until"]:
            return path
        try:
            return self._renew(address, path, known, images.MAX_BYTES, SECONDS, photo=True)
        except _Temporary:
            if known:
                return path
            raise

    def source(self, address: str) -> Path:
        """The file of a source's address (a feed, a table), always as it is now.

        Raises:
            FetchError, CatalogError: as ``file``.
        """
        path = self._path(address)
        try:
            return self._renew(address, path, _known(path), SOURCE_BYTES, SOURCE_SECONDS, photo=False)
        finally:
            self._hang_up()

    def clean(self, keep: Iterable[str]) -> None:
        """Remove from the cache what is neither in ``keep`` nor was used by this object."""
        if self.cache is None:
            return
        kept = {*map(str, self.used), *keep}
        for path in self.cache.glob("??/*"):
            if str(path.with_suffix("")) not in kept:
                path.unlink(missing_ok=True)

    def _path(self, address: str) -> Path:
        if self.cache is None:
            raise ValueError("this Web was made without a cache")
        name = hashlib.sha256(address.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        path = self.cache / name[:2] / name
        self.used.add(path)
        return path

    def _renew(
        self, address: str, path: Path, known: dict[str, Any] | None, max_bytes: int, seconds: float, photo: bool
    ) -> Path:
        headers = {}
        if known and known.get("etag"):
            headers["If-None-Match"] = known["etag"]
        if known and known.get("modified"):
            headers["If-Modified-Since"] = known["modified"]
        part = path.with_suffix(f".{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("w+b") as sink:
                answer = self._get(address, sink, max_bytes, seconds, headers)
                sink.seek(0)
                if photo and answer.status == 200 and not images.is_photo(sink.read(64)):
                    kind = _shown(answer.headers.get("content-type", ""))[:80] or "something of no kind"
                    raise FetchError(f"{_shown(address)}: what comes is no photo, but {kind}; mend the address")
            if answer.status == 200 and not _same(part, path):  # a file that is the same keeps its time
                part.replace(path)
            about = {
                "address": address,
                "etag": answer.headers.get("etag") or (known or {}).get("etag"),
                "modified": answer.headers.get("last-modified") or (known or {}).get("modified"),
                "fresh_until": time.time() + _fresh_seconds(answer.headers),
            }
            part.write_text(json.dumps(about), "utf-8")
            part.replace(path.with_suffix(".json"))
        except OSError as error:
            raise CatalogError(
                f"{self.cache}: the photos fetched cannot be kept there ({error.strerror or error}); free some space or "
                "name another directory: --cache"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
        return path

    # One

    def _get(self, address: str, sink: BinaryIO, max_bytes: int, seconds: float, headers: Mapping[str, str]) -> _Answer:
        """Write the content into ``sink``, trying again what may go better. Raises FetchError."""
        deadline = time.monotonic() + seconds
        tried = 0
        while True:
            passed: list[_Host] = []
            try:
                answer = self._follow(address, sink, max_bytes, deadline, headers, passed)
            except _Temporary as error:
                tried += 1
                wait = random.uniform(0.5, 1) * BACKOFF_SECONDS * 2 ** (tried - 1) if error.wait is None else error.wait
                if tried == TRIES or time.monotonic() + wait > deadline or self._stop.wait(wait):
                    passed[-1].failures += 1
                    raise
                sink.seek(0)
                sink.truncate()
            else:
                for host in passed:
                    host.failures = 0
                return answer

    def _follow(
        self, address: str, sink: BinaryIO, max_bytes: int, deadline: float, headers: Mapping[str, str],
        passed: list[_Host],
    ) -> _Answer:  # fmt: skip
        """One try, through all redirects; ``passed`` gets the hosts on the way."""
        here = address
        label = _shown(address)
        for _ in range(REDIRECTS + 1):
            place = _place(here, label)
            if place.port not in (80, 443) and not self._is_allowed(place):
                mend = f"if it is your own server: --allow-host {place.netloc}"
                raise FetchError(f"{label}: port {place.port} is not asked; {mend}")
            host = self._host(place)
            passed.append(host)
            if not host.slots.acquire(timeout=max(0.0, deadline - time.monotonic())):
                raise _Temporary(f"{label}: {place.host} is too slow for all that is asked of it; run again")
            try:
                if host.failures >= GIVE_UP:
                    gone = f"{label}: {place.host} failed {GIVE_UP} times in a row and was given up; run again later"
                    raise _Temporary(gone, math.inf)
                rest = host.rest_until - time.monotonic()
                if host.rest_until > deadline:
                    raise _Temporary(f"{label}: {place.host} asks to wait for {rest:.0f} s; run again later", math.inf)
                if rest > 0 and self._stop.wait(rest):
                    raise _Temporary(f"{label}: interrupted; run again", math.inf)
                answer = self._hop(place, host, label, sink, max_bytes, deadline, headers)
            finally:
                host.slots.release()
            if answer.status in (200, 304):
                return answer
            try:
                here = urljoin(here, answer.headers.get("location", ""))
            except ValueError as error:
                raise FetchError(f"{label}: is redirected to no address ({_shown(str(error))})") from error
        raise FetchError(f"{label}: is redirected more than {REDIRECTS} times; give the address it ends at")

    def _hop(
        self, place: _Place, host: _Host, label: str, sink: BinaryIO, max_bytes: int, deadline: float,
        headers: Mapping[str, str],
    ) -> _Answer:  # fmt: skip
        """One request to one host. Returns a redirect, 304, or 200 with the body in ``sink``."""
        sockets: list[socket.socket] = []
        _current.sockets = sockets
        with self._lock:
            self._busy[id(sockets)] = sockets
        # Time-outs bound each wait, not their sum: a byte every few seconds would hold a thread for ever.
        alarm = threading.Timer(max(0.0, deadline - time.monotonic()), _cut, (sockets,))
        alarm.daemon = True
        alarm.start()
        response = None
        try:
            with self._told(place, label, deadline):
                response = self._ask(place, host, label, deadline, headers)
            if response.status in (301, 302, 303, 307, 308):
                if "location" not in response.headers:
                    raise FetchError(
                        f"{label}: answers {response.status} without saying where to; give another address"
                    )
                return _Answer(response.status, response.headers)
            if response.status == 304 and headers:
                return _Answer(304, response.headers)
            if response.status != 200:
                said = f"{response.status} {_phrase(response.status)}".strip()
                if response.status in TEMPORARY:
                    wait = _retry_after(response.headers)
                    if wait:  # for what else is asked of it, too
                        host.rest_until = max(host.rest_until, time.monotonic() + wait)
                    raise _Temporary(f"{label}: the server answers {said}; run again later", wait)
                raise FetchError(f"{label}: the server answers {said}; mend the address")
            too_much = f"{label}: more than {max_bytes / 2**20:.3g} MiB; make it smaller"
            length = response.headers.get("content-length", "")
            if length.isdigit() and int(length) > max_bytes:
                raise FetchError(too_much)
            taken = 0
            for chunk in self._body(response, place, label, deadline):
                taken += len(chunk)
                if taken > max_bytes:
                    raise FetchError(too_much)
                sink.write(chunk)
            answer = _Answer(200, response.headers)
            response.release_conn()
            response = None
            return answer
        finally:
            alarm.cancel()
            with self._lock:
                del self._busy[id(sockets)]
            if response is not None:  # its rest is not read: such a connection cannot be used again
                response.close()
                response.release_conn()

    def _ask(
        self, place: _Place, host: _Host, label: str, deadline: float, headers: Mapping[str, str]
    ) -> urllib3.BaseHTTPResponse:
        """Send the request to one of the host's checked addresses, the next where one cannot be reached."""
        while True:
            pool = self._pool(place, host, label)
            left = max(0.1, deadline - time.monotonic())
            try:
                return pool.urlopen(
                    "GET", place.target, redirect=False, retries=False, preload_content=False, decode_content=False,
                    timeout=urllib3.Timeout(connect=min(CONNECT_SECONDS, left), read=min(IDLE_SECONDS, left)),
                    headers={"Host": place.netloc, "User-Agent": USER_AGENT, "Accept-Encoding": "gzip", **headers},
                )  # fmt: skip
            except (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError) as error:
                with host.lock:
                    if host.pool is pool:  # the address is tried no more, unless the name is resolved to it again
                        host.pool = None
                        host.ips = [ip for ip in host.ips if ip != pool.host]
                if not host.ips or time.monotonic() > deadline:
                    raise _Temporary(f"{label}: {place.host} cannot be reached; check it, and run again") from error

    def _body(self, response: urllib3.BaseHTTPResponse, place: _Place, label: str, deadline: float) -> Iterator[bytes]:
        """The body as it comes, unpacked in bounded pieces."""
        packed = response.headers.get("content-encoding", "").strip().lower()
        if packed not in ("", "identity", "gzip", "x-gzip", "deflate"):
            raise FetchError(f"{label}: comes packed as {_shown(packed)[:40]}, which was not asked for")
        unpack = zlib.decompressobj(47) if packed not in ("", "identity") else None
        while True:
            with self._told(place, label, deadline):
                chunk = response.read1(2**16)
                if not chunk:
                    break
            if unpack is None:
                yield chunk
                continue
            while chunk and not unpack.eof:
                try:
                    yield unpack.decompress(chunk, 2**20)
                except zlib.error as error:
                    raise FetchError(f"{label}: cannot be unpacked ({error}); its server is at fault") from error
                chunk = unpack.unconsumed_tail
        if time.monotonic() >= deadline:  # cut: what came may look whole
            raise _too_slow(label)
        if self._stop.is_set():
            raise _Temporary(f"{label}: interrupted; run again")
        if unpack is not None and not unpack.eof:
            raise _Temporary(f"{label}: broke off; run again")

    @contextlib.contextmanager
    def _told(self, place: _Place, label: str, deadline: float) -> Iterator[None]:
        """Errors of the network as ours."""
        try:
            yield
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError, ValueError) as error:
            if time.monotonic() >= deadline:
                raise _too_slow(label) from error
            if isinstance(error, urllib3.exceptions.SSLError) and "ertificate" in str(error):
                why = _shown(str(error))[:200]
                raise FetchError(f"{label}: the certificate of {place.host} cannot be trusted ({why})") from error
            kind = "answers too slowly" if "imeout" in type(error).__name__ else "breaks off, or does not speak HTTP"
            raise _Temporary(f"{label}: {place.host} {kind}; run again") from error

    def _is_allowed(self, place: _Place) -> bool:
        return (place.host, place.port) in self.allowed or (
            (place.host, None) in self.allowed and place.port in (80, 443)
        )

    def _host(self, place: _Place) -> _Host:
        with self._lock:
            return self._hosts.setdefault((place.scheme, place.host, place.port), _Host())

    def _pool(self, place: _Place, host: _Host, label: str) -> urllib3.HTTPConnectionPool:
        """Connections to one checked IP address of the host, and to nothing else whatever its name may mean later."""
        with host.lock:
            if host.pool is None:
                host.ips = host.ips or _resolve(place, self._is_allowed(place), label)
                options: dict[str, Any] = {"maxsize": PER_HOST}
                if place.scheme == "https":
                    self._tls = self._tls or ssl.create_default_context()
                    options |= {"ssl_context": self._tls, "server_hostname": place.host}
                    host.pool = _TLSPool(host.ips[0], place.port, **options)
                else:
                    host.pool = _Pool(host.ips[0], place.port, **options)
            return host.pool


def _allowed(text: str) -> tuple[str, int | None]:
    """HOST or HOST:PORT → (host, port). Raises UsageError."""
    try:
        parts = urlsplit(f"//{text}")
        if not parts.hostname or parts.path or parts.username is not None:
            raise ValueError("a name is wanted")
        return parts.hostname.rstrip("."), parts.port
    except ValueError as error:
        raise UsageError(
            f"--allow-host {text}: write HOST or HOST:PORT, for example images.local:8080 ({error})"
        ) from None


def _place(address: str, label: str) -> _Place:
    """Take an address apart, strictly: what two parsers could read in two ways is refused. Raises FetchError."""
    address = address.strip()
    if re.search(r"[\x00-\x1f\x7f]", address) or "\\" in re.split(r"[?#]", address, maxsplit=1)[0]:
        raise FetchError(f"{label}: has characters that no address has; check its spelling")
    try:
        parts = urlsplit(address)
        port = parts.port
        target = quote(parts.path or "/", safe="/%:=&~+!$,;'()*@[]|")
        target += f"?{quote(parts.query, safe='/%:=&?~+!$,;()*@[]|')}" if parts.query else ""
    except ValueError as error:
        raise FetchError(f"{label}: not an address ({_shown(str(error))}); check its spelling") from error
    if parts.scheme not in ("http", "https"):
        raise FetchError(f"{label}: only http and https are fetched")
    if "@" in parts.netloc:
        raise FetchError(f"{label}: has a name or password in it; take that out")
    host = parts.hostname or ""
    if ":" not in host:
        try:
            host = host.encode("idna").decode().lower().removesuffix(".")
        except UnicodeError:
            host = ""
        if not re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", host):
            raise FetchError(f"{label}: has no name of a host that could be right; check its spelling")
        # 2130706433, 0177.1 and 0x7f.0.0.1 all are 127.0.0.1 to the resolver.
        if re.fullmatch(r"\d+|0x[0-9a-f]*", host.rsplit(".", 1)[-1]) and not _is_ip(host):
            raise FetchError(f"{label}: an IP address is written as four decimal numbers; check its spelling")
    elif not _is_ip(host):
        raise FetchError(f"{label}: not an IPv6 address that can be used; check its spelling")
    return _Place(parts.scheme, host, port or (443 if parts.scheme == "https" else 80), target)


def _is_ip(host: str) -> bool:
    try:
        return "%" not in host and bool(ipaddress.ip_address(host))
    except ValueError:
        return False


def _resolve(place: _Place, allowed: bool, label: str) -> list[str]:
    """The host's IP addresses, each of them checked. Raises FetchError where any is not public (and not allowed)."""
    try:
        found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        unknown = isinstance(error, socket.gaierror) and error.errno == socket.EAI_NONAME
        kind = FetchError if unknown else _Temporary
        raise kind(f"{label}: no host {place.host} ({getattr(error, 'strerror', None) or error})") from error
    ips = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for ip in ips:
        kind_of = _not_public(ip)
        if kind_of and not (allowed and _own(ip)):
            shown = ip if ip == place.host else f"{place.host} ({ip})"
            mend = f"; if it is your own server: --allow-host {place.netloc}" if _own(ip) else ""
            raise FetchError(f"{label}: {shown} is {kind_of}, which is not asked{mend}")
    return ips


def _own(ip: str) -> bool:
    """Whether an address may be that of a server which was allowed by name: public, loopback or private."""
    if not _not_public(ip):
        return True
    address = ipaddress.ip_address(ip.split("%")[0])
    return ip not in _METADATA and any(address in network for network in _OWN if network.version == address.version)


def _not_public(ip: str) -> str:
    """What kind of address this is, where it is none of the public internet's; else empty."""
    if "%" in ip:
        return "a link-local address"
    address = ipaddress.ip_address(ip)
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return _not_public(str(inner))
    if str(address) in _METADATA:
        return "a cloud's metadata address"
    for kind, holds in (
        ("a loopback address", address.is_loopback),
        ("no address at all", address.is_unspecified),
        ("a link-local address", address.is_link_local),
        ("a multicast address", address.is_multicast),
        ("a private address", address.is_private or not address.is_global),
        ("a reserved address", address.version == 6 and address not in _PUBLIC6),
        ("a reserved address", address.version == 4 and address.is_reserved),
        ("a reserved address", any(address in network for network in _RESERVED)),
    ):
        if holds:
            return kind
    return ""


def _too_slow(label: str) -> _Temporary:
    return _Temporary(f"{label}: takes too long; make it smaller, or its server faster", math.inf)


def _cut(sockets: list[socket.socket]) -> None:
    for one in list(sockets):
        with contextlib.suppress(OSError):
            socket.socket.shutdown(one, socket.SHUT_RDWR)  # not the TLS one's, which another thread is reading from


def _known(path: Path) -> dict[str, Any] | None:
    """What the cache knows about a file; None where it has not both."""
    try:
        about = json.loads(path.with_suffix(".json").read_text("utf-8"))
        return about if path.is_file() and isinstance(about["fresh_until"], float) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and filecmp.cmp(one, other, shallow=False)


def _fresh_seconds(headers: Mapping[str, str]) -> float:
    """How long an answer may be used without asking again (RFC 9111, of a cache that only this user has)."""
    control = headers.get("cache-control", "").lower()
    if "no-cache" in control or "no-store" in control:
        return 0.0
    age = re.search(r"max-age=\"?(\d{1,10})", control)
    if age:
        return min(float(age[1]), LONGEST_FRESH)
    until = _time(headers.get("expires", ""))
    return FRESH_SECONDS if until is None else min(max(0.0, until - time.time()), LONGEST_FRESH)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    said = headers.get("retry-after", "").strip()
    if said.isdigit() and len(said) < 10:
        return float(said)
    until = _time(said)
    return None if until is None else max(0.0, until - time.time())


def _time(text: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _phrase(status: int) -> str:
    """The standard's words for a status, not those of a server that may write anything."""
    return HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else ""


def _shown(text: str) -> str:
    """An address or a server's words for a message: printable, without a name and password, not endless."""
    text = re.sub(r"(?<=//)[^/?#]*@", "…@", text)
    text = printable(text)
    return text if len(text) <= 500 else text[:500] + "…"
