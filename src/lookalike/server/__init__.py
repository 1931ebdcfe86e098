"""The HTTP interface: where to listen, and the run until it is ended."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket as sockets
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from lookalike.errors import InputError, UsageError

if TYPE_CHECKING:
    from lookalike.catalog import Catalog


@contextlib.contextmanager
def listen(host: str, port: int, api_key: str) -> Iterator[sockets.socket]:
    """A bound socket: taken before any long work, so that a port in use is told at once.

    Raises:
        UsageError: an address other than loopback without an API key, or an unknown host.
        InputError: the port is in use or may not be used.
    """
    try:
        family, _, _, _, address = sockets.getaddrinfo(host, port, type=sockets.SOCK_STREAM)[0]
    except OSError as error:
        raise UsageError(f"--host {host}: no such address ({error.strerror or error})") from error
    if not ipaddress.ip_address(str(address[0]).split("%")[0]).is_loopback and not api_key:
        raise UsageError(
            f"--host {host} can be reached from other machines; set an API key first: LOOKALIKE_API_KEY=… (a long secret)"
        )
    # Its protocol by name: asyncio turns Nagle's delay (40 ms an answer) off for such sockets only.
    bound = sockets.socket(family, sockets.SOCK_STREAM, sockets.IPPROTO_TCP)
    with contextlib.closing(bound):
        bound.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)
        try:
            bound.bind(address)
            bound.listen(2048)  # from here on the port is taken; whoever asks early waits for the answer
        except OSError as error:
            why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
            raise InputError(f"port {port} on {host} {why}; choose another: --port {port % 65535 + 1}") from error
        yield bound


def run(catalog: Catalog, socket: sockets.socket, api_key: str = "") -> None:
    """Serve until interrupted."""
    import uvicorn

    from lookalike.server.app import create_app

    app = create_app(catalog, api_key)
    host, port = socket.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    typer.echo(f"Lookalike is at http://{shown}:{port}/ (Ctrl+C ends it)")
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=10)
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[socket])
