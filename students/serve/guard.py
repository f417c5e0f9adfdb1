"""Protect the server: bounds on connections, a deadline for headers, an optional key."""

import asyncio
import hmac
import json
import os
import resource
import socket
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from students.serve.contracts import Refused, of_path

SECONDS_FOR_HEADERS = 10.0  # time for a client to send its request line and headers
SECONDS_TO_END = 10  # time to answer requests in flight after SIGTERM
MOST_CONNECTIONS = 4096
ACCEPTED_AT_ONCE = 2  # asyncio accepts this many connections before it reads from one
QUEUED = 1024  # connections that wait in the kernel


def most_connections() -> int:
    """Compute how many connections leave file descriptors for the rest of the process."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    folder = Path("/proc/self/fd") if Path("/proc/self/fd").exists() else Path("/dev/fd")
    spare = limit - len(os.listdir(folder)) - 10 * ACCEPTED_AT_ONCE
    return max(min(spare, MOST_CONNECTIONS), 1)


def guarded_protocol(most: int, seconds: float = SECONDS_FOR_HEADERS) -> type[H11Protocol]:
    """Make HTTP/1.1 with a deadline for headers. Beyond `most` connections it closes the one that is idle longest."""
    idle: dict[H11Protocol, None] = {}  # the one that is idle longest comes first
    held: set[H11Protocol] = set()

    class Guarded(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            held.add(self)
            self._watch()
            if len(held) > most:
                oldest = next(iter(idle))  # never empty: this connection is idle too
                idle.pop(oldest)
                held.discard(oldest)
                oldest.transport.abort()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch()

        def _watch(self) -> None:
            """Run the deadline while no request is in flight; bytes that drip in do not move it."""
            waits = self.cycle is None or self.cycle.response_complete
            if waits and self._deadline is None and self in held:
                self._deadline = self.loop.call_later(seconds, self.transport.abort)
                idle[self] = None
            elif not waits:
                self._rest()

        def _rest(self) -> None:
            idle.pop(self, None)
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _forget(self) -> None:
            held.discard(self)
            self._rest()

    return Guarded


class Server(uvicorn.Server):
    """uvicorn that accepts a few connections at a time, so that the bound on connections always holds."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listening in sockets or ():
            listening.listen(QUEUED)


def config(app: ASGIApp) -> uvicorn.Config:
    """Configure uvicorn. Only errors are logged, so clients cannot fill the log."""
    return uvicorn.Config(
        app,
        http=guarded_protocol(most_connections()),
        ws="none",
        backlog=ACCEPTED_AT_ONCE,
        log_level="error",
        access_log=False,
        lifespan="on",
        h11_max_incomplete_event_size=1 << 16,
        timeout_graceful_shutdown=SECONDS_TO_END,
    )


class RequireKey:
    """Answer 401 to a request without ``Authorization: Bearer KEY``. /health needs no key."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._wanted = b"Bearer " + key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != "/health":
            headers: list[Any] = scope["headers"]
            given = next((value for name, value in headers if name == b"authorization"), b"")
            if not hmac.compare_digest(given, self._wanted):
                await _refuse(send, scope["path"])
                return
        await self._app(scope, receive, send)


async def _refuse(send: Send, path: str) -> None:
    _, answer = of_path(path).error(Refused(401, "Unauthorized", "the key is missing or wrong"))
    body = json.dumps(answer).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"www-authenticate", b"Bearer"),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": body})
