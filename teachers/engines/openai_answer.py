"""Read answers of OpenAI-compatible servers: any JSON becomes text and counts of known types."""

import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from teachers.journal.exact_json import clean

MAX_BODY = 8 << 20  # bytes of an answer, decompressed; a ranking of 1,000 passages takes a few thousand
MAX_TOKENS = 10_000_000  # a larger count is ignored
LONGEST_TOKEN = (
    32  # bytes of text on average; English takes 4 to 5, scripts with three-byte characters up to 15
)
MAX_REASON = 64  # longest finish reason kept, in characters


class BadAnswer(Exception):
    """An answer that cannot be read as a completion.

    Args:
        what: the part that is wrong.
        sent: the whole text from the server; secrets are masked before it is cut.
    """

    def __init__(self, what: str, sent: str = "") -> None:
        super().__init__(what)
        self.what, self.sent = what, sent

    def message(self, mask: Callable[[str], str]) -> str:
        """Return the error with the beginning of the server's text."""
        return mask(self.what) + (f": {mask(self.sent)[:200]}" if self.sent else "")


@dataclass(frozen=True)
class Answer:
    """A completion from a server. Counts are None if the server sent none or impossible ones.

    Attributes:
        thought: the model's thought, if the server keeps it apart from the text.
    """

    text: str
    finish_reason: str | None
    tokens_in: int | None
    tokens_out: int | None
    logprobs: dict[str, float] | None
    mean_logprob: float | None = None
    thought: str | None = None
    thought_tokens: int | None = None


def receive(response: httpx.Response) -> httpx.Response:
    """Read a streamed response, at most `MAX_BODY` bytes.

    Raises:
        BadAnswer: if a good answer is too large or cannot be decoded; for an error response the status is enough.
    """
    try:
        body = _decoded(response)
    except BadAnswer as error:
        if response.status_code < 400:
            raise
        body = str(error).encode()
    headers = [(k, v) for k, v in response.headers.multi_items() if k.lower() not in _OF_THE_BODY]
    return httpx.Response(response.status_code, headers=headers, content=body)


_OF_THE_BODY = ("content-encoding", "content-length", "transfer-encoding")
# Window bits for zlib. Some servers compress although no compression was requested.
_WINDOWS = {"gzip": 31, "x-gzip": 31, "deflate": 15}


def _decoded(response: httpx.Response) -> bytes:
    """Decompress the body up to the limit; httpx would decompress each piece without a limit."""
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity", *_WINDOWS):
        raise BadAnswer(f"the answer's content-encoding is {encoding[:60]!r}, not gzip, deflate or identity")
    unpack = zlib.decompressobj(_WINDOWS[encoding]) if encoding in _WINDOWS else None
    body = bytearray()
    try:
        for piece in response.iter_raw():
            body += unpack.decompress(piece, MAX_BODY + 1 - len(body)) if unpack is not None else piece
            if len(body) > MAX_BODY:
                raise BadAnswer(f"the answer is larger than {MAX_BODY >> 20} MB")
    except zlib.error as error:
        raise BadAnswer(f"the answer's content-encoding does not fit its bytes: {error}") from error
    if unpack is not None and not unpack.eof:
        raise BadAnswer("the answer's content-encoding does not fit its bytes: they end too early")
    return bytes(body)


def read(body: bytes, raw: bool) -> Answer:
    """Read a completion (`raw`) or a chat completion.

    Raises:
        BadAnswer: if a field is missing or of the wrong type.
    """
    answer = _object(load(body), "the answer")
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices:
        raise _unexpected("choices", choices, "a list with a choice")
    choice = _object(choices[0], "the choice")
    message = choice if raw else _object(choice.get("message"), "the message")
    text = _text(message.get("text" if raw else "content"))
    reason = choice.get("finish_reason")
    refusal = message.get("refusal")
    if not text and isinstance(refusal, str) and refusal:
        text, reason = refusal, "content_filter"
    usage = answer.get("usage")
    counts: Mapping[str, Any] = usage if isinstance(usage, dict) else {}
    thought = message.get("reasoning_content") or message.get("reasoning")
    details = counts.get("completion_tokens_details")
    return Answer(
        clean(text),
        clean(reason) if isinstance(reason, str) else None,
        _count(counts.get("prompt_tokens")),
        _count(counts.get("completion_tokens")),
        _first_position(choice.get("logprobs")),
        _mean_logprob(choice.get("logprobs")),
        clean(thought) if isinstance(thought, str) and thought else None,
        _count(details.get("reasoning_tokens")) if isinstance(details, dict) else None,
    )


def load(body: bytes) -> Any:
    """Parse JSON.

    Raises:
        BadAnswer: if it is not JSON, or too deeply nested for Python.
    """
    try:
        return json.loads(body.decode("utf-8", "replace"))
    except RecursionError as error:
        raise BadAnswer("the answer's JSON is nested too deep") from error
    except ValueError as error:
        said = str(error).partition(":")[0]
        raise BadAnswer(f"the answer is not JSON ({said})", body.decode("utf-8", "replace")) from error


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _unexpected(what, value, "an object")
    return value


def _text(content: Any) -> str:
    """Return a message's content (a string, text parts, or nothing) as text."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) == len(parts):
            return "".join(texts)
    raise _unexpected("content", content, "text")


def _count(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # NaN fails the first comparison; int() would raise an error for it.
    return int(value) if 0 <= value <= MAX_TOKENS and value == int(value) else None


def plausible_count(count: int | None, text: str, most: int) -> int | None:
    """Return a server's token count of a text; None if it is absent or impossible.

    Args:
        most: highest possible count. The lowest is one token for every :data:`LONGEST_TOKEN` bytes.
    """
    least = -(-len(text.encode("utf-8", "replace")) // LONGEST_TOKEN)
    return None if count is None or not least <= count <= most else count


def _first_position(logprobs: Any) -> dict[str, float] | None:
    """Return token text -> log-probability at the first position, from either endpoint; None if absent."""
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


def _mean_logprob(logprobs: Any) -> float | None:
    """Return the mean log-probability of a chat reply's tokens; None if one is absent or impossible."""
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(content, list) or not content:
        return None
    values = [entry.get("logprob") if isinstance(entry, dict) else None for entry in content]
    known = [
        float(value)
        for value in values
        if isinstance(value, int | float) and not isinstance(value, bool) and -1e6 < value <= 0
    ]
    return sum(known) / len(known) if len(known) == len(values) else None


def as_text(value: Any) -> str:
    """Format a value of any type for a message."""
    if value is None or isinstance(value, str):
        return value or ""
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:  # a value can be shallow enough to parse and still too deep to write
        return f"a deeply nested {type(value).__name__}"


def _unexpected(what: str, value: Any, wanted: str) -> BadAnswer:
    kind = "missing" if value is None else f"of type {type(value).__name__}"
    return BadAnswer(f"{what} is {kind}, not {wanted}", as_text(value))
