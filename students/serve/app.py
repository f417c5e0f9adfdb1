"""Serve a student over HTTP with the /rerank route of text-embeddings-inference, for the clients of that server.

    POST /rerank   {"query": "…", "texts": ["…", …], "raw_scores": false, "return_text": false, "truncate": true}
                   -> [{"index": 1, "score": 0.98}, …], best first; raw_scores gives the logits, else their sigmoid
    GET /health, /info, /metrics (Prometheus)

Waiting requests are scored together, a bounded slice of each at a time, so that a large request does not delay small
ones. All sizes are bounded: body, texts, characters, and the pairs and bytes that wait. If a client disconnects, its
work is dropped. Errors are ``{"error": …, "error_type": …}`` with the codes of that server: 400 not JSON or nothing to
rank, 413 too large, 422 wrong form, 424 the model failed, 429 overloaded.
"""

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from students.serve.batching import Batcher, ModelFailed, Overloaded, Scorer
from students.serve.metrics import Metrics

PARSE_IN_THREAD = 1 << 18  # larger bodies are parsed in a thread, so that they do not block the event loop
SECONDS_TO_LINGER = 5.0  # time for a client to notice that its body is refused
CLIENT_GONE = 499  # nginx's code, for the metrics only


@dataclass(frozen=True)
class Limits:
    """Limits of one request and of all waiting requests."""

    texts: int = 1000  # per request
    characters: int = 100_000  # per text
    body: int = 16_000_000  # bytes per request
    bodies: int = 64_000_000  # bytes of all requests being read or waiting; one request takes at most half
    waiting: int = 20_000  # pairs that wait, all requests together
    seconds_to_send: float = 30.0  # for a client to send its body


@dataclass(frozen=True)
class ParsedRequest:
    """A valid request."""

    query: str
    texts: list[str]
    raw_scores: bool
    return_text: bool
    truncate: bool


