"""Read the bodies of requests within bounds, and refuse them so that the client reads why."""

import asyncio
import contextlib

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from students.serve.contracts import Limits, Refused

SECONDS_TO_LINGER = 5.0  # time for a client to notice that its body is refused


class ClientGone(Exception):
    """The client disconnected while it sent its body."""


class Budget:
    """The bytes of all requests that are read or wait."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.bytes = 0


class BodyBytes:
    """The bytes that one request holds while it is read or waits."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.bytes = 0
        self.unread = False  # whether more of its body may come

    def take(self, n: int) -> None:
        """Count bytes in.

        Raises:
            Refused: this request would hold more bytes than it leaves to all others. So large bodies are refused while a
                small one still fits (dynamic thresholds, Choudhury and Hahne 1998).
        """
        self.bytes += n
        self._budget.bytes += n
        if self.bytes > self._budget.limits.bodies - self._budget.bytes:
            raise Refused(429, "Overloaded", "too many bytes wait; try again later")

    def release(self) -> None:
        self._budget.bytes -= self.bytes
        self.bytes = 0


async def read(request: Request, held: BodyBytes, limits: Limits) -> bytes:
    """Read the body. It is refused as soon as it is too large, whatever length the client announced.

    Raises:
        Refused: the body is too large or too slow. ClientGone: the client disconnected.
    """
    limit = limits.body
    held.unread = "expect" not in request.headers  # such a client waits for permission to send
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise Refused(413, "Validation", f"the body has {announced} bytes, the limit is {limit}")
    parts: list[bytes] = []
    try:
        async with asyncio.timeout(limits.seconds_to_send):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                part = message.get("body", b"")
                held.unread = message.get("more_body", False)
                held.take(len(part))
                if held.bytes > limit:
                    raise Refused(413, "Validation", f"the body has more than {limit} bytes")
                parts.append(part)
                if not held.unread:
                    return b"".join(parts)
    except TimeoutError as error:
        raise Refused(408, "Validation", "the body did not come in time") from error


async def disconnected(request: Request) -> None:
    """Wait until the client disconnects."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Lingering(JSONResponse):
    """An answer to a client that is still sending. Incoming bytes are dropped for a while before the connection ends.

    A connection closed over unread bytes is reset, and the client may lose the answer (RFC 9112, 9.6).
    """

    def __init__(self, body: object, code: int, most: int) -> None:
        super().__init__(body, status_code=code, headers={"connection": "close"})
        self._most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def unfinished(message: Message) -> None:
            await send({**message, "more_body": True} if message["type"] == "http.response.body" else message)

        await super().__call__(scope, receive, unfinished)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SECONDS_TO_LINGER):
                while self._most > 0:
                    message = await receive()
                    if not message.get("more_body", False):
                        break
                    self._most -= len(message["body"])
        await send({"type": "http.response.body", "body": b""})
