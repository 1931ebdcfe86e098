"""Connections: what they may hold and for how long, before there is a request and after there is its answer.

uvicorn waits as long as a client likes for the end of a request's head, and for a client to take its answer. Here each wait
has an end (the attacks are called Slowloris and slow read), heads are bounded before they are parsed, and a connection that
nobody uses makes room for one that somebody wants. On h11 always, the strictest of the parsers that uvicorn knows, whatever
else is installed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket as sockets
import sys
import uuid
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, cast

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from lookalike.server import observe, security

HEAD_SECONDS = 10.0
"""From a request's first byte, or from the connection's start, to the end of its head."""

MAX_HEAD = 32 * 2**10
"""Bytes of a request line and its headers."""

CHUNKS, CHUNK_BYTES = 10_000, 64
"""A body of more chunks than this, and fewer bytes in each on average, is work without content: 7 µs for a byte."""

STALL_SECONDS, STALL_BYTES = 20.0, 16 * 2**10
"""Whoever takes fewer bytes of an answer in that time is cut off, once the kernel's own buffer is full."""

CONNECTIONS = 4000
"""Open at once; fewer where the process may open fewer files (``room``)."""

FILES_KEPT = 256
"""Open files that connections leave to catalog, photos and logs."""

LINGER_SECONDS = 1.0
"""At most, for which a server that was told to stop waits for requests on connections that it has: they may be on their way."""

CLOSE_SECONDS = 2.0
"""For which what a refused client still sends is thrown away: closing at once could take the refusal from it."""

_END = re.compile(rb"\n\r?\n")


def room() -> int:
    """How many connections there may be: the limit on open files is raised as far as the system lets us."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS + FILES_KEPT
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):  # macOS says no limit, and means another
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return CONNECTIONS
    return max(16, soft - FILES_KEPT)


class _Chunks(h11.Connection):
    """h11's connection, which refuses bodies in crumbs."""

    chunks = size = 0

    def next_event(self) -> Any:
        """As ``h11.Connection.next_event``."""
        event = super().next_event()
        if isinstance(event, h11.Data):
            self.chunks += event.chunk_start
            self.size += len(event.data)
            if self.chunks > CHUNKS and self.size < CHUNK_BYTES * self.chunks:
                raise h11.RemoteProtocolError("a body in crumbs")
        elif isinstance(event, h11.Request):
            self.chunks = self.size = 0
        return event


class _Lingering:
    """A transport that, told to close while a body is still coming, says so and throws the rest of it away for a while.

    Closed at once, it would be reset, and the client could lose the refusal that it was just sent.
    """

    def __init__(self, transport: asyncio.Transport, protocol: Bounded):
        self._transport, self._protocol = transport, protocol
        self._over = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """As ``asyncio.Transport.write``, counted."""
        self._protocol.written += len(data)
        self._transport.write(data)

    def is_closing(self) -> bool:
        """As ``asyncio.Transport.is_closing``."""
        return self._over or self._transport.is_closing()

    def close(self) -> None:
        """As ``asyncio.Transport.close``, but for what the class says."""
        if self.is_closing():
            return
        if not self._protocol.is_sent_to():
            self._transport.close()
            return
        self._over = True
        try:
            self._transport.write_eof()
            self._protocol.flow.resume_reading()
            self._protocol.loop.call_later(CLOSE_SECONDS, self._transport.abort)
        except OSError:  # the client has gone, and we were not told yet
            self._transport.abort()


