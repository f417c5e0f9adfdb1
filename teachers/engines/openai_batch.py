"""Ask through a provider's batch interface: files of requests that are answered within a day, for half the price.

`submit` gathers requests; `poll` sends them as a file once no more come, then looks after its batches from time to time. What
is sent is kept in a record on disk *before* it can cost anything, so a job that was ended, or a machine that was switched off,
finds its batches again and reads their answers; nothing is sent twice. A batch that expired half done gives the answers that it
has; the rest is sent anew by the next run of the same command.

The interface is OpenAI's: ``POST /files``, ``POST /batches``, ``GET /batches/ID``, ``GET /files/ID/content``.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import httpx

from teachers.engines.base import Completion, Request, Sampling
from teachers.engines.openai_answer import BadAnswer
from teachers.engines.openai_chat import Chat, error_message, failure
from teachers.engines.openai_server import Server, server_at
from teachers.errors import ExitCode, TeacherError

IN_FLIGHT = 20_000  # requests that are gathered; a file has 50,000 at most
MOST_BYTES = 100 << 20  # of a file; providers take 200 MB
PATIENCE = 3600.0  # seconds for which the provider may be out of reach while its batches go on
_FIRST, _LONGEST = 2.0, 60.0  # seconds between two looks at a batch
_ENDED = {"completed", "expired", "cancelled", "failed"}
_PATHS = {True: "/v1/completions", False: "/v1/chat/completions"}  # by Request.raw


@dataclass
class _Batch:
    """A batch that the provider has, and the requests of this job that wait for its answers."""

    name: str
    waiting: dict[str, tuple[Request, float]] = field(
        default_factory=dict
    )  # by key; with the time of submission


class OpenAIBatchEngine:
    """One model of a provider, through batches.

    Args:
        model: the model's name at the provider.
        base_url: usually ends in ``/v1``.
        folder: where the record of batches is kept, beside the store.
        in_flight: most requests that are gathered or wait.
        timeout: seconds of one exchange with the provider.

    Raises:
        TeacherError: if the record cannot be read.
    """

    name = "openai-batch"
    concurrent = True

    def __init__(
        self,
        model: str,
        base_url: str,
        sampling: Sampling,
        *,
        folder: Path,
        in_flight: int | None = None,
        timeout: float = 300.0,
        tokenizer: Any = None,
        transport: httpx.BaseTransport | None = None,
        pauses: tuple[float, float] = (_FIRST, _LONGEST),
    ) -> None:
        self.tokenizer, self.capacity = tokenizer, in_flight or IN_FLIGHT
        self.context: int | None = None
        self._chat = Chat(model, sampling, tokenizer)
        self._server: Server = server_at(base_url, timeout, transport)
        self._client = self._server.line().client
        self._record = Record(folder, f"{self._server.url} {model}")
        self._gathered: dict[str, tuple[Request, float]] = {}
        self._batches: dict[str, _Batch] = {}
        self._error: TeacherError | None = None
        self._pauses, self._pause, self._next_look = pauses, pauses[0], 0.0
        self._reached = time.monotonic()
        self._adopt()

    # ------------------------------------------------------------------------------------------------- the interface
    def submit(self, requests: Sequence[Request]) -> None:
        now = time.monotonic()
        for request in requests:
            sent = self._record.sent.get(request.key, [])
            if request.attempt > len(sent):
                self._gathered[request.key] = (request, now)
            else:  # an earlier job sent this attempt, and ended before it had the answer
                name = sent[request.attempt - 1]
                batch = self._batches.setdefault(name, _Batch(name))
                batch.waiting[request.key] = (request, now)
                self._next_look = 0.0

    def poll(self, timeout: float) -> list[Completion]:
        if self._error is not None:
            raise self._error
        if self._gathered and (timeout > 0 or len(self._gathered) >= self.capacity):
            self._send()
        now = time.monotonic()
        waiting = any(batch.waiting for batch in self._batches.values())
        if not waiting or now < self._next_look:
            time.sleep(min(timeout, max(self._next_look - now, 0.0) if waiting else timeout))
            return []
        found = [
            done for batch in list(self._batches.values()) if batch.waiting for done in self._look(batch)
        ]
        self._pause = self._pauses[0] if found else min(2 * self._pause, self._pauses[1])
        self._next_look = time.monotonic() + self._pause
        if not found and self._error is not None:
            raise self._error
        return found

    def close(self) -> None:
        self._client.close()

    # ------------------------------------------------------------------------------------------------------- sending
    def _send(self) -> None:
        for raw in (False, True):
            requests = [request for request, _ in self._gathered.values() if request.raw == raw]
            for part in self._parts(requests):
                self._send_file(part, raw)
        self._gathered.clear()
        self._next_look, self._pause = 0.0, self._pauses[0]

    def _parts(self, requests: Sequence[Request]) -> Iterator[list[tuple[str, bytes]]]:
        """Divide requests into files: lists of (key, line)."""
        part: list[tuple[str, bytes]] = []
        size = 0
        for request in requests:
            body = self._chat.body(self._server.official, request)
            line = {"custom_id": request.key, "method": "POST", "url": _PATHS[request.raw], "body": body}
            data = json.dumps(line).encode() + b"\n"
            if part and (size + len(data) > MOST_BYTES or len(part) >= 50_000):
                yield part
                part, size = [], 0
            part.append((request.key, data))
            size += len(data)
        if part:
            yield part

    def _send_file(self, part: Sequence[tuple[str, bytes]], raw: bool) -> None:
        """Upload a file and begin its batch; the record knows the file before the batch begins."""
        with tempfile.TemporaryFile() as file:
            file.writelines(line for _, line in part)
            file.seek(0)
            sent = self._exchange(
                "POST", "/files", data={"purpose": "batch"}, files={"file": ("requests.jsonl", file)}
            )
        file_id = self._id(sent, "the file")
        keys = [key for key, _ in part]
        self._record.add({"file": file_id, "keys": keys})
        begun = self._exchange(
            "POST", "/batches",
            json={"input_file_id": file_id, "endpoint": _PATHS[raw], "completion_window": "24h"},
        )  # fmt: skip
        name = self._id(begun, "the batch")
        self._record.add({"file": file_id, "batch": name})
        self._batches[name] = _Batch(name, {key: self._gathered[key] for key in keys})

    def _adopt(self) -> None:
        """Find the batches of files that were sent by a job that ended before it knew their names."""
        lost = self._record.without_batch()
        if not lost:
            return
        listed = self._exchange("GET", "/batches", params={"limit": 100}).get("data")
        names = {
            batch.get("input_file_id"): batch.get("id")
            for batch in (listed if isinstance(listed, list) else [])
            if isinstance(batch, dict)
        }
        for file_id in lost:
            if isinstance(names.get(file_id), str):
                self._record.add({"file": file_id, "batch": names[file_id]})
            else:
                self._record.add({"file": file_id, "lost": True})

    # ------------------------------------------------------------------------------------------------------- answers
    def _look(self, batch: _Batch) -> list[Completion]:
        """Read a batch's answers if it has ended."""
        state = self._reachable(f"/batches/{batch.name}")
        if state is None or state.get("status") not in _ENDED:
            return []
        found: list[Completion] = []
        for name in ("output_file_id", "error_file_id"):
            if isinstance(state.get(name), str):
                for line in self._lines(str(state[name])):
                    self._read(batch, line, found)
        left = list(batch.waiting)
        batch.waiting.clear()
        if left:
            self._record.add({"batch": batch.name, "again": left})
            self._error = self._unanswered(batch.name, state, len(left), len(found))
        return found

    def _read(self, batch: _Batch, line: dict[str, Any], found: list[Completion]) -> None:
        """Read a line of a batch's files: a completion, a failure, or a request that expired."""
        key, error, response = line.get("custom_id"), line.get("error"), line.get("response")
        if key not in batch.waiting:
            return
        code = error.get("code") if isinstance(error, dict) else None
        if code in ("batch_expired", "batch_cancelled"):
            return  # it was not answered, and it costs nothing
        request, submitted = batch.waiting.pop(key)
        status = response.get("status_code") if isinstance(response, dict) else None
        content = json.dumps(response.get("body") if isinstance(response, dict) else error).encode()
        if status == 200:
            try:
                done = self._chat.completion(request, submitted, self._server, content)
            except BadAnswer as bad:
                done = failure(request, submitted, self._server, bad.message(self._server.mask.message))
        else:
            said = error_message(self._server.mask, content)
            done = failure(request, submitted, self._server, f"{status or code or 'no status'} {said}")
            done.retryable = status is None or status >= 500 or status in (408, 429)
        found.append(done)
        if request.spelling and done.error is None and done.logprobs is None:
            self._error = TeacherError(
                f"{self._server.label} sends no log-probabilities, and the score of a passage is read from them",
                hint="choose a model that has them, or run it here with --engine vllm",
                exit_code=ExitCode.TEACHER_ENGINE,
            )

    def _unanswered(self, name: str, state: dict[str, Any], left: int, answered: int) -> TeacherError:
        status = state.get("status")
        errors = state.get("errors")
        listed = errors.get("data") if isinstance(errors, dict) else None
        first = listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], dict) else {}
        said = self._server.mask.message(str(first.get("message") or ""))[:300]
        what = f"ended ({status})" if status == "completed" else str(status)
        return TeacherError(
            f"batch {name} {what}: {left:,} of its {left + answered:,} requests have no answer"
            + (f": {said}" if said else ""),
            hint="run the same command again: the answers that it has are kept, and the rest is sent anew",
            exit_code=ExitCode.TEACHER_ENGINE,
        )

    def _lines(self, file_id: str) -> Iterator[dict[str, Any]]:
        """Yield the objects of a file at the provider, which may be larger than memory."""
        with tempfile.TemporaryFile() as file:
            try:
                with self._client.stream("GET", f"{self._server.url}/files/{file_id}/content") as response:
                    if response.status_code != 200:
                        response.read()
                        raise self._refused(response, f"the answers {file_id}")
                    for piece in response.iter_bytes():
                        file.write(piece)
            except httpx.RequestError as error:
                raise self._out_of_reach(error) from error
            file.seek(0)
            yield from _objects(file)

    # ----------------------------------------------------------------------------------------------------- exchanges
    def _reachable(self, path: str) -> dict[str, Any] | None:
        """Ask for a batch; None while the provider is out of reach, which its batches outlive.

        Raises:
            TeacherError: if it has been out of reach for `PATIENCE`.
        """
        try:
            found = self._exchange("GET", path)
        except TeacherError as error:
            passing = isinstance(error.__cause__, httpx.RequestError | _Passing)
            if not passing or time.monotonic() - self._reached > PATIENCE:
                raise
            return None
        self._reached = time.monotonic()
        return found

    def _exchange(self, method: str, path: str, **sent: Any) -> dict[str, Any]:
        """Send a request and return the object of its answer.

        Raises:
            TeacherError: if the provider cannot be reached, refuses, or answers with something else.
        """
        try:
            response = self._client.request(method, self._server.url + path, **sent)
        except httpx.RequestError as error:
            raise self._out_of_reach(error) from error
        if response.status_code >= 400:
            raise self._refused(response, path) from (
                _Passing() if response.status_code >= 500 or response.status_code == 429 else None
            )
        try:
            found = response.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise TeacherError(
                f"{self._server.label} answers {path} with something else than a JSON object",
                hint="check --base-url, which usually ends in /v1",
                exit_code=ExitCode.TEACHER_ENGINE,
            )
        return found

    def _out_of_reach(self, error: httpx.RequestError) -> TeacherError:
        said = self._server.mask.message(f"{type(error).__name__}: {error}")
        return TeacherError(
            f"{self._server.label} cannot be reached: {said}",
            hint="run the same command again later: batches go on at the provider, and none is sent twice",
            exit_code=ExitCode.TEACHER_ENGINE,
        )

    def _refused(self, response: httpx.Response, what: str) -> TeacherError:
        status, said = response.status_code, error_message(self._server.mask, response.content)
        if status in (401, 403):
            hint = "set the key in MSFT_API_KEY (OPENAI_API_KEY for api.openai.com)"
        elif status in (404, 405):
            hint = "ask a server without a batch interface with --engine openai"
        else:
            hint = "run the same command again later: batches go on at the provider, and none is sent twice"
        return TeacherError(
            f"{self._server.label} refused {what}: {status} {said}",
            hint=hint,
            exit_code=ExitCode.TEACHER_ENGINE,
        )

    def _id(self, sent: dict[str, Any], what: str) -> str:
        found = sent.get("id")
        if not isinstance(found, str) or not found:
            raise TeacherError(
                f"{self._server.label} gave {what} no id", hint="ask it with --engine openai",
                exit_code=ExitCode.TEACHER_ENGINE,
            )  # fmt: skip
        return found


