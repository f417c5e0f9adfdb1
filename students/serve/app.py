"""Serve students over HTTP, for the clients of text-embeddings-inference, vLLM, Jina and Cohere.

    POST /rerank      text-embeddings-inference, and vLLM if the body has documents
    POST /v1/rerank   Jina, vLLM, Cohere's first version
    POST /v2/rerank   Cohere
    POST /score       vLLM
    GET /health, /info, /v1/models, /metrics (Prometheus), /docs, /openapi.json

:mod:`students.serve.contracts` has their requests, answers and errors. Waiting requests are scored together, a bounded
slice of each at a time, so that a large request does not delay small ones. All sizes are bounded: body, texts,
characters, and the pairs and bytes that wait. If a client disconnects, its work is dropped. Codes: 400 not JSON or
nothing to rank, 404 a model that is not served, 413 too large, 422 wrong form, 424 (500 outside of /rerank) the model
failed, 429 overloaded.
"""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from students.serve import bodies, contracts, openapi
from students.serve.batching import ModelFailed, Overloaded, Scorer
from students.serve.bodies import BodyBytes, Budget, ClientGone, Lingering
from students.serve.contracts import Asked, Contract, Limits, Refused, Scored
from students.serve.metrics import Metrics
from students.serve.models import Model, Models, Running

PARSE_IN_THREAD = 1 << 18  # larger bodies are parsed in a thread, so that they do not block the event loop
CLIENT_GONE = 499  # nginx's code, for the metrics only
Load = Callable[[], Sequence[Model] | None]


def create_app(
    scorer: Scorer, info: dict[str, Any], limits: Limits = Limits(), *, round_seconds: float = 0.25
) -> Starlette:
    """Make the application of one model, see :func:`create_app_of`."""
    return create_app_of(
        [Model(str(info.get("model_id", "model")), scorer, info)], limits, round_seconds=round_seconds
    )


def create_app_of(
    models: Sequence[Model],
    limits: Limits = Limits(),
    *,
    round_seconds: float = 0.25,
    load: Load | None = None,
) -> Starlette:
    """Make the application for an ASGI server.

    Args:
        models: the first answers requests that name no model.
        round_seconds: duration of one joint scoring. A shorter one answers small requests sooner.
        load: makes the models anew when the process gets SIGHUP; None for a failure, which keeps those that run.
    """
    server = _Server(models, limits, round_seconds, load)
    ranking = [Route(path, server.rerank, methods=["POST"]) for path in contracts.ROUTES]
    return Starlette(
        routes=[
            *ranking,
            Route("/health", server.health),
            Route("/info", server.info),
            Route("/v1/models", server.list_models),
            Route("/metrics", server.metrics_page),
            Route("/openapi.json", server.openapi_json),
            Route("/docs", server.docs),
        ],
        lifespan=server.lifespan,
    )


