"""Any number of OpenAI-compatible servers as one engine: vLLM, SGLang, llama.cpp, TGI, or a paid service.

A few threads per server send requests; each request goes to the healthy server with the fewest in flight. What a
server does to itself (refused connections, 429, 5xx) is that server's trouble: the request goes to another one or
waits, and no attempt of the call is spent. A server that keeps failing is left alone for a while (circuit breaker)
and then probed with one request. What concerns the request (a rejected prompt, an answer without a choice, no answer
in time) is reported as the call's failure.

The key comes from MSFT_API_KEY, or OPENAI_API_KEY for api.openai.com alone, and is never stored or printed.
"""

import json
import os
import queue
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx

from teachers.engines.base import Completion, Request, Sampling, completed
from teachers.engines.breaker import Breaker, retry_after
from teachers.engines.openai_answer import BadAnswer, load, read, receive
from teachers.engines.spelling import ARGUMENT, constraint
from teachers.errors import TeacherError

_KEY_LIKE = re.compile(r"\b(?:sk|pk|key)-[\w*-]{6,}")
_MOVES = 8  # servers that a request may be moved between before it counts as failed


@dataclass
class Server:
    """One base URL, without the credentials it may have carried."""

    url: str
    label: str
    client: httpx.Client
    breaker: Breaker
    in_flight: int = 0


@dataclass
class _Job:
    request: Request
    submitted: float
    moves: int = 0
    tried: set[str] = field(default_factory=set)