class Refused(Exception):
    """A refused request, with its code and the message for the client."""

    def __init__(self, code: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.code, self.kind, self.message = code, kind, message


class _ClientGone(Exception):
    """The client disconnected while it sent its body."""


def create_app(
    scorer: Scorer, info: dict[str, Any], limits: Limits = Limits(), *, round_seconds: float = 0.25
) -> Starlette:
    """Make the application for an ASGI server.

    Args:
        info: the answer of /info; ``max_input_length`` is the tokens per pair.
        round_seconds: duration of one joint scoring. A shorter one answers small requests sooner.
    """
    server = _Server(scorer, info, limits, round_seconds)
    return Starlette(
        routes=[
            Route("/rerank", server.rerank, methods=["POST"]),
            Route("/health", server.health),
            Route("/info", server.info),
            Route("/metrics", server.metrics_page),
        ],
        lifespan=server.lifespan,
    )


class _Server:
    def __init__(self, scorer: Scorer, info: dict[str, Any], limits: Limits, round_seconds: float) -> None:
        self._limits = limits
        self._info = info
        self._bytes = 0
        self._metrics = Metrics()
        self._batcher = Batcher(scorer, limits.waiting, self._metrics, round_seconds)
        self._metrics.gauge("waiting_pairs", "Pairs that wait for a scoring", lambda: self._batcher.waiting)
        self._metrics.gauge("bytes_in_flight", "Bytes of bodies that are read or scored", lambda: self._bytes)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        async with self._batcher:
            yield

    async def health(self, request: Request) -> Response:
        return Response(status_code=200 if self._batcher.alive else 503)

    async def info(self, request: Request) -> Response:
        return JSONResponse(
            self._info
            | {"max_client_batch_size": self._limits.texts, "max_waiting_pairs": self._limits.waiting}
        )

    async def metrics_page(self, request: Request) -> Response:
        return Response(self._metrics.page(), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    async def rerank(self, request: Request) -> Response:
        with self._metrics.request() as outcome:
            held = _BodyBytes(self)
            try:
                response = await self._answer(request, held)
            except Refused as refused:
                response = _error(refused, held.unread, 4 * self._limits.body)
            except _ClientGone:
                response = Response(status_code=CLIENT_GONE)
            finally:
                held.release()
            outcome.code = response.status_code
            return response

    async def _answer(self, request: Request, held: "_BodyBytes") -> Response:
        body = await self._body(request, held)
        large = len(body) > PARSE_IN_THREAD
        parsed = await asyncio.to_thread(self._parse, body) if large else self._parse(body)
        del body
        if not parsed.truncate:
            await self._refuse_long(parsed)
        scoring = asyncio.ensure_future(self._batcher.score(parsed.query, parsed.texts))
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({scoring, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not scoring.done():
                return Response(status_code=CLIENT_GONE)
            scores = scoring.result()
        except Overloaded as error:
            raise Refused(429, "Overloaded", str(error)) from error
        except ModelFailed as error:
            raise Refused(424, "Backend", str(error)) from error
        finally:
            scoring.cancel()
            gone.cancel()
        return JSONResponse(_ranked(parsed, scores))

    async def _body(self, request: Request, held: "_BodyBytes") -> bytes:
        """Read the body. It is refused as soon as it is too large, whatever length the client announced."""
        limit = self._limits.body
        held.unread = "expect" not in request.headers  # such a client waits for permission to send
        announced = request.headers.get("content-length", "")
        if announced.isdigit() and int(announced) > limit:
            raise Refused(413, "Validation", f"the body has {announced} bytes, the limit is {limit}")
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(self._limits.seconds_to_send):
                while True:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise _ClientGone
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

    def _parse(self, body: bytes) -> ParsedRequest:
        try:
            given = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Refused(400, "Validation", f"the body is not JSON: {error}") from error
        if not isinstance(given, dict):
            raise Refused(422, "Validation", "the body is not a JSON object")
        query, texts = given.get("query"), given.get("texts")
        if not isinstance(query, str):
            raise Refused(422, "Validation", "query must be a string")
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise Refused(422, "Validation", "texts must be a list of strings")
        if given.get("truncation_direction", "Right") not in ("Right", "right"):
            raise Refused(422, "Validation", "truncation_direction must be Right")
        flags = {name: given.get(name) for name in ("raw_scores", "return_text", "truncate")}
        for name, value in flags.items():
            if value is not None and not isinstance(value, bool):
                raise Refused(422, "Validation", f"{name} must be true or false")
        if not texts or not query.strip():
            raise Refused(400, "Empty", "`texts` cannot be empty" if not texts else "`query` cannot be empty")
        if len(texts) > self._limits.texts:
            raise Refused(413, "Validation", f"{len(texts)} texts, the limit is {self._limits.texts}")
        longest = max(len(query), *map(len, texts))
        if longest > self._limits.characters:
            raise Refused(
                413,
                "Validation",
                f"a text of {longest} characters, the limit is {self._limits.characters}",
            )
        for text in (query, *texts):
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise Refused(422, "Tokenizer", "a text holds half a surrogate pair") from error
        return ParsedRequest(
            query,
            texts,
            bool(flags["raw_scores"]),
            bool(flags["return_text"]),
            flags["truncate"] is not False,
        )

    async def _refuse_long(self, request: ParsedRequest) -> None:
        longest = int(max(await self._batcher.lengths(request.query, request.texts)))
        limit = int(self._info["max_input_length"])
        if longest > limit:
            raise Refused(
                413,
                "Validation",
                f"a pair has {longest} tokens, the limit is {limit}; set truncate to true to cut it",
            )


class _BodyBytes:
    """The bytes that one request holds while it is read or waits."""

    def __init__(self, server: _Server) -> None:
        self._server = server
        self.bytes = 0
        self.unread = False  # whether more of its body may come

    def take(self, n: int) -> None:
        """Count bytes in.

        Raises:
            Refused: this request would hold more bytes than it leaves to all others. So large bodies are refused while a
                small one still fits (dynamic thresholds, Choudhury and Hahne 1998).
        """
        self.bytes += n
        self._server._bytes += n
        if self.bytes > self._server._limits.bodies - self._server._bytes:
            raise Refused(429, "Overloaded", "too many bytes wait; try again later")

    def release(self) -> None:
        self._server._bytes -= self.bytes
        self.bytes = 0


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _ranked(request: ParsedRequest, scores: Sequence[float]) -> list[dict[str, Any]]:
    """Rank the texts, best first; ties keep the order given."""
    values = [float(score) if request.raw_scores else _sigmoid(float(score)) for score in scores]
    order = sorted(range(len(values)), key=lambda i: (-float(scores[i]), i))
    return [
        {"index": i, **({"text": request.texts[i]} if request.return_text else {}), "score": values[i]}
        for i in order
    ]


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _error(refused: Refused, unread: bool, most: int) -> Response:
    """Answer with a refusal. The connection ends if the client may still be sending its body."""
    body = {"error": refused.message, "error_type": refused.kind}
    if not unread:
        return JSONResponse(body, status_code=refused.code)
    return _Lingering(body, refused.code, most)


class _Lingering(JSONResponse):
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