class _Server:
    def __init__(
        self, models: Sequence[Model], limits: Limits, round_seconds: float, load: Load | None
    ) -> None:
        self._limits = limits
        self._budget = Budget(limits)
        self._metrics = Metrics()
        self._models = Models(models, limits.waiting, self._metrics, round_seconds, load)
        self._reloads = load is not None
        self._tasks: set[asyncio.Task[bool]] = set()
        self._metrics.gauge("waiting_pairs", "Pairs that wait for a scoring", lambda: self._models.waiting)
        self._metrics.gauge(
            "bytes_in_flight", "Bytes of bodies that are read or scored", lambda: self._budget.bytes
        )

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        async with self._models.started():
            loop = asyncio.get_running_loop()
            if self._reloads:
                loop.add_signal_handler(signal.SIGHUP, self._reload)
            try:
                yield
            finally:
                if self._reloads:
                    loop.remove_signal_handler(signal.SIGHUP)
                for task in self._tasks:
                    task.cancel()

    def _reload(self) -> None:
        task = asyncio.get_running_loop().create_task(self._models.reload())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -------------------------------------------------------------------------------------------------- about it
    async def health(self, request: Request) -> Response:
        return Response(status_code=200 if self._models.alive else 503)

    async def info(self, request: Request) -> Response:
        try:
            running = self._models.named(request.query_params.get("model"))
        except Refused as refused:
            return _error(contracts.TEI, refused)
        own = {"max_client_batch_size": self._limits.texts, "max_waiting_pairs": self._limits.waiting}
        return JSONResponse(running.model.info | own | {"models": self._models.names})

    async def list_models(self, request: Request) -> Response:
        rows = [
            {
                "id": name,
                "object": "model",
                "owned_by": "msft",
                "max_model_len": self._models.named(name).model.info.get("max_input_length"),
            }
            for name in self._models.names
        ]
        return JSONResponse({"object": "list", "data": rows})

    async def metrics_page(self, request: Request) -> Response:
        return Response(self._metrics.page(), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    async def openapi_json(self, request: Request) -> Response:
        return JSONResponse(openapi.document(self._models.names, self._limits))

    async def docs(self, request: Request) -> Response:
        page = openapi.page(openapi.document(self._models.names, self._limits))
        return HTMLResponse(page, headers={"content-security-policy": openapi.POLICY})

    # --------------------------------------------------------------------------------------------------- ranking
    async def rerank(self, request: Request) -> Response:
        with self._metrics.request() as outcome:
            held = BodyBytes(self._budget)
            contract = contracts.of_path(request.url.path)
            try:
                given = await self._given(request, held)
                contract = contracts.of_request(request.url.path, given)
                response = await self._answer(request, contract, given)
            except Refused as refused:
                response = _error(contract, refused, held.unread, 4 * self._limits.body)
            except ClientGone:
                response = Response(status_code=CLIENT_GONE)
            finally:
                held.release()
            outcome.code = response.status_code
            return response

    async def _given(self, request: Request, held: BodyBytes) -> contracts.Given:
        body = await bodies.read(request, held, self._limits)
        large = len(body) > PARSE_IN_THREAD
        return await asyncio.to_thread(contracts.decode, body) if large else contracts.decode(body)

    async def _answer(self, request: Request, contract: Contract, given: contracts.Given) -> Response:
        asked = contract.parse(given, self._limits)
        running = self._models.named(asked.model)
        _check_fusion(running.model, contract, asked)
        with running.used():
            scoring = asyncio.ensure_future(_scored(running, contract, asked))
            gone = asyncio.ensure_future(bodies.disconnected(request))
            try:
                await asyncio.wait({scoring, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not scoring.done():
                    return Response(status_code=CLIENT_GONE)
                scored = scoring.result()
            except Overloaded as error:
                raise Refused(429, "Overloaded", str(error)) from error
            except ModelFailed as error:
                raise Refused(contracts.MODEL_FAILED, "Backend", str(error)) from error
            finally:
                scoring.cancel()
                gone.cancel()
        return JSONResponse(contract.answer(asked, scored))


def _check_fusion(model: Model, contract: Contract, asked: Asked) -> None:
    """Refuse first-stage scores that would be ignored, and a request without them if the server fuses.

    Raises:
        Refused: one of the two.
    """
    if asked.first_stage is not None and model.weight is None:
        raise Refused(
            422,
            "Validation",
            f"{model.name} is served without its first stage, so scores would have no effect: leave them out",
        )
    if asked.first_stage is None and model.weight is not None and contract is not contracts.SCORE:
        raise Refused(
            422,
            "Validation",
            f"scores is missing: {model.name} is fused with its first stage, send that stage's score of each text",
        )


async def _scored(running: Running, contract: Contract, asked: Asked) -> Scored:
    """Score a request: cut its texts, score each list, rank the first one."""
    model, batcher = running.model, running.batcher
    asked = await _cut(running, asked)
    if not asked.truncate:
        await _refuse_long(running, asked)
    parts = await asyncio.gather(*(batcher.score(query, texts) for query, texts in asked.lists))
    tokens = await _tokens(running, asked) if contract.usage else 0
    raw = [score for part in parts for score in part]
    order, values = model.rank(raw, asked.first_stage, as_is=asked.raw)
    none = None
    if model.none_below is not None and model.weight is None and raw:
        none = model.relevance(max(raw)) < model.none_below
    return Scored(model.name, contracts.ranking(values, order), values, tokens, none)


async def _cut(running: Running, asked: Asked) -> Asked:
    """Cut texts to the tokens that the request allows."""
    if asked.pair_tokens is None and asked.text_tokens is None:
        return asked
    lists = []
    for query, texts in asked.lists:
        most = asked.text_tokens
        if asked.pair_tokens is not None:
            most = min(await _room(running, query, asked.pair_tokens), most or asked.pair_tokens)
        lists.append((query, await running.batcher.cut(texts, int(most or 1))))
    return replace(asked, lists=lists)


async def _room(running: Running, query: str, pair_tokens: int) -> int:
    """Return the tokens that a query leaves to a text."""
    limit = int(running.model.info["max_input_length"])
    if pair_tokens > limit:
        raise Refused(
            400, "Validation", f"truncate_prompt_tokens is {pair_tokens}, the model's limit is {limit}"
        )
    taken = int((await running.batcher.lengths(query, [""]))[0])
    if taken >= pair_tokens:
        raise Refused(
            400,
            "Validation",
            f"truncate_prompt_tokens is {pair_tokens}, and the query takes {taken} with the special tokens",
        )
    return pair_tokens - taken


async def _refuse_long(running: Running, asked: Asked) -> None:
    longest = max([int(max(await running.batcher.lengths(q, texts))) for q, texts in asked.lists])
    limit = int(running.model.info["max_input_length"])
    if longest > limit:
        raise Refused(
            413,
            "Validation",
            f"a pair has {longest} tokens, the limit is {limit}; set truncate to true to cut it",
        )


async def _tokens(running: Running, asked: Asked) -> int:
    """Count the tokens that were scored."""
    limit = int(running.model.info["max_input_length"])
    counts = [await running.batcher.lengths(query, texts) for query, texts in asked.lists]
    return sum(min(int(n), limit) for part in counts for n in part)


def _error(contract: Contract, refused: Refused, unread: bool = False, most: int = 0) -> Response:
    """Answer with a refusal. The connection ends if the client may still be sending its body."""
    code, body = contract.error(refused)
    if not unread:
        return JSONResponse(body, status_code=code)
    return Lingering(body, code, most)