class _Moved(Exception):
    """A server could not take a request; another one may."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class OpenAIEngine:
    """Asks a model by its name at one or more servers.

    Args:
        model: the name that the servers know.
        base_urls: ending in ``/v1`` as a rule.
        sampling: how replies are drawn.
        in_flight: requests at once per server.
        timeout: seconds that a reply may take, from the request to its last byte.
        patience: seconds for which all servers may be down before the engine gives up.

    Raises:
        TeacherError: if no server answers, a key is refused, or no server has the model; if replies are to be
            constrained and the tokenizer is not known.
    """

    name = "openai"
    concurrent = True

    def __init__(
        self,
        model: str,
        base_urls: Sequence[str],
        sampling: Sampling,
        *,
        in_flight: int = 32,
        timeout: float = 300.0,
        patience: float = 120.0,
        tokenizer: Any = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        if sampling.constraint is not None and tokenizer is None:
            raise TeacherError(
                "replies are constrained by tokens, and the model's tokenizer is not known",
                hint="--tokenizer FOLDER or a Hugging Face id that is in the local cache; --free does without",
                exit_code=2,
            )
        self.tokenizer = tokenizer
        self.context: int | None = None
        self.capacity = in_flight * len(base_urls)
        self._model, self._sampling, self._patience = model, sampling, patience
        self._timeout = timeout
        self._per_server = in_flight
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Completion | TeacherError] = queue.SimpleQueue()
        self._change = threading.Condition()
        self._closing = False
        self._constraints: dict[tuple[tuple[str, ...], str], dict[str, Any]] = {}
        self._servers = [_server(url, timeout, transport) for url in base_urls]
        self._preflight()
        self._threads = [
            threading.Thread(target=self._work, name=f"openai-{k}", daemon=True) for k in range(self.capacity)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, requests: Sequence[Request]) -> None:
        now = time.monotonic()
        for request in requests:
            self._jobs.put(_Job(request, now))

    def poll(self, timeout: float) -> list[Completion]:
        return completed(self._done, timeout)

    def close(self) -> None:
        with self._change:
            self._closing = True
            self._change.notify_all()
        for _ in self._threads:
            self._jobs.put(None)
        for server in self._servers:
            server.client.close()

    # ------------------------------------------------------------------------------------------------- threads
    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                server = self._choose(job)
                if server is None:
                    return
                self._ask(server, job)
            except TeacherError as error:
                self._done.put(error)
            except RuntimeError as error:  # httpx: the client was closed under us
                if self._closing:
                    return
                self._done.put(TeacherError(f"the openai engine failed: {error}", exit_code=5))
            except Exception as error:  # noqa: BLE001 - a worker that ends without an answer would stop the job for good
                failure = TeacherError(
                    f"the openai engine failed: {type(error).__name__}: {error}", exit_code=5
                )
                self._done.put(failure)

    def _choose(self, job: _Job) -> Server | None:
        """Wait for a server that may be asked; None when the engine closes.

        Raises:
            TeacherError: if none could for longer than the patience.
        """
        deadline = time.monotonic() + self._patience
        with self._change:
            while not self._closing:
                now = time.monotonic()
                open_to = [
                    s for s in self._servers if s.in_flight < self._per_server and s.breaker.allows(now)
                ]
                if open_to:
                    fresh = [s for s in open_to if s.label not in job.tried] or open_to
                    server = min(fresh, key=lambda s: s.in_flight)
                    server.in_flight += 1
                    server.breaker.asked()
                    return server
                if any(s.breaker.healthy for s in self._servers):
                    deadline = now + self._patience  # busy or told to wait, not down
                if now >= deadline:
                    last = "; ".join(f"{s.label}: {s.breaker.reason}" for s in self._servers)
                    raise TeacherError(
                        f"no server has answered for {self._patience:.0f} s ({last})",
                        hint="start the server again and run the same command: completed calls are kept",
                        exit_code=5,
                    )
                waits = [s.breaker.opens_in(now) for s in self._servers]
                self._change.wait(min(max(min(waits), 0.01), 1.0))
        return None

    def _ask(self, server: Server, job: _Job) -> None:
        completion: Completion | None = None
        moved: str | None = None
        failed = False
        try:
            completion = self._post(server, job)
        except _Moved as error:
            moved = error.message
        except httpx.ReadTimeout:
            failed = True
            completion = self._failure(job, server, "no reply in time")
        except BadAnswer as error:
            completion = self._failure(job, server, str(error))
        except (httpx.RequestError, httpx.InvalidURL) as error:
            failed = True
            moved = f"{type(error).__name__}: {error}"
        finally:
            with self._change:
                server.in_flight -= 1
                if failed:
                    server.breaker.failed(moved or "no reply in time")
                self._change.notify_all()
        if completion is not None:
            self._done.put(completion)
        elif not self._closing:
            job.moves += 1
            job.tried.add(server.label)
            if job.moves < _MOVES * len(self._servers):
                self._jobs.put(job)
            else:
                self._done.put(self._failure(job, server, moved or "moved too often"))

    def _post(self, server: Server, job: _Job) -> Completion:
        request = job.request
        path = "/completions" if request.raw else "/chat/completions"
        deadline = time.monotonic() + self._timeout
        with server.client.stream("POST", server.url + path, json=self._body(server, request)) as streamed:
            response = receive(streamed, deadline)
        status = response.status_code
        if status == 200:
            with self._change:
                server.breaker.succeeded()
            return self._completion(job, server, response)
        message = self._message(response)
        if status == 429 and "insufficient_quota" not in message:
            with self._change:
                server.breaker.told_to_wait(retry_after(response.headers), f"429 {message}")
            raise _Moved(f"429 {message}")
        if status in (401, 403) or status == 429:
            raise TeacherError(
                f"{server.label} refused the key or its quota is used up: {status} {message}",
                hint="the key is read from MSFT_API_KEY (OPENAI_API_KEY for api.openai.com)",
                exit_code=5,
            )
        if status == 404:
            raise TeacherError(
                f"{server.label} does not know {self._model!r}: {message}",
                hint="--base-url ends in /v1 as a rule; --model takes the name that the server gives",
                exit_code=5,
            )
        if status >= 500 or status == 408:
            with self._change:
                server.breaker.failed(f"{status} {message}", retry_after(response.headers))
            raise _Moved(f"{status} {message}")
        failure = self._failure(job, server, f"{status} {message}")
        failure.retryable = False  # 400, 413, 422: this request is wrong for this model
        return failure

    # ------------------------------------------------------------------------------------------------ messages
    def _body(self, server: Server, request: Request) -> dict[str, Any]:
        sampling = self._sampling
        body: dict[str, Any] = {"model": self._model, "temperature": sampling.temperature}
        official = urlsplit(server.url).hostname == "api.openai.com"
        body["max_completion_tokens" if official else "max_tokens"] = request.max_tokens
        if sampling.top_p != 1.0:
            body["top_p"] = sampling.top_p
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        if sampling.constraint is not None:
            body |= self._constraint(tuple(request.identifiers), request.prefix)
        if request.raw:
            body["prompt"] = request.text
            if sampling.logprobs:
                body["logprobs"] = sampling.logprobs
            return body
        body["messages"] = [dict(message) for message in request.messages]
        if request.prefix:  # the reply goes on from it: vLLM's and SGLang's way to say so
            body["messages"].append({"role": "assistant", "content": request.prefix})
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        if sampling.logprobs:
            body |= {"logprobs": True, "top_logprobs": sampling.logprobs}
        return body

    def _constraint(self, identifiers: tuple[str, ...], prefix: str) -> dict[str, Any]:
        """What tells a vLLM server with the logits processor of teachers.engines.constrained what may be said."""
        shown = (identifiers, prefix)
        if shown not in self._constraints:
            given = constraint(self.tokenizer, identifiers, prefix, self._sampling.top)
            self._constraints[shown] = {
                "vllm_xargs": {ARGUMENT: json.dumps(given)},
                "stop_token_ids": [given["end"]],
            }
        return self._constraints[shown]

    def _completion(self, job: _Job, server: Server, response: httpx.Response) -> Completion:
        answer = read(response.content, job.request.raw)
        own_in = job.request.n_prompt_tokens
        return Completion(
            ticket=job.request.ticket,
            text=answer.text,
            finish_reason=answer.finish_reason,
            tokens_in=int(answer.tokens_in or own_in),
            tokens_out=self._n_tokens(answer.text) if answer.tokens_out is None else answer.tokens_out,
            seconds=time.monotonic() - job.submitted,
            server=server.label,
            logprobs=_by_identifier(answer.logprobs, job.request.identifiers) if answer.logprobs else None,
        )

    def _n_tokens(self, text: str) -> int:
        """Own count of a reply's tokens, for servers that send none: by the tokenizer, or four bytes a token."""
        if self.tokenizer is not None:
            return len(self.tokenizer.encode(text, add_special_tokens=False))
        return -(-len(text.encode("utf-8", "replace")) // 4)

    def _failure(self, job: _Job, server: Server, message: str) -> Completion:
        return Completion(
            ticket=job.request.ticket,
            error=_KEY_LIKE.sub("***", message),
            seconds=time.monotonic() - job.submitted,
            server=server.label,
        )

    def _message(self, response: httpx.Response) -> str:
        """What an error response says, without anything that looks like a key."""
        try:
            sent = load(response.content)
        except BadAnswer:
            sent = response.content[:2000].decode("utf-8", "replace")
        error = sent.get("error", sent) if isinstance(sent, dict) else sent
        code = error.get("code") if isinstance(error, dict) else None
        message = error.get("message") or error if isinstance(error, dict) else error
        shown = f"{str(message)[:2000]} ({str(code)[:100]})" if code else str(message)[:2000]
        return _KEY_LIKE.sub("***", " ".join(shown.split())[:500])

    def _preflight(self) -> None:
        """Ask each server for its models: that one answers, that the key holds, that the model is there."""
        reasons = []
        for server in self._servers:
            try:
                response = server.client.get(server.url + "/models", timeout=10.0)
            except (httpx.TransportError, httpx.InvalidURL) as error:
                reasons.append(f"{server.label}: {type(error).__name__}: {error}")
                server.breaker.failed(str(error))
                continue
            if response.status_code in (401, 403):
                raise TeacherError(
                    f"{server.label} refused the key: {response.status_code} {self._message(response)}",
                    hint="the key is read from MSFT_API_KEY (OPENAI_API_KEY for api.openai.com)",
                    exit_code=5,
                )
            if response.status_code == 200:
                self._check_model(server, response)
        if len(reasons) == len(self._servers):
            raise TeacherError(
                f"no server answers ({'; '.join(reasons)})",
                hint="start one: python -m vllm.entrypoints.openai.api_server --model MODEL",
                exit_code=5,
            )

    def _check_model(self, server: Server, response: httpx.Response) -> None:
        try:
            entries = load(response.content)["data"]
            known = {entry["id"]: entry for entry in entries}
        except (BadAnswer, KeyError, TypeError):
            return  # a server without a usable list: the first request will tell
        if known and self._model not in known:
            raise TeacherError(
                f"{server.label} does not serve {self._model!r}",
                hint=f"it serves {', '.join(sorted(known)[:5])}",
                exit_code=4,
            )
        limit = known.get(self._model, {}).get("max_model_len")
        if isinstance(limit, int):
            self.context = min(limit, self.context or limit)


def _server(url: str, timeout: float, transport: httpx.BaseTransport | None) -> Server:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise TeacherError(f"--base-url {url!r} is no http URL", hint="http://127.0.0.1:8000/v1", exit_code=2)
    host = parts.hostname + (f":{parts.port}" if parts.port else "")
    key = os.environ.get("MSFT_API_KEY")
    if key is None and parts.hostname == "api.openai.com":
        key = os.environ.get("OPENAI_API_KEY")
    auth = (parts.username or "", parts.password or "") if parts.username else None
    client = httpx.Client(
        timeout=httpx.Timeout(timeout, connect=10.0, pool=None),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=256),
        headers={"Authorization": f"Bearer {key}"} if key and auth is None else {},
        auth=auth,
        transport=transport,
        trust_env=parts.hostname not in ("127.0.0.1", "localhost", "::1"),
    )
    clean = urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))
    return Server(clean, host, client, Breaker())


def _by_identifier(logprobs: Mapping[str, float], identifiers: Sequence[str]) -> dict[str, float]:
    """Log-probabilities by identifier; a number that begins another one may be only its first digit, so it is left out."""
    plain: dict[str, float] = {}
    for token, value in logprobs.items():
        name = token.replace("▁", " ").replace("Ġ", " ").strip()
        plain[name] = max(value, plain.get(name, -float("inf")))
    whole = [
        name
        for name in identifiers
        if not any(other != name and other.startswith(name) for other in identifiers)
    ]
    return {name: plain[name] for name in whole if name in plain}
