"""A student behind HTTP, with the /rerank route of text-embeddings-inference: what speaks to that speaks to this.

    POST /rerank   {"query": "…", "texts": ["…", …], "raw_scores": false, "return_text": false, "truncate": true}
                   -> [{"index": 1, "score": 0.98}, …], best first; raw_scores gives the logits, else their sigmoid
    GET /health, /info, /metrics (Prometheus)

Requests that wait together are scored together, a bounded slice of each in turn, so that a large one does not hold up
the small ones. All sizes are bounded: body, texts, characters, pairs and bytes that wait. A client that goes away
takes its work with it. Errors are ``{"error": …, "error_type": …}`` with that server's codes: 400 no JSON or nothing to
rank, 413 too large, 422 not of this form, 424 the model failed, 429 overloaded.
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

PARSE_ASIDE = 1 << 18  # bodies beyond this are parsed in a thread, so that the loop goes on
SECONDS_TO_LINGER = 5.0  # for a client whose body is refused to notice
CLIENT_GONE = 499  # nginx's code; nobody is there to read it, the metrics are


@dataclass(frozen=True)
class Limits:
    """What one request, and all that wait, may take."""

    texts: int = 1000  # per request
    characters: int = 100_000  # per text
    body: int = 16_000_000  # bytes per request
    bodies: int = 64_000_000  # bytes of all requests that are being read or wait; one holds at most half
    waiting: int = 20_000  # pairs that wait, all requests together
    seconds_to_send: float = 30.0  # for a client to send its body


@dataclass(frozen=True)
class Asked:
    """A request that was understood."""

    query: str
    texts: list[str]
    raw_scores: bool
    return_text: bool
    truncate: bool


class Refused(Exception):
    """A request that is not served; its code, and what the client is told."""

    def __init__(self, code: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.code, self.kind, self.message = code, kind, message


class _Gone(Exception):
    """The client went away while it sent its body."""


def create_app(
    scorer: Scorer, info: dict[str, Any], limits: Limits = Limits(), *, round_seconds: float = 0.25
) -> Starlette:
    """The application; give it to an ASGI server.

    Args:
        info: what /info says of the model; ``max_input_length`` is the tokens per pair.
        round_seconds: how long one joint scoring should take: shorter answers small requests sooner.
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
            except _Gone:
                response = Response(status_code=CLIENT_GONE)
            finally:
                held.release()
            outcome.code = response.status_code
            return response

    async def _answer(self, request: Request, held: "_BodyBytes") -> Response:
        body = await self._body(request, held)
        aside = len(body) > PARSE_ASIDE
        asked = await asyncio.to_thread(self._parse, body) if aside else self._parse(body)
        del body
        if not asked.truncate:
            await self._refuse_long(asked)
        scoring = asyncio.ensure_future(self._batcher.score(asked.query, asked.texts))
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
        return JSONResponse(_ranked(asked, scores))

    async def _body(self, request: Request, held: "_BodyBytes") -> bytes:
        """The body, refused as soon as it is too large, whatever the client announced."""
        limit = self._limits.body
        held.unread = "expect" not in request.headers  # such a client sends nothing before it is told to
        announced = request.headers.get("content-length", "")
        if announced.isdigit() and int(announced) > limit:
            raise Refused(413, "Validation", f"the body has {announced} bytes, at most {limit} are taken")
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(self._limits.seconds_to_send):
                while True:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
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

    def _parse(self, body: bytes) -> Asked:
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
            raise Refused(413, "Validation", f"{len(texts)} texts, at most {self._limits.texts} are taken")
        longest = max(len(query), *map(len, texts))
        if longest > self._limits.characters:
            raise Refused(
                413,
                "Validation",
                f"a text of {longest} characters, at most {self._limits.characters} are taken",
            )
        for text in (query, *texts):
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise Refused(422, "Tokenizer", "a text holds half a surrogate pair") from error
        return Asked(
            query,
            texts,
            bool(flags["raw_scores"]),
            bool(flags["return_text"]),
            flags["truncate"] is not False,
        )

    async def _refuse_long(self, asked: Asked) -> None:
        longest = int(max(await self._batcher.lengths(asked.query, asked.texts)))
        limit = int(self._info["max_input_length"])
        if longest > limit:
            raise Refused(
                413,
                "Validation",
                f"a pair has {longest} tokens, the model takes {limit}; truncate: true cuts",
            )


class _BodyBytes:
    """The bytes of one request while it is read or waits."""

    def __init__(self, server: _Server) -> None:
        self._server = server
        self.bytes = 0
        self.unread = False  # whether more of its body may come

    def take(self, n: int) -> None:
        """Count bytes in.

        Raises:
            Refused: this one holds more than it leaves to all others. So however many large bodies come, each is refused
                before they leave no room for a small one (dynamic thresholds, Choudhury and Hahne 1998).
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


def _ranked(asked: Asked, scores: Sequence[float]) -> list[dict[str, Any]]:
    """Best first, ties in the order given."""
    values = [float(score) if asked.raw_scores else _sigmoid(float(score)) for score in scores]
    order = sorted(range(len(values)), key=lambda i: (-float(scores[i]), i))
    return [
        {"index": i, **({"text": asked.texts[i]} if asked.return_text else {}), "score": values[i]}
        for i in order
    ]


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _error(refused: Refused, unread: bool, most: int) -> Response:
    """The refusal; the connection ends if the client may still be sending its body."""
    body = {"error": refused.message, "error_type": refused.kind}
    if not unread:
        return JSONResponse(body, status_code=refused.code)
    return _Lingering(body, refused.code, most)


class _Lingering(JSONResponse):
    """An answer to a client that still sends: what comes is dropped for a while before the connection ends.

    A connection that is closed over unread bytes is reset, and the client may lose the answer (RFC 9112, 9.6).
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
