"""The HTTP interface: where to listen, and the run until it is ended."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket as sockets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lookalike.errors import InputError, UsageError

if TYPE_CHECKING:
    from lookalike.catalog import Catalog


@contextlib.contextmanager
def listen(host: str, port: int, keys: object) -> Iterator[sockets.socket]:
    """A bound socket: taken before any long work, so that a port in use is told at once.

    Args:
        host: a name or an address.
        port: 0 for any that is free.
        keys: false where there is no API key; then only loopback will do.

    Raises:
        UsageError: an address other than loopback without an API key, or an unknown host.
        InputError: the port is in use or may not be used.
    """
    try:
        family, _, _, _, address = sockets.getaddrinfo(host, port, type=sockets.SOCK_STREAM)[0]
    except OSError as error:
        raise UsageError(f"--host {host}: no such address ({error.strerror or error})") from error
    if not _loopback(address) and not keys:
        raise UsageError(
            f"--host {host} can be reached from other machines; make an API key first: lookalike keys add NAME "
            "--scope search (or set LOOKALIKE_API_KEY to a long secret)"
        )
    # Its protocol by name: asyncio turns Nagle's delay (40 ms an answer) off for such sockets only.
    bound = sockets.socket(family, sockets.SOCK_STREAM, sockets.IPPROTO_TCP)
    with contextlib.closing(bound):
        bound.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)
        # Of each connection; by itself the kernel would buffer megabytes for whoever asks and does not read.
        bound.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDBUF, 256 * 2**10)
        try:
            bound.bind(address)
            bound.listen(2048)  # from here on the port is taken; whoever asks early waits for the answer
        except OSError as error:
            why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
            raise InputError(f"port {port} on {host} {why}; choose another: --port {port % 65535 + 1}") from error
        yield bound


def run(
    catalog: Catalog, socket: sockets.socket, api_key: str = "", *, cors: Sequence[str] = (), rate: str = "",
    queue: int = 0, source: str | None = None,
    downloads: tuple[tuple[str, ...], Path | None] | None = None, log_format: str = "",
) -> None:  # fmt: skip
    """Serve until interrupted; the arguments are those of ``app.create_app``, as they are typed.

    Raises:
        UsageError: an origin, a rate or a log format that is none.
        CatalogError: the catalog cannot be read.
    """
    from lookalike.server import observe, protocol, security
    from lookalike.server.app import create_app
    from lookalike.server.writing import Downloads

    public = not _loopback(socket.getsockname())
    if log_format not in ("", "json", "text"):
        raise UsageError(f"--log-format {log_format}: choose json or text")
    failures: list[Exception] = []

    def failed(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True

    app = create_app(
        catalog, api_key, public=public, cors=tuple(security.origin(o) for o in cors),
        rate=security.Rate.parse(rate or ("20/s" if public else "off")), queue=queue or security.QUEUE,
        source=source, downloads=Downloads(*downloads) if downloads is not None else None, failed=failed,
    )  # fmt: skip
    host, port = socket.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    typer.echo(f"Lookalike is at http://{shown}:{port}/ (Ctrl+C ends it)")
    observe.log_to_stderr(log_format)
    protocol.Bounded.most = protocol.room()
    server = protocol.of(app)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[socket])
    if failures:
        raise failures[0]


def _loopback(address: Any) -> bool:
    return ipaddress.ip_address(str(address[0]).split("%")[0]).is_loopback
