"""Use one or more OpenAI-compatible servers as one engine: vLLM, SGLang, llama.cpp, TGI, or a paid service.

A few threads per server send requests; each request goes to the healthy server with the fewest in flight. After a
server's failure (refused connection, 429, 5xx) the request goes to another server or waits, and the call loses no
attempt. A circuit breaker pauses a server that keeps failing, then probes it with one request. An error of the request
(a rejected prompt, an answer without a choice, no answer in time) is reported as the call's failure.

The key comes from MSFT_API_KEY, or OPENAI_API_KEY for api.openai.com alone, and is never stored or printed.
"""

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from teachers.engines.base import Completion, Request, Sampling, completed
from teachers.engines.breaker import retry_after
from teachers.engines.openai_answer import BadAnswer, load
from teachers.engines.openai_chat import Chat, error_message, failure
from teachers.engines.openai_server import Line, Server, server_at
from teachers.errors import ExitCode, TeacherError

_PREFLIGHT_SECONDS = 10.0
_MOVES = 8  # moves of a request between servers before it fails


@dataclass
class _Job:
    request: Request
    submitted: float
    moves: int = 0
    tried: set[str] = field(default_factory=set)


class _Moved(Exception):
    """Raised when a server could not take a request; another server may take it."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class OpenAIEngine:
    """Send requests for a model, by its name, to one or more servers.

    Args:
        model: the model's name on the servers.
        base_urls: servers' base URLs, which usually end in ``/v1``.
        sampling: sampling settings of replies.
        in_flight: most requests in flight per server.
        timeout: seconds from the request to the last byte of its reply.
        patience: seconds for which all servers may be down before the engine gives up.

    Raises:
        TeacherError: if no server answers, a key is refused, or no server has the model; if constrained replies are
            requested and the tokenizer is not known.
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
                hint="give --tokenizer FOLDER or a Hugging Face id in the local cache, or give --free",
                exit_code=ExitCode.USAGE,
            )
        self.tokenizer = tokenizer
        self.context: int | None = None
        self.capacity = in_flight * len(base_urls)
        self._model, self._patience = model, patience
        self._timeout = timeout
        self._per_server = in_flight
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Completion | TeacherError] = queue.SimpleQueue()
        self._change = threading.Condition()
        self._closing = False
        # Whether a server has answered with the log-probabilities that scores are read from, or without them.
        self._heard, self._mute = threading.Event(), False
        self._first = threading.Lock()
        self._chat = Chat(model, sampling, tokenizer)
        self._servers = [server_at(url, timeout, transport) for url in base_urls]
        self._lines: list[Line] = []
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
        for line in self._lines:
            line.client.close()

    # ------------------------------------------------------------------------------------------------- threads
    def _work(self) -> None:
        lines: dict[int, Line] = {}  # connections of this thread, by server
        while (job := self._jobs.get()) is not None:
            chosen: Server | None = None
            try:
                chosen = self._choose(job)
                if chosen is None:
                    return
                if id(chosen) not in lines:
                    lines[id(chosen)] = self._line(chosen)
                with self._alone(job):
                    if not self._mute:
                        self._ask(chosen, lines[id(chosen)], job)
            except TeacherError as error:
                self._done.put(error)
            except RuntimeError as error:  # httpx: another thread has closed the client
                if self._closing:
                    return
                self._done.put(self._broken(error, chosen))
            except Exception as error:  # noqa: BLE001 - a worker that ends without an answer would stop the job for good
                self._done.put(self._broken(error, chosen))

    @contextmanager
    def _alone(self, job: _Job) -> Iterator[None]:
        """Send requests for a score one at a time until one was answered with log-probabilities."""
        if not job.request.spelling or self._heard.is_set():
            yield
            return
        with self._first:
            yield

    def _line(self, chosen: Server) -> Line:
        line = chosen.line()
        self._lines.append(line)
        return line

    @staticmethod
    def _broken(error: Exception, chosen: Server | None) -> TeacherError:
        said = f"{type(error).__name__}: {error}"
        said = chosen.mask.message(said) if chosen is not None else said
        return TeacherError(f"the openai engine failed: {said}", exit_code=ExitCode.TEACHER_ENGINE)

    def _choose(self, job: _Job) -> Server | None:
        """Wait for a healthy server and return it; None when the engine closes.

        Raises:
            TeacherError: if no server is healthy for longer than `patience`.
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
                    deadline = now + self._patience  # a busy or rate-limited server is not down
                if now >= deadline:
                    last = "; ".join(f"{s.label}: {s.breaker.reason}" for s in self._servers)
                    raise TeacherError(
                        f"no server has answered for {self._patience:.0f} s ({last})",
                        hint="start the server again and run the same command: completed calls are kept",
                        exit_code=ExitCode.TEACHER_ENGINE,
                    )
                waits = [s.breaker.opens_in(now) for s in self._servers]
                self._change.wait(min(max(min(waits), 0.01), 1.0))
        return None

    def _ask(self, server: Server, line: Line, job: _Job) -> None:
        completion: Completion | None = None
        moved: str | None = None
        failed = False
        try:
            completion = self._post(server, line, job)
        except _Moved as error:
            moved = error.message
        except httpx.ReadTimeout:
            failed = True
            completion = failure(job.request, job.submitted, server, "no reply in time")
        except BadAnswer as error:
            completion = failure(job.request, job.submitted, server, error.message(server.mask.message))
        except (httpx.RequestError, httpx.InvalidURL) as error:
            failed = True
            moved = server.mask.message(f"{type(error).__name__}: {error}")
        finally:
            with self._change:
                server.in_flight -= 1
                if failed:
                    server.breaker.failed(moved or "no reply in time")
                self._change.notify_all()
        if completion is not None:
            self._done.put(completion)
            self._check_logprobs(server, job, completion)
        elif not self._closing:
            job.moves += 1
            job.tried.add(server.label)
            if job.moves < _MOVES * len(self._servers):
                self._jobs.put(job)
            else:
                self._done.put(failure(job.request, job.submitted, server, moved or "moved too often"))

    def _check_logprobs(self, server: Server, job: _Job, completion: Completion) -> None:
        """End the job if a server answers without the log-probabilities that scores are read from."""
        if not job.request.spelling or completion.error is not None:
            return
        if completion.logprobs is not None:
            self._heard.set()
            return
        self._mute = True
        self._done.put(
            TeacherError(
                f"{server.label} sends no log-probabilities, and the score of a passage is read from them",
                hint="start a server that sends them (vLLM does), or run the model here with --engine vllm",
                exit_code=ExitCode.TEACHER_ENGINE,
            )
        )

    def _post(self, server: Server, line: Line, job: _Job) -> Completion:
        request = job.request
        path = "/completions" if request.raw else "/chat/completions"
        try:
            response = line.exchange(
                "POST", server.url + path, self._timeout, self._chat.body(server.official, request)
            )
        except BadAnswer:
            self._answers(server)
            raise
        status = response.status_code
        if status < 500 and status not in (408, 429):
            self._answers(server)
        if status == 200:
            return self._chat.completion(request, job.submitted, server, response.content)
        message = error_message(server.mask, response.content)
        if status == 429 and "insufficient_quota" not in message:
            with self._change:
                server.breaker.told_to_wait(retry_after(response.headers), f"429 {message}")
            raise _Moved(f"429 {message}")
        if status in (401, 403) or status == 429:
            raise TeacherError(
                f"{server.label} refused the key or its quota is used up: {status} {message}",
                hint="set the key in MSFT_API_KEY (OPENAI_API_KEY for api.openai.com)",
                exit_code=ExitCode.TEACHER_ENGINE,
            )
        if status == 404:
            raise TeacherError(
                f"{server.label} does not know {self._model!r}: {message}",
                hint="check --base-url, which usually ends in /v1, and give the server's name of the model with --model",
                exit_code=ExitCode.TEACHER_ENGINE,
            )
        if status >= 500 or status == 408:
            with self._change:
                server.breaker.failed(f"{status} {message}", retry_after(response.headers))
            raise _Moved(f"{status} {message}")
        refused = failure(job.request, job.submitted, server, f"{status} {message}")
        refused.retryable = False  # 400, 413, 422: the model cannot take this request
        return refused

    def _answers(self, server: Server) -> None:
        with self._change:
            server.breaker.succeeded()

    def _preflight(self) -> None:
        """Ask each server for its models, to check the connection, the key and the model."""
        reasons = []
        for server in self._servers:
            try:
                response = self._models(server)
            except httpx.RequestError as error:
                said = server.mask.message(f"{type(error).__name__}: {error}")
                reasons.append(f"{server.label}: {said}")
                server.breaker.failed(said)
                continue
            except BadAnswer:
                continue  # an unusable list: the first request will show whether the server works
            if response.status_code in (401, 403):
                raise TeacherError(
                    f"{server.label} refused the key: {response.status_code} {error_message(server.mask, response.content)}",
                    hint="set the key in MSFT_API_KEY (OPENAI_API_KEY for api.openai.com)",
                    exit_code=ExitCode.TEACHER_ENGINE,
                )
            if response.status_code == 200:
                self._check_model(server, response)
        if len(reasons) == len(self._servers):
            raise TeacherError(
                f"no server answers ({'; '.join(reasons)})",
                hint="start one: python -m vllm.entrypoints.openai.api_server --model MODEL",
                exit_code=ExitCode.TEACHER_ENGINE,
            )

    @staticmethod
    def _models(server: Server) -> httpx.Response:
        line = server.line()
        try:
            return line.exchange("GET", server.url + "/models", _PREFLIGHT_SECONDS)
        finally:
            line.client.close()

    def _check_model(self, server: Server, response: httpx.Response) -> None:
        try:
            sent = load(response.content)
        except BadAnswer:
            sent = None
        entries = sent.get("data") if isinstance(sent, dict) else None
        known = {
            entry["id"]: entry
            for entry in (entries if isinstance(entries, list) else [])
            if isinstance(entry, dict) and isinstance(entry.get("id"), str)
        }
        if not known:
            return  # an unusable list: the first request will show whether the server has the model
        if self._model not in known:
            names = server.mask.message(", ".join(sorted(known)[:5]))[:500]
            raise TeacherError(
                f"{server.label} does not serve {self._model!r}",
                hint=f"it serves {names}",
                exit_code=ExitCode.DATA_MISSING,
            )
        limit = known[self._model].get("max_model_len")
        if isinstance(limit, int) and not isinstance(limit, bool) and limit > 0:
            self.context = min(limit, self.context or limit)
