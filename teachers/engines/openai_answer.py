"""The boundary to OpenAI-compatible servers: whatever JSON comes back becomes text and counts of known types."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

MAX_BODY = 8 << 20  # bytes of an answer, decompressed; a ranking of 1,000 passages takes a few thousand
MAX_TOKENS = 10_000_000  # a larger count is no count
MAX_REASON = 64  # characters of a finish reason that are kept


class BadAnswer(Exception):
    """The server's answer cannot be read as a completion."""


@dataclass(frozen=True)
class Answer:
    """A readable answer. Counts are None where the server sent none, or sent one that cannot be true."""

    text: str
    finish_reason: str | None
    tokens_in: int | None
    tokens_out: int | None
    logprobs: dict[str, float] | None


def receive(response: httpx.Response, deadline: float) -> httpx.Response:
    """Read a streamed response whole.

    Raises:
        BadAnswer: if the body is larger than `MAX_BODY` or cannot be decoded.
        httpx.ReadTimeout: if it is not complete at `deadline` (of `time.monotonic`).
    """
    body = bytearray()
    try:
        for chunk in response.iter_bytes(65_536):
            body += chunk
            if len(body) > MAX_BODY:
                raise BadAnswer(f"the answer is larger than {MAX_BODY >> 20} MB")
            if time.monotonic() > deadline:
                raise httpx.ReadTimeout("the answer was not complete in time")
    except httpx.DecodingError as error:
        raise BadAnswer(f"the answer's content-encoding does not fit its bytes: {error}") from error
    headers = [(k, v) for k, v in response.headers.multi_items() if k.lower() not in _OF_THE_BODY]
    return httpx.Response(response.status_code, headers=headers, content=bytes(body))


_OF_THE_BODY = ("content-encoding", "content-length", "transfer-encoding")


def read(body: bytes, raw: bool) -> Answer:
    """Read a completion (`raw`) or a chat completion.

    Raises:
        BadAnswer: with the field that is missing or of the wrong type.
    """
    answer = _object(load(body), "the answer")
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices:
        raise BadAnswer(f"choices is {_shown(choices)}, not a list with a choice")
    choice = _object(choices[0], "the choice")
    message = choice if raw else _object(choice.get("message"), "the message")
    text = _text(message.get("text" if raw else "content"))
    reason = choice.get("finish_reason")
    refusal = message.get("refusal")
    if not text and isinstance(refusal, str) and refusal:
        text, reason = refusal, "content_filter"
    usage = answer.get("usage")
    counts: Mapping[str, Any] = usage if isinstance(usage, dict) else {}
    return Answer(
        clean(text),
        clean(reason)[:MAX_REASON] if isinstance(reason, str) else None,
        _count(counts.get("prompt_tokens")),
        _count(counts.get("completion_tokens")),
        _first_position(choice.get("logprobs")),
    )


def load(body: bytes) -> Any:
    """Parse JSON.

    Raises:
        BadAnswer: if it is not JSON, or nested deeper than Python follows.
    """
    try:
        return json.loads(body.decode("utf-8", "replace"))
    except RecursionError as error:
        raise BadAnswer("the answer's JSON is nested too deep") from error
    except ValueError as error:
        start = body[:200].decode("utf-8", "replace")
        raise BadAnswer(f"the answer is not JSON ({error}): {start}") from error


def clean(text: str) -> str:
    """Replace what no database text holds, half surrogate pairs and NUL, by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "\ufffd")


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadAnswer(f"{what} is {_shown(value)}, not an object")
    return value


def _text(content: Any) -> str:
    """A message's content as text: a string, parts of text, or nothing."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) == len(parts):
            return "".join(texts)
    raise BadAnswer(f"content is {_shown(content)}, not text")


def _count(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return (
        int(value) if 0 <= value <= MAX_TOKENS and value == int(value) else None
    )  # NaN fails the first test


def _first_position(logprobs: Any) -> dict[str, float] | None:
    """Token text -> log-probability at the first position, from either endpoint's form; None where there are none."""
    if not isinstance(logprobs, dict):
        return None
    content, top = logprobs.get("content"), logprobs.get("top_logprobs")
    pairs: list[tuple[Any, Any]] = []
    if isinstance(content, list) and content and isinstance(content[0], dict):
        entries = content[0].get("top_logprobs")
        for entry in entries if isinstance(entries, list) else []:
            if isinstance(entry, dict):
                pairs.append((entry.get("token"), entry.get("logprob")))
    elif isinstance(top, list) and top and isinstance(top[0], dict):
        pairs = list(top[0].items())
    found = {
        token: float(value)
        for token, value in pairs
        if isinstance(token, str) and isinstance(value, int | float) and -1e6 < value < 1e6
    }
    return found or None


def _shown(value: Any) -> str:
    return "missing" if value is None else f"{type(value).__name__} {str(value)[:60]!r}"