class Bounded(H11Protocol):
    """One connection. Class attributes are those of the whole server: there is one in a process."""

    most = CONNECTIONS
    meter: observe.Meter | None = None

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.conn = _Chunks(h11.SERVER, 2 * MAX_HEAD)  # of what it has not understood; whole heads are bounded here
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None
        self.written = self._taken = 0  # bytes of answers, and those of them that the client had when last looked at
        self._head, self._tail = 0, b""  # bytes of a head so far, and the last of them
        self._since = 0.0
        self._refused = False

    def is_sent_to(self) -> bool:
        """Whether the client may still be sending: a body, or what was refused."""
        return self._refused or self.conn.their_state is h11.SEND_BODY

    @property
    def idle(self) -> bool:
        """Whether no request is at work here."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As ``asyncio.Protocol``: count, and make room where there is none."""
        super().connection_made(transport)
        self.transport = cast(asyncio.Transport, _Lingering(transport, self))
        transport.set_write_buffer_limits(0)  # told of whatever the kernel does not take at once
        self._since = self.loop.time()
        self._await_head()
        if len(self.connections) > self.most and not self._make_room():
            self.refuse(503, "too many connections; try again in a moment")

    def connection_lost(self, exc: Exception | None) -> None:
        """As ``asyncio.Protocol``."""
        self._still()
        if self._writing is not None:
            self._writing.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """As ``asyncio.Protocol``: heads are measured before h11 parses them."""
        if self.transport.is_closing():
            return
        refused = self.idle and self.conn.their_state is h11.SEND_BODY  # the rest of a body that nobody wants
        if self.idle and self._timer is None:
            self._await_head(security.BODY_SECONDS if refused else HEAD_SECONDS)
        if self.idle and self.conn.their_state is h11.IDLE:
            seen = self._tail + data
            found = _END.search(seen)
            self._head += (found.end() if found else len(seen)) - len(self._tail)
            self._tail = b"" if found else seen[-2:]
            if self._head > MAX_HEAD:
                self.refuse(431, f"the request's head is larger than {MAX_HEAD // 2**10} KiB")
                return
        before, timer = self.cycle, self._timer
        super().data_received(data)
        if self.cycle is not before and self._timer is timer:  # another ends what was refused just now
            self._since = self.loop.time()
            self._still()
        elif refused and self.conn.their_state is h11.IDLE:
            self._still()
            self._await_head()

    def on_response_complete(self) -> None:
        """As uvicorn's: its own timer ends a connection where nothing follows, ours one where half a head does."""
        self._since = self.loop.time()
        self._head, self._tail = 0, b""
        super().on_response_complete()

    def pause_writing(self) -> None:
        """As ``asyncio.Protocol``: bytes wait for the client. That the kernel takes them ends no watch."""
        super().pause_writing()
        if self._writing is None:
            self._taken = self.written - self._left()
            self._writing = self.loop.call_later(STALL_SECONDS, self._stalled)

    def send_400_response(self, msg: str) -> None:
        """As uvicorn's, for what is no HTTP: as a problem document."""
        self.refuse(400, "this is not a request that can be read as HTTP")

    def refuse(self, status: int, detail: str) -> None:
        """Answer outside of any request, and close. Nothing can be said in the middle of another answer."""
        if self.transport.is_closing():
            return
        self._still()
        self._unset_keepalive_if_required()
        identity = uuid.uuid4().hex
        if self.meter is not None:
            self.meter.refused(status, identity)
        if self.idle or not self.cycle.response_started:
            body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
            body["request_id"] = identity
            content = json.dumps(body).encode()
            headers = {
                **observe.HEADERS, "content-type": "application/problem+json", "content-length": str(len(content)),
                "x-request-id": identity, "connection": "close", **({"retry-after": "1"} if status == 503 else {}),
            }  # fmt: skip
            lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{n}: {v}" for n, v in headers.items())]
            self.transport.write("\r\n".join([*lines, "", ""]).encode() + content)
        if not self.idle:
            self.cycle.disconnected = True  # whoever works for it is told so, and writes nothing more
            self.cycle.message_event.set()
        self._refused = status != 503  # there is no room for them to linger in
        self.transport.close()

    def _await_head(self, seconds: float = 0.0) -> None:
        self._head, self._tail = 0, b""
        self._timer = self.loop.call_later(seconds or HEAD_SECONDS, self._late)

    def _still(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if self._head:
            self.refuse(408, f"the request's head did not come within {HEAD_SECONDS:.0f} s")
        else:  # nothing was asked, so nothing is answered
            self.transport.close()

    def _stalled(self) -> None:
        self._writing = None
        left = self._left()
        if left < STALL_BYTES:  # so little is always on its way to somebody; the keep-alive's end is enough for it
            return
        taken = self.written - left
        if taken - self._taken < STALL_BYTES:
            if self.meter is not None:
                self.meter.cut.labels("slow reader").inc()
            self.transport.abort()
        else:
            self._taken = taken
            self._writing = self.loop.call_later(STALL_SECONDS, self._stalled)

    def _left(self) -> int:
        """Bytes that the client has not taken: ours, and the kernel's, who wants more only once a third is gone."""
        queued = bytes(4)
        with contextlib.suppress(ImportError, OSError):  # where this cannot be asked, ours alone
            import fcntl
            import termios

            queued = fcntl.ioctl(self.transport.get_extra_info("socket"), termios.TIOCOUTQ, queued)
        return self.transport.get_write_buffer_size() + int.from_bytes(queued, sys.byteorder)

    def _make_room(self) -> bool:
        """Close the connection that has waited longest for its client: idle ones first, then those whose body is coming."""
        waiting = [
            (not one.idle, one._since, id(one), one)
            for one in self.connections
            if isinstance(one, Bounded) and one is not self and (one.idle or one.cycle.more_body)
        ]
        if not waiting:
            return False
        oldest = min(waiting)[-1]
        oldest.transport.abort()
        self.connections.discard(oldest)
        if self.meter is not None:
            self.meter.cut.labels("made room").inc()
        return True


class Server(uvicorn.Server):
    """uvicorn's, which ends without losing a request that was on its way."""

    def __init__(self, config: uvicorn.Config, ending: Callable[[], None]):
        super().__init__(config)
        self._ending = ending

    async def shutdown(self, sockets: list[sockets.socket] | None = None) -> None:
        """Take what waits at the door, let go of the port, and answer what still comes with ``Connection: close``."""
        self._ending()
        headers = [*self.server_state.default_headers, (b"connection", b"close")]
        self.server_state.default_headers = headers
        for connection in self.server_state.connections:
            if isinstance(connection, Bounded) and connection.cycle is not None:
                connection.cycle.default_headers = headers  # of a request that is at work already
        await self._last_guests(sockets or [])
        end = asyncio.get_running_loop().time() + LINGER_SECONDS
        while self.server_state.connections and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)

    async def _last_guests(self, listening: list[sockets.socket]) -> None:
        """Connections that the kernel took for us would be reset with the port; they are ours already."""
        loop = asyncio.get_running_loop()
        copies = [one.dup() for one in listening]  # asyncio closes its own
        for server in self.servers:
            server.close()
        guests = []
        for copy in copies:
            with contextlib.closing(copy), contextlib.suppress(OSError):  # at last BlockingIOError: nobody is left
                copy.setblocking(False)
                while True:
                    guests.append(copy.accept()[0])
        for guest in guests:
            guest.setblocking(False)
            await loop.connect_accepted_socket(self._connection, guest)

    def _connection(self) -> Bounded:
        return Bounded(self.config, self.server_state, self.lifespan.state)


def of(app: FastAPI) -> Server:
    """The server of an application that ``app.create_app`` made."""
    Bounded.meter = app.state.meter
    config = uvicorn.Config(
        app, http=Bounded, ws="none", lifespan="on", log_config=None, access_log=False, server_header=False,
        timeout_graceful_shutdown=10,
    )  # fmt: skip

    return Server(config, app.state.health.stop)