class _Passing(Exception):
    """The cause of an error that may pass: the provider is overloaded or out of order."""


class Record:
    """What was sent to a provider for a model: lines of JSON that are on disk before the next step.

    A line is ``{"file", "keys"}`` (a file of requests was uploaded), ``{"file", "batch"}`` (its batch began), ``{"file", "lost"}``
    (it did not begin), or ``{"batch", "again"}`` (these keys have no answer there, and are sent anew if they are asked for).

    Attributes:
        sent: by key, the batches of its first, second … attempt.
    """

    def __init__(self, folder: Path, of: str) -> None:
        self.path = folder / f"{hashlib.blake2b(of.encode(), digest_size=8).hexdigest()}.jsonl"
        self.sent: dict[str, list[str]] = {}
        self._keys: dict[str, list[str]] = {}  # by file
        self._batches: dict[str, str] = {}  # by file
        if self.path.is_file():
            with self.path.open("rb") as file:
                for line in _objects(file):
                    self._take(line)
            if not self.path.read_bytes().endswith(b"\n"):  # a job was ended while it wrote: begin a new line
                with self.path.open("ab") as file:
                    file.write(b"\n")

    def add(self, line: dict[str, Any]) -> None:
        """Write a line through to the disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._take(line)

    def without_batch(self) -> list[str]:
        """Return the files whose batch is not known."""
        return [file_id for file_id in self._keys if file_id not in self._batches]

    def _take(self, line: dict[str, Any]) -> None:
        if "again" in line:
            for key in line["again"]:
                if line["batch"] in self.sent.get(key, []):
                    self.sent[key].remove(line["batch"])
        elif "lost" in line:
            self._keys.pop(line["file"], None)
        elif "batch" in line:
            self._batches[line["file"]] = line["batch"]
            for key in self._keys.get(line["file"], []):
                self.sent.setdefault(key, []).append(line["batch"])
        else:
            self._keys[line["file"]] = line["keys"]


def _objects(file: IO[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of JSON lines; a line that was cut off, and what is no object, is left out."""
    for line in file:
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            yield found
